"""The eager run before capture: the model runs once as its user runs it, and is left as it was.

A model that fails by itself fails here with its own words and the user's line. What only a run
shows is found here too: recurrent layers that are called, state that is kept from one call to the
next, results that are no tensors.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from imcc.frontend.places import place_of_caller, place_of_exception, shown_path
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticCollector, DiagnosticError, Location, error
from imcc.ir.semantics.resources import ELEMENT_OF

_WRAPPERS: tuple[tuple[str, str], ...] = (
    ("torch._dynamo.eval_frame.OptimizedModule", "_orig_mod"),
    ("torch.nn.parallel.data_parallel.DataParallel", "module"),
    ("torch.nn.parallel.distributed.DistributedDataParallel", "module"),
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
SHOWN = 4
"""Tensors or modules of one kind that a message names; the rest is counted."""


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside of ``torch.compile`` and of the wrappers that only distribute batches."""
    for name, attribute in _WRAPPERS:
        kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]
        if name in kinds:
            return unwrap(getattr(module, attribute))
    return module


# -- before the run -------------------------------------------------------------------------------


def check_model(module: nn.Module) -> None:
    """Refuse what cannot be captured whatever its inputs, all at once; raises CAPTURE."""
    found = DiagnosticCollector(limit=1000)
    scripted = [
        name or "the model"
        for name, item in module.named_modules()
        if isinstance(item, torch.jit.ScriptModule)
    ]
    if scripted:
        found.add(
            Diagnostic(
                codes.CAPTURE,
                f"{_several(scripted[:1])} is a TorchScript module",
                reason="compiled TorchScript has no Python code left that could be captured",
                help="hand in the torch.nn.Module before torch.jit.script or torch.jit.trace",
            )
        )
        found.raise_errors()
    quantised = [
        f"{name or 'the model'} ({type(item).__name__})"
        for name, item in module.named_modules()
        if ".nn.quantized." in f"{type(item).__module__}."
    ]
    if quantised:
        found.add(
            Diagnostic(
                codes.CAPTURE,
                f"the model holds modules quantised by torch: {_several(quantised)}",
                reason="their weights are packed for the CPU, and imcc quantises by itself",
                help="compile the float model; the pass quantize-weights has the bits as an option",
            )
        )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for item in _unusable(tensors, "tensor"):
        found.add(item)
    found.raise_errors()


