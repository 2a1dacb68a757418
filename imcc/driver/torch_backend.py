"""``torch.compile(model, backend="imcc", options={"target": "rram"})``.

Torch hands over graphs whose weights are inputs. Each graph becomes a module again, with weights
under their ``state_dict`` names, and is compiled as any other module when it is first called: then
inputs are known, and a fault is raised as :class:`DiagnosticError` instead of torch's own wrapper
around what a backend raises.

A model that torch cannot capture whole is refused: the parts between two graphs would run in plain
torch, exact and for free, and no report would say so.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from imcc.driver.compiled import CompiledModel
from imcc.driver.compiler import compile
from imcc.driver.data import calibration_batches
from imcc.frontend.places import place_of_frame, place_of_trace
from imcc.ir import codes
from imcc.ir.diagnostics import (
    Diagnostic,
    DiagnosticCollector,
    DiagnosticError,
    Location,
    error,
    nearest,
)
from imcc.ir.dims import Monomial
from imcc.ir.types import TensorType
from imcc.passes.infrastructure import Progress, no_progress

RESUMED = "torch_dynamo_resume_in"
"""Torch names the rest of a function behind a graph break so."""


@dataclass(frozen=True)
class TorchOptions:
    """Options of the backend; those of :func:`imcc.compile` that a call can use.

    ``calibration`` is a list with one entry for each batch: the model's arguments as a tuple by
    position, or as a dict by name. ``noisy``, ``seed`` and ``trial`` are those of
    :class:`CompiledModel`. ``on_compiled`` is called with each :class:`CompiledModel` that is made.
    """

    target: str = "rram"
    passes: str | None = None
    overrides: Sequence[str] = ()
    calibration: Any = None
    calibrate_on_example: bool = False
    seed: int = 0
    noisy: bool = True
    trial: int = 0
    name: str = "model"
    progress: Progress = no_progress
    on_compiled: Callable[[CompiledModel], Any] | None = None

    @classmethod
    def of(cls, options: Any, mode: str | None) -> TorchOptions:
        """Read ``options=`` and ``mode=`` of ``torch.compile``; raises USAGE for all faults."""
        found = DiagnosticCollector(limit=1000)
        known = {item.name: item for item in dataclasses.fields(cls)}
        if mode is not None:
            found.add(
                _usage(f"mode={mode!r} is one of another backend", f"options: {', '.join(known)}")
            )
        if options is not None and not isinstance(options, Mapping):
            found.add(
                _usage(f"options are a dict, not {type(options).__name__}", 'write {"seed": 1}')
            )
            options = {}
        for key, value in dict(options or {}).items():
            if key in ("evaluation", "metric", "trials", "sweep", "example_inputs"):
                found.add(
                    _usage(
                        f"option {key!r} is one of imcc.compile, not of the backend",
                        "a torch.compile'd model is called, not evaluated: evaluate with "
                        "imcc.compile(model, example_inputs, ...)",
                    )
                )
            elif key not in known:
                found.add(
                    _usage(
                        f"unknown option {key!r}",
                        f"options: {', '.join(known)}",
                        nearest(str(key), known),
                    )
                )
            else:
                wanted = _KINDS.get(key)
                fits = wanted is None or isinstance(value, wanted)
                if fits and wanted is not None and bool not in wanted and isinstance(value, bool):
                    fits = False
                if not fits:
                    names = " or ".join(kind.__name__ for kind in wanted or ())
                    found.add(_usage(f"option {key!r} is {value!r}, not {names}", "correct it"))
        if isinstance((options or {}).get("overrides"), str):
            found.add(_usage("option 'overrides' is a list", 'write ["adc.bits=6"]'))
        found.raise_errors()
        return cls(**dict(options or {}))


_KINDS: dict[str, tuple[type, ...]] = {
    "target": (str,),
    "passes": (str, type(None)),
    "overrides": (list, tuple, str),
    "calibrate_on_example": (bool,),
    "seed": (int,),
    "noisy": (bool,),
    "trial": (int,),
    "name": (str,),
}


def _usage(message: str, help_line: str, suggestions: tuple[str, ...] = ()) -> Diagnostic:
    return Diagnostic(
        codes.USAGE, f"torch.compile: {message}", help=help_line, suggestions=suggestions
    )


def imcc_backend(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend as ``torch.compile`` calls it, once for each graph and shape of inputs.

    Nothing is compiled yet: torch would wrap what is raised here.
    """
    return _Graph(graph, mode, options)


