"""Pass ``split-time``: leading axes that a reshape merged stay apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import product
from imcc.ir.module import Module
from imcc.ir.ops import Op
from imcc.ir.rewriting import Rewriter
from imcc.passes.infrastructure import Exact, Pass, PassContext

ANY_LEADING_AXES: tuple[type[Op], ...] = (
    nn.Linear,
    nn.Conv,
    nn.BatchNorm,
    nn.MaxPool,
    nn.AvgPool,
    nn.AdaptiveAvgPool,
)
"""Ops that read ``[..., C, spatial]`` or ``[..., K]`` and count their axes from the back."""


@dataclass(frozen=True)
class SplitTime(Pass):
    """Move a reshape ``[T, B, ...] -> [T B, ...]`` behind the op that reads it.

    Libraries merge time and batch for layers that know no time. The layers of ``nn`` take any
    number of leading axes, so they can work on ``[T, B, ...]``, where the time axis can still be
    seen; what is behind them is merged again, and two such reshapes in a row cancel::

        %a = core.reshape %x {shape = [4*B, 8, 6, 6]} : ...      %y = nn.conv %x, %w : ...
        %y = nn.conv %a, %w : ...                             => %r = core.reshape %y {...}
        %r = core.reshape %y {shape = [4, B, 8, 6, 6]} : ...
    """

    name: ClassVar[str] = "split-time"
    contract: ClassVar[Exact] = Exact()

    def run(self, module: Module, context: PassContext) -> None:
        """Walk forward, so that a merge moves behind a whole row of layers."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            for op in list(function.ops):
                if isinstance(op, core.Reshape):
                    self._cancel(op, rewriter)
                elif isinstance(op, ANY_LEADING_AXES):
                    self._move(op, rewriter)
            for op in reversed(list(function.ops)):
                if isinstance(op, core.Reshape) and not op.y.users:
                    rewriter.erase(op, "nothing reads it")

    def _move(self, op: Op, rewriter: Rewriter) -> None:
        fields: dict[str, Any] = _fields(op)
        merge = fields["x"].owner
        if not isinstance(merge, core.Reshape):
            return
        whole, merged = tensor(merge.x), tensor(merge.y)
        lead = whole.rank - merged.rank + 1
        if lead < 2 or not isinstance(whole.shape[0], int):
            return
        if whole.shape[lead:] != merged.shape[1:]:
            return
        if product(whole.shape[:lead]) != merged.shape[0]:
            return
        apart = type(op)(**{**fields, "x": merge.x})
        shape = tensor(op.results[0]).shape
        again = core.Reshape(x=apart.results[0], shape=shape)
        rewriter.replace(op, [apart, again], again.y)

    def _cancel(self, op: core.Reshape, rewriter: Rewriter) -> None:
        inner = op.x.owner
        if not isinstance(inner, core.Reshape):
            return
        if op.shape == tensor(inner.x).shape:
            rewriter.replace(op, [], inner.x)
        else:
            rewriter.set_operand(op, "x", inner.x)


def _fields(op: Op) -> dict[str, Any]:
    spec = type(op).spec()
    names = [item.name for item in spec.operands] + list(spec.attributes)
    return {name: getattr(op, name) for name in names}
