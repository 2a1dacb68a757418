"""Capture: a torch module and example inputs become an IR module in the phase ``captured``.

``torch.export`` traces the model in evaluation mode with a symbolic batch size; the graph is
decomposed to core aten ops and converted by the rules in :mod:`imcc.frontend.aten`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from imcc.frontend.convert import Const, Converter
from imcc.frontend.places import place_of_exception
from imcc.frontend.rules import HINTS, all_rules
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, error
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
    ``output_spec`` are their structures (``torch.utils._pytree``). ``constant_outputs`` holds
    leaves that are not tensors, by position. ``warnings`` says what the user should know.
    """

    module: Module
    resources: ResourceStore
    input_spec: pytree.TreeSpec
    output_spec: pytree.TreeSpec
    warnings: tuple[Diagnostic, ...] = ()
    constant_outputs: dict[int, Any] = field(default_factory=dict)


def capture(
    module: nn.Module,
    example_inputs: Sequence[Any],
    *,
    name: str = "model",
    dynamic_batch: bool = True,
) -> Captured:
    """Capture ``module`` as it computes ``module.eval()(*example_inputs)``.

    Axis 0 of the first input is the batch; every input whose axis 0 has the same size shares it.
    It becomes the symbol ``B``. A model that fixes its batch size is captured with the size of the
    example inputs, and ``warnings`` says so. Parameters keep their ``state_dict`` names; tied ones
    are stored once, under the first name. The module's training flags are left as they were.

    Raises :class:`DiagnosticError` for a model that raises on the example inputs (CAPTURE),
    control flow that depends on data (CAPTURE), unsupported ops, all of them at once
    (UNSUPPORTED_OP, UNSUPPORTED_FORM), and weights that are not finite (BAD_WEIGHTS).
    """
    inputs = tuple(example_inputs)
    leaves, input_spec = pytree.tree_flatten(inputs)
    _check_inputs(leaves)
    found: list[Diagnostic] = []
    with _evaluation_mode(module), torch.no_grad():
        _try_eagerly(module, inputs)
        with _quiet_exporter():
            program = _export(module, inputs, dynamic_batch, found)
            program = program.run_decompositions({})
    try:
        made, resources, constants = _convert(program, name)
    except DiagnosticError as wrong:
        # A batch size that could not be kept open may be what the refusal comes from.
        raise DiagnosticError([*wrong.diagnostics, *found]) from None
    verify(made)
    return Captured(
        made, resources, input_spec, program.call_spec.out_spec, tuple(found), constants
    )


def _check_inputs(leaves: Sequence[Any]) -> None:
    if not leaves:
        raise error(
            codes.CAPTURE,
            "example inputs are empty",
            help="give one tensor for each argument of forward",
        )
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise error(
                codes.CAPTURE,
                f"example input {index} is {type(leaf).__name__}, not a tensor",
                help="fix arguments that are not tensors in the model, for example by "
                "functools.partial or a wrapping nn.Module",
            )
        if leaf.dtype not in ELEMENT_OF:
            raise error(
                codes.CAPTURE,
                f"example input {index} has elements {leaf.dtype}",
                help="supported are " + ", ".join(map(str, ELEMENT_OF)),
            )


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
def _quiet_exporter() -> Iterator[None]:
    # The exporter warns about its own use of deprecated interfaces, and logs and prints whole
    # graphs for what becomes a diagnostic here. What the model prints is shown by the eager run.
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sink = io.StringIO()
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
    finally:
        logger.setLevel(level)


