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
from imcc.passes.learning.adapting import error_values, is_held

if TYPE_CHECKING:
    from torch import Tensor

Readings = dict[tuple[Value, str], list[tuple[Op, str]]]
"""Values to be quantised, each by a scheme, with the ops that read it and their operands' names."""

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

    With ``matmul`` other than ``"float"`` both operands of a product of two activations get codes
    as well: the right one, a matrix, symmetric ones, as a weight has; the left one those of the
    scheme given. Symmetric codes spare the sums over the columns of a matrix that nobody knows
    before it is computed (unsigned ones still stand for what is never negative). A product whose
    right operand is the same for all samples is left alone.

    A linear op whose weight is neither a constant nor state that adapts is left alone, and so is
    what is quantised already, and what is computed from an output error: calibration data has no
    labels.
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
    matmul: Literal["float", "symmetric", "affine"] = option(
        default="float",
        doc="products of two activations: left as they are, or codes of their left operand",
    )

    def promise(self) -> Approximate:
        """The bound grows as the step does: 0.1 at 8 bits, twice that for each bit less."""
        return Approximate(bound=0.1 * 2.0 ** max(0, 8 - self.bits))

    def run(self, module: Module, context: PassContext) -> None:
        """Observe, then rewrite every function that has matrix ops."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            wanted = self._inputs(function, rewriter)
            if wanted:
                values = list(dict.fromkeys(value for value, _ in wanted))
                ranges = self._observe(function, values, context)
                self._rewrite(rewriter, wanted, ranges, context)

    def _inputs(self, function: Function, rewriter: Rewriter) -> Readings:
        found: Readings = {}
        errors = error_values(function)
        for op in function.ops:
            for name, scheme in self._operands(op, rewriter):
                value: Value = getattr(op, name)
                if isinstance(value.owner, quant.Dequantize) or value in errors:
                    continue
                if core.tensor(value).element != "f32":
                    raise DiagnosticError(
                        op.diagnostic(
                            codes.UNSUPPORTED_FORM,
                            f"quantisation starts from f32, the input is {value.type}",
                            help="convert the model and its inputs with .float()",
                        )
                    )
                found.setdefault((value, scheme), []).append((op, name))
        return found

    def _operands(self, op: Op, rewriter: Rewriter) -> tuple[tuple[str, str], ...]:
        """Operands of an op that get codes, each with its scheme."""
        if isinstance(op, (nn.Linear, nn.Conv)) and is_held(op, op.weight):
            return (("x", self.scheme),)
        if not isinstance(op, nn.Matmul) or self.matmul == "float":
            return ()
        if core.tensor(op.b).batch_axis is None:
            rewriter.refuse(op, "the right operand is the same for all samples")
            return ()
        return (("a", self.matmul), ("b", "symmetric"))

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
                evaluate_function(
                    function,
                    batch,
                    resources=context.weights(),
                    observer=observer,
                    partial=bool(error_values(function)),
                )
        if self.range == "percentile":
            for value, parts in seen.items():
                flat = torch.cat(parts).float()
                upper = float(torch.quantile(flat, self.percentile / 100))
                lower = float(torch.quantile(flat, 1 - self.percentile / 100))
                extremes[value] = (min(0.0, lower), max(0.0, upper))
        return extremes

    def _rewrite(
        self,
        rewriter: Rewriter,
        wanted: Readings,
        ranges: dict[Value, tuple[float, float]],
        context: PassContext,
    ) -> None:
        for (value, scheme), users in wanted.items():
            low, high = ranges[value]
            first = users[0][0]
            if high == low:
                context.warnings.append(
                    Diagnostic(
                        codes.BAD_DATA,
                        f"input of {first.name} is 0 in all calibration data",
                        severity="warning",
                        model=first.loc,
                        scope=first.scope,
                        help="check that calibration_data() returns real inputs",
                    )
                )
            self._insert(rewriter, context, value, users, self._code(low, high, scheme))

    def _code(self, low: float, high: float, scheme: str) -> tuple[float, int | None, bool]:
        levels = 2**self.bits - 1
        if low >= 0.0:
            return (high or 1.0) / levels, None, False
        if scheme == "symmetric":
            return max(-low, high) / (2 ** (self.bits - 1) - 1), None, True
        scale = (high - low) / levels
        return scale, min(levels, round(-low / scale)), False

    def _insert(
        self,
        rewriter: Rewriter,
        context: PassContext,
        value: Value,
        users: list[tuple[Op, str]],
        code: tuple[float, int | None, bool],
    ) -> None:
        import torch

        store = context.weights()
        scale, zero_point, signed = code
        first, operand = users[0]
        base = f"{first.scope or value.name}.{'input' if operand == 'x' else operand}"
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
        for user, name in users:
            rewriter.set_operand(user, name, real.y)
