"""From integer products to crossbars: the lowering rules that ``map-crossbars`` applies."""

from __future__ import annotations

from dataclasses import dataclass, field

from imcc.backends.crossbar.dialect import MatrixType, Mvm, Program
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.dialects import core, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, FunctionResult, State
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.rules import LOWER


@dataclass
class Mapping:
    """What lowering rules share: the target, the function that programs, matrices made so far."""

    target: CrossbarTarget
    deploy: Function
    states: dict[tuple[str, int], str] = field(default_factory=dict)
    """State of each (weight resource, groups)."""
    results: list[tuple[Value, str]] = field(default_factory=list)
    streams: set[str] = field(default_factory=set)

    def stream(self, wanted: str) -> str:
        """A name of random draws that nothing else uses."""
        made, number = wanted, 0
        while made in self.streams:
            number += 1
            made = f"{wanted}.{number}"
        self.streams.add(made)
        return made

    def matrix(self, rewriter: Rewriter, op: quant.Linear | quant.Conv, groups: int) -> str:
        """The state that holds the op's weights; its programming is added to ``@deploy``."""
        source = op.weight.owner
        if not isinstance(source, core.Constant):
            raise op.fail("the weight is not a constant")
        key = (str(source.value), groups)
        if key in self.states:
            return self.states[key]
        base = str(source.value).removesuffix(".codes")
        if groups > 1 and any(name == str(source.value) for name, _ in self.states):
            base = f"{base}.groups{groups}"
        array = self.target.keys.array
        convolution = isinstance(op, quant.Conv) and array.kernel_mapping == "per_position"
        constant = core.Constant.of(source.value, tensor(op.weight), scope=op.scope)
        rewriter.append(self.deploy, constant)
        program = Program(
            codes=constant.y,
            groups=groups,
            cell_bits=array.cell_bits,
            encoding=array.encoding,
            array_rows=array.rows,
            array_columns=array.columns,
            row_order="position" if convolution else "channel",
            packing=array.grouped if groups > 1 else "separate",
            stream=self.stream(f"{base}.write"),
            scope=op.scope,
            loc=op.loc,
        )
        rewriter.append(self.deploy, program)
        name = f"{base}.cells"
        rewriter.add_state(State(name, program.matrix.type))
        self.states[key] = name
        self.results.append((program.matrix, name))
        return name

    def finish(self, rewriter: Rewriter) -> None:
        """End ``@deploy``: it returns every matrix as the new value of its state."""
        rewriter.append(self.deploy, core.Return(values=tuple(value for value, _ in self.results)))
        results = [FunctionResult(value.type, name) for value, name in self.results]
        rewriter.set_results(self.deploy, results)


@LOWER.register(quant.Linear, quant.Conv, backend="crossbar")
def _product(op: quant.Linear | quant.Conv, rewriter: Rewriter, mapping: Mapping) -> None:
    function = op.parent
    if function is None:
        raise ValueError("the op is not in a function")
    groups = 1
    kernel: tuple[int, ...] = ()
    stride, padding, dilation = kernel, kernel, kernel
    if isinstance(op, quant.Conv):
        groups, stride, padding, dilation = op.groups, op.stride, op.padding, op.dilation
        kernel = tuple(size for size in tensor(op.weight).shape[2:] if isinstance(size, int))
    state = mapping.matrix(rewriter, op, groups)
    kind = rewriter.module.states[state].type
    if not isinstance(kind, MatrixType):
        raise TypeError(f"state @{state} is no matrix")
    handle = function.state_argument(state)
    if handle is None:
        handle = rewriter.add_argument(function, kind, state, state)
    keys = mapping.target.keys
    new: list[Op] = []
    weight_zero = op.weight_zero_point
    if weight_zero is not None and not tensor(weight_zero).shape:
        spread = core.Expand(x=weight_zero, shape=(kind.columns,))
        new.append(spread)
        weight_zero = spread.y
    made = Mvm(
        x=op.x,
        matrix=handle,
        x_zero_point=op.x_zero_point,
        weight_zero_point=weight_zero,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        input_bits=tensor(op.x).quant.bits,
        dac_bits=keys.dac.bits,
        adc_bits=keys.adc.bits,
        adc_step=mapping.target.initial_step(kind.run_rows),
        converts=keys.adc.converts if kind.paired else "column",
        stream=mapping.stream(f"{op.scope or state}.read"),
    )
    rewriter.replace(op, [*new, made], made.y)


def erase_unused(function: Function, rewriter: Rewriter) -> None:
    """Erase constants that only fed products."""
    for op in list(function.ops):
        if isinstance(op, core.Constant) and not op.y.users:
            rewriter.erase(op, "its codes are programmed by @deploy")


def matrix_ops(function: Function) -> list[Op]:
    """Ops of a function that occupy crossbars."""
    return [op for op in function.ops if isinstance(op, (Program, Mvm))]
