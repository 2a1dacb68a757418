"""Conversion of an exported fx graph to IR: values, constants, places, and collected errors.

What a single aten op becomes is a rule in :mod:`imcc.frontend.aten`. Ops whose inputs are all
constant are computed here once, so that a transposed weight or a table built in ``forward`` is a
resource and not an op.
"""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx

from imcc.frontend import tables
from imcc.frontend.places import place_of_trace
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticCollector, DiagnosticError, Location, nearest
from imcc.ir.dialects import core
from imcc.ir.dims import Dim, Monomial
from imcc.ir.module import Function, Module, Resource
from imcc.ir.ops import Op, Value
from imcc.ir.semantics.resources import ELEMENT_OF, TORCH_DTYPES, ResourceStore
from imcc.ir.types import TensorType

AnyOp = TypeVar("AnyOp", bound=Op)
Rule = Callable[..., Any]

IGNORED: frozenset[str] = frozenset(
    {
        "aten._assert_tensor_metadata",
        "aten._assert_scalar",
        "aten._assert_async",
        "aten.sym_constrain_range",
        "aten.sym_constrain_range_for_size",
    }
)
"""Checks that the exporter leaves in the graph; the types of the IR state the same."""


SAME_VALUE: frozenset[str] = frozenset(
    {"alias", "clone", "contiguous", "detach", "detach_", "lift_fresh", "lift_fresh_copy"}
)
"""Ops that return their first argument unchanged."""


@dataclass(frozen=True, eq=False)
class Const:
    """A constant of the graph before it becomes a resource.

    ``scope`` is the module that owns it. ``transpose`` is the constant that this one is the
    transpose of, if that is how it was made. ``trained`` marks parameters; tables may hold minus
    infinity, which hides scores of attention.
    """

    name: str
    tensor: Tensor
    scope: str = ""
    transpose: Const | None = None
    trained: bool = False


Argument: TypeAlias = Value | Const | tables.Table | tables.Relations


@dataclass(frozen=True)
class MaskParts:
    """Truth values that hold where ``relations`` hold and ``rest`` (None: everywhere) does."""

    relations: tables.Relations
    rest: Value | None


class _Failed:
    """Value of a node that was refused, so that what depends on it is not reported as well."""


_FAILED = _Failed()