# -- what a graph takes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Taken:
    """An input of a graph. ``source`` is torch's expression for it, such as ``L['x']``.

    ``size`` is (position, axis) of the tensor input whose size the number is, if it is one.
    ``boxed`` is a Python number that torch passes as a tensor and takes out with ``item()``.
    """

    source: str
    is_tensor: bool
    size: tuple[int, int] | None = None
    boxed: bool = False


def _taken(graph: fx.GraphModule) -> list[_Taken]:
    nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("example_value") for node in nodes]
    sizes: dict[str, tuple[int, int]] = {}
    for position, value in enumerate(values):
        for axis, length in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(length, torch.SymInt):
                sizes.setdefault(str(length.node.expr), (position, axis))
    made: list[_Taken] = []
    for node, value in zip(nodes, values, strict=True):
        held = node.meta.get("grapharg")
        source = str(held.source.name) if held is not None and held.source is not None else ""
        size = sizes.get(str(value.node.expr)) if isinstance(value, torch.SymInt) else None
        boxed = bool(getattr(held, "pass_arg_as_tensor", False))
        made.append(
            _Taken(source or node.name, isinstance(value, Tensor) and not boxed, size, boxed)
        )
    return made


_STEP = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.(\w+)")
_TORCH_TABLES = ("_modules", "_parameters", "_buffers")


def _steps(source: str) -> list[str | int]:
    """``L['x'][0].y`` as ``["x", 0, "y"]``, without the letter of the table in front."""
    return [
        int(match[2]) if match[2] is not None else match[1] if match[1] is not None else match[3]
        for match in _STEP.finditer(source[1:])
    ]


def _weight_name(source: str) -> str:
    """``L['self']._modules['fc']._parameters['weight']`` as ``fc.weight``."""
    parts = [str(step) for step in _steps(source) if step not in _TORCH_TABLES]
    if source.startswith("L[") and len(parts) > 1:
        parts = parts[1:]
    return ".".join(re.sub(r"\W", "_", part) for part in parts) or "weight"


def _dotted(path: str) -> str:
    """Torch's ``L['self'].blocks.0`` as ``blocks.0``."""
    path = re.sub(r"^L\['\w+'\]\.?", "", path)
    path = re.sub(r"\['?(\w+)'?\]", r".\1", path).removeprefix("G.")
    return ".".join(part for part in path.split(".") if part and part not in _TORCH_TABLES)


def _scope_of(node: fx.Node) -> str:
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return _dotted(str(paths[-1])) if paths else ""


class _Whole(nn.Module):
    """A graph as a module: tensors that are no weights are its inputs."""

    def __init__(
        self, graph: fx.GraphModule, taken: Sequence[_Taken], given: Sequence[Any], own: set[int]
    ) -> None:
        super().__init__()
        self.graph = graph
        self.taken, self.own = list(taken), own
        self.numbers = {i: _number(item) for i, item in enumerate(given) if not taken[i].is_tensor}
        self.places: dict[int, tuple[str, ...]] = {}
        names: set[str] = set()
        for position in sorted(own):
            name, number = _weight_name(taken[position].source), 0
            while name in names:
                number += 1
                name = f"{_weight_name(taken[position].source)}_{number}"
            names.add(name)
            self.places[position] = tuple(name.split("."))
            held, value = self._owner(self.places[position][:-1]), given[position].detach()
            held.register_buffer(self.places[position][-1], value)
        for node in graph.graph.nodes:
            held_stack = node.meta.get("nn_module_stack") or {}
            scopes = {key: (_dotted(path), kind) for key, (path, kind) in held_stack.items()}
            node.meta["nn_module_stack"] = scopes or None

    def _owner(self, path: Sequence[str]) -> nn.Module:
        held: nn.Module = self
        for part in path:
            if part not in held._modules:
                held._modules[part] = nn.Module()
            held = held._modules[part]  # type: ignore[assignment]
        return held

    def forward(self, *inputs: Tensor) -> Any:
        rest = iter(inputs)
        flat: list[Any] = []
        for position in range(len(self.taken)):
            if position in self.numbers:
                flat.append(self.numbers[position])
            elif position in self.own:
                path = self.places[position]
                flat.append(getattr(self._owner(path[:-1]), path[-1]))
            else:
                flat.append(next(rest))
        for position, item in enumerate(self.taken):
            if item.size is not None:
                flat[position] = flat[item.size[0]].shape[item.size[1]]
        # Places and scopes of torch's graph carry over to what is exported from here.
        with fx.traceback.preserve_node_meta():
            return _Interpreter(self.graph).run(*flat)


