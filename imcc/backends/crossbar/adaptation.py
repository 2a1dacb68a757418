"""What crossbars that adapt compute: updates of cells, reading codes back, transposed reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from imcc.backends.api import Wear
from imcc.backends.crossbar import cells as devices
from imcc.backends.crossbar import simulate
from imcc.backends.crossbar.cells import Cells
from imcc.backends.crossbar.dialect import MatrixType
from imcc.backends.crossbar.learning_ops import ReadCodes, TransposedMvm, Update
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir import codes as diagnostic_codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects.core import tensor
from imcc.ir.rules import EVAL
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.resources import TORCH_DTYPES


@EVAL.register(Update, backend="crossbar")
def _update(
    op: Update, ctx: EvalContext, *, held: simulate.Matrix, codes: Tensor
) -> simulate.Matrix:
    if ctx.trials > 1:
        raise DiagnosticError(
            op.diagnostic(
                diagnostic_codes.BAD_INPUT,
                f"{ctx.trials} trials run together; weights adapt in one trial at a time",
                help="run the entry point once for each trial, with states of its own",
            )
        )
    target = simulate.crossbar_target(op, ctx)
    kind = held.kind
    made = replace(
        held, codes=simulate.arranged(codes, kind), updates=held.updates + 1, _ideal=None
    )
    steps = made.ideal - held.ideal
    wear = torch.zeros_like(steps, dtype=torch.int32) if held.wear is None else held.wear
    endurance = target.keys.device.endurance_cycles
    if endurance is not None and op.write == "pulses":
        left = (endurance - wear).clamp_min(0).floor()
        steps = steps.sign() * torch.minimum(steps.abs(), left)
    alive = steps != 0 if endurance is None else (steps != 0) & (wear < endurance)
    made.wear = wear + (alive if op.write == "program" else steps.abs()).to(torch.int32)
    if ctx.draws is None or target.cells_are_exact:
        now = held.of_trial(0)
        levels = torch.where(alive, made.ideal if op.write == "program" else now + steps, now)
        if held.cells is not None or not torch.equal(levels, made.ideal):
            made.cells = Cells(levels[None])
        return made
    before = held.cells.conductances if held.cells is not None else None
    if before is None:
        before = devices.conductances_of(held.of_trial(0), target)[None]
    stream = f"{op.stream}/{made.updates}"
    if op.write == "program":
        after = devices.write(made.ideal, target, ctx.draws, held.stream, stream)
    else:
        after = _pulsed(before, steps, target, ctx.draws, held.stream, stream)
    conductances = torch.where(alive, after, before)
    made.cells = devices.effective(
        kind, made.ideal, conductances, target, ctx.draws, held.stream, keep=True
    )
    return made


def _pulsed(
    before: Tensor,
    steps: Tensor,
    target: CrossbarTarget,
    draws: Draws,
    device: str,
    stream: str,
) -> Tensor:
    """Conductances after as many noisy pulses as levels lie between old and new."""
    low = 1 / target.keys.device.on_off_ratio
    size = (1 - low) / (target.levels - 1)
    held = before
    for pulse in range(int(steps.abs().max())):
        wanted = (held + size * steps.sign()).clamp(low, 1.0)
        if not target.write_noise.silent:
            normal = draws.per_trial(f"{stream}/{pulse}", tuple(steps.shape))
            wanted = target.write_noise.sample(wanted, normal).clamp(low, 1.0)
        held = torch.where(steps.abs() > pulse, wanted, held)
    return devices.stuck(held, target, draws, device)


def wear_of(matrix: simulate.Matrix, target: CrossbarTarget) -> Wear:
    """Writes to a matrix' cells since it was deployed, and how many took all that they endure."""
    endurance, wear = target.keys.device.endurance_cycles, matrix.wear
    if wear is None:
        return Wear(matrix.kind.cells, 0, 0, 0)
    worn = 0 if endurance is None else int((wear >= endurance).sum())
    return Wear(matrix.kind.cells, int(wear.sum()), int(wear.max()), worn)


def saturated(matrix: simulate.Matrix) -> float:
    """Share of codes at an end of their range."""
    return float((matrix.codes.abs() >= matrix.kind.element.maximum).float().mean())


# -- keeping a matrix -----------------------------------------------------------------------------

_PARTS = ("levels", "constant", "converter_offsets", "conductances")


def matrix_tensors(matrix: simulate.Matrix) -> dict[str, Tensor]:
    """Everything that a programmed matrix is, as tensors by name, to keep it in a file."""
    made = {"codes": matrix.codes, "updates": torch.tensor(matrix.updates)}
    if matrix.wear is not None:
        made["wear"] = matrix.wear
    made["stream"] = torch.tensor(list(matrix.stream.encode()), dtype=torch.uint8)
    for name in _PARTS:
        held = None if matrix.cells is None else getattr(matrix.cells, name)
        if held is not None:
            made[name] = held
    return made


