"""What a backend is: a family of hardware with its targets, rules and default pipeline.

A backend is a package registered in the entry-point group ``imcc.backends`` that defines
``BACKEND``, an instance of a :class:`Backend` subclass. It may hold a package ``targets`` with TOML
files, a package ``passes`` with a file for each pass, and a module ``dialect``, all of which are
found through that one line. Its ``__init__`` imports neither torch nor numpy.

Packages that teach an installed backend an op of theirs register the module with the rules in the
entry-point group ``imcc.rules``, under the backend's name or ``<backend>.<anything>``.
"""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from imcc.ir import codes
from imcc.ir.cost import CostRecord, OpCost
from imcc.ir.diagnostics import DiagnosticError, error, nearest
from imcc.ir.ops import Op
from imcc.ir.plugins import load_plugin, plugin_points
from imcc.ir.rules import COST, LEGAL

if TYPE_CHECKING:
    from torch import Tensor

    from imcc.ir.cost import Placement
    from imcc.ir.module import Module
    from imcc.ir.types import Type

Activity = Literal["assumed", "profiled", "measured"]
"""What event counts that depend on data rest on."""


@dataclass(frozen=True)
class Target:
    """A validated hardware target.

    ``data`` holds every key with defaults filled in, ``text`` is its canonical TOML. ``origin``
    says where it was read from. Backends subclass it to carry their typed form.
    """

    name: str
    backend: str
    data: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)
    origin: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical text: equal for targets that are equal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Wear:
    """Writes to ``cells`` cells that adapt: all together, the most to one, how many are worn out.

    A cell is worn out that was written as often as the device endures.
    """

    cells: int
    writes: int
    most: int
    worn: int

    def __add__(self, other: Wear) -> Wear:
        return Wear(
            self.cells + other.cells,
            self.writes + other.writes,
            max(self.most, other.most),
            self.worn + other.worn,
        )