def check_inputs(leaves: Sequence[Any]) -> None:
    """Refuse inputs that no program could take, all at once; raises CAPTURE."""
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        shown = ", ".join(type(leaf).__name__ for leaf in leaves)
        arrays = any(type(leaf).__module__ == "numpy" for leaf in leaves)
        raise error(
            codes.CAPTURE,
            f"example inputs hold no tensor, only {shown}"
            if leaves
            else "example inputs are empty",
            help="convert arrays with torch.from_numpy(array)"
            if arrays
            else "give one tensor for each argument of forward",
        )
    found = DiagnosticCollector(limit=1000)
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, (Tensor, *_PLAIN)):
            found.add(
                Diagnostic(
                    codes.CAPTURE,
                    f"example input {index} is {type(leaf).__name__}, not a tensor",
                    help="convert arrays with torch.from_numpy(array)"
                    if type(leaf).__module__ == "numpy"
                    else "give tensors; numbers, texts and None are fixed to their example's value",
                )
            )
    named = [(str(index), leaf) for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for number, leaf in named:
        if not leaf.numel():
            found.add(
                Diagnostic(
                    codes.CAPTURE,
                    f"example input {number} of shape {list(leaf.shape)} has no elements",
                    help="give at least one sample",
                )
            )
    for item in _unusable(named, "example input"):
        found.add(item)
    found.raise_errors()


def _unusable(tensors: Iterable[tuple[str, Tensor]], what: str) -> Iterator[Diagnostic]:
    """One diagnostic for each kind of tensor that is not dense, on the CPU, and of a known dtype.

    Meta tensors stand for weights that are left out, and are let through.
    """
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for name, tensor in tensors:
        if nn.parameter.is_lazy(tensor):
            continue
        if tensor.layout is not torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            key = (
                f"is sparse ({layout})",
                "crossbars and the reference hold dense matrices",
                "convert it with tensor.to_dense()",
            )
        elif tensor.is_quantized:
            key = (
                f"is quantised by torch ({str(tensor.dtype).removeprefix('torch.')})",
                "imcc quantises by itself, from float weights",
                "convert it with tensor.dequantize()",
            )
        elif tensor.dtype not in ELEMENT_OF:
            complex_help = "split it into real and imaginary part: torch.view_as_real(tensor)"
            key = (
                f"has elements {tensor.dtype}",
                "supported are " + ", ".join(str(dtype)[6:] for dtype in ELEMENT_OF),
                complex_help if tensor.is_complex() else "convert it with tensor.float()",
            )
        elif tensor.device.type not in ("cpu", "meta"):
            key = (
                f"is on the device {tensor.device}",
                "programs are captured and simulated on the CPU",
                'move it: model.to("cpu"), tensor.to("cpu")',
            )
        else:
            continue
        kinds.setdefault(key, []).append(name)
    for (fault, reason, help_line), names in kinds.items():
        yield Diagnostic(
            codes.CAPTURE, f"{what} {_several(names)} {fault}", reason=reason, help=help_line
        )


def _several(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# -- the run --------------------------------------------------------------------------------------


def run_eagerly(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Run the model in the mode it is in; raises CAPTURE for whatever the run shows to be wrong.

    The model gets copies of the inputs, and its buffers and attributes are put back afterwards.
    """
    recurrent: dict[str, tuple[nn.Module, tuple[Location, ...]]] = {}
    handles = []
    for name, item in module.named_modules():
        if isinstance(item, (nn.RNNBase, nn.RNNCellBase)):

            def note(called: nn.Module, _: Any, name: str = name) -> None:
                recurrent.setdefault(name, (called, place_of_caller()))

            handles.append(item.register_forward_pre_hook(note))
    try:
        with left_as_it_was(module) as changed:
            outputs = _call(module, arguments, keywords)
            names = changed()
            again = _call(module, arguments, keywords) if names else outputs
    finally:
        for handle in handles:
            handle.remove()
    found = DiagnosticCollector(limit=1000)
    for name, (item, place) in recurrent.items():
        found.add(_recurrent(name, item, place))
    if names and not _equal(outputs, again):
        found.add(_keeps_state(module, names))
    for refused in _check_outputs(module, outputs):
        found.add(refused)
    found.raise_errors()


def _call(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    copied = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf,
        (arguments, dict(keywords)),
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return module(*copied[0], **copied[1])
    except Exception as wrong:
        raise _raised(module, wrong, pytree.tree_leaves(copied)) from wrong


def _raised(module: nn.Module, wrong: Exception, leaves: Sequence[Any]) -> DiagnosticError:
    reason, help_line = (
        "",
        ("model()(*example_inputs()) must run; check shapes and dtypes of example_inputs()"),
    )
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    weights = [*module.parameters(), *module.buffers()]
    if isinstance(wrong, NotImplementedError) and "forward" in str(wrong):
        help_line = "give the module a forward method; nn.ModuleList and nn.ModuleDict have none"
    elif "CUDA" in str(wrong) or "cuda" in str(wrong):
        help_line = (
            "programs are captured and simulated on the CPU: use x.device in place of a device's "
            'name\nin forward, and model.to("cpu")'
        )
    elif len({item.device for item in (*inputs, *weights)}) > 1:
        help_line = (
            'put model and inputs on one device: model.to("cpu"), or both on "meta" for a model '
            "without its weights"
        )
        reason = _where("devices", inputs, weights, lambda item: str(item.device))
    else:
        given = {item.dtype for item in inputs}
        held = {item.dtype for item in module.parameters()}
        if "dtype" in str(wrong) and given.isdisjoint(held):
            reason = _where("element types", inputs, weights, lambda item: str(item.dtype))
            wanted = next(iter(held), torch.float32)
            help_line = f"give example inputs of the weights' type: tensor.to({wanted})"
    return error(
        codes.CAPTURE,
        f"the model raises on its example inputs: {type(wrong).__name__}: {first_line(wrong)}",
        model=place_of_exception(wrong),
        reason=reason,
        help=help_line,
    )


def _where(what: str, inputs: Sequence[Tensor], weights: Sequence[Tensor], of: Any) -> str:
    sides = [
        f"{side} are {', '.join(sorted({of(item) for item in items})) or 'absent'}"
        for side, items in (("inputs", inputs), ("weights", weights))
    ]
    return f"{what} differ: {'; '.join(sides)}"


def first_line(wrong: BaseException) -> str:
    """The first line of an exception's message, cut to what fits on a screen."""
    return (str(wrong).strip().splitlines() or [""])[0][:300]


# -- what the run showed --------------------------------------------------------------------------


def _recurrent(name: str, item: nn.Module, place: tuple[Location, ...]) -> Diagnostic:
    kind = type(item).__name__
    return Diagnostic(
        codes.CAPTURE,
        f"{name or 'the model'} is a recurrent layer ({kind})",
        model=place,
        scope=name,
        reason="each step needs the state of the step before; the IR has no recurrence over steps "
        "of this kind,\nand its gates multiply activations, which crossbars of fixed weights "
        "cannot",
        help="use attention, a convolution over time (nn.Conv1d) or a spiking network in its place",
    )


@contextlib.contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[Any]:
    """Put buffers and attributes back at the end; yields a function that names the changed ones."""
    buffers = {
        name: (held, held._version, held.clone() if not held.is_meta else held)
        for name, held in module.named_buffers()
        if not nn.parameter.is_lazy(held)
    }
    plain = {name: dict(vars(item)) for name, item in module.named_modules()}
    tables = {name: dict(item._buffers) for name, item in module.named_modules()}
    copies = {name: _shallow(held) for name, held in plain.items()}

    def changed() -> list[str]:
        names: list[str] = []
        current = dict(module.named_buffers())
        for name, (held, version, _) in buffers.items():
            if current.get(name) is not held or held._version != version:
                names.append(name)
        for name, item in module.named_modules():
            for key, value in vars(item).items():
                if key in _TORCH_ATTRIBUTES or name not in copies:
                    continue
                if _differs(copies[name].get(key), value):
                    names.append(f"{name}.{key}" if name else key)
        return names

    try:
        yield changed
    finally:
        for name, item in module.named_modules():
            if name not in plain:
                continue
            for key in [key for key in vars(item) if key not in plain[name]]:
                delattr(item, key)
            for key, value in copies[name].items():
                if key not in _TORCH_ATTRIBUTES:
                    vars(item)[key] = value
            item._buffers.update(tables[name])
        with torch.no_grad():
            for held, version, saved in buffers.values():
                if held._version != version and not held.is_meta:
                    held.copy_(saved)


_TORCH_ATTRIBUTES = frozenset(vars(nn.Module())) | {"_initialize_hook", "_load_hook"}


def _shallow(held: dict[str, Any]) -> dict[str, Any]:
    # Lists and dicts that forward appends to are state as well.
    return {
        key: value.copy() if type(value) in (list, dict) and key not in _TORCH_ATTRIBUTES else value
        for key, value in held.items()
    }


def _differs(before: Any, after: Any) -> bool:
    if before is after:
        return False
    if type(before) is not type(after):
        return True
    if isinstance(after, Tensor):
        return True
    if isinstance(after, (list, tuple)):
        return len(before) != len(after) or any(map(_differs, before, after))
    if isinstance(after, dict):
        return before.keys() != after.keys() or any(
            _differs(before[key], item) for key, item in after.items()
        )
    try:
        return bool(before != after)
    except Exception:
        return True


def _equal(first: Any, second: Any) -> bool:
    left, right = pytree.tree_leaves(first), pytree.tree_leaves(second)
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                return False
            if not a.is_meta and not torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)):
                return False
        elif isinstance(a, _PLAIN) and a != b:
            return False
    return True


def _keeps_state(module: nn.Module, names: Sequence[str]) -> Diagnostic:
    owner, _, attribute = names[0].rpartition(".")
    return Diagnostic(
        codes.CAPTURE,
        f"forward changes {_several([repr(name) for name in names])}, and the second call's "
        "result differs from the first's",
        model=place_of_assignment(module.get_submodule(owner), attribute),
        scope=owner,
        reason="a program is a function of its inputs: the result of a call must not depend on "
        "earlier calls",
        help="take the state as an input and return its new value, or reset it at the start of "
        "forward",
    )


def place_of_assignment(module: nn.Module, attribute: str) -> tuple[Location, ...]:
    """The first line outside of ``__init__`` that writes ``self.<attribute>``, if it is found."""
    for kind in type(module).__mro__:
        if kind.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        try:
            file = inspect.getsourcefile(kind)
            lines, start = inspect.getsourcelines(kind)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, TypeError, SyntaxError):
            continue
        for line in sorted(_writes(tree, attribute)):
            return (Location(shown_path(str(file)), start + line - 1),)
    return ()