def matrix_from(kind: MatrixType, tensors: Mapping[str, Tensor]) -> simulate.Matrix:
    """The matrix that :func:`matrix_tensors` took apart.

    Raises ``KeyError`` or ``ValueError`` where parts are missing or do not fit the type.
    """
    made = simulate.Matrix(
        kind,
        tensors["codes"],
        stream=bytes(tensors["stream"].tolist()).decode(),
        wear=tensors.get("wear"),
        updates=int(tensors["updates"]),
    )
    shape = (kind.groups, kind.group_columns, kind.group_rows)
    if tuple(made.codes.shape) != shape or made.codes.dtype != torch.float32:
        raise ValueError(f"codes are {made.codes.dtype} {list(made.codes.shape)}")
    element = kind.element
    if not bool(((made.codes >= element.minimum) & (made.codes <= element.maximum)).all()):
        raise ValueError(f"codes leave the range of {element}")
    cells = tuple(made.ideal.shape)
    if made.wear is not None and tuple(made.wear.shape) != cells:
        raise ValueError(f"wear is shaped {list(made.wear.shape)}")
    held = {name: tensors[name] for name in _PARTS if name in tensors}
    for name, value in held.items():
        wanted = cells if name in ("levels", "conductances") else (*cells[:2], cells[3])
        if tuple(value.shape) != (1, *wanted) or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} is shaped {list(value.shape)}, or not finite")
    if held:
        made.cells = Cells(**{"levels": held["levels"], **held})
    return made


# -- reading ------------------------------------------------------------------------------------


@EVAL.register(ReadCodes, backend="crossbar")
def _read_codes(op: ReadCodes, ctx: EvalContext, *, held: simulate.Matrix) -> Tensor:
    kind = held.kind
    if held.cells is None:
        codes = held.codes
    else:
        held_levels = held.cells.levels[0]
        if held.cells.conductances is not None:
            target = simulate.crossbar_target(op, ctx)
            low = 1 / target.keys.device.on_off_ratio
            step = (1 - low) / (target.levels - 1)
            held_levels = (held.cells.conductances[0] - low) / step
        top = 2**kind.cell_bits - 1
        codes = _codes_of(torch.round(held_levels).clamp(0, top), kind)
    element = kind.element
    codes = codes.clamp(element.minimum, element.maximum)
    if kind.row_order == "position":
        channels = op.shape[1]
        codes = codes.reshape(kind.columns, -1, channels).transpose(1, 2)
    return codes.reshape(op.shape)


def _codes_of(levels: Tensor, kind: MatrixType) -> Tensor:
    """The inverse of :func:`simulate.levels`: codes ``[G, N/G, K/G]``."""
    flat = unrun(levels, kind)[:, : kind.physical_columns]
    digits = flat.reshape(kind.groups, kind.group_columns, kind.slices, -1, kind.group_rows)
    weights = 2.0 ** (kind.cell_bits * torch.arange(kind.slices, dtype=levels.dtype))
    sums = (digits * weights[:, None, None]).sum(2)
    if kind.paired:
        return sums[:, :, 0] - sums[:, :, 1]
    return sums[:, :, 0] - kind.code_offset


def unrun(levels: Tensor, kind: MatrixType) -> Tensor:
    """Rows out of their runs: ``[G, T, rows, C]`` to ``[G, C, K/G]``."""
    columns = levels.permute(0, 3, 1, 2)
    blocks = columns.reshape(*columns.shape[:2], kind.blocks, kind.runs_per_block * kind.run_rows)
    return blocks[..., : kind.block_rows].flatten(2)[..., : kind.group_rows]


@EVAL.register(TransposedMvm, backend="crossbar")
def _transposed(op: TransposedMvm, ctx: EvalContext, *, x: Tensor, held: simulate.Matrix) -> Tensor:
    target = simulate.crossbar_target(op, ctx)
    kind = held.kind
    draws = None if target.read_noise.silent else ctx.draws
    if ctx.trials > 1:
        raise DiagnosticError(
            op.diagnostic(diagnostic_codes.BAD_INPUT, f"{ctx.trials} trials run together, one can")
        )
    dtype = TORCH_DTYPES[str(tensor(op.y).element)]
    axis = tensor(op.x).batch_axis or 0
    rows = x.detach().movedim(axis, 0)
    flat = rows.reshape(rows.shape[0], -1, kind.columns)
    made = _TransposedReader(op, target, held, draws).read(flat)
    if kind.row_order == "position":
        # Rows lie by kernel position; a gradient wants them by channel.
        made = made.reshape(*made.shape[:-1], -1, kind.row_block).transpose(-1, -2).flatten(-2)
    made = made.reshape(*rows.shape[:-1], kind.rows)
    return made.movedim(0, axis).to(dtype)


