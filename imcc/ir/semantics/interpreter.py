"""The reference interpreter: runs a function of any phase, op by op, in torch.

Values are torch tensors (or what a backend's rule returns for its handles). A backend's rules take
precedence over neutral ones. Values are dropped after their last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.dims import Monomial
from imcc.ir.module import Function
from imcc.ir.ops import Op, Value
from imcc.ir.registry import load_semantics
from imcc.ir.rules import EVAL
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.resources import ELEMENT_OF, ResourceStore
from imcc.ir.types import TensorType

Observer = Callable[[Op, tuple[Any, ...]], None]


@dataclass
class EvalContext:
    """What a rule may ask besides its operands.

    ``symbols`` binds dimensions (``{"B": trials * batch}``); ``draws`` is None when nothing
    random may happen; ``trials`` is the number R folded into the leading axis. With ``unrounded``
    quantising an activation neither rounds nor clips: what a program would compute in float.
    With ``linear_reads`` analog products are those of the values that devices hold, with their
    noise but without converters: faster, for training.
    """

    symbols: dict[str, int]
    resources: ResourceStore
    backend: str | None = None
    target: Any = None
    draws: Draws | None = None
    trials: int = 1
    unrounded: bool = False
    linear_reads: bool = False


@dataclass
class Evaluation:
    """Outputs of a call in order (states left out), and new values of states by name."""

    outputs: list[Any]
    states: dict[str, Any]


def evaluate_function(
    function: Function,
    inputs: Sequence[Any],
    *,
    resources: ResourceStore,
    states: Mapping[str, Any] | None = None,
    backend: str | None = None,
    target: Any = None,
    draws: Draws | None = None,
    trials: int = 1,
    linear_reads: bool = False,
    observer: Observer | None = None,
    partial: bool = False,
) -> Evaluation:
    """Run ``function`` on ``inputs`` (its arguments that are not states, in order).

    Symbolic dimensions are bound from the inputs' shapes. States that the function takes come
    from ``states``, or else from the resource that they start from. ``observer`` is called after
    each op with its results. With ``partial`` the last inputs may be missing: what depends on them
    is left out, and is None among the outputs. Raises :class:`DiagnosticError` for inputs that do
    not fit, absent weights and ops without a rule.
    """
    symbols = bind_symbols(function, inputs, partial=partial)
    context = EvalContext(
        _Sizes(symbols), resources, backend, target, draws, trials, linear_reads=linear_reads
    )
    known = dict(states or {})
    values: dict[Value, Any] = {}
    remaining = iter(inputs)
    absent = set(function.inputs[len(inputs) :])
    for value, state in zip(function.arguments, function.argument_states, strict=True):
        if value not in absent:
            values[value] = (
                next(remaining) if state is None else _state(function, state, known, resources)
            )
    last = function.terminator
    if last is None:
        raise error(codes.STRUCTURE, f"@{function.name} does not end in core.return")
    body = []
    for op in function.ops:
        if any(value in absent for value in op.operands):
            absent.update(op.results)
        elif op is not last:
            body.append(op)
    kept = set(last.operands) - absent
    evaluate_ops(body, values, context, keep=kept, observer=observer)
    values.update((value, None) for value in absent)
    return _finish(function, last, values, known)


def evaluate_ops(
    ops: Sequence[Op],
    values: dict[Value, Any],
    context: EvalContext,
    *,
    keep: Set[Value],
    observer: Observer | None = None,
) -> None:
    """Run ``ops`` in order on ``values``, which holds what enters them; results are added to it.

    A value that is not in ``keep`` is dropped after its last use among ``ops``, so that a part of
    a function runs in the memory it needs.
    """
    left = Counter(value for op in ops for value in set(op.operands))
    for op in ops:
        results = evaluate_op(op, values, context)
        if observer is not None:
            observer(op, results)
        for value, held in zip(op.results, results, strict=True):
            if left[value] or value in keep:
                values[value] = held
        for value in set(op.operands):
            left[value] -= 1
            if not left[value] and value not in keep:
                del values[value]


def evaluate_op(op: Op, values: Mapping[Value, Any], context: EvalContext) -> tuple[Any, ...]:
    """Run one op on values of its operands; returns a tuple of results."""
    rule = EVAL.find(op.name, context.backend)
    if rule is None:
        load_semantics(op.name.split(".", 1)[0])
        rule = EVAL.find(op.name, context.backend)
    if rule is None:
        where = f"backend {context.backend!r}" if context.backend else "the interpreter"
        raise DiagnosticError(
            op.diagnostic(
                codes.NO_RULE,
                f"{where} has no evaluation rule",
                help="run it with the backend whose dialect the op belongs to",
            )
        )
    held = op.__dict__
    arguments: dict[str, Any] = {}
    for declared in type(op).spec().operands:
        given = held[declared.name]
        if declared.variadic:
            arguments[declared.name] = tuple(values[item] for item in given)
        else:
            arguments[declared.name] = None if given is None else values[given]
    try:
        made = rule(op, context, **arguments)
    except (RuntimeError, MemoryError, OverflowError) as wrong:
        # What a valid program may still ask for: more memory than there is, a number that its
        # element type cannot hold. Defects of rules show the same way, so torch's words are kept.
        raise DiagnosticError(
            op.diagnostic(
                codes.CANNOT_COMPUTE,
                f"cannot be computed: {str(wrong).splitlines()[0] if str(wrong) else 'no memory'}",
                help="use smaller sizes, or attributes in the range of the element type",
            )
        ) from wrong
    return made if isinstance(made, tuple) else (made,)


class _Sizes(dict[str, int]):
    """Sizes by symbol; one that no input has is the caller's fault, not a missing key."""

    def __missing__(self, symbol: str) -> int:
        raise error(
            codes.BAD_INPUT,
            f"no input says how large {symbol} is",
            help=f"give the function an argument with an axis {symbol}, or write a number",
        )


