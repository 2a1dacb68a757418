"""The user's model file: loading it, and calling what it offers with errors that show the way.

A model file is trusted Python code. What it prints goes to stderr, so that machine output stays
clean; what it raises becomes a diagnostic at the user's line.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from imcc.frontend.exported import call_inputs, load_exported
from imcc.frontend.nir_import import load_nir, split_spec
from imcc.frontend.places import place_of_exception, shown_path
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, Location, error, nearest, text_window

LINES: dict[str, str] = {
    "model": "def model():\n    return MyNetwork()  # a torch.nn.Module with its weights",
    "example_inputs": "def example_inputs():\n    return (torch.zeros(1, 3, 32, 32),)",
    "calibration_data": "def calibration_data():\n    return images  # from the training set",
    "evaluation_data": "def evaluation_data():\n    return inputs, targets  # held-out data",
    "metric": "def metric(outputs, targets):\n"
    "    return (outputs.argmax(-1) == targets).double().mean().item()",
    "evaluate": "def evaluate(model):\n    return accuracy  # a number",
    "adaptation_data": "def adaptation_data():\n"
    "    return inputs, labels  # of the new user, class numbers as labels",
    "tokenizer": "def tokenizer():\n    return encode  # a function from text to token ids",
    "training_data": "def training_data():\n    return [(inputs, targets), ...]  # batches",
    "loss": "def loss(outputs, batch):\n"
    "    return torch.nn.functional.cross_entropy(outputs, batch[1])",
}
"""The lines to write for each function of a model file."""

_PARAMETERS: dict[str, int] = {"metric": 2, "evaluate": 1, "loss": 2}


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A loaded file of the user and the functions that it offers, None where it does not.

    Called, they print to stderr and turn exceptions into :class:`DiagnosticError`.
    """

    path: Path
    calibration_data: Callable[[], Any] | None = None
    evaluation_data: Callable[[], Any] | None = None
    metric: Callable[[Any, Any], Any] | None = None
    evaluate: Callable[[Any], Any] | None = None
    training_data: Callable[[], Any] | None = None
    adaptation_data: Callable[[], Any] | None = None
    loss: Callable[[Any, Any], Any] | None = None
    tokenizer: Callable[[], Any] | None = None

    def require(self, name: str, purpose: str) -> Callable[..., Any]:
        """The function by name; raises MODEL_MISSING, with the lines to write, if it is absent."""
        found: Callable[..., Any] | None = getattr(self, name)
        if found is None:
            exported = self.path.suffix in (".pt2", ".nir")
            where = "a file for --data" if exported else shown_path(str(self.path))
            raise error(
                codes.MODEL_MISSING,
                f"{purpose} needs {name}() in {where}",
                help=f"add to {'it' if exported else 'the model file'}:\n{LINES[name]}",
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ModelFile(DataFile):
    """A network, its example inputs, and functions of its file or of a file for its data."""

    module: nn.Module | ExportedProgram
    example_inputs: Any


def load_model_file(path: str | Path, data: str | Path | None = None) -> ModelFile:
    """Load ``model.py``, ``model.py:Name``, an exported program ``model.pt2`` or ``net.nir``.

    A NIR graph takes options, ``net.nir:dt=1e-3,steps=32``.

    ``Name`` is a ``torch.nn.Module`` class or instance, or a function that returns one, to be used
    in place of ``model()``; dots reach into what the file imports. The functions of ``data``
    replace those of the file. Raises :class:`DiagnosticError` (MODEL_FILE, MODEL_MISSING,
    EXPORTED) with the user's line and the lines to write.
    """
    file, name = _split(str(path))
    functions: dict[str, Any] = {}
    inputs: Any = None
    made: nn.Module | ExportedProgram
    graph = split_spec(str(path))
    if graph is not None:
        file = graph[0]
        made, inputs = load_nir(file, **graph[1])
    elif file.suffix == ".pt2":
        made = load_exported(file, name)
        inputs = call_inputs(made, made.example_inputs)
    else:
        python = _execute(file, _read(file))
        functions = _functions(file, python)
        # A constructor named after the colon replaces model().
        made = _network(file, python, name)
        if data is None or hasattr(python, "example_inputs"):
            inputs = _inputs(file, python)
    if data is not None:
        beside = Path(data).expanduser()
        python = _execute(beside, _read(beside))
        functions |= _functions(beside, python)
        if hasattr(python, "example_inputs") or inputs is None:
            inputs = _inputs(beside, python)
    return ModelFile(path=file, module=made, example_inputs=inputs, **functions)


def load_data_file(path: str | Path) -> DataFile:
    """Load the functions of a model file, or of a file with data alone, without its network."""
    file, _ = _split(str(path))
    return DataFile(path=file, **_functions(file, _execute(file, _read(file))))


# -- reading the file -----------------------------------------------------------------------------


def _split(text: str) -> tuple[Path, str | None]:
    head, colon, tail = text.rpartition(":")
    if colon and all(part.isidentifier() for part in tail.split(".")) and not Path(text).exists():
        return Path(head).expanduser(), tail
    return Path(text).expanduser(), None


def _read(file: Path) -> str:
    shown = str(file)
    if file.is_dir():
        raise error(
            codes.MODEL_FILE,
            f"{shown} is a folder",
            help=f"name the file in it, for example {file / 'model.py'}",
        )
    if not file.exists():
        beside = [item.name for item in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise error(
            codes.MODEL_FILE,
            f"{shown} does not exist",
            suggestions=tuple(str(file.parent / item) for item in nearest(file.name, beside)),
            help="give the path of a Python file that defines model() and example_inputs()",
        )
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise error(
            codes.MODEL_FILE,
            f"{shown} cannot be read: {wrong}",
            help="it must be a Python file in UTF-8",
        ) from None


def _execute(file: Path, source: str) -> ModuleType:
    full = file.resolve()
    shown = shown_path(str(full))
    try:
        compile(source, str(full), "exec")
    except SyntaxError as wrong:
        line, column = wrong.lineno or 1, wrong.offset or 0
        raise error(
            codes.MODEL_FILE,
            f"{shown} is not valid Python: {wrong.msg}",
            model=(Location(shown, line, column),),
            window=text_window(source, line, column),
            help="correct this line",
        ) from None
    except ValueError as wrong:
        raise error(codes.MODEL_FILE, f"{shown} is not valid Python: {wrong}") from None
    name = f"imcc_model_file_{full.stem}"
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise error(
            codes.MODEL_FILE,
            f"{shown} is not a Python file",
            help="its name must end in .py",
        )
    python = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up by name.
    sys.modules[name] = python
    with _users_code(full, "importing the file"):
        spec.loader.exec_module(python)
    return python


@contextlib.contextmanager
def _users_code(file: Path, doing: str) -> Iterator[None]:
    """Run user code: stdout to stderr, imports from its folder, exceptions to a diagnostic."""
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except DiagnosticError:
        raise
    except (Exception, SystemExit) as wrong:
        text = f"{type(wrong).__name__}: {wrong}".strip().removesuffix(":")
        help_line = "correct this line; the file must work by itself under python"
        if isinstance(wrong, ModuleNotFoundError):
            help_line = f"install the package {wrong.name!r} in this environment"
        raise error(
            codes.MODEL_FILE,
            f"{doing} raised {text}",
            model=place_of_exception(wrong) or (Location(shown_path(str(file.resolve())), 1),),
            help=help_line,
        ) from wrong
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


# -- what the file offers -------------------------------------------------------------------------


def _functions(file: Path, python: ModuleType) -> dict[str, Any]:
    return {
        key: _function(file, python, key, _PARAMETERS.get(key, 0))
        for key in LINES
        if key not in ("model", "example_inputs") and hasattr(python, key)
    }


def _function(file: Path, python: ModuleType, name: str, parameters: int) -> Callable[..., Any]:
    found = getattr(python, name)
    shown = shown_path(str(file.resolve()))
    if not callable(found):
        raise error(
            codes.MODEL_FILE,
            f"{name} in {shown} is {type(found).__name__}, not a function",
            help=f"write it as a function:\n{LINES[name]}",
        )
    try:
        signature = inspect.signature(found)
        signature.bind(*[None] * parameters)
    except TypeError:
        raise error(
            codes.MODEL_FILE,
            f"{name}{signature} must be callable with {parameters or 'no'} arguments",
            model=_definition(found),
            help=f"write it as:\n{LINES[name]}",
        ) from None
    except ValueError:
        # Some callables have no signature to look at; calling them will tell.
        pass

    @functools.wraps(found)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _users_code(file, f"{name}()"):
            return found(*args, **kwargs)

    return call


def _definition(found: Any) -> tuple[Location, ...]:
    try:
        file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]
    except (OSError, TypeError):
        return ()
    return (Location(shown_path(file), line),) if file else ()


def _missing(file: Path, python: ModuleType, name: str) -> DiagnosticError:
    defined = [key for key, item in vars(python).items() if callable(item)]
    shown = shown_path(str(file.resolve()))
    close = tuple(item for item in nearest(name, defined) if item != name)
    last = max(1, len(file.read_text(encoding="utf-8").splitlines()))
    offered = _offered(python) if name == "model" else []
    return error(
        codes.MODEL_MISSING,
        f"{shown} does not define {name}()",
        model=(Location(shown, last),),
        suggestions=close,
        help=(f"compile one of its networks: {_listed(file, offered)}\nor " if offered else "")
        + f"add to the file:\n{LINES[name]}",
    )


def _offered(python: ModuleType) -> list[str]:
    """Names of networks in the file: instances, classes of its own, and functions without input.

    What it imports is offered only where it is an instance: everything of torch.nn would be else.
    """
    made: list[str] = []
    for key, item in vars(python).items():
        own = getattr(item, "__module__", None) == python.__name__
        if key.startswith("_") or key in LINES:
            continue
        made_here = isinstance(item, type) and issubclass(item, nn.Module)
        made_here = made_here or (inspect.isfunction(item) and _returns_network(item))
        if isinstance(item, nn.Module) or (own and made_here):
            made.append(key)
    return made


def _returns_network(found: Callable[..., Any]) -> bool:
    """Whether a function says so: by its annotation, or by a name such as build_net."""
    kind = found.__annotations__.get("return")
    if isinstance(kind, type):
        return issubclass(kind, nn.Module)
    named = re.search(r"model|net|build|make|create", found.__name__, re.I) is not None
    return isinstance(kind, str) and kind.endswith("Module") if kind is not None else named


def _listed(file: Path, names: Sequence[str]) -> str:
    return ", ".join(f"{file.name}:{name}" for name in names)


def _network(file: Path, python: ModuleType, name: str | None) -> nn.Module:
    if name is None:
        found: Any = getattr(python, "model", None)
        if found is None:
            raise _missing(file, python, "model")
    else:
        found = python
        for part in name.split("."):
            if not hasattr(found, part):
                raise _no_such(file, python, name, found, part)
            found = getattr(found, part)
    key = name or "model"
    if isinstance(found, nn.Module):
        return found
    if name is None:
        made = _function(file, python, "model", 0)()
    elif not callable(found):
        made = found
    else:
        _check_constructor(found, key)
        with _users_code(file, f"{key}()"):
            made = found()
    if not isinstance(made, nn.Module):
        does = f"{key}() returned" if callable(found) else f"{key} is"
        raise _wrong(found, f"{does} {_described(made)}, not a torch.nn.Module", "model")
    return made


def _no_such(file: Path, python: ModuleType, name: str, holder: Any, part: str) -> DiagnosticError:
    shown = shown_path(str(file.resolve()))
    offered = _offered(python)
    known = offered if holder is python else [key for key in dir(holder) if key[0] != "_"]
    close = nearest(part, known) or nearest(part, dir(holder))
    prefix = name.rpartition(".")[0] if holder is not python else ""
    return error(
        codes.MODEL_MISSING,
        f"{shown} does not define {name}",
        model=(Location(shown, 1),),
        suggestions=tuple(f"{prefix}.{item}" if prefix else item for item in close),
        help=f"its networks: {_listed(file, offered) or 'none'}",
    )


def _check_constructor(found: Any, name: str) -> None:
    """Refuse a constructor that needs arguments; imcc has none to give."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return
    needed = [
        item.name
        for item in signature.parameters.values()
        if item.default is item.empty and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    ]
    if needed:
        given = ", ".join(f"{item}=..." for item in needed)
        raise DiagnosticError(
            Diagnostic(
                codes.MODEL_FILE,
                f"{name} cannot be made without arguments: it needs {', '.join(needed)}",
                model=_definition(found),
                help=f"add to the file, and compile it without :{name}:\n"
                f"def model():\n    return {name}({given})",
            )
        )


def _inputs(file: Path, python: ModuleType) -> tuple[Any, ...] | dict[str, Any]:
    if not hasattr(python, "example_inputs"):
        raise _missing(file, python, "example_inputs")
    made = _function(file, python, "example_inputs", 0)()
    found = python.example_inputs
    if isinstance(made, Tensor):
        return (made,)
    if isinstance(made, dict) and made and all(isinstance(key, str) for key in made):
        return dict(made)
    if not isinstance(made, (tuple, list)) or not made:
        raise _wrong(
            found,
            f"example_inputs() returned {_described(made)}, not a tuple of tensors or a dict of "
            "keyword inputs",
            "example_inputs",
        )
    # Numbers, texts and None may stand beside tensors: capture fixes them to their value.
    if not any(isinstance(item, (Tensor, tuple, list, dict)) for item in made):
        raise _wrong(
            found,
            f"example_inputs()[0] is {_described(made[0])}, not a tensor",
            "example_inputs",
        )
    return tuple(made)


def _described(made: Any) -> str:
    if made is None:
        return "None (is there a return statement?)"
    if isinstance(made, (tuple, list)) and not made:
        return f"an empty {type(made).__name__}"
    if isinstance(made, type):
        return f"the class {made.__name__}"
    return f"a {type(made).__name__}"


def _wrong(found: Any, message: str, name: str) -> DiagnosticError:
    return DiagnosticError(
        Diagnostic(
            codes.MODEL_FILE,
            message,
            model=_definition(found),
            help=f"write it as:\n{LINES[name]}",
        )
    )
