"""Starting values of reuse blocks by least squares on calibration data.

The attention that a block replaces is the teacher. With u the normalised input of the block, t what
the attention gave and y what its output projection made of that (all over the tokens of the
calibration data):

1. the layer predicts t from u, ``z = u W^T + b``, minimising ``|z - t|^2 + ridge |W|^2``;
2. z is scaled as a whole to a standard deviation of 1 and shifted channel by channel to a mean of
   :data:`OPERATING_POINT`, where GELU is close to a straight line;
3. the output projection is fitted anew to y on what GELU makes of that.

Without a projection of its own the block's output stands for y itself: step 1 takes y in place of
t, and that is all; GELU gives nothing below -0.17, so the fit is rough.
Encoders are fitted in order, each on the program with the blocks before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imcc.ir.dialects import core, nn
from imcc.ir.module import Function
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import Progress
from imcc.passes.reuse.block import ReuseBlock

OPERATING_POINT = 2.0
"""GELU differs from x by less than 0.05 at 2, and its slope from 1 by less than 0.14 beyond 1."""


@dataclass
class _Moments:
    """Sums over tokens that a linear least-squares fit with an intercept needs, in float64."""

    count: int = 0
    xx: Tensor | None = None
    xy: Tensor | None = None
    yy: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.flatten(0, -2).double(), y.flatten(0, -2).double()
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        self.count += len(x)
        self.xx = x.T @ x if self.xx is None else self.xx + x.T @ x
        self.xy = x.T @ y if self.xy is None else self.xy + x.T @ y
        square = (y - y.mean(0)).square().sum()
        self.yy = square if self.yy is None else self.yy + square

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight ``[y, x]`` and intercept ``[y]``; ``ridge`` is relative to the mean of x^2."""
        if self.xx is None or self.xy is None:
            raise ValueError("no data")
        penalty = torch.eye(len(self.xx), dtype=self.xx.dtype)
        penalty[-1, -1] = 0.0
        penalty *= ridge * self.xx.diagonal()[:-1].mean()
        # numpy's: torch's differs in its last bits from process to process.
        made, *_ = np.linalg.lstsq((self.xx + penalty).numpy(), self.xy.numpy(), rcond=None)
        found = torch.from_numpy(made)
        return found[:-1].T.contiguous(), found[-1].clone()

    def spread(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of ``x weight^T + bias``."""
        if self.xx is None:
            raise ValueError("no data")
        held = torch.cat([weight, bias[:, None]], dim=1)
        mean = held @ self.xx[-1] / self.count
        square = ((held @ self.xx) * held).sum(1) / self.count
        return mean, (square - mean.square()).clamp_min(0.0).sqrt()


@dataclass
class Fitter:
    """Fits blocks of ``student`` to ``teacher``, the function as it was before."""

    teacher: Function
    student: Function
    batches: Sequence[tuple[Any, ...]]
    store: ResourceStore
    rewriter: Rewriter
    ridge: float
    progress: Progress
    _taught: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def fit(self, block: ReuseBlock, merged: Value, output: Value | None) -> dict[str, float]:
        """Fit one block; ``merged`` and ``output`` are the teacher's t and y.

        Gives the root-mean-square error of y, relative to that of y, on the calibration data.
        """
        self._taught.clear()
        projected = block.projection is not None
        wanted = merged if projected or output is None else output
        first = _Moments()
        for u, t in self._pairs(block.norm.y, wanted):
            first.add(u, t)
        weight, bias = first.solve(self.ridge)
        if projected:
            mean, deviation = first.spread(weight, bias)
            scale = 1.0 / deviation.square().mean().sqrt().clamp_min(1e-12)
            weight, bias = weight * scale, (bias - mean) * scale + OPERATING_POINT
        self._set(block.layer, weight, bias)
        if block.projection is None or output is None:
            return {"relative_error": self._error(block.activation.y, wanted)}
        second = _Moments()
        for h, y in self._pairs(block.activation.y, output):
            second.add(h, y)
        self._set(block.projection, *second.solve(self.ridge))
        return {"relative_error": self._error(block.projection.y, output)}

    def _error(self, value: Value, wanted: Value) -> float:
        wrong = right = 0.0
        for made, y in self._pairs(value, wanted):
            wrong += float((made - y).double().square().sum())
            right += float(y.double().square().sum())
        return math.sqrt(wrong / max(right, 1e-300))

    def _pairs(self, mine: Value, theirs: Value) -> list[tuple[Tensor, Tensor]]:
        made: list[tuple[Tensor, Tensor]] = []
        for number, batch in enumerate(self.batches):
            self.progress(number, len(self.batches), "fit reuse blocks")
            key = (number, theirs.name)
            if key not in self._taught:
                self._taught[key] = self._run(self.teacher, batch, theirs)
            made.append((self._run(self.student, batch, mine), self._taught[key]))
        return made

    def _run(self, function: Function, batch: tuple[Any, ...], wanted: Value) -> Tensor:
        found: dict[str, Tensor] = {}

        def observe(op: Op, results: tuple[Any, ...]) -> None:
            if op is wanted.owner:
                found["value"] = results[0].detach()

        with torch.no_grad():
            evaluate_function(function, batch, resources=self.store, observer=observe)
        return found["value"]

    def _set(self, layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
        """Give a layer new constants; what else reads the old ones keeps them."""
        for what, value in (("weight", weight), ("bias", bias)):
            held: Value | None = getattr(layer, what)
            owner = held.owner if held is not None else layer.weight.owner
            if not isinstance(owner, core.Constant):
                raise layer.fail(f"its {what} is computed")
            name = str(owner.value) if held is not None else f"{layer.scope}.bias"
            dtype = self.store.get(str(layer.weight.owner.value)).dtype  # type: ignore[union-attr]
            made = self.store.put(name, value.to(dtype))
            if self.rewriter.module.resources.get(made.name) != made:
                self.rewriter.add_resource(made)
            constant = core.Constant.of(made.name, made.type, made.name, layer.scope)
            self.rewriter.insert_before(layer, constant)
            self.rewriter.set_operand(layer, what, constant.y)
