"""A read without converters: the product with the weights that cells amount to, as one matrix.

Shift and add is linear, and so is the sum of a column: what the cells of a weight hold, weighted as
their columns are, is the weight that the hardware has. A product with it is what reads give up to
converters, in one product instead of one for each digit and slice, and it has gradients. Training
takes its gradient, or runs on it (:class:`imcc.ir.semantics.interpreter.EvalContext`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imcc.backends.crossbar.dialect import MatrixType, Mvm, ReadMatrix
from imcc.ir.dialects.core import tensor
from imcc.ir.semantics.nn import convolve
from imcc.ir.semantics.resources import TORCH_DTYPES

if TYPE_CHECKING:
    from imcc.backends.crossbar.simulate import Reader


def linear_read(
    op: Mvm,
    reader: Reader,
    x: Tensor,
    zero: float,
    weight_zero_point: Tensor | None,
    *,
    trials: int,
) -> Tensor:
    """The product of input codes with the weights that cells hold, differentiable in both.

    The gradient of the weights is that of the codes, since deviations are given. Several trials
    fold into the batch and have a matrix each; they share the gradient of the codes.
    """
    kind = reader.kind
    dtype = TORCH_DTYPES[str(tensor(op.y).element)]
    axis = tensor(op.x).batch_axis or 0
    codes = reader.matrix.codes.reshape(kind.columns, kind.group_rows)
    count = trials if reader.matrix.cells is not None else 1
    parts = []
    for trial, part in enumerate(x.chunk(count, dim=axis)):
        reader.select(trial)
        with torch.no_grad():
            error = held_weights(reader) - codes
            # Zero points are taken off by what the weights should be.
            constant = (zero + input_lift(op)) * _block_sums(error, kind) + held_constants(reader)
        weights = codes.to(dtype) + error.to(dtype)
        made = matrix_product(op, part.to(dtype) - zero, weights, weight_zero_point)
        parts.append(made + _along_outputs(constant.to(dtype), op))
    return parts[0] if count == 1 else torch.cat(parts, dim=axis)


def with_read_noise(
    op: Mvm, reader: Reader, read: Tensor, x: Tensor, zero: float, *, trials: int
) -> Tensor:
    """``read`` plus the noise of its cells, drawn for each output with the variance of the sum."""
    kind, draws = reader.kind, reader.draws
    if draws is None:
        return read
    axis = tensor(op.x).batch_axis or 0
    count = trials if reader.matrix.cells is not None else 1
    lift = input_lift(op)
    with torch.no_grad():
        at_zero = float(digit_squares(torch.tensor([zero + lift]), reader))
        parts = []
        for trial, part in enumerate(x.chunk(count, dim=axis)):
            reader.select(trial)
            variance = torch.as_tensor(read_variance(reader), dtype=torch.float32)
            if not variance.dim():
                variance = variance.expand(kind.columns, kind.group_rows)
            squares = digit_squares(part + lift, reader)
            # Padding applies the code of the zero point.
            made = matrix_product(op, squares - at_zero, variance, None)
            constant = at_zero * _block_sums(variance, kind)
            parts.append(made + _along_outputs(constant.to(made.dtype), op))
        spread = torch.cat(parts, dim=axis).clamp_min(0).sqrt().movedim(axis, 0)
        noise = (draws.per_read(op.stream, spread.shape[1:]) * spread).movedim(0, axis)
    return read + noise.to(read.dtype)


def matrix_product(op: Mvm, x: Tensor, weights: Tensor, zeros: Tensor | None) -> Tensor:
    """``sum_k x[..., k] (w[n, k] - zeros[n])`` for weights ``[N, K/G]`` in the matrix' row order.

    Shaped as the op's result: a sum of each block of rows, or a convolution with zero padding.
    """
    kind = op.held
    weights = weights.to(x.dtype)
    if kind.split:
        pad = (0, kind.blocks * kind.block_rows - kind.group_rows)
        w = torch.nn.functional.pad(weights, pad).reshape(kind.columns, kind.blocks, -1)
        if zeros is not None:
            w = w - zeros.to(x.dtype)[:, :, None]
        parts = torch.nn.functional.pad(x, pad).reshape(*x.shape[:-1], kind.blocks, -1)
        return torch.einsum("...jk,njk->...nj", parts, w)
    if zeros is not None:
        weights = weights - zeros.to(x.dtype)[:, None]
    if not op.kernel:
        return torch.nn.functional.linear(x, weights)
    if kind.row_order == "position":
        weights = weights.reshape(kind.columns, math.prod(op.kernel), -1).transpose(1, 2)
    filters = weights.reshape(kind.columns, -1, *op.kernel)
    return convolve(x, filters, None, op.stride, op.padding, op.dilation, kind.groups)


def input_lift(op: Mvm | ReadMatrix) -> float:
    """What is added to signed codes that are applied several bits at a time.

    Such digits have no sign bit of their own, so the hardware applies ``x + 2^(bits-1)``.
    """
    return 2.0 ** (op.input_bits - 1) if tensor(op.x).quant.signed and op.dac_bits > 1 else 0.0


def held_weights(reader: Reader) -> Tensor:
    """The weights ``[N, K/G]``, in steps of a code, that the cells of the reader's trial amount to.

    Codes themselves where devices are ideal. Includes the mean of read noise, and what cells at
    level 0 conduct where that does not cancel.
    """
    kind, target = reader.kind, reader.target
    levels = reader.product
    if target.column_offset and not reader.pairs:
        levels = levels + target.column_offset
    made = _rows_of(reader.logical_columns(levels.double()), kind)
    return made if kind.biased or not kind.code_offset else made - kind.code_offset


def held_constants(reader: Reader) -> Tensor:
    """What offsets of drivers and converters add to each output of each block, ``[blocks, N]``."""
    kind = reader.kind
    shift = reader.logical_columns(reader.shift.double()) * float(reader.digit_weights.sum())
    outputs = kind.blocks if kind.split else 1
    parts = shift.reshape(kind.groups, outputs, -1, kind.group_columns).sum(2)
    return parts.transpose(0, 1).reshape(outputs, kind.columns)


def read_variance(reader: Reader) -> Tensor | float:
    """Variance of the read noise of each weight, summed over its cells, in squared code steps.

    ``[N, K/G]``, or a number where all are equal. A digit d of weight b adds ``b^2 d^2`` times that
    to an output's variance. The noise of a bias column is taken for independent between the outputs
    that share it.
    """
    if reader.draws is None:
        return 0.0
    kind = reader.kind
    cell = reader.cell_weights.double().square()
    slice_ = (kind.weight_bits - 1) // kind.cell_bits
    biases = 4.0 ** (kind.cell_bits * slice_) if kind.biased else 0.0
    if reader.variance is None:
        # One variance for every cell; a converted pair has the noise of both of its cells.
        each = (reader.constant or 0.0) / reader.step**2 * (2 if reader.pairs else 1)
        return each * (float(cell.sum()) + biases)
    held = reader.variance.double() * reader.scale
    plain = held[..., : held.shape[-1] - kind.bias_columns]
    made = plain.reshape(*plain.shape[:-1], kind.group_columns, -1) @ cell
    if kind.biased:
        made = made + biases * held[..., -kind.bias_columns :].mean(-1, keepdim=True)
    return _rows_of(made, kind)


def digit_squares(x: Tensor, reader: Reader) -> Tensor:
    """``sum over digits of weight^2 digit^2`` of input codes, for :func:`read_variance`."""
    op = reader.op
    codes = torch.arange(1 << (op.digits * op.dac_bits))
    mask: int = 2**op.dac_bits - 1
    # Inputs have at most 16 bits, so that a table of all codes is small.
    table = torch.zeros(len(codes), dtype=torch.float32)
    for number, weight in enumerate(reader.digit_weights.tolist()):
        digit = (codes >> (number * op.dac_bits)) & mask
        table += (digit * digit).to(torch.float32) * weight**2
    return table[x.to(torch.int64) & (len(codes) - 1)]


def _rows_of(columns: Tensor, kind: MatrixType) -> Tensor:
    """``[G * T, rows, N/G]`` as weights ``[N, K/G]``: runs of rows joined, padding cut off."""
    made = columns.reshape(kind.groups, kind.blocks, -1, kind.group_columns)
    joined = made[:, :, : kind.block_rows].flatten(1, 2)[:, : kind.group_rows]
    return joined.transpose(1, 2).reshape(kind.columns, kind.group_rows)


def _block_sums(weights: Tensor, kind: MatrixType) -> Tensor:
    """Sums of weights ``[N, K/G]`` over the rows of each output's block, ``[blocks, N]``."""
    if not kind.split:
        return weights.double().sum(-1)[None]
    pad = (0, kind.blocks * kind.block_rows - kind.group_rows)
    padded = torch.nn.functional.pad(weights.double(), pad)
    return padded.reshape(kind.columns, kind.blocks, -1).sum(-1).T


def _along_outputs(values: Tensor, op: Mvm) -> Tensor:
    """``[blocks, N]`` shaped so that it adds to the op's result."""
    if op.held.split:
        return values.T
    return values[0].reshape(-1, *([1] * len(op.kernel)))
