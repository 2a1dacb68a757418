"""The user's model file: loading it, and calling what it offers with errors that show the way.

A model file is trusted Python code. What it prints goes to stderr, so that machine output stays
clean; what it raises becomes a diagnostic at the user's line.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

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
    "tokenizer": "def tokenizer():\n    return encode  # a function from text to token ids",
    "training_data": "def training_data():\n    return [(inputs, targets), ...]  # batches",
    "loss": "def loss(outputs, batch):\n"
    "    return torch.nn.functional.cross_entropy(outputs, batch[1])",
}
"""The lines to write for each function of a model file."""

_PARAMETERS: dict[str, int] = {"metric": 2, "evaluate": 1, "loss": 2}


@dataclass(frozen=True)
class ModelFile:
    """A loaded model file: the network, its example inputs, and the functions it offers.

    Functions are None where the file does not define them. Called, they print to stderr and turn
    exceptions into :class:`DiagnosticError`.
    """

    path: Path
    module: nn.Module
    example_inputs: tuple[Any, ...]
    calibration_data: Callable[[], Any] | None = None
    evaluation_data: Callable[[], Any] | None = None
    metric: Callable[[Any, Any], Any] | None = None
    evaluate: Callable[[Any], Any] | None = None
    training_data: Callable[[], Any] | None = None
    loss: Callable[[Any, Any], Any] | None = None
    tokenizer: Callable[[], Any] | None = None

    def require(self, name: str, purpose: str) -> Callable[..., Any]:
        """The function by name; raises MODEL_MISSING, with the lines to write, if it is absent."""
        found: Callable[..., Any] | None = getattr(self, name)
        if found is None:
            raise error(
                codes.MODEL_MISSING,
                f"{purpose} needs {name}() in {shown_path(str(self.path))}",
                help=f"add to the model file:\n{LINES[name]}",
            )
        return found


def load_model_file(path: str | Path) -> ModelFile:
    """Load ``model.py`` or ``model.py:Name``.

    ``Name`` is a ``torch.nn.Module`` class or instance, or a function that returns one, to be used
    in place of ``model()``. Raises :class:`DiagnosticError` (MODEL_FILE, MODEL_MISSING) with the
    user's line and the lines to write.
    """
    file, name = _split(str(path))
    source = _read(file)
    python = _execute(file, source)
    # A constructor named after the colon replaces model().
    made = _network(file, python, name)
    inputs = _inputs(file, python)
    functions: dict[str, Any] = {}
    for key in LINES:
        if key in ("model", "example_inputs") or not hasattr(python, key):
            continue
        functions[key] = _function(file, python, key, _PARAMETERS.get(key, 0))
    return ModelFile(file, made, inputs, **functions)


# -- reading the file -----------------------------------------------------------------------------


def _split(text: str) -> tuple[Path, str | None]:
    head, colon, tail = text.rpartition(":")
    if colon and tail.isidentifier() and not Path(text).exists():
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
    message = f"{shown} does not define {name}()"
    last = max(1, len(file.read_text(encoding="utf-8").splitlines()))
    return error(
        codes.MODEL_MISSING,
        message,
        model=(Location(shown, last),),
        suggestions=close,
        help=f"add to the file:\n{LINES[name]}",
    )


def _network(file: Path, python: ModuleType, name: str | None) -> nn.Module:
    key = name or "model"
    if not hasattr(python, key):
        if name is None:
            raise _missing(file, python, "model")
        shown = shown_path(str(file.resolve()))
        modules = [
            other
            for other, item in vars(python).items()
            if isinstance(item, type) and issubclass(item, nn.Module)
        ]
        raise error(
            codes.MODEL_MISSING,
            f"{shown} does not define {name}",
            model=(Location(shown, 1),),
            suggestions=nearest(name, vars(python)),
            help="its networks: " + (", ".join(modules) or "none"),
        )
    found = getattr(python, key)
    if isinstance(found, nn.Module):
        return found
    if name is None:
        made = _function(file, python, "model", 0)()
    else:
        with _users_code(file, f"{name}()"):
            made = found() if callable(found) else found
    if not isinstance(made, nn.Module):
        raise _wrong(found, f"{key}() returned {_described(made)}, not a torch.nn.Module", "model")
    return made


def _inputs(file: Path, python: ModuleType) -> tuple[Any, ...]:
    if not hasattr(python, "example_inputs"):
        raise _missing(file, python, "example_inputs")
    made = _function(file, python, "example_inputs", 0)()
    found = python.example_inputs
    if isinstance(made, Tensor):
        return (made,)
    if not isinstance(made, (tuple, list)) or not made:
        raise _wrong(
            found,
            f"example_inputs() returned {_described(made)}, not a tuple of tensors",
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
