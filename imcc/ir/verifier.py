"""Verifier: structure, operand types, inference, the op's own rule, then the phase.

The order matters: an op's ``infer`` may rely on operands of declared types, ``verify`` on inferred
results. A function whose structure is broken is not checked further.
"""

from __future__ import annotations

from imcc.ir import codes, phases
from imcc.ir.diagnostics import (
    Diagnostic,
    DiagnosticCollector,
    DiagnosticError,
    Location,
    nearest,
    text_window,
)
from imcc.ir.module import PHASES, Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.text.printer import print_op
from imcc.ir.types import is_linear


def verify(module: Module, *, check_phase: bool = True) -> None:
    """Check a module; raise :class:`DiagnosticError` with everything found (at most 20)."""
    found = DiagnosticCollector()
    _module_structure(module, found)
    for function in module.functions.values():
        before = len(found.items)
        _function_structure(module, function, found)
        if len(found.items) > before:
            continue
        for op in function.ops:
            _op(op, found)
        _linearity(function, found)
        _returns(module, function, found)
    if check_phase and module.phase in PHASES:
        for op, reason in phases.violations(module):
            found.add(_at(op, codes.PHASE, f"not legal in phase {module.phase!r}", reason=reason))
    found.raise_errors()


def _at(op: Op, code: codes.Code, message: str, **fields: str) -> Diagnostic:
    return with_window(op.diagnostic(code, message, **fields), op)


def with_window(item: Diagnostic, op: Op) -> Diagnostic:
    """The diagnostic with a window around ``op``: of the text it was parsed from, or printed."""
    if item.window:
        return item
    module = op.parent.module if op.parent is not None else None
    if op.text_loc is not None and module is not None and module.source is not None:
        place = op.text_loc
        return item.at(window=text_window(module.source, place.line, place.column))
    lines = [
        f"{'>' if near is op else ' '} {print_op(near)[:160]}"
        for near in (op.prev, op, op.next)
        if near is not None
    ]
    return item.at(window="\n".join(lines))


def _plain(module: Module, place: Location | None, code: codes.Code, message: str) -> Diagnostic:
    window = ""
    if place is not None and module.source is not None:
        window = text_window(module.source, place.line, place.column)
    return Diagnostic(code, message, text=place, window=window)


def _phase_place(module: Module) -> Location | None:
    """Where the text names the phase, if the module was parsed."""
    before, found, _ = (module.source or "").partition(f'phase("{module.phase}"')
    if not found:
        return None
    file = next((f.text_loc.file for f in module.functions.values() if f.text_loc), "<text>")
    return Location(file, before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1)


def _module_structure(module: Module, found: DiagnosticCollector) -> None:
    if module.phase not in PHASES:
        found.add(
            _plain(
                module, _phase_place(module), codes.STRUCTURE, f"unknown phase {module.phase!r}"
            ).at(suggestions=nearest(module.phase, PHASES), help="phases are " + ", ".join(PHASES))
        )
    for state in module.states.values():
        if state.init is None:
            continue
        resource = module.resources.get(state.init)
        if resource is None:
            found.add(
                _plain(
                    module,
                    state.text_loc,
                    codes.STATE,
                    f"state @{state.name} starts from @{state.init}, which is not a resource",
                ).at(suggestions=nearest(state.init, module.resources))
            )
        elif resource.type is not state.type:
            found.add(
                _plain(
                    module,
                    state.text_loc,
                    codes.STATE,
                    f"state @{state.name} is {state.type} but @{state.init} is {resource.type}",
                )
            )


