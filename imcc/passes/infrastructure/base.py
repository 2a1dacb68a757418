"""The base of passes: a frozen dataclass whose fields are its documented options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, get_type_hints

from imcc.ir import codes
from imcc.ir.attributes import Kind, Symbol, coerce, format_value, kind_of
from imcc.ir.diagnostics import Diagnostic, DiagnosticCollector, nearest

if TYPE_CHECKING:
    from imcc.ir.module import Module
    from imcc.passes.infrastructure.context import PassContext


@dataclass(frozen=True)
class Exact:
    """The pass promises bit-equal results."""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class WithinTolerance:
    """The pass promises ``|y' - y| <= relative * max|y|`` on every output."""

    relative: float

    def __str__(self) -> str:
        return f"within {self.relative:g} of the largest output"


@dataclass(frozen=True)
class Approximate:
    """The pass changes results; ``metric`` says how that is measured, ``bound`` what it promises.

    The metric ``relative_rms`` is ``rms(y' - y) / rms(y)``.
    """

    bound: float
    metric: str = "relative_rms"

    def __str__(self) -> str:
        return f"approximate, {self.metric} at most {self.bound:g}"


Contract: TypeAlias = Exact | WithinTolerance | Approximate


def option(
    *,
    default: Any = dataclasses.MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    unit: str = "",
    doc: str = "",
) -> Any:
    """Declare an option of a pass with range, unit and documentation."""
    metadata = {"minimum": minimum, "maximum": maximum, "unit": unit, "doc": doc}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class OptionSpec:
    """A declared option: name, kind, default, range, unit, documentation."""

    name: str
    kind: Kind
    default: Any
    minimum: float | None
    maximum: float | None
    unit: str
    doc: str

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is dataclasses.MISSING

    def coerce(self, value: Any) -> Any:
        """The canonical value; raises ``ValueError`` with the reason."""
        return coerce(self.kind, value, self.minimum, self.maximum)


@dataclass(frozen=True)
class Pass:
    """Base of passes. Subclasses are frozen dataclasses and define ``name`` and ``run``.

    ``contract`` is the promise about results. ``needs`` lists what the context must hold:
    ``"weights"`` (loads torch), ``"calibration"``, ``"target"``. ``requires_phase`` is the phase
    the module must be in (None: any), ``ensures_phase`` the phase it is in afterwards.

    Promises speak of devices without noise. ``ideal_before`` and ``ideal_after`` say that the
    promise compares with what hardware of unlimited resolution computes (``Backend.idealised``):
    a pass that maps to converters not yet calibrated sets both, the one that calibrates them only
    ``ideal_before``. ``converters_only`` says that the pass changes nothing but how converters
    round and clip, so that a run whose reads leave them out does without it.
    """

    name: ClassVar[str] = ""
    contract: ClassVar[Contract] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset()
    requires_phase: ClassVar[str | None] = None
    ensures_phase: ClassVar[str | None] = None
    ideal_before: ClassVar[bool] = False
    ideal_after: ClassVar[bool] = False
    converters_only: ClassVar[bool] = False

    def run(self, module: Module, context: PassContext) -> None:
        """Change the module through ``context.rewriter(module)``."""
        raise NotImplementedError(self.name)

    def promise(self) -> Contract:
        """What this pass, with its options, promises about results; ``contract`` by default."""
        return self.contract

    def requires(self) -> frozenset[str]:
        """What this pass, with its options, needs; ``needs`` by default."""
        return self.needs

    @classmethod
    def options(cls) -> dict[str, OptionSpec]:
        """The declared options by name, in order."""
        cached = cls.__dict__.get("_options")
        if cached is None:
            hints = get_type_hints(cls)
            cached = {}
            for field in dataclasses.fields(cls):
                meta = field.metadata
                cached[field.name] = OptionSpec(
                    field.name,
                    kind_of(hints[field.name]),
                    field.default,
                    meta.get("minimum"),
                    meta.get("maximum"),
                    meta.get("unit", ""),
                    meta.get("doc", ""),
                )
            cls._options = cached  # type: ignore[attr-defined]
        return dict(cached)

    @classmethod
    def from_options(cls, given: dict[str, Any]) -> Pass:
        """Build the pass from option values; raises a diagnostic that names every bad option."""
        declared = cls.options()
        found = DiagnosticCollector()
        values: dict[str, Any] = {}
        for key, value in given.items():
            spec = declared.get(key)
            if spec is None:
                found.add(
                    Diagnostic(
                        codes.BAD_OPTION,
                        f"pass {cls.name} has no option {key!r}",
                        suggestions=nearest(key, declared),
                        help=f"its options: {', '.join(declared) or 'none'}; see "
                        f"`imcc passes {cls.name}`",
                    )
                )
                continue
            try:
                values[key] = spec.coerce(value)
            except ValueError as wrong:
                found.add(
                    Diagnostic(
                        codes.BAD_OPTION,
                        f"pass {cls.name}, option {key}: {wrong}",
                        help=spec.doc,
                    )
                )
        for key, spec in declared.items():
            if spec.required and key not in given:
                found.add(Diagnostic(codes.BAD_OPTION, f"pass {cls.name} needs the option {key!r}"))
        found.raise_errors()
        return cls(**values)

    def __str__(self) -> str:
        shown = [
            f"{key}={_option_text(getattr(self, key))}"
            for key, spec in self.options().items()
            if spec.required or getattr(self, key) != spec.default
        ]
        return self.name + (f"{{{' '.join(shown)}}}" if shown else "")


def _option_text(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_option_text(item) for item in value) + "]"
    if isinstance(value, Symbol):
        return f"@{value!s}"
    return format_value(value)