class Converter:
    """Builds the function ``@inference`` from an fx graph."""

    def __init__(
        self,
        module: Module,
        function: Function,
        resources: ResourceStore,
        rules: Mapping[str, Rule],
        symbols: Mapping[str, str],
        hints: Mapping[str, str],
    ) -> None:
        self.module = module
        self.function = function
        self.resources = resources
        self.rules = rules
        self.symbols = symbols
        self.hints = hints
        self.values: dict[fx.Node, Any] = {}
        self.found = DiagnosticCollector(limit=1000)
        self.node: fx.Node | None = None
        self.loc: tuple[Location, ...] = ()
        self.scope = ""
        self.masks: dict[Value, MaskParts] = {}
        """What the truth values that depend on positions consist of."""
        self._constants: dict[int, tuple[Tensor, Value]] = {}
        self._forms: dict[Any, Value | Const] = {}
        self._numbers: dict[tuple[float, str], Value] = {}
        self._positions: dict[Dim, Value] = {}
        self._reported: set[tuple[str, tuple[Location, ...]]] = set()

    # -- what rules use --------------------------------------------------------------------------

    def emit(self, op: AnyOp) -> AnyOp:
        """Append an op with the scope and place of the current node; returns it."""
        op._set("scope", op.scope or self.scope)
        op._set("loc", op.loc or self.loc)
        self.function.append(op)
        op.verify()
        return op

    def value(self, given: Argument) -> Value:
        """The IR value of an argument; a constant becomes a resource and ``core.constant``."""
        if isinstance(given, (tables.Table, tables.Relations)):
            given = self.computed(given)
        if isinstance(given, Value):
            return given
        return self.constant(given.name, given.tensor, given.scope, trained=given.trained)

    def computed(self, form: tables.Form) -> Value | Const:
        """A table of positions: a constant if its sizes are known, or else ops that compute it."""
        rows = form.rows if isinstance(form, tables.Relations) else (form.coefficients, form.offset)
        kind = "bool" if isinstance(form, tables.Relations) else str(form.dtype)
        key = (tuple(self.dim(size) for size in form.sizes), rows, kind)
        if key not in self._forms:
            if tables.is_static(form):
                self._forms[key] = Const(f"table.{len(self._forms)}", form.tensor())
            else:
                self._forms[key] = materialise(self, form)
        return self._forms[key]

    def optional(self, given: Argument | None) -> Value | None:
        """As :meth:`value`, None for an absent argument."""
        return None if given is None else self.value(given)

    def constant(
        self, name: str, tensor: Tensor, scope: str = "", *, trained: bool = True
    ) -> Value:
        """A constant, made once per tensor; raises for elements that are not finite."""
        # The tensor is kept beside its value: an id is only unique while its object lives.
        held = self._constants.get(id(tensor))
        if held is not None:
            return held[1]
        if tensor.dtype not in ELEMENT_OF:
            raise self.refuse(f"constant {name!r} has elements {tensor.dtype}")
        if tensor.is_meta:
            # A model without its weights: shapes are enough to map and cost it.
            kind = TensorType(tuple(tensor.shape), ELEMENT_OF[tensor.dtype])
            unique, number = name, 0
            while unique in self.module.resources:
                number += 1
                unique = f"{name}.{number}"
            resource = Resource(unique, kind)
        else:
            if tensor.is_floating_point():
                finite = torch.isfinite(tensor)
                if not bool((finite if trained else finite | torch.isneginf(tensor)).all()):
                    raise self._not_finite(name, tensor)
            resource = self.resources.put(name, tensor)
        self.module.add_resource(resource)
        made = core.Constant.of(resource.name, resource.type, name, scope)
        value = self.emit(made).y
        self._constants[id(tensor)] = (tensor, value)
        return value

    def number(self, value: float, like: Value) -> Value:
        """A scalar constant with the element type of ``like``."""
        return self._number(value, str(core.tensor(like).element))

    def integer(self, value: int) -> Value:
        """A scalar ``i64`` constant."""
        return self._number(value, "i64")

    def truth(self, value: bool) -> Value:
        """A scalar ``i1`` constant."""
        return self._number(value, "i1")

    def positions(self, size: Dim) -> Value:
        """The numbers 0 .. size-1, made once."""
        if size not in self._positions:
            self._positions[size] = self.emit(core.Iota(size=size)).y
        return self._positions[size]

    def _number(self, value: float, element: str) -> Value:
        if math.isnan(value) or value == math.inf:
            raise self.refuse(f"the number {value} stands in the model")
        key = (float(value), element)
        if key not in self._numbers:
            text = repr(float(value)).replace("+", "").replace("-", "minus_", 1)
            made = torch.tensor(value, dtype=TORCH_DTYPES[element])
            name = f"number.{element}.{text}"
            self._numbers[key] = self.constant(name, made, trained=False)
        return self._numbers[key]

    def number_of(self, value: float, element: str) -> Value:
        """A scalar constant of an element type."""
        return self._number(value, element)

    def expand(self, x: Value, shape: tuple[Dim, ...]) -> Value:
        """``x`` repeated to ``shape``; nothing happens to one that has it."""
        return x if core.tensor(x).shape == shape else self.emit(core.Expand(x=x, shape=shape)).y

    def sliced(self, x: Value, axis: int, start: int, stop: Dim, step: int = 1) -> Value:
        """A slice of one axis; nothing happens to a whole one."""
        if start == 0 and step == 1 and stop == core.tensor(x).shape[axis]:
            return x
        return self.emit(core.Slice(x=x, axis=axis, start=start, stop=stop, step=step)).y

    def converted(self, x: Value, element: str) -> Value:
        """``x`` with other elements; nothing happens to one that has them."""
        to: Any = element
        return x if core.tensor(x).element == element else self.emit(core.Cast(x=x, to=to)).y

    def element(self) -> str:
        """Element type of the current node's result."""
        dtype = self._current().meta["val"].dtype
        return ELEMENT_OF.get(dtype, str(dtype))

    def operation(self) -> str:
        """The current node's op without ``aten.``."""
        return target_name(self._current()).removeprefix("aten.")

    def shape(self, index: int | None = None) -> tuple[Dim, ...]:
        """Shape of the current node's result (of its ``index``-th result)."""
        node = self._current()
        meta = node.meta["val"] if index is None else node.meta["val"][index]
        return self.dims(meta)

    def pieces(self) -> int:
        """Number of results of the current node."""
        return len(self._current().meta["val"])

    def dims(self, meta: Any) -> tuple[Dim, ...]:
        """Shape of a fake tensor, with the exporter's batch symbol written as ``B``."""
        return tuple(self.dim(size) for size in meta.shape)

    def dim(self, size: Any) -> Dim:
        """A size as integer or monomial such as ``4*B*S``; refuses any other expression."""
        if isinstance(size, int):
            return size
        import sympy  # type: ignore[import-untyped]

        expression = sympy.expand(size.node.expr)
        if expression.is_Integer:
            return int(expression)
        coefficient, rest = expression.as_coeff_Mul()
        powers = rest.as_powers_dict()
        letters: list[str] = []
        for factor, power in powers.items():
            known = factor.is_Symbol and factor.name in self.symbols and power.is_Integer
            if known and power > 0:
                letters += [self.symbols[factor.name]] * int(power)
        if coefficient.is_Integer and letters and len(letters) == sum(powers.values()):
            return Monomial(int(coefficient), tuple(sorted(letters)))
        shown = expression.subs({name: sympy.Symbol(to) for name, to in self.symbols.items()})
        raise self.refuse(
            f"a size depends on the input's sizes as {shown}",
            help="only multiples of the batch size and of the sequence length are supported; keep "
            "the batch axis in front",
        )

    def refuse(self, message: str, *, reason: str = "", help: str = "") -> DiagnosticError:
        """A supported op in an unsupported form, at the current node; raise what it returns."""
        name = target_name(self._current())
        return DiagnosticError(
            Diagnostic(
                codes.UNSUPPORTED_FORM,
                f"{name}: {message}",
                model=self.loc,
                scope=self.scope,
                reason=reason,
                help=help,
            )
        )

    # -- the walk --------------------------------------------------------------------------------

    def convert(self, node: fx.Node) -> None:
        """Convert one ``call_function`` node; errors are gathered in ``found``."""
        self.node = node
        self.scope = _scope(node)
        self.loc = _place(node)
        meta = node.meta.get("val")
        if isinstance(meta, (torch.SymInt, int)):
            # Arithmetic on sizes: the exporter knows the expression; refused only where used.
            self.values[node] = meta
            return
        name = target_name(node)
        if name in IGNORED:
            return
        failed = any(self.values.get(item) is _FAILED for item in node.all_input_nodes)
        self.values[node] = _FAILED
        try:
            if node.target is operator.getitem:
                if not failed:
                    self.values[node] = self._getitem(*node.args)
                return
            folded = None if failed else self._form(node, name) or self._fold(node)
            if folded is not None:
                self.values[node] = folded
                return
            rule = self.rules.get(name)
            if rule is None:
                self._unsupported(node, name)
            elif not failed:
                given = self._arguments(node)
                if not getattr(rule, "takes_forms", False):
                    given = {key: self._plain(item) for key, item in given.items()}
                made = rule(self, **given)
                self._check(node, made)
                self.values[node] = made
        except DiagnosticError as wrong:
            for item in wrong.diagnostics:
                changed = item
                if item.code in (codes.OP_INVALID, codes.BAD_ATTRIBUTE):
                    changed = item.at(
                        code=codes.UNSUPPORTED_FORM,
                        message=f"{name}: {item.message}",
                        model=self.loc,
                        scope=self.scope,
                    )
                self.found.add(changed)

    def failed(self, node: fx.Node) -> bool:
        """Whether the node was refused."""
        return self.values.get(node) is _FAILED

    # -- inside ----------------------------------------------------------------------------------

    def _current(self) -> fx.Node:
        if self.node is None:
            raise ValueError("no node is being converted")
        return self.node

    def _plain(self, given: Any) -> Any:
        """Tables of positions in an argument as values or constants."""
        if isinstance(given, list):
            return [self._plain(item) for item in given]
        if isinstance(given, (tables.Table, tables.Relations)):
            return self.computed(given)
        return given

    def _form(self, node: fx.Node, name: str) -> tables.Form | None:
        """The node's value as a table of positions."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        base = name.removeprefix("aten.")
        return tables.evaluate(base, node.meta.get("val"), self._arguments(node))

    def _getitem(self, source: Any, index: Any) -> Any:
        held = self.values[source]
        made = held[index]
        if made is None:
            raise self.refuse(
                f"result {index} of {target_name(source)} is used, only result 0 is supported"
            )
        return made

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments by the names of the op's schema; ``self`` and ``input`` are called ``x``."""
        given: dict[str, Any] = {}
        for position, declared in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            name = "x" if declared.name in ("self", "input") else declared.name
            if position < len(node.args):
                given[name] = self._argument(node.args[position])
            elif declared.name in node.kwargs:
                given[name] = self._argument(node.kwargs[declared.name])
            else:
                given[name] = declared.default_value
        return given

    def _argument(self, given: Any) -> Any:
        if isinstance(given, fx.Node):
            return self.values[given]
        if isinstance(given, (list, tuple)):
            return [self._argument(item) for item in given]
        return given

    def _fold(self, node: fx.Node) -> Any:
        """The node's value where all inputs are constant and it draws no random numbers."""
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            return None
        if torch.Tag.nondeterministic_seeded in target.tags:
            return None
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor) or not all(type(size) is int for size in meta.shape):
            return None
        held = {item: self.values[item] for item in node.all_input_nodes}
        for item, given in held.items():
            if isinstance(given, (tables.Table, tables.Relations)) and tables.is_static(given):
                held[item] = self.computed(given)
        inputs = list(held.values())
        if not all(isinstance(item, Const) for item in inputs):
            return None
        first: Const | None = inputs[0] if inputs else None
        base = target_name(node).removeprefix("aten.")
        if first is not None and base in SAME_VALUE:
            return first
        # What a constant without data goes into has none either.
        bare = any(item.tensor.is_meta for item in inputs)
        args, kwargs = fx.node.map_arg(
            (node.args, dict(node.kwargs)),
            lambda item: held[item].tensor.to("meta") if bare else held[item].tensor,
        )
        if base in ("view", "_unsafe_view"):
            # A constant may lie otherwise in memory here than in the traced graph.
            target = torch.ops.aten.reshape.default
        with torch.no_grad():
            made = target(*args, **kwargs)
        if first is None:
            return Const(f"table.{node.name}", made, self.scope)
        # A view that only swaps two axes leaves the memory as it was: the weight itself is used.
        swapped = first.tensor.t() if first.tensor.dim() == 2 else None
        transposed = (
            swapped is not None
            and base in ("t", "transpose.int", "permute", "numpy_T")
            and made.shape == swapped.shape
            and made.stride() == swapped.stride()
        )
        name = f"{first.name}.folded"
        return Const(name, made, first.scope, first if transposed else None)

    def _check(self, node: fx.Node, made: Any) -> None:
        """The shape and elements that the IR infers are those that torch computed."""
        meta = node.meta.get("val")
        metas = meta if isinstance(meta, (tuple, list)) else (meta,)
        values = made if isinstance(made, (tuple, list)) else (made,)
        for value, fake in zip(values, metas, strict=False):
            if not isinstance(value, Value) or not isinstance(fake, Tensor):
                continue
            kind = core.tensor(value)
            element = ELEMENT_OF.get(fake.dtype)
            if kind.shape != self.dims(fake) or kind.element != element:
                raise self.refuse(
                    f"would become {kind}, torch computes {list(fake.shape)} of {fake.dtype}"
                )

    def _unsupported(self, node: fx.Node, name: str) -> None:
        if (name, self.loc) in self._reported:
            return
        self._reported.add((name, self.loc))
        base = name.split(".")[1] if "." in name else name
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            self.found.add(
                Diagnostic(
                    codes.UNSUPPORTED_OP,
                    f"{name} draws random numbers",
                    model=self.loc,
                    scope=self.scope,
                    reason="the model is captured for inference; the noise of devices comes from "
                    "the target",
                    help="write functional.dropout(x, p, training=self.training), and draw under "
                    "`if self.training:` only",
                )
            )
            return
        known = sorted({item.split(".")[1] for item in self.rules})
        hint = self.hints.get(base, "")
        listed = "the first message lists the supported ops"
        if len(self._reported) == 1:
            # Names with an underscore are torch's own; users do not call them.
            named = ", ".join(item for item in known if not item.startswith("_"))
            listed = "supported are " + "\n".join(textwrap.wrap(named, 86))
        self.found.add(
            Diagnostic(
                codes.UNSUPPORTED_OP,
                f"{name} is not supported",
                model=self.loc,
                scope=self.scope,
                suggestions=() if hint else nearest(base, known),
                help=f"{hint}\n{listed}" if hint else listed,
            )
        )

    def _not_finite(self, name: str, tensor: Tensor) -> DiagnosticError:
        bad = int((~torch.isfinite(tensor)).sum())
        return DiagnosticError(
            Diagnostic(
                codes.BAD_WEIGHTS,
                f"{name} holds {bad} of {tensor.numel()} elements that are NaN or infinite",
                model=self.loc,
                scope=self.scope,
                help="check how the weights are loaded or trained; "
                "torch.isfinite(tensor).all() must hold",
            )
        )