class _Interpreter(fx.Interpreter):
    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As usual, but for ``item()`` of what is a number already."""
        if target == "item" and not isinstance(args[0], Tensor):
            return args[0]
        return super().call_method(target, args, kwargs)


def _number(given: Any) -> Any:
    return given.item() if isinstance(given, Tensor) else given


# -- calls ----------------------------------------------------------------------------------------


@dataclass
class _Program:
    """A compiled graph, with the weights that it was compiled for."""

    compiled: CompiledModel
    numbers: dict[int, Any]
    weights: dict[int, tuple[int, int]]


class _Graph:
    """A graph that torch captured. Called with what it takes; compiles when it has to.

    That is at the first call, when an input has a shape that no program takes, and when a weight
    was changed since. Samples are numbered on over all of its programs.
    """

    def __init__(
        self, graph: fx.GraphModule, mode: str | None, options: Mapping[str, Any] | None
    ) -> None:
        self.graph, self.mode, self.options = graph, mode, options
        self.taken = _taken(graph)
        self.reason = getattr(graph, "compile_subgraph_reason", None)
        self.own: set[int] | None = None
        self.code: CodeType | None = None
        self.method = False
        self.programs: list[_Program] = []
        self.next_sample = 0

    def __call__(self, *given: Any) -> Any:
        options = TorchOptions.of(self.options, self.mode)
        if self.own is None:
            frame = _compiled_frame()
            _refuse_breaks(self.graph, self.reason, frame)
            _refuse_training(self.graph)
            if frame is not None:
                self.code, first = frame.f_code, frame.f_code.co_varnames[:1]
                self.method = bool(first) and isinstance(frame.f_locals.get(first[0]), nn.Module)
            self.own = self._weights(given, frame)
        program = self._find(given) or self._compile(given, options)
        inputs = [item for i, item in enumerate(given) if self._is_input(i)]
        made = program.compiled
        made._next_sample = self.next_sample
        outputs = made(*inputs)
        self.next_sample = made._next_sample
        return _with_gradient(outputs, given)

    def _is_input(self, position: int) -> bool:
        return self.taken[position].is_tensor and position not in (self.own or ())

    def _weights(self, given: Sequence[Any], frame: FrameType | None) -> set[int]:
        """Positions of tensors that belong to the model, not to the call."""
        found: set[int] = set()
        arguments = set(_signature_of(frame.f_code).parameters) if frame is not None else set()
        for position, (item, value) in enumerate(zip(self.taken, given, strict=True)):
            if not item.is_tensor:
                continue
            steps = _steps(item.source)
            root = str(steps[0]) if steps else ""
            # A local that is no argument is a variable of the function around it.
            local = item.source.startswith("L[") and (frame is None or root in arguments)
            inside = any(step in _TORCH_TABLES for step in steps)
            held = frame.f_locals.get(root) if frame is not None else None
            parameter = isinstance(value, nn.Parameter)
            if not local or inside or parameter or isinstance(held, nn.Module):
                found.add(position)
        return found

    def _find(self, given: Sequence[Any]) -> _Program | None:
        fixed = self._fixed_numbers(given)
        state = self._state(given)
        kept = [item for item in self.programs if item.weights == state]
        self.programs = kept
        return next(
            (item for item in kept if item.numbers == fixed and self._takes(item, given)), None
        )

    def _fixed_numbers(self, given: Sequence[Any]) -> dict[int, Any]:
        return {
            i: _number(value)
            for i, value in enumerate(given)
            if not self.taken[i].is_tensor and self.taken[i].size is None
        }

    def _state(self, given: Sequence[Any]) -> dict[int, tuple[int, int]]:
        return {i: (given[i].data_ptr(), given[i]._version) for i in sorted(self.own or ())}

    def _takes(self, program: _Program, given: Sequence[Any]) -> bool:
        inputs = [item for i, item in enumerate(given) if self._is_input(i)]
        wanted = program.compiled.module.function("inference").inputs
        symbols: dict[str, int] = {}
        for value, tensor in zip(wanted, inputs, strict=True):
            kind = value.type
            if not isinstance(kind, TensorType) or kind.rank != tensor.dim():
                return False
            for dim, size in zip(kind.shape, tensor.shape, strict=True):
                if isinstance(dim, Monomial):
                    name = str(dim)
                    if symbols.setdefault(name, int(size)) != size:
                        return False
                elif dim != size:
                    return False
        return True

    def _compile(self, given: Sequence[Any], options: TorchOptions) -> _Program:
        own = self.own or set()
        whole = _Whole(self.graph, self.taken, given, own).eval()
        inputs = tuple(item.detach() for i, item in enumerate(given) if self._is_input(i))
        if not inputs:
            raise error(
                codes.CAPTURE,
                "the graph takes no tensor that is not a weight",
                model=_places(self.graph)[:1],
                help="pass the input to the compiled function as an argument",
            )
        calibration: Any = None
        if options.calibration is not None:
            calibration = self._calibration(options.calibration)
        with torch.enable_grad():
            made = compile(
                whole,
                inputs,
                options.target,
                passes=options.passes,
                overrides=options.overrides,
                calibration=calibration,
                calibrate_on_example=options.calibrate_on_example,
                seed=options.seed,
                name=options.name,
                # Of a graph without symbols torch makes another one for other sizes anyway.
                dynamic=any(item.size is not None for item in self.taken),
                progress=options.progress,
            )
        made.noisy, made.trial = options.noisy, options.trial
        if options.on_compiled is not None:
            options.on_compiled(made)
        program = _Program(made, self._fixed_numbers(given), self._state(given))
        self.programs.append(program)
        return program

    def _calibration(self, given: Any) -> list[tuple[Any, ...]]:
        """Batches of the model's arguments as batches of the graph's inputs."""
        made: list[tuple[Any, ...]] = []
        for batch in calibration_batches(given):
            named = self._bind(batch)
            values: list[Any] = []
            for position, item in enumerate(self.taken):
                if self._is_input(position):
                    values.append(_look_up(item.source, named))
            made.append(tuple(values))
        return made

    def _bind(self, batch: Any) -> dict[str, Any]:
        code = self.code
        if code is None:
            raise _not_calibrated("the call that torch captured is not known")
        signature = _signature_of(code, self_first=self.method)
        try:
            if isinstance(batch, Mapping):
                bound = signature.bind_partial(**batch)
            else:
                bound = signature.bind_partial(*batch)
        except TypeError as wrong:
            raise error(
                codes.BAD_DATA,
                f"a calibration batch does not fit {code.co_name}{signature}: {wrong}",
                help="give the arguments as a tuple by position or as a dict by name",
            ) from None
        return dict(bound.arguments)


def _signature_of(code: CodeType, *, self_first: bool = False) -> inspect.Signature:
    kinds = inspect.Parameter
    names = list(code.co_varnames)
    positional, rest = names[: code.co_argcount], names[code.co_argcount :]
    made = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in positional]
    keyword_only, rest = rest[: code.co_kwonlyargcount], rest[code.co_kwonlyargcount :]
    if code.co_flags & inspect.CO_VARARGS:
        made.append(kinds(rest.pop(0), kinds.VAR_POSITIONAL))
    made += [kinds(name, kinds.KEYWORD_ONLY) for name in keyword_only]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        made.append(kinds(rest.pop(0), kinds.VAR_KEYWORD))
    return inspect.Signature(made[1:] if self_first else made)


def _look_up(source: str, named: Mapping[str, Any]) -> Any:
    held: Any = named
    for step in _steps(source):
        try:
            held = (
                held[step]
                if not isinstance(step, str) or isinstance(held, Mapping)
                else (getattr(held, step))
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _not_calibrated(f"a batch of it has no value for the input {source}") from None
    return held


def _not_calibrated(reason: str) -> DiagnosticError:
    return error(
        codes.BAD_DATA,
        "the option 'calibration' does not give what the captured graph takes",
        reason=reason,
        help="give each batch as the arguments of the model: a tuple by position or a dict by "
        'name;\nor calibrate on the first call\'s inputs: {"calibrate_on_example": True}',
    )


# -- what is refused ------------------------------------------------------------------------------


def _frames_below_torch() -> list[FrameType]:
    """Frames of the user between torch's entry into a compiled model and here, outermost first."""
    made: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "compile_wrapper":
        if place_of_frame(frame):
            made.append(frame)
        frame = frame.f_back
    return made[::-1] if frame is not None else []