def _writes(tree: ast.AST, attribute: str) -> Iterator[int]:
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name == "__init__":
            continue
        first = function.args.args[0].arg if function.args.args else ""

        def of_self(node: ast.AST, first: str = first) -> bool:
            return (
                isinstance(node, ast.Attribute)
                and node.attr == attribute
                and isinstance(node.value, ast.Name)
                and node.value.id == first
            )

        for node in ast.walk(function):
            targets: list[ast.AST] = []
            if isinstance(node, ast.Assign):
                targets = list(node.targets)
            elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
                targets = [node.target]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                # self.count.add_(1), self.seen.append(x)
                name = node.func.attr
                if name.endswith("_") or name in ("append", "extend", "update"):
                    targets = [node.func.value]
            inner = [part for target in targets for part in ast.walk(target)]
            if any(of_self(part) for part in inner):
                yield node.lineno  # type: ignore[attr-defined]


def _check_outputs(module: nn.Module, outputs: Any) -> Iterator[Diagnostic]:
    place = place_of_forward(module)
    leaves = pytree.tree_leaves(outputs)
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *_PLAIN)) and not _register(leaf):
            yield Diagnostic(
                codes.CAPTURE,
                f"the model returns an object of {type(leaf).__qualname__}, whose tensors cannot "
                "be found",
                model=place,
                help="return tensors, or tuples, lists, dicts, named tuples or dataclasses of them",
            )
            return
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(outputs)):
        shown = ", ".join(type(leaf).__name__ for leaf in leaves[:SHOWN]) or "nothing"
        yield Diagnostic(
            codes.CAPTURE,
            f"the model returns no tensor, only {shown}",
            model=place,
            help="return a tensor; is there a return statement?"
            if outputs is None
            else "return a tensor, not a Python number taken from one",
        )
    unusable = [(str(index), leaf) for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for item in _unusable(unusable, "output"):
        yield item.at(model=place)


def _register(leaf: Any) -> bool:
    """Make a dataclass known as a structure of tensors; False for any other object."""
    import dataclasses

    kind = type(leaf)
    if not dataclasses.is_dataclass(kind):
        return False
    with contextlib.suppress(ValueError, AssertionError):
        torch.export.register_dataclass(kind)
    leaves = pytree.tree_leaves(leaf)
    return all(isinstance(item, (Tensor, *_PLAIN)) or _register(item) for item in leaves)


def place_of_forward(module: nn.Module) -> tuple[Location, ...]:
    """Where the model's ``forward`` is defined; () for a module of torch's own."""
    forward = inspect.unwrap(module.forward)
    try:
        file, line = inspect.getsourcefile(forward), inspect.getsourcelines(forward)[1]
    except (OSError, TypeError):
        return ()
    if file is None or "/site-packages/torch/" in file:
        return ()
    return (Location(shown_path(file), line),)


def place_of_fixed_batch(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], batch: int
) -> tuple[tuple[Location, ...], str]:
    """Where the model fails on another batch size, and how; ((), "") if it does not.

    A model that holds its batch size as a number fails on another size at the very line.
    """

    def resized(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch:
            return torch.cat([leaf, leaf[:1]])
        return leaf

    given = pytree.tree_map(resized, (arguments, dict(keywords)))
    try:
        with left_as_it_was(module):
            _call(module, *given)
    except DiagnosticError as wrong:
        cause = wrong.__cause__
        if cause is not None:
            return place_of_exception(cause), f"with a batch of {batch + 1}: {first_line(cause)}"
    return (), ""