def target_name(node: fx.Node) -> str:
    """``aten.conv2d.default`` for a node; the overload is left out of default ones."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        return name.removesuffix(".default")
    return getattr(target, "__name__", str(target))


def _place(node: fx.Node) -> tuple[Location, ...]:
    """The user's line; of a node that the exporter put in (a cast of autocast), its user's."""
    for _ in range(4):
        trace = node.meta.get("stack_trace")
        if trace or not node.users:
            return place_of_trace(trace)
        node = next(iter(node.users))
    return ()


def _scope(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    scope = ""
    for key, (path, _) in stack.items():
        if not key.startswith("_empty"):
            scope = path
    return scope


def materialise(c: Converter, form: tables.Form) -> Value:
    """Ops that compute a table of positions when the program runs."""
    shape = tuple(c.dim(size) for size in form.sizes)
    if isinstance(form, tables.Table):
        made = _sum_of_positions(c, (*form.coefficients, form.offset), shape)
        return c.expand(c.converted(made, ELEMENT_OF[form.dtype]), shape)
    whole: Value | None = None
    for row in form.rows:
        # Terms with a minus stand on the right of "at least".
        left = _sum_of_positions(c, tuple(max(0, item) for item in row), shape)
        right = _sum_of_positions(c, tuple(max(0, -item) for item in row), shape)
        holds = c.emit(core.Compare(a=left, b=right, relation="greater_equal")).y
        if whole is None:
            whole = holds
        else:
            whole = c.emit(core.Where(condition=whole, a=holds, b=c.truth(False))).y
    made = c.expand(c.truth(True) if whole is None else whole, shape)
    c.masks[made] = MaskParts(form, None)
    return made


def _sum_of_positions(c: Converter, row: tables.Row, shape: tuple[Dim, ...]) -> Value:
    made: Value | None = None
    for axis, factor in enumerate(row[:-1]):
        if not factor:
            continue
        term = c.positions(shape[axis])
        if axis < len(shape) - 1:
            wide = (shape[axis], *[1] * (len(shape) - 1 - axis))
            term = c.emit(core.Reshape(x=term, shape=wide)).y
        if factor != 1:
            term = c.emit(core.Multiply(a=term, b=c.number(factor, term))).y
        made = term if made is None else c.emit(core.Add(a=made, b=term)).y
    if made is None:
        return c.integer(row[-1])
    return c.emit(core.Add(a=made, b=c.number(row[-1], made))).y if row[-1] else made