def _compiled_frame() -> FrameType | None:
    """The frame that runs the compiled code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename == __file__ or "/torch/_dynamo/" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return frame


def _refuse_breaks(graph: fx.GraphModule, reason: Any, compiled: FrameType | None) -> None:
    """Refuse a graph that is not the whole of what was handed to ``torch.compile``."""
    if reason is not None and reason.graph_break:
        stack = [Location(item.filename, item.lineno or 1) for item in reason.user_stack]
        text = "\n".join(f'File "{item.file}", line {item.line}' for item in stack)
        raise _broken(place_of_trace(text), str(reason.reason))
    outer = [frame for frame in _frames_below_torch() if frame is not compiled]
    if not outer and not (compiled and compiled.f_code.co_name.startswith(RESUMED)):
        return
    frame = outer[-1] if outer else compiled
    wanted = _reason_from_torch()
    if wanted is not None:
        raise _broken(*wanted)
    raise _broken(place_of_frame(frame) if frame is not None else (), "")


def _reason_from_torch() -> tuple[tuple[Location, ...], str] | None:
    """Capture again as one graph, for torch to say where and why it cannot."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "compile_wrapper":
        frame = frame.f_back
    if frame is None or not {"fn", "args", "kwargs"} <= set(frame.f_locals):
        return None
    held = frame.f_locals
    try:
        # Torch remembers what it left out and would not look again.
        for inner in _frames_below_torch():
            torch._C._dynamo.eval_frame.reset_code(inner.f_code)
        whole: Any = torch.compile(held["fn"], backend="eager", fullgraph=True)
        whole(*held["args"], **held["kwargs"])
    except torch._dynamo.exc.TorchDynamoException as wrong:
        # Torch writes the user's stack into the message.
        trace = str(wrong).partition("from user code")[2] or str(wrong)
        return place_of_trace(trace), str(wrong)
    except Exception:
        return None
    return None


