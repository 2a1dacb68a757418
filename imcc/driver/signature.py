"""How a model is called: names of its inputs, structure of its arguments and outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.utils._pytree as pytree
from torch import Tensor

from imcc.driver.outputs import NamedOutputs
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error, nearest
from imcc.ir.module import Module

if TYPE_CHECKING:
    from torch import nn

    from imcc.frontend.capture import Captured

Scalar = (bool, int, float, str, type(None))
_LEAF = "*"
_MARK = object()


@dataclass(frozen=True)
class Signature:
    """Structure of a model's arguments and outputs around the flat tensors of ``@inference``.

    ``constants`` are output leaves that are not tensors, by position; ``fixed`` are such leaves of
    the inputs, whose values the program was compiled for. ``names`` are the parameters of
    ``forward`` that the inputs fill, in order; empty where ``forward`` gathers ``*inputs``.
    """

    inputs: pytree.TreeSpec
    outputs: pytree.TreeSpec
    constants: Mapping[int, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    fixed: Mapping[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, captured: Captured, names: tuple[str, ...] = ()) -> Signature:
        """The signature that capture found."""
        return cls(
            captured.input_spec,
            captured.output_spec,
            captured.constant_outputs,
            names,
            captured.constant_inputs,
        )

    def bind(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
        """Arguments by position; raises ``BAD_INPUT`` for unknown, doubled or missing names."""
        if not keywords:
            return arguments
        if not self.names:
            raise error(
                codes.BAD_INPUT,
                f"the model takes its inputs by position, not as {', '.join(keywords)}",
                help="pass the inputs by position, as in example_inputs()",
            )
        rest = self.names[len(arguments) :]
        for name in keywords:
            if name in self.names and name not in rest:
                raise error(
                    codes.BAD_INPUT,
                    f"input {name!r} is given by position and by name",
                    help="give it once",
                )
            if name not in self.names:
                raise error(
                    codes.BAD_INPUT,
                    f"the program has no input {name!r}",
                    suggestions=nearest(name, self.names),
                    help=f"its inputs: {', '.join(self.names)}",
                )
        keywords = {**self._defaults(), **keywords}
        missing = [name for name in rest if name not in keywords]
        if missing:
            raise error(
                codes.BAD_INPUT,
                f"inputs are missing: {', '.join(missing)}",
                help=f"give all of {', '.join(self.names)}",
            )
        return (*arguments, *(keywords[name] for name in rest))

    def _defaults(self) -> dict[str, Any]:
        """Inputs that are fixed, by name: they need not be given."""
        made: dict[str, Any] = {}
        position = 0
        for name, spec in zip(self.names, self.inputs.children(), strict=False):
            if spec.num_leaves == 1 and position in self.fixed:
                made[name] = self.fixed[position]
            position += spec.num_leaves
        return made

    def tensors(self, given: tuple[Any, ...] | Mapping[str, Any]) -> list[Any]:
        """Tensors of one call's inputs, given by position or by name."""
        return self.flatten(self.bind((), given) if isinstance(given, Mapping) else given)

    def flatten(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Tensor leaves of the arguments; raises ``BAD_INPUT`` for another structure."""
        leaves, spec = pytree.tree_flatten(arguments)
        if spec != self.inputs:
            raise error(
                codes.BAD_INPUT,
                f"{len(leaves)} inputs given, the model was compiled for {self.inputs.num_leaves}"
                if len(leaves) != self.inputs.num_leaves
                else f"arguments have the structure {spec}, compiled was {self.inputs}",
                help="pass the inputs as example_inputs() has them",
            )
        for index, leaf in enumerate(leaves):
            if index in self.fixed:
                if isinstance(leaf, Tensor) or leaf != self.fixed[index]:
                    shown = "a tensor" if isinstance(leaf, Tensor) else repr(leaf)
                    raise error(
                        codes.BAD_INPUT,
                        f"input {index} is {shown}, the program was compiled for "
                        f"{self.fixed[index]!r}",
                        help="compile once for each value, or make it a tensor",
                    )
            elif not isinstance(leaf, Tensor):
                raise error(
                    codes.BAD_INPUT,
                    f"inputs are tensors, found {type(leaf).__name__}",
                    help="convert arrays with torch.as_tensor(array)",
                )
        return [leaf for index, leaf in enumerate(leaves) if index not in self.fixed]

    def rebuild(self, outputs: Sequence[Tensor]) -> Any:
        """What the model returns, from the program's outputs."""
        rest = iter(outputs)
        count = self.outputs.num_leaves
        leaves = [
            self.constants[index] if index in self.constants else next(rest)
            for index in range(count)
        ]
        return pytree.tree_unflatten(leaves, self.outputs)

    def to_json(self) -> dict[str, Any] | None:
        """Plain data, or None if a structure has types that only Python code knows."""
        shown = [
            _encode(pytree.tree_unflatten([_MARK] * spec.num_leaves, spec))
            for spec in (self.inputs, self.outputs)
        ]
        plain = (*self.constants.values(), *self.fixed.values())
        if None in shown or not all(isinstance(item, Scalar) for item in plain):
            return None
        return {
            "inputs": shown[0],
            "outputs": shown[1],
            "constants": {str(key): value for key, value in self.constants.items()},
            "names": list(self.names),
            "fixed": {str(key): value for key, value in self.fixed.items()},
        }

    @classmethod
    def from_json(cls, data: Any, module: Module) -> Signature:
        """Read back what :meth:`to_json` gave; None means flat inputs and outputs.

        Only tuples, lists, dicts and :class:`NamedOutputs` are made: torch's own reader of
        structures imports the modules that its input names, which nothing read from an artifact may
        do. Raises ``ARTIFACT``.
        """
        function = module.function("inference")
        taken = len(function.inputs)
        given = sum(1 for item in function.results if item.state is None)
        if data is None:
            flat = 0 if given == 1 else tuple(range(given))
            return cls(pytree.tree_structure(tuple(range(taken))), pytree.tree_structure(flat))
        try:
            constants = {int(key): value for key, value in dict(data["constants"]).items()}
            fixed = {int(key): value for key, value in dict(data.get("fixed", {})).items()}
            names = tuple(data["names"])
            inputs = pytree.tree_structure(_decode(data["inputs"]))
            outputs = pytree.tree_structure(_decode(data["outputs"]))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as wrong:
            raise _broken(f"{type(wrong).__name__}: {wrong}") from None
        plain = all(isinstance(v, Scalar) for v in (*constants.values(), *fixed.values()))
        if not plain or not all(isinstance(name, str) for name in names):
            raise _broken("constants or names are not plain values")
        # A constant leaf of a tuple of arguments would be no input; outputs may have them.
        fits = inputs.type is tuple and inputs.num_leaves == taken + len(fixed)
        places = set(constants) <= set(range(outputs.num_leaves))
        places = places and set(fixed) <= set(range(inputs.num_leaves))
        if not fits or not places or outputs.num_leaves != given + len(constants):
            raise _broken("it does not fit @inference")
        return cls(inputs, outputs, constants, names, fixed)


def in_order(
    model: nn.Module, given: tuple[Any, ...] | Mapping[str, Any]
) -> tuple[Any, ...] | Mapping[str, Any]:
    """Keyword inputs in the order of ``forward``'s parameters, which calls by position follow."""
    if not isinstance(given, Mapping):
        return given
    try:
        known = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return given
    names = sorted(given, key=lambda name: known.index(name) if name in known else len(known))
    return {name: given[name] for name in names}


def input_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The parameters of ``forward`` that ``count`` inputs by position fill; () for ``*inputs``."""
    forward: Callable[..., Any] = model.forward
    try:
        parameters = list(inspect.signature(forward).parameters.values())[:count]
    except (TypeError, ValueError):
        return ()
    named = [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
    return tuple(named) if len(named) == count else ()


def _encode(made: Any) -> Any:
    """``*`` for a leaf, ``{"tuple": [...]}``, ``{"list": [...]}``, ``{"dict": [[key, ...]]}``.

    Mappings of other types, such as the outputs of ``transformers``, are ``{"named": ...}``.
    """
    if type(made) in (tuple, list):
        items = [_encode(item) for item in made]
        return None if None in items else {type(made).__name__: items}
    if isinstance(made, dict):
        pairs = [[key, _encode(item)] for key, item in made.items()]
        names = (str, int) if type(made) is dict else (str,)
        plain = all(type(key) in names and item is not None for key, item in pairs)
        return {"dict" if type(made) is dict else "named": pairs} if plain else None
    return _LEAF if made is _MARK else None


def _decode(data: Any) -> Any:
    if data == _LEAF:
        return None
    ((kind, items),) = data.items() if isinstance(data, dict) else ((None, None),)
    if kind in ("tuple", "list") and isinstance(items, list):
        made = [_decode(item) for item in items]
        return tuple(made) if kind == "tuple" else made
    if kind == "dict" and isinstance(items, list):
        if not all(isinstance(key, (str, int)) for key, _ in items):
            raise ValueError("a key is neither text nor a number")
        return {key: _decode(item) for key, item in items}
    if kind == "named" and isinstance(items, list):
        if not all(isinstance(key, str) for key, _ in items):
            raise ValueError("the name of an output is no text")
        return NamedOutputs((key, _decode(item)) for key, item in items)
    raise ValueError(f"not a structure: {str(data)[:60]}")


def _broken(reason: str) -> DiagnosticError:
    return error(
        codes.ARTIFACT,
        f"the report's signature cannot be read: {reason}",
        help="compile the model again",
    )
