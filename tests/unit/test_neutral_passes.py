"""canonicalize, fold-batch-norm and dead-code: what they change, what they leave and why."""

import pytest
import torch
from torch import nn

from imcc.frontend.capture import capture
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text import parse_module
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline


def apply(pipeline, module, resources=None):
    context = PassContext(resources=resources)
    return run_pipeline(module, parse_pipeline(pipeline), context)


def names(module):
    return [op.name for op in module.walk() if not op.terminator]


def parsed(result, *lines, arguments="%x: tensor<Bx2x3xf32>", resources=()):
    body = "\n".join(
        [
            'module @m phase("captured") {',
            *resources,
            f"func @inference({arguments}) -> {result} {{",
            *lines,
            "core.return %y",
            "}",
            "}",
        ]
    )
    module = parse_module("// imc 1\n" + body)
    verify(module)
    return module


def evaluate(module, x, resources=None):
    store = resources if resources is not None else ResourceStore()
    return evaluate_function(module.function(), [x], resources=store).outputs[0]


STRUCTURE = {
    "reshapes": (
        "tensor<Bx3x2xf32>",
        [
            "%a = core.reshape %x {shape = [B, 6]} : tensor<Bx6xf32>",
            "%y = core.reshape %a {shape = [B, 3, 2]} : tensor<Bx3x2xf32>",
        ],
        ["core.reshape"],
    ),
    "reshape and back": (
        "tensor<Bx2x3xf32>",
        [
            "%a = core.reshape %x {shape = [6*B]} : tensor<6*Bxf32>",
            "%y = core.reshape %a {shape = [B, 2, 3]} : tensor<Bx2x3xf32>",
        ],
        [],
    ),
    "permutations": (
        "tensor<2x3xBxf32>",
        [
            "%a = core.permute %x {axes = [2, 0, 1]} : tensor<3xBx2xf32>",
            "%y = core.permute %a {axes = [2, 0, 1]} : tensor<2x3xBxf32>",
        ],
        ["core.permute"],
    ),
    "permute and back": (
        "tensor<Bx2x3xf32>",
        [
            "%a = core.permute %x {axes = [2, 0, 1]} : tensor<3xBx2xf32>",
            "%y = core.permute %a {axes = [1, 2, 0]} : tensor<Bx2x3xf32>",
        ],
        [],
    ),
    "concat of one, pad of nothing, relu twice": (
        "tensor<Bx2x3xf32>",
        [
            "%a = core.concat %x {axis = 1} : tensor<Bx2x3xf32>",
            "%b = core.pad %a {before = [0, 0, 0], after = [0, 0, 0]} : tensor<Bx2x3xf32>",
            "%c = nn.relu %b : tensor<Bx2x3xf32>",
            "%y = nn.relu %c : tensor<Bx2x3xf32>",
        ],
        ["nn.relu"],
    ),
    "a reshape that others read stays": (
        "tensor<Bx6xf32>",
        [
            "%a = core.reshape %x {shape = [B, 6]} : tensor<Bx6xf32>",
            "%b = core.reshape %a {shape = [B, 3, 2]} : tensor<Bx3x2xf32>",
            "%c = core.reshape %b {shape = [B, 6]} : tensor<Bx6xf32>",
            "%y = core.add %a, %c : tensor<Bx6xf32>",
        ],
        ["core.reshape", "core.reshape", "core.add"],
    ),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure_becomes_canonical(name):
    result, lines, expected = STRUCTURE[name]
    module = parsed(result, *lines)
    x = torch.randn(4, 2, 3)
    before = evaluate(module, x)
    apply("canonicalize, dead-code", module)
    assert names(module) == expected
    assert torch.equal(evaluate(module, x), before)
    apply("canonicalize", module)
    assert names(module) == expected


@pytest.mark.parametrize(
    ("op", "number", "dropped"),
    [
        ("multiply", 1.0, True),
        ("divide", 1.0, True),
        ("subtract", 0.0, True),
        ("subtract", -0.0, False),
        ("add", 0.0, False),
        ("multiply", 2.0, False),
    ],
)
def test_only_exact_neutral_operands_are_dropped(op, number, dropped):
    store = ResourceStore()
    held = store.put("n", torch.tensor(number))
    module = parsed(
        "tensor<Bx2x3xf32>",
        "%n = core.constant {value = @n} : tensor<f32>",
        f"%y = core.{op} %x, %n : tensor<Bx2x3xf32>",
        resources=[f'resource @n : tensor<f32> sha256("{held.sha256}")'],
    )
    x = torch.tensor([[[0.0, -0.0, 1.0], [-1.0, float("inf"), 2.0]]])
    before = evaluate(module, x, store)
    apply("canonicalize, dead-code", module, store)
    after = evaluate(module, x, store)
    assert (f"core.{op}" not in names(module)) == dropped
    assert torch.equal(before, after) and torch.equal(before.signbit(), after.signbit())
    assert ("n" not in module.resources) == dropped


def test_constants_of_one_resource_are_merged_and_equal_ones_are_not():
    store = ResourceStore()
    resources = [f"resource @{name} : {store.put(name, torch.ones(3)).type}" for name in "ab"]
    module = parsed(
        "tensor<Bx2x3xf32>",
        "%a = core.constant {value = @a} : tensor<3xf32>",
        "%b = core.constant {value = @b} : tensor<3xf32>",
        "%c = core.constant {value = @a} : tensor<3xf32>",
        "%p = core.add %x, %a : tensor<Bx2x3xf32>",
        "%q = core.add %p, %b : tensor<Bx2x3xf32>",
        "%y = core.add %q, %c : tensor<Bx2x3xf32>",
        resources=resources,
    )
    apply("canonicalize", module)
    assert names(module).count("core.constant") == 2


def test_dead_chains_and_resources_go():
    module = parsed(
        "tensor<Bx2x3xf32>",
        "%w = core.constant {value = @w} : tensor<3xf32>",
        "%a = core.add %x, %w : tensor<Bx2x3xf32>",
        "%b = nn.relu %a : tensor<Bx2x3xf32>",
        "%y = nn.tanh %x : tensor<Bx2x3xf32>",
        resources=["resource @w : tensor<3xf32>", "resource @v : tensor<3xf32>"],
    )
    (record,) = apply("dead-code", module)
    assert names(module) == ["nn.tanh"] and not module.resources
    assert [change.kind for change in record.journal.changes].count("erase") == 3


# -- fold-batch-norm ------------------------------------------------------------------------------


def randomised(module):
    for item in module.modules():
        if isinstance(item, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(item.running_mean)
            nn.init.uniform_(item.running_var, 0.2, 3.0)
            if item.affine:
                nn.init.normal_(item.weight)
                nn.init.normal_(item.bias)
    return module.eval()


FOLDED = {
    "conv": (nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)), (2, 5, 5)),
    "conv, bias": (nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.BatchNorm1d(4)), (4, 5)),
    "linear": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (3,)),
    "not affine": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False)), (3,)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_batch_norm_folds(name):
    module, shape = FOLDED[name]
    made = capture(randomised(module), (torch.randn(1, *shape),))
    (layer,) = (op for op in made.module.walk() if op.name in ("nn.conv", "nn.linear"))
    (record, _) = apply("fold-batch-norm, dead-code", made.module, made.resources)
    assert names(made.module) == ["core.constant", "core.constant", layer.name]
    assert list(made.module.resources) == ["0.weight.folded", "0.bias.folded"]
    assert {op.scope for op in made.module.walk() if not op.terminator} == {"0"}
    assert not record.journal.refusals
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(
            evaluate(made.module, x, made.resources), module(x), rtol=1e-5, atol=1e-5
        )
    # The weights under their own names are what the user trained.
    assert torch.equal(made.resources.get("0.weight"), module[0].weight)


