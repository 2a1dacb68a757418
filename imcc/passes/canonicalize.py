"""Pass ``canonicalize``: one spelling for what can be written in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter, RewriteRule, apply_rules, rewrite_rule
from imcc.passes.infrastructure import Exact, Pass, PassContext

if TYPE_CHECKING:
    from imcc.ir.semantics.resources import ResourceStore


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Simplify structure without changing a bit of any result.

    Reshapes and permutations in a row become one, and vanish where they change nothing; a
    concatenation of one tensor and a padding by nothing vanish; ``relu`` of ``relu`` is ``relu``;
    several constants of one resource become one. Where weights are at hand, ``x * 1``, ``x / 1``
    and ``x - 0`` are ``x``. ``x + 0`` stays: it turns -0 into 0.
    """

    name: ClassVar[str] = "canonicalize"
    contract: ClassVar[Exact] = Exact()

    def run(self, module: Module, context: PassContext) -> None:
        """Merge constants, then apply the rules until none matches."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            _merge_constants(function, rewriter)
        rules = [*RULES, _neutral_operand(context.resources)]
        apply_rules(module, rules, rewriter)


def _merge_constants(function: Function, rewriter: Rewriter) -> None:
    # By name only: different parameters that happen to hold the same numbers stay apart, since
    # passes and training treat each as the user's own.
    first: dict[str, core.Constant] = {}
    for op in function.ops:
        if not isinstance(op, core.Constant):
            continue
        kept = first.setdefault(op.value, op)
        if kept is not op:
            rewriter.replace_uses(op.y, kept.y)
            rewriter.erase(op, note=f"same constant as %{kept.y.name}")


@rewrite_rule(core.Reshape)
def reshape_of_reshape(op: Op, rewriter: Rewriter) -> bool:
    """``reshape(reshape(x))`` is ``reshape(x)``."""
    if not isinstance(op, core.Reshape):
        return False
    inner = op.x.owner
    if not isinstance(inner, core.Reshape):
        return False
    made = core.Reshape(x=inner.x, shape=op.shape)
    rewriter.replace([inner, op], [made], made.y)
    return True


@rewrite_rule(core.Permute)
def permute_of_permute(op: Op, rewriter: Rewriter) -> bool:
    """``permute(permute(x, p), q)`` is ``permute(x, p[q])``."""
    if not isinstance(op, core.Permute):
        return False
    inner = op.x.owner
    if not isinstance(inner, core.Permute):
        return False
    made = core.Permute(x=inner.x, axes=tuple(inner.axes[axis] for axis in op.axes))
    rewriter.replace([inner, op], [made], made.y)
    return True


@rewrite_rule(core.Reshape, core.Permute, core.Concat, core.Pad)
def identity(op: Op, rewriter: Rewriter) -> bool:
    """Structure that changes nothing is the tensor itself."""
    source = _unchanged(op)
    if source is None:
        return False
    rewriter.replace(op, [], source)
    return True


def _unchanged(op: Op) -> Value | None:
    """The operand that ``op`` returns as it is, if it does."""
    match op:
        case core.Reshape() if op.shape == tensor(op.x).shape:
            return op.x
        case core.Permute() if op.axes == tuple(range(len(op.axes))):
            return op.x
        case core.Concat() if len(op.inputs) == 1:
            return op.inputs[0]
        case core.Pad() if not any((*op.before, *op.after)):
            return op.x
    return None


@rewrite_rule(nn.Relu)
def relu_of_relu(op: Op, rewriter: Rewriter) -> bool:
    """``relu(relu(x))`` is ``relu(x)``."""
    if not isinstance(op, nn.Relu) or not isinstance(op.x.owner, nn.Relu):
        return False
    rewriter.replace(op, [], op.x)
    return True


RULES: tuple[RewriteRule, ...] = (reshape_of_reshape, permute_of_permute, identity, relu_of_relu)
"""The rules that need no weights."""


def _neutral_operand(resources: ResourceStore | None) -> RewriteRule:
    @rewrite_rule(core.Multiply, core.Divide, core.Subtract)
    def neutral_operand(op: Op, rewriter: Rewriter) -> bool:
        """``x * 1``, ``1 * x``, ``x / 1`` and ``x - 0`` are ``x``."""
        if not isinstance(op, (core.Multiply, core.Divide, core.Subtract)):
            return False
        neutral = 0.0 if isinstance(op, core.Subtract) else 1.0
        sides = [(op.a, op.b)]
        if isinstance(op, core.Multiply):
            sides.append((op.b, op.a))
        for kept, dropped in sides:
            if kept.type is op.y.type and _holds(dropped, neutral, resources):
                rewriter.replace(op, [], kept)
                return True
        return False

    return neutral_operand


def _holds(value: Value, number: float, resources: ResourceStore | None) -> bool:
    """Whether ``value`` is a constant whose every element is ``number`` (0 means +0)."""
    source = value.owner
    if resources is None or not isinstance(source, core.Constant):
        return False
    if source.value not in resources:
        return False
    held = resources.get(source.value)
    if not held.is_floating_point() or not held.numel():
        return False
    # x - (-0) turns -0 into 0 as x + 0 does.
    return bool((held == number).all()) and not bool(held.signbit().any())
