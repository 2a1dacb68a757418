"""Capture: a torch module and example inputs become an IR module in the phase ``captured``.

``torch.export`` traces the model in evaluation mode with a symbolic batch size; the graph is
decomposed to core aten ops and converted by the rules in :mod:`imcc.frontend.aten`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from imcc.frontend import tables
from imcc.frontend.batch import batch_layout
from imcc.frontend.canonical import canonicalise
from imcc.frontend.convert import Const, Converter, MaskParts
from imcc.frontend.eager import (
    check_inputs,
    check_model,
    first_line,
    left_as_it_was,
    place_of_assignment,
    place_of_fixed_batch,
    place_of_forward,
    run_eagerly,
    unwrap,
)
from imcc.frontend.exported import argument_names, inline_grad_modes
from imcc.frontend.inputs import BATCH, SEQUENCE, Inputs, OpenSizes, input_metas
from imcc.frontend.neurons import exchanged_neurons
from imcc.frontend.places import place_of_exception, place_of_trace
from imcc.frontend.rules import HINTS, all_rules
from imcc.frontend.time_axes import give_time_axis
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, Location, error
from imcc.ir.dialects import core
from imcc.ir.module import Function, FunctionResult, Module
from imcc.ir.ops import Value
from imcc.ir.semantics.resources import ELEMENT_OF, ResourceStore
from imcc.ir.types import TensorType
from imcc.ir.verifier import verify

_CONTROL_FLOW = re.compile(
    r"data-dependent|bool\(\)|control flow|GuardOnDataDependent|local_scalar|\.item\(\)", re.I
)


_RETURNED = (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)
"""Outputs that forward returns; the exporter lists tensors written in place beside them."""


@dataclass(frozen=True)
class Captured:
    """What capture returns.

    ``module`` has one entry point ``@inference`` whose inputs are the leaves of the example inputs
    and whose results are the tensor leaves of the model's output; ``input_spec`` and
    ``output_spec`` are their structures (``torch.utils._pytree``). ``constant_inputs`` and
    ``constant_outputs`` hold leaves that are not tensors, by position: an input that is a number,
    a text or None is fixed to its value. ``input_names`` are the keywords of inputs that were
    given by name. ``warnings`` says what the user should know.
    """

    module: Module
    resources: ResourceStore
    input_spec: pytree.TreeSpec
    output_spec: pytree.TreeSpec
    warnings: tuple[Diagnostic, ...] = ()
    constant_outputs: dict[int, Any] = field(default_factory=dict)
    constant_inputs: dict[int, Any] = field(default_factory=dict)
    input_names: tuple[str, ...] = ()


def capture(
    module: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    *,
    name: str = "model",
    dynamic_batch: bool = True,
    dynamic_sequence: bool = True,
) -> Captured:
    """Capture ``module`` as it computes ``module.eval()(*example_inputs)``.

    A mapping gives inputs by keyword. Axis 0 of the first input is the batch, or axis 1 where a
    spiking network takes its time steps in axis 0; every input of the same size there shares it. It
    becomes the symbol ``B``. Tokens, which are integers ``[batch, sequence]``, make the length of
    the sequence the symbol ``S`` in all inputs that share it. A model that fixes a size is captured
    with that of the example inputs, and ``warnings`` says so. Spiking neurons start from their
    reset state in each call. Parameters keep their ``state_dict`` names; tied ones are stored once,
    under the first name. The module's training flags are left as they were.

    What ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrap is captured
    itself.

    Raises :class:`DiagnosticError` for a model that raises on the example inputs, keeps state
    between calls, has recurrent or quantised layers, or control flow that depends on data
    (CAPTURE), unsupported ops, all of them at once (UNSUPPORTED_OP, UNSUPPORTED_FORM), and weights
    that are not finite (BAD_WEIGHTS).
    """
    module = unwrap(module)
    inputs = Inputs.of(example_inputs)
    leaves = inputs.leaves()
    check_model(module)
    check_inputs(leaves)
    found = _modes(module)
    with (
        exchanged_neurons(module) as exchanged,
        _evaluation_mode(module),
        left_as_it_was(module),
        _without_cache(module, found),
        torch.no_grad(),
    ):
        if not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            # Without data a model cannot look at values; tracing can still tell what it computes.
            run_eagerly(module, inputs.arguments(), inputs.keywords())
        layout = batch_layout(module, inputs, exchanged)
        sizes = OpenSizes.of(leaves, layout if dynamic_batch else None, sequence=dynamic_sequence)
        with _quiet_exporter():
            program, sizes = _export(module, inputs, sizes, found)
            try:
                program = program.run_decompositions({})
            except Exception as wrong:
                raise _capture_error(wrong) from wrong
    found.extend([*exchanged.warnings, *_written_inputs(program)])
    try:
        made, resources, constants, masks = _convert(program, name, module, sizes.symbols(program))
    except DiagnosticError as wrong:
        # What the exporter put in has no line of its own.
        whole = place_of_forward(module)
        placed = [item if item.model else item.at(model=whole) for item in wrong.diagnostics]
        # A size that could not be kept open may be what the refusal comes from.
        raise DiagnosticError([*placed, *found]) from None
    made.sizes = {name: size for name, size in sizes.example.items() if name != BATCH}
    # Steps are told to be alike by what they consist of: before anything is moved in them.
    found.extend(give_time_axis(made, resources))
    canonicalise(made, resources, masks)
    verify(made)
    fixed = {index: leaf for index, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
    return Captured(
        made,
        resources,
        inputs.spec(),
        program.call_spec.out_spec,
        tuple(found),
        constants,
        fixed,
        inputs.names,
    )


def capture_exported(program: ExportedProgram, *, name: str = "model") -> Captured:
    """Capture a program that ``torch.export.export`` made.

    Its open sizes stay open: the one of axis 0 of the first input is the batch ``B``, another one
    the sequence length ``S``. An exported program no longer knows its training flags; a layer that
    was in training mode is refused by what it computes.

    Raises :class:`DiagnosticError` as :func:`capture` does, and EXPORTED for a program that torch
    itself cannot go through.
    """
    try:
        return _capture_exported(program, name)
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise error(
            codes.EXPORTED,
            "the exported program cannot be captured",
            reason=f"{type(wrong).__name__}: {first_line(wrong)}",
            help="export the model again with this version of torch, or compile it from Python",
        ) from wrong


def _capture_exported(program: ExportedProgram, name: str) -> Captured:
    in_spec = program.call_spec.in_spec
    if in_spec is None or program.call_spec.out_spec is None:
        raise error(codes.CAPTURE, "the exported program does not say how it is called")
    positional, named = in_spec.children()
    keywords = tuple(str(key) for key in named.context or ())
    with torch.no_grad(), _quiet_exporter():
        inline_grad_modes(program)
        program = program.run_decompositions({})
    found = list(_written_inputs(program))
    symbols, example = _letters(program)
    if not symbols:
        found.append(
            Diagnostic(
                codes.CAPTURE,
                "the program was exported for one batch size, and takes that only",
                severity="warning",
                help='export it with dynamic_shapes={"x": {0: torch.export.Dim("B")}}, "x" being '
                "the name of the input",
            )
        )
    try:
        made, resources, constants, masks = _convert(program, name, None, symbols)
    except DiagnosticError as wrong:
        raise DiagnosticError([*wrong.diagnostics, *found]) from None
    made.sizes = example
    canonicalise(made, resources, masks)
    verify(made)
    fixed = {
        position: item.arg.value
        for position, item in enumerate(_user_inputs(program))
        if isinstance(item.arg, ConstantArgument)
    }
    values = [*positional.children(), *named.children()]
    arguments = pytree.tree_unflatten(list(range(sum(spec.num_leaves for spec in values))), in_spec)
    spec = pytree.tree_structure((*arguments[0], *arguments[1].values()))
    first = argument_names(program)
    names = (*first, *keywords) if len(first) == len(positional.children()) else ()
    return Captured(
        made,
        resources,
        spec,
        program.call_spec.out_spec,
        tuple(found),
        constants,
        fixed,
        names,
    )


def _user_inputs(program: ExportedProgram) -> list[Any]:
    specs = program.graph_signature.input_specs
    return [item for item in specs if item.kind is InputKind.USER_INPUT]


def _letters(program: ExportedProgram) -> tuple[dict[str, str], dict[str, int]]:
    """Letters by the exporter's names of open sizes, and what the example had in their place."""
    symbols: dict[str, str] = {}
    example: dict[str, int] = {}
    free = [BATCH, SEQUENCE]
    for meta in input_metas(program):
        for axis, size in enumerate(meta.shape):
            if not isinstance(size, torch.SymInt) or not size.node.expr.is_Symbol:
                continue
            name = size.node.expr.name
            if name not in symbols and free:
                letter = free.pop(0) if axis == 0 or BATCH not in free else free.pop()
                symbols[name] = letter
                if letter != BATCH:
                    example[letter] = int(size.node.hint)
    return symbols, example


