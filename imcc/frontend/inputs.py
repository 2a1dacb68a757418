"""Example inputs: by position or by keyword, and which of their axes keep their size open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from imcc.frontend.batch import BatchLayout

BATCH, SEQUENCE = "B", "S"

MAX_BATCH = 1 << 20
"""A program that takes batches up to this size is taken to take any."""


@dataclass(frozen=True)
class Inputs:
    """One call's arguments: ``values`` in order, with ``names`` if they are given by keyword."""

    values: tuple[Any, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, given: Sequence[Any] | Mapping[str, Any]) -> Inputs:
        """From a sequence of positional inputs or a mapping of keywords."""
        if isinstance(given, Mapping):
            return cls(tuple(given.values()), tuple(map(str, given)))
        return cls(tuple(given), ())

    def leaves(self) -> list[Any]:
        """All values, structures taken apart."""
        return pytree.tree_leaves(self.values)

    def spec(self) -> pytree.TreeSpec:
        """Structure of ``values``."""
        return pytree.tree_structure(self.values)

    def arguments(self) -> tuple[Any, ...]:
        """What is passed by position."""
        return () if self.names else self.values

    def keywords(self) -> dict[str, Any]:
        """What is passed by keyword."""
        return dict(zip(self.names, self.values, strict=True)) if self.names else {}

    def with_leaves(self, leaves: Sequence[Any]) -> Inputs:
        """The same structure with other leaves."""
        values: tuple[Any, ...] = pytree.tree_unflatten(list(leaves), self.spec())
        return Inputs(values, self.names)


@dataclass(frozen=True)
class OpenSizes:
    """For each tensor among the inputs, the symbol of each axis whose size stays open."""

    axes: tuple[Mapping[int, str], ...]
    example: Mapping[str, int]
    """Sizes in the example inputs."""
    batch_steps: int = 1
    """How many rows of the batch axis one sample has."""

    @classmethod
    def of(cls, leaves: Sequence[Any], layout: BatchLayout | None, *, sequence: bool) -> OpenSizes:
        """The batch where ``layout`` says (None: its size is fixed); tokens have a sequence.

        Tokens are integers ``[batch, sequence]``. The sequence is also axis 1 of every input
        ``[batch, sequence]`` of other elements, and the last two axes of a mask
        ``[batch, heads, sequence, sequence]``.
        """
        tensors = [item for item in leaves if isinstance(item, Tensor)]
        first = tensors[0].shape[0] if tensors and tensors[0].dim() else None
        tokens = [item for item in tensors if _is_tokens(item, first)]
        length = tokens[0].shape[1] if tokens and sequence else None
        made: list[dict[int, str]] = []
        for leaf in tensors:
            axes: dict[int, str] = {}
            place = layout.axis_of(leaf) if layout is not None else None
            if place is not None:
                axes[place] = BATCH
            if length is not None and leaf.dim() == 2 and leaf.shape[1] == length:
                axes[1] = SEQUENCE
            if length is not None and leaf.dim() == 4 and leaf.shape[2:] == (length, length):
                axes[2] = axes[3] = SEQUENCE
            made.append(axes)
        example: dict[str, int] = {}
        if layout is not None and layout.size is not None:
            example[BATCH] = layout.size
        if length is not None:
            example[SEQUENCE] = length
        return cls(tuple(made), example, layout.steps if layout is not None else 1)

    def without(self, *symbols: str) -> OpenSizes:
        """The same with the axes of some symbols fixed."""
        axes = tuple({k: v for k, v in item.items() if v not in symbols} for item in self.axes)
        example = {k: v for k, v in self.example.items() if k not in symbols}
        return OpenSizes(axes, example, self.batch_steps)

    def widened(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves with every open size at least 2: the exporter fixes sizes 0 and 1."""
        made: list[Any] = []
        axes = iter(self.axes)
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                made.append(leaf)
                continue
            for axis, symbol in next(axes).items():
                if self.example[symbol] < 2:
                    leaf = torch.cat([leaf, leaf], dim=axis)
            # A tensor of its own: the exporter tells inputs apart by identity.
            made.append(leaf.view(leaf.shape))
        return made

    def symbols(self, program: ExportedProgram) -> dict[str, str]:
        """Letters by the names of the exporter's symbols."""
        return {name: letter for letter, name in self._names(program) if name is not None}

    def fixed(self, program: ExportedProgram) -> set[str]:
        """Symbols that the exporter replaced by a number or by an expression of others.

        A batch size that the model branches on counts too: the program would hold one branch only.
        """
        return {letter for letter, name in self._names(program) if name is None}

    def _names(self, program: ExportedProgram) -> Iterator[tuple[str, str | None]]:
        """For each open axis its letter, and the exporter's symbol if it kept the size open."""
        for meta, axes in zip(input_metas(program), self.axes, strict=True):
            for axis, letter in axes.items():
                size = meta.shape[axis]
                name: str | None = None
                if isinstance(size, torch.SymInt):
                    factor, rest = size.node.expr.as_coeff_Mul()
                    if factor == (self.batch_steps if letter == BATCH else 1) and rest.is_Symbol:
                        name = rest.name
                    if letter == BATCH and _is_bounded(program, rest):
                        name = None
                yield letter, name


def _is_bounded(program: ExportedProgram, symbol: Any) -> bool:
    """Whether the model took a branch that holds for some batch sizes only.

    The exporter assumes sizes of 2 and more by itself; any narrower range is the model's.
    """
    held = program.range_constraints.get(symbol)
    return held is not None and bool(held.lower > 2 or held.upper < MAX_BATCH)


def _is_tokens(leaf: Tensor, batch: int | None) -> bool:
    integers = not leaf.is_floating_point() and leaf.dtype != torch.bool
    return integers and leaf.dim() == 2 and leaf.shape[0] == batch


def input_metas(program: ExportedProgram) -> list[Tensor]:
    """Fake tensors of the user's inputs, in order."""
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    held = [node.meta["val"] for node in nodes if node.name in names]
    return [item for item in held if isinstance(item, Tensor)]
