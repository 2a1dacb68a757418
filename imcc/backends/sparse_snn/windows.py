"""Implicit im2col: which words of a map the rows of a convolution's product read.

Row m is an output position, its K = kernel positions x channels, channels innermost: a pixel's
compressed fiber of channels is one run of the row, so rows are put together from fibers as they
are stored and nothing is written back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def window_rows(
    plane: NDArray[Any],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    fill: int = 0,
) -> NDArray[Any]:
    """Rows ``[positions, prod(kernel) * C]`` of a map ``[C, spatial]``, padded with ``fill``."""
    pads = [(0, 0), *((size, size) for size in padding)]
    padded = np.pad(plane, pads, constant_values=fill) if any(padding) else plane
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    axes = tuple(range(1, plane.ndim))
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axes)
    steps = tuple(slice(None, None, step) for step in stride)
    taps = tuple(slice(None, None, step) for step in dilation)
    views = views[(slice(None), *steps, *taps)]
    count = len(kernel)
    order = (*range(1, 1 + count), *range(1 + count, 1 + 2 * count), 0)
    made = views.transpose(order)
    positions = int(np.prod(made.shape[:count]))
    return np.ascontiguousarray(made).reshape(positions, -1)


def filter_rows(weights: NDArray[Any]) -> NDArray[Any]:
    """Weights ``[N, C, kernel]`` as ``[N, prod(kernel) * C]`` in the order of window rows."""
    return np.ascontiguousarray(np.moveaxis(weights, 1, -1)).reshape(len(weights), -1)
