"""The whole way from a model to a :class:`CompiledModel`: ``imcc.compile`` and the CLI."""

from imcc.driver.compiled import CompiledModel, load
from imcc.driver.compiler import CompileOptions, compile, compile_file

__all__ = ["CompileOptions", "CompiledModel", "compile", "compile_file", "load"]
