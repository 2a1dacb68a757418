"""The whole way from a model to a :class:`CompiledModel`: ``imcc.compile`` and the CLI."""

from imcc.driver.adapting import adapt
from imcc.driver.bisection import bisect
from imcc.driver.compiled import CompiledModel
from imcc.driver.compiler import compile, compile_file
from imcc.driver.fine_tuning import Trained, train, train_file
from imcc.driver.options import CompileOptions
from imcc.driver.resuming import load, resume

__all__ = [
    "CompileOptions",
    "CompiledModel",
    "Trained",
    "adapt",
    "bisect",
    "compile",
    "compile_file",
    "load",
    "resume",
    "train",
    "train_file",
]