def bind_symbols(
    function: Function, inputs: Sequence[Any], *, partial: bool = False
) -> dict[str, int]:
    """Sizes of symbolic dimensions in a call; raises a diagnostic for inputs that do not fit.

    With ``partial`` the last inputs may be missing.
    """
    wanted = function.inputs
    if partial:
        wanted = wanted[: len(inputs)]
    if len(inputs) != len(wanted):
        names = ", ".join(f"%{value.name}" for value in wanted)
        raise error(
            codes.BAD_INPUT,
            f"@{function.name} takes {len(wanted)} inputs ({names}), {len(inputs)} given",
        )
    symbols: dict[str, int] = {}
    for value, given in zip(wanted, inputs, strict=True):
        kind = value.type
        if not isinstance(kind, TensorType) or not isinstance(given, Tensor):
            continue
        shape = tuple(given.shape)
        fits = len(shape) == kind.rank
        for dim, size in zip(kind.shape, shape, strict=False):
            if isinstance(dim, Monomial) and len(dim.symbols) == 1:
                quotient, rest = divmod(size, dim.coefficient)
                bound = symbols.setdefault(dim.symbols[0], quotient)
                fits = fits and rest == 0 and bound == quotient
            elif isinstance(dim, int):
                fits = fits and dim == size
        if not fits:
            raise error(
                codes.BAD_INPUT,
                f"input %{value.name} has shape {list(shape)}, the program takes {kind}",
                help="B stands for any batch size, the same for every input",
            )
        element = ELEMENT_OF.get(given.dtype)
        if isinstance(kind.element, str) and kind.element != element:
            raise error(
                codes.BAD_INPUT,
                f"input %{value.name} has elements {element}, the program takes {kind.element}",
                help="convert it, e.g. tensor.to(torch.float32) or array.astype('float32')",
            )
    return symbols


def _state(function: Function, name: str, known: dict[str, Any], resources: ResourceStore) -> Any:
    if name in known:
        return known[name]
    module = function.module
    state = module.states.get(name) if module is not None else None
    if state is not None and state.init is not None:
        return run_time_value(resources.get(state.init), state.type)
    raise error(
        codes.BAD_INPUT,
        f"@{function.name} needs a value of the state @{name}",
        help="run the entry point that sets it (@deploy programs crossbars) first",
    )


def run_time_value(stored: Tensor, kind: Any) -> Tensor:
    """A stored tensor as rules see it: codes as float32 (float64 beyond 24 bits)."""
    if isinstance(kind, TensorType) and kind.is_quantised:
        return stored.to(torch.float32 if kind.quant.bits <= 24 else torch.float64)
    return stored


def _finish(
    function: Function, last: Op, values: Mapping[Value, Any], known: Mapping[str, Any]
) -> Evaluation:
    outputs: list[Any] = []
    states = dict(known)
    for value, declared in zip(last.operands, function.results, strict=True):
        if declared.state is None:
            outputs.append(values[value])
        elif values[value] is not None:
            states[declared.state] = values[value]
    return Evaluation(outputs, states)