def _try_eagerly(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    # A model that fails by itself should fail with its own words, not with the exporter's. It
    # gets copies: an in-place first layer would write into the user's tensors.
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module(*pytree.tree_map(torch.clone, inputs))
    except Exception as wrong:
        raise error(
            codes.CAPTURE,
            f"the model raises on its example inputs: {type(wrong).__name__}: {_first_line(wrong)}",
            model=place_of_exception(wrong),
            help="model()(*example_inputs()) must run; check shapes and dtypes of example_inputs()",
        ) from wrong


def _first_line(wrong: BaseException) -> str:
    return (str(wrong).strip().splitlines() or [""])[0]


# -- export ---------------------------------------------------------------------------------------


def _batched(leaf: Tensor, batch: int) -> bool:
    return leaf.dim() > 0 and leaf.shape[0] == batch


def _export(
    module: nn.Module, inputs: tuple[Any, ...], dynamic: bool, found: list[Diagnostic]
) -> ExportedProgram:
    leaves = pytree.tree_leaves(inputs)
    batch = leaves[0].shape[0] if leaves[0].dim() else None
    failure: Exception | None = None
    if dynamic and batch is not None:
        # The exporter specialises sizes 0 and 1, so a batch of one is traced as two.
        size = max(batch, 2)
        axis = torch.export.Dim("B")
        wide = pytree.tree_map(lambda x: _repeat(x, size) if _batched(x, batch) else x, inputs)
        # Keyed by tensor, since forward may gather its arguments as *inputs.
        shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for given, leaf in zip(leaves, pytree.tree_leaves(wide), strict=True):
            if _batched(given, batch):
                shapes[leaf] = {0: axis}
        try:
            return torch.export.export(module, wide, dynamic_shapes=shapes, strict=False)
        except Exception as wrong:
            failure = wrong
    try:
        program = torch.export.export(module, inputs, strict=False)
    except Exception as wrong:
        raise _capture_error(wrong) from wrong
    if failure is not None:
        found.append(
            Diagnostic(
                codes.CAPTURE,
                f"the model fixes its batch size; it is captured for batches of {batch} only",
                severity="warning",
                model=place_of_exception(failure),
                reason=_first_line(failure)[:300],
                help="use x.shape[0], -1 or flatten(1) in place of a number for the batch size",
            )
        )
    return program


def _repeat(x: Tensor, size: int) -> Tensor:
    return x if x.shape[0] == size else x[:1].repeat(size, *[1] * (x.dim() - 1))


def _capture_error(wrong: Exception) -> DiagnosticError:
    text = f"{type(wrong).__name__}: {wrong}"
    reason, help_line = _first_line(wrong)[:300], ""
    if _CONTROL_FLOW.search(text):
        message = "the model's control flow depends on values of a tensor"
        help_line = (
            "replace `if` and `while` on tensor values, .item() and int(tensor) by tensor ops such "
            "as torch.clamp,\nor compute the decision outside of the model"
        )
    else:
        message = f"torch.export cannot capture the model: {type(wrong).__name__}"
        help_line = "keep forward free of changes to Python state and of calls that leave torch"
    return error(
        codes.CAPTURE, message, model=place_of_exception(wrong), reason=reason, help=help_line
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
            made[item.arg.name] = held.setdefault(key, Const(target, tensor.detach(), scope))
    return made


def _batch_symbols(program: ExportedProgram) -> frozenset[str]:
    return frozenset(str(symbol) for symbol in program.range_constraints)


def _convert(program: ExportedProgram, name: str) -> tuple[Module, ResourceStore, dict[int, Any]]:
    module, function, resources = Module(_symbol(name)), Function("inference"), ResourceStore()
    module.add_function(function)
    converter = Converter(module, function, resources, all_rules(), _batch_symbols(program), HINTS)
    constants = _constants(program)
    user_inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in constants:
                converter.values[node] = constants[node.name]
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
    _check_mutations(program, converter)
    converter.found.raise_errors()
    return module, resources, _finish(program, converter)


def _check_mutations(program: ExportedProgram, converter: Converter) -> None:
    # An input written in place (a leading ReLU(inplace=True)) is no harm: a program is a function
    # of its inputs and leaves the caller's tensors alone.
    for target in program.graph_signature.buffers_to_mutate.values():
        converter.found.add(
            Diagnostic(
                codes.CAPTURE,
                f"forward changes {target!r}",
                scope=str(target).rpartition(".")[0],
                reason="the result of a call must not depend on earlier calls",
                help="do not assign to buffers in evaluation mode",
            )
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
            if not isinstance(held, (Value, Const)):
                raise converter.refuse(
                    f"output {index} is a size or a list of results, not a tensor",
                    help="return tensors only",
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
