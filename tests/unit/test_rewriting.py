"""The Rewriter: uses, scopes, places, journal; rules to a fixpoint; regions; linearity."""

import pytest

from imcc.ir import Rewriter, parse_module, print_module, region, verify
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import core, nn
from imcc.ir.rewriting import apply_rules, common_scope, rewrite_rule

TEXT = """// imc 1
module @m phase("captured") {
  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {
    %a = nn.relu %x {scope = "blocks.0.act"} : tensor<Bx4xf32> loc("m.py":1)
    %b = core.add %a, %a {scope = "blocks.0.sum"} : tensor<Bx4xf32> loc("m.py":2)
    %c = nn.relu %b {scope = "blocks.1"} : tensor<Bx4xf32> loc("m.py":3)
    core.return %c
  }
}
"""


def parsed():
    module = parse_module(TEXT)
    verify(module)
    return module


def ops(module):
    return list(module.function().ops)


def test_uses_count_an_operand_read_twice():
    module = parsed()
    a, b, _, _ = ops(module)
    assert a.y.users == {b: 2}


def test_replace_gives_common_scope_fused_places_and_keeps_the_name():
    module = parsed()
    a, b, _, _ = ops(module)
    rewriter = Rewriter(module, rule="test")
    new = nn.Sigmoid(x=a.x)
    rewriter.replace([a, b], [new], new.y)
    verify(module)
    assert new.scope == "blocks.0"
    assert [place.line for place in new.loc] == [1, 2]
    assert new.y.name == "b"
    assert a.parent is None and b.parent is None
    change = rewriter.journal.changes[-1]
    assert change.rule == "test" and len(change.before) == 2 and len(change.after) == 1
    assert "nn.sigmoid" in change.after[0]


def test_replace_keeps_ops_that_are_still_used():
    module = parsed()
    a, b, _, _ = ops(module)
    new = nn.Relu(x=a.y)
    Rewriter(module).replace([a, b], [new], new.y)
    assert a.parent is not None and b.parent is None
    verify(module)


def test_erase_refuses_a_used_op_and_ops_refuse_assignment():
    module = parsed()
    a = ops(module)[0]
    with pytest.raises(ValueError, match="is used"):
        Rewriter(module).erase(a)
    with pytest.raises(AttributeError, match="Rewriter"):
        a.scope = "x"


def test_rules_run_to_a_fixpoint():
    @rewrite_rule(nn.Relu)
    def relu_of_relu(op, rewriter):
        if isinstance(op.x.owner, nn.Relu):
            rewriter.replace(op, [], op.x)
            return True
        return False

    @rewrite_rule(core.Add)
    def double_to_relu(op, rewriter):
        new = nn.Relu(x=op.a)
        rewriter.replace(op, [new], new.y)
        return True

    module = parsed()
    rewriter = Rewriter(module, rule="pass")
    assert apply_rules(module, [relu_of_relu, double_to_relu], rewriter)
    verify(module)
    assert [op.name for op in ops(module)] == ["nn.relu", "core.return"]
    assert {change.rule for change in rewriter.journal.changes} == {
        "pass/relu-of-relu",
        "pass/double-to-relu",
    }


def test_rules_that_undo_each_other_are_stopped():
    @rewrite_rule(nn.Relu)
    def to_sigmoid(op, rewriter):
        new = nn.Sigmoid(x=op.x)
        rewriter.replace(op, [new], new.y)
        return True

    @rewrite_rule(nn.Sigmoid)
    def to_relu(op, rewriter):
        new = nn.Relu(x=op.x)
        rewriter.replace(op, [new], new.y)
        return True

    module = parsed()
    with pytest.raises(RuntimeError, match="settle"):
        apply_rules(module, [to_sigmoid, to_relu], Rewriter(module))


def test_region_finds_inputs_and_outputs():
    module = parsed()
    found = region(module.function(), "blocks.0")
    assert [op.name for op in found.ops] == ["nn.relu", "core.add"]
    assert [value.name for value in found.inputs] == ["x"]
    assert [value.name for value in found.outputs] == ["b"]


def test_region_that_is_not_convex_names_the_op_between():
    text = TEXT.replace('scope = "blocks.1"', 'scope = "blocks.0"').replace(
        "blocks.0.sum", "elsewhere"
    )
    with pytest.raises(DiagnosticError, match=r"core\.add.*not convex"):
        region(parse_module(text).function(), "blocks.0")


def test_region_of_an_unknown_scope_suggests():
    with pytest.raises(DiagnosticError, match="blocks"):
        region(parsed().function(), "blocks.7")


@pytest.mark.parametrize(
    "scopes,expected",
    [
        (["a.b.c", "a.b.d"], "a.b"),
        (["a.b", "a.bc"], "a"),
        (["a", ""], ""),
        (["a.b", "a.b"], "a.b"),
        ([], ""),
    ],
)
def test_common_scope(scopes, expected):
    assert common_scope(scopes) == expected


def test_clone_is_independent():
    module = parsed()
    copy = module.clone()
    Rewriter(copy).set_attributes(ops(copy)[0])
    Rewriter(copy).replace(ops(copy)[0], [], copy.function().arguments[0])
    assert print_module(module) == TEXT
    assert print_module(copy) != TEXT


def test_values_that_an_op_has_already_are_no_change():
    module = parse_module(
        '// imc 1\nmodule @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        "    %y = nn.clamp %x {minimum = 0.0, maximum = 4.0} : tensor<Bx4xf32>\n"
        "    core.return %y\n  }\n}\n"
    )
    op, rewriter = module.function().first, Rewriter(module)
    rewriter.set_attributes(op, maximum=4.0)
    assert not rewriter.journal.changes
    rewriter.set_attributes(op, maximum=5.0)
    assert len(rewriter.journal.changes) == 1


def test_ops_that_a_rule_makes_and_drops_use_nothing():
    @rewrite_rule(nn.Relu)
    def undecided(op, rewriter):
        nn.Relu(x=op.x)
        return False

    module = parse_module(
        '// imc 1\nmodule @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        "    %y = nn.relu %x : tensor<Bx4xf32>\n    core.return %y\n  }\n}\n"
    )
    assert not apply_rules(module, [undecided], Rewriter(module))
    assert len(module.function().inputs[0].users) == 1
    verify(module)