def _function_structure(module: Module, function: Function, found: DiagnosticCollector) -> None:
    last = function.terminator
    if last is None:
        found.add(
            _plain(
                module,
                function.text_loc,
                codes.STRUCTURE,
                f"@{function.name} does not end in core.return",
            ).at(help="end the function with `core.return %value`")
        )
    taken: set[str] = set()
    for value, name in zip(function.arguments, function.argument_states, strict=True):
        if name is None:
            continue
        state = module.states.get(name)
        if state is None:
            message = f"@{function.name}: argument %{value.name} carries unknown state @{name}"
        elif state.type is not value.type:
            message = f"@{function.name}: %{value.name} is {value.type}, state @{name} {state.type}"
        elif name in taken:
            message = f"@{function.name} takes state @{name} twice"
        else:
            taken.add(name)
            continue
        found.add(
            _plain(module, function.text_loc, codes.STATE, message).at(
                suggestions=() if state else nearest(name, module.states)
            )
        )
    defined: set[Value] = set(function.arguments)
    for op in function.ops:
        for declared, value in op.named_operands():
            if value not in defined:
                found.add(
                    _at(
                        op,
                        codes.STRUCTURE,
                        f"operand {declared.name} (%{value.name}) is used before it is defined",
                    )
                )
        defined.update(op.results)
        if op.terminator and op is not function.last:
            found.add(_at(op, codes.STRUCTURE, "ops follow the end of the function"))
        for symbol in op.symbols():
            known = (
                symbol in module.resources or symbol in module.states or symbol in module.functions
            )
            if not known:
                names = [*module.resources, *module.states, *module.functions]
                found.add(
                    _at(op, codes.STRUCTURE, f"@{symbol} is not declared in the module").at(
                        suggestions=nearest(symbol, names)
                    )
                )

    for value in defined:
        for user in value.users:
            if user.parent is not function:
                found.add(
                    Diagnostic(
                        codes.STRUCTURE,
                        f"%{value.name} of @{function.name} is used by {user.name} outside of it",
                        help="a defect of what built the module: it made an op and dropped it",
                    )
                )


def _op(op: Op, found: DiagnosticCollector) -> None:
    refused = False
    for declared, value in op.named_operands():
        reason = declared.refuse(value.type)
        if reason is not None:
            refused = True
            found.add(_at(op, codes.OPERAND_TYPE, f"operand {declared.name}: {reason}"))
    for wrong in op.check_annotations():
        found.add(_at(op, codes.BAD_ATTRIBUTE, wrong))
    if refused:
        return
    try:
        inferred = op.infer()
        types = inferred if isinstance(inferred, tuple) else (inferred,)
        held = tuple(value.type for value in op.results)
        if types != held:
            shown = ", ".join(map(str, types))
            found.add(
                _at(
                    op,
                    codes.RESULT_TYPE,
                    f"result is written {', '.join(map(str, held))}",
                    reason=f"operands and attributes give {shown}",
                )
            )
            return
        op.verify()
    except DiagnosticError as failed:
        for item in failed.diagnostics:
            found.add(with_window(item, op))


def _linearity(function: Function, found: DiagnosticCollector) -> None:
    consumed: dict[Value, Op] = {}
    for op in function.ops:
        for declared, value in op.named_operands():
            if not is_linear(value.type):
                continue
            owner = consumed.get(value)
            if owner is not None:
                found.add(
                    _at(
                        op,
                        codes.LINEARITY,
                        f"%{value.name} was consumed by {owner.name} already",
                        reason="a handle stands for physical cells and has one owner",
                    )
                )
            elif declared.consumes or op.terminator:
                consumed[value] = op


def _returns(module: Module, function: Function, found: DiagnosticCollector) -> None:
    last = function.terminator
    if last is None:
        return
    given = tuple(value.type for value in last.operands)
    wanted = tuple(item.type for item in function.results)
    if given != wanted:
        found.add(
            _at(
                last,
                codes.STRUCTURE,
                f"@{function.name} declares ({', '.join(map(str, wanted))}) but returns "
                f"({', '.join(map(str, given))})",
            )
        )
    for item in function.results:
        if item.state is None:
            continue
        state = module.states.get(item.state)
        if state is None or state.type is not item.type:
            what = "is not declared" if state is None else f"has type {state.type}"
            message = f"@{function.name} returns state @{item.state}, which {what}"
            found.add(_plain(module, function.text_loc, codes.STATE, message))
