"""Pass ``place``: crossbars to processing elements and tiles, tiles to a mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from imcc.backends.crossbar import BACKEND
from imcc.backends.crossbar.dialect import MatrixType, Mvm, ReadMatrix, Write
from imcc.backends.crossbar.learning_ops import MATRIX_OPS, matrix_of
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class Place(Pass):
    """Give every matrix a range of crossbars: states of the module, then what is written later.

    Crossbar ``i`` lies in PE ``i // crossbars_per_pe`` and in tile ``i // (crossbars_per_pe *
    pes_per_tile)``. Unless the target shares tiles, each matrix starts a new tile. A chip with too
    few tiles is refused with what is missing. Tiles lie on a square mesh, row by row, in a line
    that turns at the ends of rows.

    With ``hierarchy.max_copies`` above 1, matrices whose reads take long get copies that share
    their positions: the slowest as many as that, every other the fewest that make it no slower
    than the slowest with its copies. Where the chip has too few tiles for that, all get fewer.
    Copies hold the same weights; the simulator draws one of them.

    Where vector units are on tiles, other ops run on those of the matrix that they come from.
    """

    name: ClassVar[str] = "place"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    requires_phase: ClassVar[str | None] = "mapped"
    ensures_phase: ClassVar[str | None] = "placed"

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate all ops that hold or use a matrix with their place."""
        from imcc.backends.crossbar.passes_support import crossbar_target
        from imcc.backends.crossbar.traffic import mesh_hops

        target = crossbar_target(self.name, context)
        states = {
            state.name: state.type.crossbars
            for state in module.states.values()
            if isinstance(state.type, MatrixType)
        }
        copies = _copies(module, states, target)
        written = _written(module)
        states = {**states, **written}
        places, tiles = _places(states, copies, target)
        limit = target.keys.hierarchy.tiles_per_chip
        if limit is not None and tiles > limit:
            missing, used = tiles - limit, sum(states.values())
            advice = "raise hierarchy.tiles_per_chip, "
            if not target.keys.hierarchy.share_tiles:
                packed = -(-used // target.crossbars_per_tile)
                advice += f"set hierarchy.share_tiles = true, which takes {packed}, "
            raise error(
                codes.DOES_NOT_FIT,
                f"the network needs {tiles} tiles, the chip has {limit}: {missing} are "
                f"missing ({used} crossbars of {len(places)} matrices; "
                f"a tile holds {target.crossbars_per_tile})",
                help=f"{advice}or quantise weights to fewer bits",
            )
        for item in places.values():
            item["xbar__hops"] = mesh_hops(item["xbar__first_tile"], item["xbar__tiles"], tiles)
        self._annotate(module, context, target, places)

    def _annotate(
        self,
        module: Module,
        context: PassContext,
        target: CrossbarTarget,
        places: dict[str, dict[str, Any]],
    ) -> None:
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            state_of = function.value_states()
            units: dict[Value, tuple[int, int]] = {}
            for op in function.ops:
                name = _place_of(op, state_of)
                if name is not None:
                    place = places[name]
                    rewriter.annotate(op, **place)
                    unit = (place["xbar__first_tile"], place["xbar__tiles"])
                    units.update(dict.fromkeys(op.results, unit))
                elif target.keys.digital.per == "tile" and not op.terminator:
                    found = [units[value] for value in op.operands if value in units]
                    if found:
                        rewriter.annotate(op, xbar__unit=found[0][0], xbar__units=found[0][1])
                        units.update(dict.fromkeys(op.results, found[0]))


def _place_of(op: Op, state_of: dict[Value, str]) -> str | None:
    """Name of the place of the matrix that an op reads or makes: its state, or its write."""
    if isinstance(op, (Write, ReadMatrix)):
        write = op if isinstance(op, Write) else op.matrix.owner
        if not isinstance(write, Write):
            raise op.fail("what wrote its matrix is not in this function")
        return write.stream
    if not isinstance(op, MATRIX_OPS):
        return None
    state = state_of.get(matrix_of(op))
    if state is None:
        raise op.fail("its matrix is no state of the module")
    return state


def _written(module: Module) -> dict[str, int]:
    """Crossbars of each matrix that is written at run time, by the name of its write."""
    from imcc.backends.crossbar.run_time_rules import layout, unstated

    made: dict[str, int] = {}
    for op in module.walk():
        if not isinstance(op, Write):
            continue
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
        made[op.stream] = layout(op).crossbars
    return made


def _places(
    states: dict[str, int], copies: dict[str, int], target: CrossbarTarget
) -> tuple[dict[str, dict[str, Any]], int]:
    """Where each state lies, and how many tiles that takes."""
    per_tile = target.crossbars_per_tile
    places: dict[str, dict[str, Any]] = {}
    following = 0
    for name, crossbars in states.items():
        count = crossbars * copies.get(name, 1)
        if not target.keys.hierarchy.share_tiles:
            following = -(-following // per_tile) * per_tile
        first_tile, last_tile = following // per_tile, (following + count - 1) // per_tile
        places[name] = {
            "xbar__first_crossbar": following,
            "xbar__crossbars": count,
            "xbar__first_tile": first_tile,
            "xbar__tiles": last_tile - first_tile + 1,
        }
        if copies.get(name, 1) > 1:
            places[name]["xbar__copies"] = copies[name]
        following += count
    return places, -(-following // per_tile)


def _copies(module: Module, states: dict[str, int], target: CrossbarTarget) -> dict[str, int]:
    """Copies of each state that balance a pipeline, within the tiles of the chip."""
    from imcc.backends.crossbar.cost import positions_of

    hierarchy = target.keys.hierarchy
    if hierarchy.max_copies == 1:
        return {}
    busy: dict[str, float] = dict.fromkeys(states, 0.0)
    positions: dict[str, int] = dict.fromkeys(states, 1)
    for function in module.functions.values():
        state_of = function.value_states()
        for op in function.ops:
            if isinstance(op, Mvm) and op.matrix in state_of:
                name = state_of[op.matrix]
                busy[name] += BACKEND.op_cost(op, target).busy_ns
                positions[name] = max(positions[name], positions_of(op))
    slowest = max(busy.values(), default=0.0)
    if not slowest:
        return {}
    made: dict[str, int] = {}
    states = {**states, **_written(module)}
    for most in range(hierarchy.max_copies, 0, -1):
        made = {
            name: max(1, min(positions[name], -(-int(time * most) // int(slowest))))
            for name, time in busy.items()
        }
        limit = hierarchy.tiles_per_chip
        if limit is None or _places(states, made, target)[1] <= limit:
            break
    return made
