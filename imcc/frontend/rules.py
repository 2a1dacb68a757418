"""The table of rules for torch ops, filled by the ``aten`` modules, and hints for what is missing.

Other packages add rules for custom ops of theirs (``torch.library.custom_op``) in modules that they
register in the entry-point group ``imcc.frontend``; they are imported at the first capture.

A rule gets the :class:`~imcc.frontend.convert.Converter` and the arguments by the names of the
op's schema (``self`` and ``input`` are called ``x``), defaults filled in. Tensors are IR values or
:class:`~imcc.frontend.convert.Const`; sizes are numbers. It returns the value, or a tuple of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias, TypeVar

import torch

from imcc.frontend.convert import Const, Converter, Rule
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Value
from imcc.ir.plugins import load_plugin, plugin_points
from imcc.ir.semantics.resources import ELEMENT_OF

Argument: TypeAlias = Value | Const

RULES: dict[str, Rule] = {}
"""Rules by target name, such as ``aten.conv2d``, ``aten.add.Tensor`` or ``mine.softplus``."""

HINTS: dict[str, str] = {
    "log_softmax": "leave it out of the model: the largest output stays the largest",
    "_log_softmax": "leave it out of the model: the largest output stays the largest",
    "argmax": "return the logits and take the argmax in metric()",
    "elu": "use ReLU, LeakyReLU, SiLU or GELU",
    "mish": "use SiLU, Hardswish or GELU",
    "prelu": "use LeakyReLU with a fixed slope",
    "group_norm": "use BatchNorm2d, which folds into the convolution, or LayerNorm",
    "native_group_norm": "use BatchNorm2d, which folds into the convolution, or LayerNorm",
    "adaptive_max_pool2d": "use MaxPool2d with a fixed kernel, or AdaptiveAvgPool2d",
    "conv_transpose2d": "use Conv2d",
    "sum": "use mean, and fold the factor into the next layer's weight",
    "bmm": "products of two activations are not supported",
    "scaled_dot_product_attention": "products of two activations are not supported",
    "lstm": "recurrent layers are not supported",
    "gru": "recurrent layers are not supported",
    "embedding": "compute the embedding outside of the model and pass its result in",
}
"""What to use instead, for ops that models often hold."""


AnyRule = TypeVar("AnyRule", bound=Rule)


def torch_rule(*targets: str) -> Callable[[AnyRule], AnyRule]:
    """Decorator: the function is the rule of these torch ops, named with their library."""

    def add(rule: AnyRule) -> AnyRule:
        for target in targets:
            RULES[target] = rule
        return rule

    return add


def aten_rule(*targets: str) -> Callable[[AnyRule], AnyRule]:
    """Decorator: the function is the rule of these aten ops, named without ``aten.``."""
    return torch_rule(*(f"aten.{target}" for target in targets))


@lru_cache(maxsize=1)
def all_rules() -> Mapping[str, Rule]:
    """``RULES`` with those of other packages; raises ``PLUGIN`` if one does not load."""
    importlib.import_module("imcc.frontend.aten")
    for point in plugin_points("imcc.frontend"):
        load_plugin(point, "module of capture rules")
    return RULES


def check_same_dtype(c: Converter, x: Value, dtype: torch.dtype | None) -> None:
    """Refuse a conversion to another element type."""
    if dtype is not None and ELEMENT_OF.get(dtype) != tensor(x).element:
        raise c.refuse(
            f"converts {tensor(x).element} to {dtype}",
            help="keep one floating-point type throughout the model",
        )
