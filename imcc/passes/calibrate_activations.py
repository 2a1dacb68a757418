"""Pass ``calibrate-activations``: quantise inputs of matrix ops with ranges seen in calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError
from imcc.ir.dialects import core, nn, quant
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option

if TYPE_CHECKING:
    from torch import Tensor

MAX_VALUES = 1 << 20
"""Values of one tensor that a percentile is taken over; more are thinned by a fixed stride."""


@dataclass(frozen=True)
class CalibrateActivations(Pass):
    """Insert ``quant.quantize`` and ``quant.dequantize`` in front of each matrix op's input.

    The range [lo, hi] of an input is what calibration data shows, extended to hold 0. Inputs that
    never are negative get unsigned codes with ``scale = hi / (2^bits - 1)``. Others get, with
    ``scheme="affine"``, unsigned codes with ``scale = (hi - lo) / (2^bits - 1)`` and the zero point
    ``round(-lo / scale)`` (Jacob et al., CVPR 2018, eq. 1), or with ``scheme="symmetric"`` signed
    codes with ``scale = max(|lo|, |hi|) / (2^(bits-1) - 1)``.

    An op whose weight is not a constant is left alone: its operands are run-time matrices. So is
    an input that is quantised already.
    """

    name: ClassVar[str] = "calibrate-activations"
    contract: ClassVar[Approximate] = Approximate(bound=0.1)
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "calibration"})

    bits: int = option(default=8, minimum=2, maximum=16, unit="bit", doc="bits of a code")
    scheme: Literal["affine", "symmetric"] = option(
        default="affine", doc="codes of inputs that can be negative"
    )
    range: Literal["minmax", "percentile"] = option(
        default="minmax", doc="smallest and largest value seen, or two percentiles"
    )
    percentile: float = option(
        default=99.99, minimum=50.0, maximum=100.0, doc="upper percentile; the lower mirrors it"
    )

    def promise(self) -> Approximate:
        """The bound grows as the step does: 0.1 at 8 bits, twice that for each bit less."""
        return Approximate(bound=0.1 * 2.0 ** max(0, 8 - self.bits))

    def run(self, module: Module, context: PassContext) -> None:
        """Observe, then rewrite every function that has matrix ops."""
        for function in module.functions.values():
            wanted = self._inputs(function)
            if wanted:
                ranges = self._observe(function, list(wanted), context)
                self._rewrite(module, wanted, ranges, context)

    def _inputs(self, function: Function) -> dict[Value, list[Op]]:
        found: dict[Value, list[Op]] = {}
        for op in function.ops:
            if isinstance(op, (nn.Linear, nn.Conv)) and isinstance(op.weight.owner, core.Constant):
                if isinstance(op.x.owner, quant.Dequantize):
                    continue
                if core.tensor(op.x).element != "f32":
                    raise DiagnosticError(
                        op.diagnostic(
                            codes.UNSUPPORTED_FORM,
                            f"quantisation starts from f32, the input is {op.x.type}",
                            help="convert the model and its inputs with .float()",
                        )
                    )
                found.setdefault(op.x, []).append(op)
        return found

    def _observe(
        self, function: Function, values: list[Value], context: PassContext
    ) -> dict[Value, tuple[float, float]]:
        import torch

        from imcc.ir.semantics.interpreter import evaluate_function

        seen: dict[Value, list[Tensor]] = {value: [] for value in values}
        extremes: dict[Value, tuple[float, float]] = {}

        def look(value: Value, tensor: Tensor) -> None:
            low, high = (float(item) for item in torch.aminmax(tensor.detach()))
            held = extremes.get(value, (0.0, 0.0))
            extremes[value] = (min(held[0], low), max(held[1], high))
            if self.range == "percentile":
                flat = tensor.detach().flatten()
                step = max(1, flat.numel() * len(batches) // MAX_VALUES)
                seen[value].append(flat[::step])

        def observer(op: Op, results: tuple[Tensor, ...]) -> None:
            for value, tensor in zip(op.results, results, strict=True):
                if value in seen:
                    look(value, tensor)

        batches = context.calibration_batches()
        with torch.no_grad():
            for index, batch in enumerate(batches):
                context.progress(index, len(batches), "calibrate activations")
                for value, tensor in zip(function.inputs, batch, strict=False):
                    if value in seen:
                        look(value, tensor)
                evaluate_function(function, batch, resources=context.weights(), observer=observer)
        if self.range == "percentile":
            for value, parts in seen.items():
                flat = torch.cat(parts).float()
                upper = float(torch.quantile(flat, self.percentile / 100))
                lower = float(torch.quantile(flat, 1 - self.percentile / 100))
                extremes[value] = (min(0.0, lower), max(0.0, upper))
        return extremes

    def _rewrite(
        self,
        module: Module,
        wanted: dict[Value, list[Op]],
        ranges: dict[Value, tuple[float, float]],
        context: PassContext,
    ) -> None:
        rewriter = context.rewriter(module, self.name)
        for value, users in wanted.items():
            low, high = ranges[value]
            if high == low:
                context.warnings.append(
                    Diagnostic(
                        codes.BAD_DATA,
                        f"input of {users[0].name} is 0 in all calibration data",
                        severity="warning",
                        model=users[0].loc,
                        scope=users[0].scope,
                        help="check that calibration_data() returns real inputs",
                    )
                )
            scale, zero_point, signed = self._code(low, high)
            first = users[0]
            self._insert(rewriter, context, value, first, users, scale, zero_point, signed)

    def _code(self, low: float, high: float) -> tuple[float, int | None, bool]:
        levels = 2**self.bits - 1
        if low >= 0.0:
            return (high or 1.0) / levels, None, False
        if self.scheme == "symmetric":
            return max(-low, high) / (2 ** (self.bits - 1) - 1), None, True
        scale = (high - low) / levels
        return scale, min(levels, round(-low / scale)), False

    def _insert(
        self,
        rewriter: Rewriter,
        context: PassContext,
        value: Value,
        first: Op,
        users: list[Op],
        scale: float,
        zero_point: int | None,
        signed: bool,
    ) -> None:
        import torch

        store = context.weights()
        base = f"{first.scope or value.name}.input"
        held = rewriter.add_resource(store.put(f"{base}.scale", torch.tensor(scale)))
        scale_value = rewriter.insert_before(first, core.Constant.of(held.name, held.type)).y
        zero_value = None
        if zero_point is not None:
            held = rewriter.add_resource(
                store.put(f"{base}.zero_point", torch.tensor(zero_point, dtype=torch.int32))
            )
            zero_value = rewriter.insert_before(first, core.Constant.of(held.name, held.type)).y
        coded = rewriter.insert_before(
            first,
            quant.Quantize(
                x=value, scale=scale_value, zero_point=zero_value, bits=self.bits, signed=signed
            ),
        )
        real = rewriter.insert_before(
            first, quant.Dequantize(x=coded.y, scale=scale_value, zero_point=zero_value)
        )
        for user in users:
            rewriter.set_operand(user, "x", real.y)
