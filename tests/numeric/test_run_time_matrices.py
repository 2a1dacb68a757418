"""Matrices written at run time: integer meaning, write noise against theory, keys of the draws."""

import pytest
import torch

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.ir import parse_module
from imcc.ir.rewriting import Rewriter
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore

ON = ("dynamic.matrices=crossbar", "adc.bits=12")
QUIET = (*ON, "device.write_noise.sigma_fraction=0.0", "device.read_noise.sigma_fraction=0.0")


def shape_text(shape):
    return "x".join(map(str, shape))


def mapped(a, b, y, target, *, a_code="s8", b_code="s8", zeros=()):
    """A product of two activations, lowered; ``zeros`` are the operands with a zero point."""
    kinds = {"a": a_code, "b": b_code}
    types = {
        name: f"tensor<{shape_text(shape)}xq<{kinds[name]}"
        + (", asymmetric>>" if name in zeros else ">>")
        for name, shape in (("a", a), ("b", b))
    }
    text = f"""// imc 1
module @m phase("optimized") sizes(S=5) {{
  {"".join(f"resource @{n} : tensor<i32>" + chr(10) for n in zeros)}
  func @inference(%a: {types["a"]}, %b: {types["b"]}) -> tensor<{shape_text(y)}xi32> {{
    {"".join(f"%z{n} = core.constant {{value = @{n}}} : tensor<i32>" + chr(10) for n in zeros)}
    %y = quant.matmul %a, %b{"".join(f", {n}_zero_point=%z{n}" for n in zeros)} {{scope = "attn"}}
      : tensor<{shape_text(y)}xi32>
    core.return %y
  }}
}}
"""
    return parse_module(text), target


def lower(module, target):
    # The result of a read is a float: the product alone, without what would rescale it.
    backend = find_backend("crossbar")
    backend.load_rules()
    neutral = module.clone()
    op = next(op for op in module.walk() if op.name == "quant.matmul")
    from imcc.backends.crossbar.lowering import Mapping
    from imcc.ir.module import Function, FunctionResult
    from imcc.ir.rules import LOWER

    assert backend.legal(op, target) is None
    rewriter = Rewriter(module)
    deploy = rewriter.add_function(Function("deploy"))
    LOWER.find("quant.matmul", "crossbar")(op, rewriter, Mapping(target, deploy))
    inference = module.function()
    last = inference.terminator
    rewriter.set_results(inference, [FunctionResult(v.type, None) for v in last.operands])
    return neutral, module


CASES = {
    "heads": (("B", 2, 5, 7), ("B", 2, 7, 9), ("B", 2, 5, 9)),
    "grouped heads": (("B", 2, 3, 5, 7), ("B", 2, 1, 7, 9), ("B", 2, 3, 5, 9)),
    "batch times heads": (("2*B", 5, 7), ("2*B", 7, 9), ("2*B", 5, 9)),
    "time first": ((3, "B", 2, 5, 7), (3, "B", 2, 7, 9), (3, "B", 2, 5, 9)),
    "sequence": (("B", 2, "S", 7), ("B", 2, 7, "S"), ("B", 2, "S", "S")),
    "deep": (("B", 1, 2, 300), ("B", 1, 300, 40), ("B", 1, 2, 40)),
    "shared by all heads": (("B", 3, 5, 7), ("B", 1, 7, 9), ("B", 3, 5, 9)),
}


def sample(shape, code, batch, generator):
    sizes = [{"B": batch, "2*B": 2 * batch, "S": 5}.get(size, size) for size in shape]
    bits = int(code[1:])
    top = 2 ** (bits - 1) if code[0] == "s" else 2**bits
    low = 1 - top if code[0] == "s" else 0
    return torch.randint(low, top, sizes, generator=generator).float()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("array.encoding=offset",),
        ("array.encoding=bias_column", "array.cell_bits=1"),
        ("array.encoding=sign_arrays",),
        ("adc.converts=pair",),
        ("dac.bits=2", "adc.bits=14"),
        ("dynamic.array.rows=16", "dynamic.array.columns=20", "dynamic.array.encoding=offset"),
    ],
)
def test_reads_are_the_integer_product(case, settings):
    target = find_target("rram", (*QUIET, *settings))
    neutral, module = lower(*mapped(*CASES[case], target))
    generator = torch.Generator().manual_seed(1)
    a, b = (sample(shape, "s8", 3, generator) for shape in CASES[case][:2])
    wanted = a.double() @ b.double()
    held = evaluate_function(neutral.function(), (a, b), resources=ResourceStore()).outputs[0]
    assert torch.equal(held.double(), wanted)
    read = next(op for op in module.walk() if op.name == "xbar.matmul")
    # A step of half a level loses nothing, but takes the simulated read instead of the product.
    for step in (1.0, 0.5):
        Rewriter(module).set_attributes(read, adc_step=step, adc_bits=16)
        for draws in (None, Draws(0, (0,), (0, 1, 2))):
            made = evaluate_function(
                module.function(),
                (a, b),
                resources=ResourceStore(),
                backend="crossbar",
                target=target,
                draws=draws,
            ).outputs[0]
            assert made.shape == wanted.shape
            assert torch.equal(made.double(), wanted)


@pytest.mark.parametrize("zeros", [("a",), ("b",), ("a", "b")])
@pytest.mark.parametrize("encoding", ["differential", "offset"])
@pytest.mark.parametrize("dac", [1, 2])
def test_zero_points_are_taken_off(zeros, encoding, dac):
    settings = (f"array.encoding={encoding}", f"dac.bits={dac}", "adc.bits=14")
    target = find_target("rram", (*QUIET, *settings))
    codes = {name: "u8" if name in zeros else "s8" for name in "ab"}
    _, module = lower(
        *mapped(*CASES["heads"], target, a_code=codes["a"], b_code=codes["b"], zeros=zeros)
    )
    generator = torch.Generator().manual_seed(2)
    a = sample(CASES["heads"][0], codes["a"], 2, generator)
    b = sample(CASES["heads"][1], codes["b"], 2, generator)
    store = ResourceStore()
    shifts = {"a": 0, "b": 0} | {name: 100 + index for index, name in enumerate(zeros)}
    for name in zeros:
        store.put(name, torch.tensor(shifts[name], dtype=torch.int32))
    wanted = (a.double() - shifts["a"]) @ (b.double() - shifts["b"])
    read = next(op for op in module.walk() if op.name == "xbar.matmul")
    for step in (1.0, 0.5):
        Rewriter(module).set_attributes(read, adc_step=step, adc_bits=16)
        made = evaluate_function(
            module.function(), (a, b), resources=store, backend="crossbar", target=target
        ).outputs[0]
        assert torch.equal(made.double(), wanted)