class Backend(ABC):
    """A family of hardware.

    ``deploy_functions`` names entry points that ready it for inference: a caller runs them once
    for each set of trials and hands their states to ``inference``. ``rule_modules`` are the modules
    that register the backend's rules (legality, lowering, cost; evaluation rules belong to the
    dialect's ``SEMANTICS``). ``last_phase`` is the phase that the default pipeline ends in.
    """

    name: ClassVar[str]
    deploy_functions: ClassVar[tuple[str, ...]] = ()
    rule_modules: ClassVar[tuple[str, ...]] = ()
    last_phase: ClassVar[str] = "scheduled"

    @abstractmethod
    def load_target(self, name: str, data: dict[str, Any], origin: str) -> Target:
        """Validate the contents of a target file.

        Raises :class:`DiagnosticError` with one ``BAD_TARGET`` for each bad key, with its path.
        """

    @abstractmethod
    def pipeline(self, target: Target) -> str:
        """The default passes, as text, from phase ``captured`` to the last phase."""

    def cost_pipeline(self, target: Target) -> str:
        """The passes that lead to a program that can be costed; numbers in it may be absent.

        Where costs rest on shapes alone, it leaves out what needs weights and calibration data;
        by default it is :meth:`pipeline`.
        """
        return self.pipeline(target)

    def load_rules(self) -> None:
        """Import ``rule_modules``, then the rules that other packages register for this backend.

        Raises ``PLUGIN`` if those of another package do not load.
        """
        _load_rules(self.name, self.rule_modules)

    def legal(self, op: Op, target: Target) -> str | None:
        """Why the target cannot run ``op``, or None. No rule means that it cannot."""
        self.load_rules()
        rule = LEGAL.find(op.name, self.name)
        if rule is None:
            return f"the backend {self.name!r} has no rule for {op.name}"
        refused: str | None = rule(op, target)
        return refused

    @abstractmethod
    def cost(
        self, module: Module, function: str, target: Target, activity: Activity = "assumed"
    ) -> CostRecord:
        """Cost of one call of an entry point with B = 1.

        ``activity`` is the least that the caller takes; the record says what its counts rest on.
        """

    def op_cost(self, op: Op, target: Target, activity: Activity = "assumed") -> OpCost:
        """What one call of ``op`` does, with B = 1. No rule means that its cost is unknown."""
        self.load_rules()
        rule = COST.find(op.name, self.name)
        if rule is None:
            return OpCost(unknown=f"the backend {self.name!r} has no cost rule for {op.name}")
        made: OpCost = rule(op, target, activity)
        return self.with_transfers(op, made, target)

    def with_transfers(self, op: Op, cost: OpCost, target: Target) -> OpCost:
        """What an op's rule says and what the op moves, for hardware that counts that for all."""
        return cost

    def op_times(self, op: Op) -> tuple[float, float] | None:
        """When ``op`` starts and ends in ns, or None where it is not scheduled."""
        return None

    def placement(self, module: Module, function: str, target: Target) -> Placement | None:
        """Where the matrices of an entry point lie, or None for hardware without such places."""
        return None

    def idealised(self, module: Module, target: Target) -> Module:
        """A copy of the module on hardware of unlimited resolution, to judge passes by.

        Where nothing limits resolution, the module itself.
        """
        return module

    def smallest_conductance(self, target: Target) -> float | None:
        """``g_min / g_max`` of the cells that matrices of run time are written into, if any are."""
        return None

    def written_noise(self, target: Target) -> dict[str, Any]:
        """What says how noisy such matrices are: mapping, bounds and model beside every sigma."""
        return {}

    def write_noise_sweep(self, target: Target) -> list[tuple[float, Target]]:
        """Levels of write noise worth comparing, each with the target that has it; may be none."""
        return []

    def state_tensors(self, value: Any) -> dict[str, Tensor]:
        """The tensors that the value of a state consists of, by name, to be stored."""
        from torch import Tensor

        if isinstance(value, Tensor):
            return {"value": value}
        raise error(
            codes.NO_RULE,
            f"the backend {self.name!r} does not say how {type(value).__name__} is stored",
            help="adapt on another target",
        )

    def restore_state(self, kind: Type, tensors: Mapping[str, Tensor], target: Target) -> Any:
        """The value of a state of type ``kind`` from what :meth:`state_tensors` gave."""
        return tensors["value"]

    def wear(self, value: Any, target: Target | None) -> Wear | None:
        """Writes to the cells behind the value of a state; None for what wears nothing."""
        return None

    def write_energy(self, target: Target) -> tuple[str, float] | None:
        """The component that counts writes to cells in a cost record, and pJ for one write."""
        return None

    def targets(self) -> list[str]:
        """Names of the installed targets of this backend, sorted."""
        from imcc.backends.targets import list_targets

        return [item.name for item in list_targets() if item.backend == self.name]


@lru_cache(maxsize=64)
def _load_rules(backend: str, own: tuple[str, ...]) -> None:
    for name in own:
        importlib.import_module(name)
    for point in plugin_points("imcc.rules"):
        if point.name.split(".", 1)[0] == backend:
            load_plugin(point, "module of rules")


@lru_cache(maxsize=1)
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in plugin_points("imcc.backends")}


def backend_names() -> list[str]:
    """Names of all installed backends, sorted."""
    return sorted(_points())


@lru_cache(maxsize=64)
def find_backend(name: str) -> Backend:
    """The backend by name; raises ``UNKNOWN_BACKEND`` if there is none or it does not load."""
    point = _points().get(name)
    if point is None:
        raise error(
            codes.UNKNOWN_BACKEND,
            f"unknown backend {name!r}",
            suggestions=nearest(name, _points()),
            help=f"installed backends: {', '.join(backend_names()) or 'none'}",
        )
    try:
        module = importlib.import_module(point.value)
        made = module.BACKEND
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise error(
            codes.UNKNOWN_BACKEND,
            f"backend {name!r} ({point.value}) does not load: {wrong}",
            help="repair or uninstall the package that registers it",
        ) from wrong
    if not isinstance(made, Backend):
        raise error(
            codes.UNKNOWN_BACKEND,
            f"{point.value}.BACKEND is {type(made).__name__}, not an imcc.backends.api.Backend",
            help="derive its class from imcc.backends.api.Backend",
        )
    return made
