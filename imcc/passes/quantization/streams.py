"""Calibration streams: what flows between blocks, in float and behind quantised blocks.

Each calibration batch is cut into chunks of a few samples. A chunk carries two sets of values: the
float stream gives each block its target, the quantised stream its input, so that a block is asked
to undo the error of the blocks before it as well as its own (TesseraQ, arXiv 2410.19103). Values
that no quantised block has touched are held once. Dead values are dropped, so that one block's
inputs are in memory (or on disk) at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.dims import Monomial
from imcc.ir.module import Function
from imcc.ir.ops import Value
from imcc.ir.semantics.interpreter import bind_symbols
from imcc.ir.types import TensorType
from imcc.passes.quantization.blocks import Block

CPU = torch.device("cpu")
BATCH = "B"
"""The symbol of the batch size."""


@dataclass
class ActivationStore:
    """Keeps tensors in memory, or in files under ``folder``; floats in ``dtype``.

    Blocks run on ``device``; what is kept lies on the CPU, so that a device needs the memory of
    one block and one step.
    """

    folder: Path | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def put(self, tensor: Tensor) -> Tensor | Path:
        """Keep a tensor; returns what :meth:`get` takes."""
        if tensor.dtype == torch.float32:
            tensor = tensor.to(self.dtype)
        tensor = tensor.to(CPU)
        if self.folder is None:
            return tensor
        from safetensors.torch import save_file

        path = self.folder / f"{next(self._numbers)}.safetensors"
        save_file({"x": tensor.contiguous()}, str(path))
        return path

    def get(self, held: Tensor | Path) -> Tensor:
        """The tensor on the device, floats as float32 again."""
        if isinstance(held, Path):
            from safetensors.torch import load_file

            # A mapped file is not aligned as memory is, and kernels round differently on it.
            held = load_file(str(held))["x"].clone()
        held = held.to(self.device)
        return held.float() if held.dtype == torch.bfloat16 else held

    def drop(self, held: Tensor | Path) -> None:
        """Forget a tensor."""
        if isinstance(held, Path):
            held.unlink(missing_ok=True)


@dataclass
class Chunk:
    """A few samples: bound symbols, float values, and the quantised values that differ."""

    symbols: dict[str, int]
    float_values: dict[Value, Tensor | Path]
    quantised_values: dict[Value, Tensor | Path] = field(default_factory=dict)


class Streams:
    """The two streams of all chunks, advanced block by block."""

    def __init__(
        self,
        function: Function,
        batches: Sequence[tuple[Any, ...]],
        samples: int,
        store: ActivationStore,
    ) -> None:
        self.store = store
        self.chunks: list[Chunk] = []
        for batch in batches:
            for part in _cut(function, batch, samples):
                held = {v: store.put(t) for v, t in zip(function.inputs, part, strict=True)}
                self.chunks.append(Chunk(bind_symbols(function, part), held))

    def float_inputs(self, chunk: Chunk, block: Block) -> dict[Value, Tensor]:
        """What enters ``block`` in the float stream."""
        return {value: self.store.get(chunk.float_values[value]) for value in block.inputs}

    def quantised_inputs(self, chunk: Chunk, block: Block) -> dict[Value, Tensor]:
        """What enters ``block`` behind quantised blocks."""
        held = {**chunk.float_values, **chunk.quantised_values}
        return {value: self.store.get(held[value]) for value in block.inputs}

    def differ(self, block: Block) -> bool:
        """Whether anything that enters ``block`` differs between the streams."""
        return any(value in self.chunks[0].quantised_values for value in block.inputs)

    def float_outputs(self, chunk: Chunk, block: Block) -> dict[Value, Tensor]:
        """What leaves ``block`` in the float stream."""
        return {value: self.store.get(chunk.float_values[value]) for value in block.outputs}

    def put_float(self, chunk: Chunk, values: Mapping[Value, Tensor]) -> None:
        """Add a block's outputs to the float stream."""
        chunk.float_values.update({v: self.store.put(t) for v, t in values.items()})

    def put_quantised(self, chunk: Chunk, values: Mapping[Value, Tensor]) -> None:
        """Add a block's outputs to the quantised stream."""
        chunk.quantised_values.update({v: self.store.put(t) for v, t in values.items()})

    def retire(self, later: Sequence[Block]) -> None:
        """Drop the values that no block of ``later`` reads."""
        needed = {value for block in later for value in block.inputs}
        for chunk in self.chunks:
            for values in (chunk.float_values, chunk.quantised_values):
                for value in [value for value in values if value not in needed]:
                    self.store.drop(values.pop(value))


def _cut(function: Function, batch: tuple[Any, ...], samples: int) -> list[tuple[Tensor, ...]]:
    axes: list[int | None] = []
    size = 0
    for value, given in zip(function.inputs, batch, strict=True):
        if not isinstance(given, Tensor):
            raise error(codes.BAD_DATA, f"calibration input %{value.name} is no tensor")
        shape = value.type.shape if isinstance(value.type, TensorType) else ()
        axis = next((i for i, dim in enumerate(shape) if _is_batch(dim)), None)
        axes.append(axis)
        size = given.shape[axis] if axis is not None else size
    if not size or size <= samples:
        return [batch]
    return [
        tuple(
            given if axis is None else given.narrow(axis, start, min(samples, size - start))
            for given, axis in zip(batch, axes, strict=True)
        )
        for start in range(0, size, samples)
    ]


def _is_batch(dim: Any) -> bool:
    return isinstance(dim, Monomial) and dim.coefficient == 1 and dim.symbols == (BATCH,)
