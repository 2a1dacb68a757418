"""Outputs by name, for models whose own class of outputs is not known when an artifact is loaded.

Libraries such as ``transformers`` return objects with the fields of their model. A compiled model
returns the library's own class; a loaded artifact, which imports nothing that it names, returns
:class:`NamedOutputs` with the same access.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch.utils._pytree as pytree


class NamedOutputs(OrderedDict[str, Any]):
    """Outputs by name (``outputs["logits"]``, ``outputs.logits``) or by place (``outputs[0]``)."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        raise AttributeError(f"no output {name!r}; there are {', '.join(self)}")

    def to_tuple(self) -> tuple[Any, ...]:
        """All outputs in order."""
        return tuple(self.values())


def _flatten(held: NamedOutputs) -> tuple[list[Any], tuple[str, ...]]:
    return list(held.values()), tuple(held)


def _unflatten(values: Any, names: Any) -> NamedOutputs:
    return NamedOutputs(zip(names, values, strict=True))


pytree.register_pytree_node(NamedOutputs, _flatten, _unflatten)