def _modes(module: nn.Module) -> list[Diagnostic]:
    """A note where training mode would compute something else than what is captured."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
    active = [
        name or "the model"
        for name, item in module.named_modules()
        if item.training and isinstance(item, kinds)
    ]
    if not active:
        return []
    return [
        Diagnostic(
            codes.CAPTURE,
            f"the model is in training mode; it is captured as after model.eval() ({active[0]}"
            + (f" and {len(active) - 1} more do" if len(active) > 1 else " does")
            + " something else there)",
            severity="note",
            help="call model.eval() before to be rid of this note",
        )
    ]


@contextlib.contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    flags = {item: item.training for item in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for item, training in flags.items():
            item.training = training


@contextlib.contextmanager
def _without_cache(module: nn.Module, found: list[Diagnostic]) -> Iterator[None]:
    """Keep a model whose ``config`` says ``use_cache`` from returning its cache of keys."""
    configs: dict[int, Any] = {
        id(item.config): item.config for item in module.modules() if hasattr(item, "config")
    }
    held = [item for item in configs.values() if getattr(item, "use_cache", None) is True]
    for item in held:
        item.use_cache = False
    if held:
        found.append(
            Diagnostic(
                codes.CAPTURE,
                "the cache of keys and values is left out of the model's output",
                severity="warning",
                reason="config.use_cache is set; a program is a function of its inputs alone",
                help="set model.config.use_cache = False to say so yourself",
            )
        )
    try:
        yield
    finally:
        for item in held:
            item.use_cache = True


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    # The exporter warns about its own use of deprecated interfaces, and logs and prints whole
    # graphs for what becomes a diagnostic here. What the model prints is shown by the eager run.
    loggers = [
        logging.getLogger("torch.fx.experimental.symbolic_shapes"),
        logging.getLogger("torch._subclasses.fake_tensor"),
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sink = io.StringIO()
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- export ---------------------------------------------------------------------------------------


def _export(
    module: nn.Module, inputs: Inputs, sizes: OpenSizes, found: list[Diagnostic]
) -> tuple[ExportedProgram, OpenSizes]:
    """The exported program, and the sizes that stayed open in it."""
    failures: dict[str, Exception] = {}
    # A model can fix one of the sizes; the others still stay open.
    for fixed in ((), (SEQUENCE,), (BATCH,)):
        wanted = sizes.without(*fixed)
        if not wanted.example or len(wanted.example) + len(fixed) > len(sizes.example):
            continue
        for strict in (True, False) if sizes.batch_steps == 1 else (True,):
            try:
                program = _export_open(module, inputs, wanted, strict=strict)
            except Exception as wrong:
                for symbol in wanted.example:
                    failures.setdefault(symbol, wrong)
                continue
            if not wanted.fixed(program):
                _report_fixed(module, inputs, sizes, wanted, failures, found)
                return program, wanted
    try:
        program = torch.export.export(module, inputs.arguments(), inputs.keywords(), strict=False)
    except Exception as wrong:
        raise _capture_error(wrong) from wrong
    none = sizes.without(*sizes.example)
    _report_fixed(module, inputs, sizes, none, failures, found)
    return program, none


def _export_open(
    module: nn.Module, inputs: Inputs, sizes: OpenSizes, *, strict: bool
) -> ExportedProgram:
    """Export with open sizes; ``strict`` raises where the model fixes the batch."""
    wide = sizes.widened(inputs.leaves())
    changed = inputs.with_leaves(wide)
    auto = torch.export.Dim.AUTO
    batch: Any = sizes.batch_steps * torch.export.Dim("B") if strict else auto
    # Keyed by tensor, since forward may gather its arguments as *inputs.
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    tensors = [leaf for leaf in wide if isinstance(leaf, Tensor)]
    for leaf, axes in zip(tensors, sizes.axes, strict=True):
        if axes:
            # Tables of the model limit the length of a sequence; AUTO takes such limits.
            shapes[leaf] = {
                place: batch if symbol == BATCH else auto for place, symbol in axes.items()
            }
    return torch.export.export(
        module, changed.arguments(), changed.keywords(), dynamic_shapes=shapes, strict=False
    )


def _report_fixed(
    module: nn.Module,
    inputs: Inputs,
    sizes: OpenSizes,
    kept: OpenSizes,
    failures: Mapping[str, Exception],
    found: list[Diagnostic],
) -> None:
    for symbol, size in sizes.example.items():
        if symbol in kept.example:
            continue
        what, of = {
            BATCH: ("batch size", "batches of"),
            SEQUENCE: ("sequence length", "sequences of"),
        }[symbol]
        help_line = {
            BATCH: "use x.shape[0], -1 or flatten(1) in place of a number for the batch size",
            SEQUENCE: "use x.shape[1] or -1 in place of a number for the sequence length",
        }[symbol]
        place: tuple[Location, ...] = ()
        reason = ""
        if symbol == BATCH:
            place, reason = place_of_fixed_batch(
                module, inputs.arguments(), inputs.keywords(), size
            )
        failure = failures.get(symbol)
        if failure is not None:
            place, reason = place or place_of_exception(failure), reason or first_line(failure)
        elif symbol == BATCH and not reason:
            reason = "what it computes depends on the batch size, as in `if x.shape[0] > 2`"
        found.append(
            Diagnostic(
                codes.CAPTURE,
                f"the model fixes its {what}; it is captured for {of} {size} only",
                severity="warning",
                model=place,
                reason=reason,
                help=help_line,
            )
        )


def _capture_error(wrong: Exception) -> DiagnosticError:
    text = f"{type(wrong).__name__}: {wrong}"
    if _CONTROL_FLOW.search(text):
        message = "the model's control flow depends on values of a tensor"
        help_line = (
            "replace `if` and `while` on tensor values, .item() and int(tensor) by tensor ops such "
            "as torch.clamp,\nor compute the decision outside of the model"
        )
    else:
        message = f"torch.export cannot capture the model: {type(wrong).__name__}"
        help_line = (
            "stay within torch in forward: no .numpy(), no other library's arrays, no changes to "
            "Python objects outside of it"
        )
    return error(
        codes.CAPTURE,
        message,
        model=place_of_exception(wrong),
        reason=first_line(wrong),
        help=help_line,
    )


# -- conversion -----------------------------------------------------------------------------------


def _constants(program: ExportedProgram) -> dict[str, Const]:
    """Constants by placeholder name; tensors that share their memory are one constant."""
    held: dict[Any, Const] = {}
    made: dict[str, Const] = {}
    for item in program.graph_signature.input_specs:
        if item.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            target = str(item.target)
            tensor = program.state_dict.get(target)
            if tensor is None:
                tensor = program.constants[target]
            # Meta tensors have no memory; they are the same only if they are one object.
            place: object = id(tensor)
            if not tensor.is_meta and tensor.numel():
                place = tensor.data_ptr()
            key = (place, tensor.shape, tensor.stride(), tensor.dtype)
            scope = target.rpartition(".")[0]
            const = Const(target, tensor.detach(), scope, trained=item.kind is InputKind.PARAMETER)
            made[item.arg.name] = held.setdefault(key, const)
    return made


def _convert(
    program: ExportedProgram, name: str, source: nn.Module | None, symbols: Mapping[str, str]
) -> tuple[Module, ResourceStore, dict[int, Any], dict[Value, MaskParts]]:
    module, function, resources = Module(_symbol(name)), Function("inference"), ResourceStore()
    module.add_function(function)
    converter = Converter(module, function, resources, all_rules(), symbols, HINTS)
    constants = _constants(program)
    user_inputs = set(program.graph_signature.user_inputs)
    fixed = {
        item.arg.name: item.arg.value
        for item in program.graph_signature.input_specs
        if isinstance(item.arg, ConstantArgument)
    }
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in constants:
                converter.values[node] = constants[node.name]
            elif node.name in fixed:
                converter.values[node] = fixed[node.name]
            elif node.name in user_inputs:
                meta = node.meta["val"]
                kind = TensorType(converter.dims(meta), ELEMENT_OF[meta.dtype])
                converter.values[node] = function.add_argument(kind, node.name)
            else:
                raise error(
                    codes.CAPTURE,
                    f"the exported program takes {node.name}, which is neither a tensor of the "
                    "model nor an input",
                    help="pass only tensors to the model",
                )
        elif node.op == "call_function":
            converter.convert(node)
        elif node.op == "get_attr":
            tensor = getattr(program.graph_module, str(node.target))
            converter.values[node] = Const(f"table.{node.target}", tensor)
    _check_mutations(program, converter, source)
    converter.found.raise_errors()
    return module, resources, _finish(program, converter), converter.masks


def _check_mutations(
    program: ExportedProgram, converter: Converter, source: nn.Module | None
) -> None:
    last = next(node for node in program.graph.nodes if node.op == "output")
    written = {item.name: item for item in last.args[0] if isinstance(item, torch.fx.Node)}
    for name, target in program.graph_signature.buffers_to_mutate.items():
        scope, _, attribute = str(target).rpartition(".")
        node = written.get(name)
        owner = source.get_submodule(scope) if source is not None else None
        place = place_of_assignment(owner, attribute) if owner is not None else ()
        if not place and node is not None:
            place = place_of_trace(node.meta.get("stack_trace"))
        converter.found.add(
            Diagnostic(
                codes.CAPTURE,
                f"forward changes the buffer {target!r}",
                model=place,
                scope=scope,
                reason="a program is a function of its inputs: the result of a call must not "
                "depend on earlier calls",
                help="change buffers under `if self.training:` only, or take the state as an input "
                "and return its new value",
            )
        )


def _written_inputs(program: ExportedProgram) -> Iterator[Diagnostic]:
    # Such as a leading ReLU(inplace=True). The result is right, what happens to the input differs.
    last = next(node for node in program.graph.nodes if node.op == "output")
    written = {item.name: item for item in last.args[0] if isinstance(item, torch.fx.Node)}
    for name, target in program.graph_signature.user_inputs_to_mutate.items():
        node = written.get(name)
        yield Diagnostic(
            codes.CAPTURE,
            f"forward writes into its input {target!r}; the compiled program leaves it as it is",
            severity="warning",
            model=place_of_trace(node.meta.get("stack_trace")) if node is not None else (),
            help="write into a copy: x = x * 2 in place of x *= 2, ReLU() in place of "
            "ReLU(inplace=True)",
        )


def _finish(program: ExportedProgram, converter: Converter) -> dict[int, Any]:
    """End the function; returns output leaves that are not tensors."""
    last = next(node for node in program.graph.nodes if node.op == "output")
    converter.node, converter.scope, converter.loc = last, "", ()
    results: list[Value] = []
    constants: dict[int, Any] = {}
    written: Any = last.args[0]
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    leaves = [item for item, kind in zip(written, kinds, strict=True) if kind in _RETURNED]
    for index, item in enumerate(leaves):
        if isinstance(item, torch.fx.Node):
            held = converter.values[item]
            if not isinstance(held, (Value, Const, tables.Table, tables.Relations)):
                raise error(
                    codes.UNSUPPORTED_FORM,
                    f"the model returns a size as output {index}, not a tensor",
                    model=place_of_trace(item.meta.get("stack_trace")),
                    help="leave it out: the shape of the tensors beside it holds it",
                )
            results.append(converter.value(held))
        else:
            constants[index] = item
    if not results:
        raise error(codes.CAPTURE, "the model returns no tensor", help="return a tensor")
    converter.emit(core.Return(values=tuple(results)))
    converter.function.results = [FunctionResult(value.type) for value in results]
    return constants


def _symbol(name: str) -> str:
    """A name that may stand behind ``@`` in text."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("_.-") or "model"
