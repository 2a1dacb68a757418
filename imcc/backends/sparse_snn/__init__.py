"""Backend ``sparse_snn``: sparse spikes times sparse weights, from compressed fibers.

``fibers`` and ``windows`` are the operands, one module per dataflow holds its kernel, ``engines``
runs a product on a target, ``target`` says what the hardware is. Programs are not mapped yet: they
run in the interpreter, and their cost is unknown.
"""

from __future__ import annotations

from typing import Any, ClassVar

from imcc.backends.api import Target
from imcc.backends.reference import ReferenceBackend


class SparseSnnBackend(ReferenceBackend):
    """Accelerators for spiking networks with sparse weights: LoAS and what it is compared with."""

    name: ClassVar[str] = "sparse_snn"

    def load_target(self, name: str, data: dict[str, Any], origin: str) -> Target:
        """Validate by the keys of :mod:`imcc.backends.sparse_snn.target`."""
        from imcc.backends.sparse_snn.target import load

        return load(name, data, origin)


BACKEND = SparseSnnBackend()
