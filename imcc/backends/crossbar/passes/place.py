"""Pass ``place``: crossbars to processing elements and tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.backends.crossbar.dialect import MatrixType, ReadMatrix, Write
from imcc.backends.crossbar.learning_ops import MATRIX_OPS, matrix_of
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class Place(Pass):
    """Give every matrix a range of crossbars, in the order of the module's states.

    Crossbar ``i`` lies in PE ``i // crossbars_per_pe`` and in tile ``i // (crossbars_per_pe *
    pes_per_tile)``. Unless the target shares tiles, each matrix starts a new tile. A chip with too
    few tiles is refused with what is missing.
    """

    name: ClassVar[str] = "place"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    requires_phase: ClassVar[str | None] = "mapped"
    ensures_phase: ClassVar[str | None] = "placed"

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate programs and reads with their place."""
        from imcc.backends.crossbar.passes_support import crossbar_target
        from imcc.backends.crossbar.run_time_rules import layout, unstated

        target = crossbar_target(self.name, context)
        per_tile = target.crossbars_per_tile
        places: dict[str, dict[str, int]] = {}
        following = 0
        for state in module.states.values():
            if not isinstance(state.type, MatrixType):
                continue
            count = state.type.crossbars
            if not target.keys.hierarchy.share_tiles:
                following = -(-following // per_tile) * per_tile
            places[state.name] = _place(following, count, per_tile)
            following += count
        written = [op for op in module.walk() if isinstance(op, Write)]
        for op in written:
            missing = unstated(op.matrix, tensor(op.codes).shape)
            if missing:
                raise DiagnosticError(
                    op.diagnostic(
                        codes.PASS_REQUIRES,
                        f"how many crossbars the matrix {op.codes.type} takes depends on {missing}",
                        help="state the size in the module: sizes(S=128); capture takes it from "
                        "example_inputs()",
                    )
                )
            count = layout(op).crossbars
            if not target.keys.hierarchy.share_tiles:
                following = -(-following // per_tile) * per_tile
            places[op.stream] = _place(following, count, per_tile)
            following += count
        tiles, limit = -(-following // per_tile), target.keys.hierarchy.tiles_per_chip
        if limit is not None and tiles > limit:
            raise error(
                codes.DOES_NOT_FIT,
                f"the network needs {tiles} tiles, the chip has {limit}: {tiles - limit} are "
                f"missing ({sum(item['xbar__crossbars'] for item in places.values())} crossbars "
                f"of {len(places)} matrices)",
                help="raise hierarchy.tiles_per_chip, set hierarchy.share_tiles = true, or "
                "quantise weights to fewer bits",
            )
        self._annotate(module, context, places)

    def _annotate(
        self, module: Module, context: PassContext, places: dict[str, dict[str, int]]
    ) -> None:
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            state_of = function.value_states()
            for op in function.ops:
                if isinstance(op, (Write, ReadMatrix)):
                    write = op if isinstance(op, Write) else op.matrix.owner
                    if not isinstance(write, Write):
                        raise op.fail("what wrote its matrix is not in this function")
                    rewriter.annotate(op, **places[write.stream])
                elif isinstance(op, MATRIX_OPS):
                    state = state_of.get(matrix_of(op))
                    if state is None:
                        raise op.fail("its matrix is no state of the module")
                    rewriter.annotate(op, **places[state])


def _place(first: int, count: int, per_tile: int) -> dict[str, int]:
    """Annotations of a matrix in ``count`` crossbars from ``first`` on."""
    first_tile, last_tile = first // per_tile, (first + count - 1) // per_tile
    return {
        "xbar__first_crossbar": first,
        "xbar__crossbars": count,
        "xbar__first_tile": first_tile,
        "xbar__tiles": last_tile - first_tile + 1,
    }
