"""What the modules for the libraries share: refusals, numbers, probing of spike functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError


class Neuron:
    """One neuron object whose ``forward`` is exchanged; subclasses are one library's forms."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module: Any = module
        self.name = name
        self.flattened_steps: int | None = None
        """Time steps in the first axis of the input, for a layer that merges them with samples."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """In place of the module's."""
        raise NotImplementedError

    def overrides(self) -> dict[str, Any]:
        """Attributes to set on the object for the time of the exchange."""
        return {"forward": self.forward}

    def saved(self) -> Any:
        """State of the object before the exchange."""
        return None

    def restore(self, saved: Any) -> None:
        """Put back what :meth:`saved` gave."""

    def reset(self) -> None:
        """State as after the library's reset."""


Exchange: TypeAlias = Callable[[nn.Module, str, list[Diagnostic]], Neuron | None]
"""``exchange(module, name, warnings)``: the neuron, or None for a module that is no neuron."""


def library_class(path: str) -> type | None:
    """A class by module and name if its library is loaded: ``snntorch.Leaky``."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def known_base(module: nn.Module, paths: Iterable[str]) -> tuple[str, type] | None:
    """The first class of the module's ancestry that is one of ``paths``."""
    known = {cls: path for path in paths if (cls := library_class(path)) is not None}
    for base in type(module).__mro__:
        if base in known:
            return known[base], base
    return None


def check_not_overridden(module: nn.Module, name: str, base: type, methods: Iterable[str]) -> None:
    """Refuse a subclass, or an object, that replaces one of the methods its neuron computes by."""
    kind = type(module)
    for method in methods:
        mine, theirs = getattr(kind, method, None), getattr(base, method, None)
        if mine is not theirs or (method in vars(module) and theirs is not None):
            raise refuse(
                module,
                name,
                f"{kind.__name__} computes by its own {method}()",
                help=f"use {base.__name__} itself, or write the neuron with torch ops in a "
                "module that does not derive from the library's",
            )


def refuse(module: nn.Module, name: str, reason: str, help: str = "") -> DiagnosticError:
    """A neuron that cannot be captured as it computes; raise what it returns."""
    kind = type(module)
    library = kind.__module__.partition(".")[0]
    return DiagnosticError(
        Diagnostic(
            codes.UNSUPPORTED_FORM,
            f"{name or 'the model'}: the neuron {kind.__name__} ({library}) is not supported",
            scope=name,
            reason=reason,
            help=help,
        )
    )


def number(tensor: Any) -> float | None:
    """The value of a number or of a tensor with one element whose data is at hand, else None."""
    if isinstance(tensor, Tensor):
        if tensor.numel() != 1 or tensor.is_meta:
            return None
        return float(tensor.detach())
    return float(tensor)


def surrogate(name: str, slope: float = 1.0, scale: float = 1.0) -> dict[str, Any]:
    """Attributes of ``snn.lif`` that record a surrogate gradient."""
    return {"surrogate": name, "surrogate_slope": float(slope), "surrogate_scale": float(scale)}


def unknown_surrogate(
    module: nn.Module,
    name: str,
    found: list[Diagnostic],
    fire: Callable[[Tensor], Tensor],
    at: float,
) -> dict[str, Any]:
    """For a spike function that is not the library's: it must be a step, its gradient is lost.

    ``at`` is what it has to give for a membrane exactly at the threshold. Raises if it is no step.
    """
    points = torch.tensor([-2.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 2.0])
    wanted = torch.tensor([0.0, 0.0, 0.0, at, 1.0, 1.0, 1.0])
    with torch.no_grad():
        made = [fire(points.clone()) for _ in range(2)]
    if not all(isinstance(item, Tensor) and torch.equal(item.float(), wanted) for item in made):
        raise refuse(
            module,
            name,
            "its spike function is not a step: for membranes at "
            f"{points.tolist()} around the threshold it gives {made[0]}",
            help="use one of the library's surrogate functions",
        )
    found.append(
        Diagnostic(
            codes.CAPTURE,
            f"{name}: the surrogate gradient of its spike function is not recorded",
            severity="warning",
            scope=name,
            reason="it is not one of the library's; what the neuron computes is not affected",
            help="training through the compiled program sees a gradient of zero here",
        )
    )
    return surrogate("none")
