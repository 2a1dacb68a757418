"""Pass ``clip-activations``: bound what activations can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.ir.dialects import nn
from imcc.ir.module import Module
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option


@dataclass(frozen=True)
class ClipActivations(Pass):
    """Clip the output of every ``nn.relu`` at ``limit``."""

    name: ClassVar[str] = "clip-activations"
    contract: ClassVar[Approximate] = Approximate(bound=0.5)

    limit: float = option(default=6.0, minimum=0.0, doc="largest value that is kept")

    def run(self, module: Module, context: PassContext) -> None:
        """Replace each ``nn.relu`` by ``nn.clamp`` between 0 and the limit."""
        rewriter = context.rewriter(module, self.name)
        for op in list(module.walk()):
            if isinstance(op, nn.Relu):
                clipped = nn.Clamp(x=op.x, minimum=0.0, maximum=self.limit)
                rewriter.replace(op, [clipped], clipped.y)