class Shared(nn.Module):
    """One convolution read by two normalisations."""

    def __init__(self, twice):
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 1)
        self.a, self.b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        self.twice = twice

    def forward(self, x):
        if self.twice:
            return self.a(self.conv(x)) + self.b(self.conv(x))
        y = self.conv(x)
        return self.a(y) + y


REFUSED = {
    "result used twice": (Shared(False), (2, 3), "result"),
    "weight used twice": (Shared(True), (2, 3), "weight @conv.weight is used"),
    "no layer in front": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), (3,), "nn.relu"),
    "input": (nn.BatchNorm1d(3), (3,), "an input"),
    "other axis": (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(3)), (3, 4), "axis -2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_batch_norm_stays_with_a_reason(name):
    module, shape, reason = REFUSED[name]
    made = capture(randomised(module), (torch.randn(1, *shape),))
    before = repr(made.module)
    (record,) = apply("fold-batch-norm", made.module, made.resources)
    assert repr(made.module) == before
    assert record.journal.refusals
    assert all(reason in text for _, _, text in record.journal.refusals)


def test_negative_variance_is_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    module[1].running_var.fill_(-1.0)
    made = capture(module, (torch.randn(1, 2),))
    (record,) = apply("fold-batch-norm", made.module, made.resources)
    assert "variance" in record.journal.refusals[0][2]


def test_weights_without_data_fold_to_weights_without_data():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
        x = torch.zeros(1, 3)
    made = capture(module, (x,))
    apply("fold-batch-norm, dead-code", made.module, made.resources)
    assert names(made.module)[-1] == "nn.linear" and "nn.batch_norm" not in names(made.module)
    assert {item.sha256 for item in made.module.resources.values()} == {None}