class _TransposedReader:
    """Drives the columns of one slice at a time and converts the sums of rows."""

    def __init__(
        self,
        op: TransposedMvm,
        target: CrossbarTarget,
        matrix: simulate.Matrix,
        draws: Draws | None,
    ) -> None:
        self.op, self.target, self.draws = op, target, draws
        self.kind = kind = matrix.kind
        self.pairs = op.converts == "pair"
        self.codes = matrix.codes
        levels = matrix.of_trial(0)[0]
        low = 1 / target.keys.device.on_off_ratio
        step = (1 - low) / (target.levels - 1)
        mean, variance = levels, torch.zeros_like(levels)
        if draws is not None:
            conductance = low + levels * step
            drawn, spread = target.read_noise.moments(conductance)
            mean = levels + (drawn - conductance) / step
            variance = spread / step**2
        self.levels, self.variance = mean, variance
        tile_of = torch.empty(kind.physical_columns + kind.bias_columns, dtype=torch.int64)
        for tile, columns in enumerate(devices.array_columns(kind)):
            tile_of[torch.tensor(columns)] = tile
        self.tile_of = tile_of
        signed = 0.0 if not self.pairs else 2.0 ** (op.adc_bits - 1)
        self.bottom = -signed
        self.top = 2.0**op.adc_bits - 1 - signed

    def read(self, x: Tensor) -> Tensor:
        """``[B, P, N]`` codes to ``[B, P, K]`` sums, float64."""
        op, kind = self.op, self.kind
        lift = 2.0 ** (op.input_bits - 1) if op.dac_bits > 1 else 0.0
        whole = (x + lift).to(torch.int64)
        shifts = torch.arange(op.digits) * op.dac_bits
        mask: int = 2**op.dac_bits - 1
        # [B, P, D, N]; bit by bit the top digit of two's complement counts negative.
        digits = ((whole[..., None, :] >> shifts[:, None]) & mask).to(torch.float32)
        weight = 2.0 ** shifts.to(torch.float64)
        if op.dac_bits == 1:
            weight[-1] = -weight[-1]
        signs = 1 if not kind.paired or self.pairs else 2
        total = torch.zeros(*x.shape[:2], kind.rows, dtype=torch.float64)
        for slice_ in range(kind.slices):
            for sign in range(signs):
                factor = 2.0 ** (kind.cell_bits * slice_) * (-1.0 if sign else 1.0)
                sums = self._slice(digits, slice_, sign)
                total += factor * torch.einsum("bpdk,d->bpk", sums, weight)
        inputs = x.to(torch.float64).sum(-1, keepdim=True)
        if kind.code_offset:
            total -= kind.code_offset * (inputs + lift * kind.columns)
        if lift:
            total -= lift * self._column_sums()
        return total

    def _column_sums(self) -> Tensor:
        """Sums of codes over the columns, ``[K]``, known when the codes are written."""
        return self.codes.to(torch.float64).sum(-2)[0]

    def _slice(self, digits: Tensor, slice_: int, sign: int) -> Tensor:
        """Converted row sums ``[B, P, D, K]`` of the columns of one slice and sign."""
        kind = self.kind
        per_weight = kind.cells_per_weight
        pair = 2 if kind.paired else 1
        columns = torch.arange(kind.columns) * per_weight + slice_ * pair + sign
        levels, variance = self.levels[..., columns], self.variance[..., columns]
        if self.pairs:
            levels = levels - self.levels[..., columns + 1]
            variance = variance + self.variance[..., columns + 1]
        total: Tensor | None = None
        tiles = self.tile_of[columns]
        for tile in sorted(set(tiles.tolist())):
            here = tiles == tile
            part = digits[..., here]
            # [B, P, D, T, rows]
            sums = torch.einsum("bpdn,trn->bpdtr", part, levels[..., here])
            if self.draws is not None:
                spread = torch.einsum("bpdn,trn->bpdtr", part**2, variance[..., here]).sqrt()
                stream = f"{self.op.stream}/{slice_}.{sign}.{tile}"
                sums = sums + spread * self.draws.per_read(stream, tuple(sums.shape[1:]))
            step = self.op.adc_step
            sums = (sums / step).round().clamp(self.bottom, self.top).to(torch.float64) * step
            total = sums if total is None else total + sums
        if total is None:
            raise ValueError("a matrix without columns")
        flat = total.flatten(-2).reshape(*total.shape[:3], kind.blocks, -1)
        return flat[..., : kind.block_rows].flatten(-2)[..., : kind.rows]