def _broken(place: tuple[Location, ...], text: str) -> DiagnosticError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explained = [
        line.partition("Explanation:")[2].strip() for line in lines if "Explanation:" in line
    ]
    hints = [line.partition("Hint:")[2].strip() for line in lines if "Hint:" in line]
    hints = [hint for hint in hints if "report" not in hint and "torch._dynamo.config" not in hint]
    reason = (explained or lines or ["torch could not capture this line"])[0]
    return error(
        codes.CAPTURE,
        "torch.compile breaks the graph here: the model would run in part outside of imcc",
        model=place,
        reason=reason[:400],
        help="\n".join(
            [
                *hints[:2],
                "keep prints, numpy, data-dependent `if` and calls that leave torch out of "
                "forward;\ntorch.compile(..., fullgraph=True) finds such lines as well",
            ]
        ),
    )


_TRAINING = frozenset(
    {
        *("dropout", "dropout1d", "dropout2d", "dropout3d"),
        *("alpha_dropout", "feature_alpha_dropout", "batch_norm"),
    }
)


def _refuse_training(graph: fx.GraphModule) -> None:
    found = DiagnosticCollector(limit=1000)
    seen: set[tuple[Location, ...]] = set()
    for node in graph.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in _TRAINING:
            continue
        try:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):
            continue
        bound.apply_defaults()
        place = place_of_trace(node.meta.get("stack_trace"))
        if bound.arguments.get("training") is True and place not in seen:
            seen.add(place)
            found.add(
                Diagnostic(
                    codes.CAPTURE,
                    f"{name} is active: the model is in training mode",
                    model=place,
                    scope=_scope_of(node),
                    reason="hardware runs inference; nothing is trained through a compiled program",
                    help="call model.eval() before the first call",
                )
            )
    found.raise_errors()


def _places(graph: fx.GraphModule) -> tuple[Location, ...]:
    traces = (node.meta.get("stack_trace") for node in graph.graph.nodes)
    return tuple(place for trace in traces for place in place_of_trace(trace))


class _NoGradient(torch.autograd.Function):
    """Passes a result through; refuses to go back."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *anchors: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise error(
            codes.CAPTURE,
            "the outputs of a compiled program have no gradient",
            reason="the program runs on simulated hardware, with integers and noise",
            help="train the model before torch.compile; call compiled ones in torch.no_grad()",
        )


def _with_gradient(outputs: Any, given: Sequence[Any]) -> Any:
    """Outputs as eager ones would be: where gradients are wanted, one that says there are none."""
    anchors = [item for item in given if isinstance(item, Tensor) and item.requires_grad]
    if not anchors or not torch.is_grad_enabled():
        return outputs
    made = [
        _NoGradient.apply(item, anchors[0])  # type: ignore[no-untyped-call]
        if isinstance(item, Tensor) and item.is_floating_point()
        else item
        for item in outputs
    ]
    return type(outputs)(made)
