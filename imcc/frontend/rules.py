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
from typing import TypeVar

from imcc.frontend.convert import Rule
from imcc.ir.plugins import load_plugin, plugin_points

RULES: dict[str, Rule] = {}
"""Rules by target name, such as ``aten.conv2d``, ``aten.add.Tensor`` or ``mine.softplus``."""

HINTS: dict[str, str] = {
    "argmax": "return the logits and take the argmax in metric()",
    "adaptive_max_pool2d": "use MaxPool2d with a fixed kernel, or AdaptiveAvgPool2d",
    "conv_transpose2d": "use Conv2d",
    "item": "keep values in tensors: .item() and .tolist() take them out",
    "scalar_tensor": "keep values in tensors: .item() and .tolist() take them out",
    "embedding_bag": "use nn.Embedding, and .mean(1) or .sum(1) of what it gives",
    "arange": "make tables in __init__ as buffers, of sizes that are known there",
    "lstm": "recurrent layers are not supported",
    "gru": "recurrent layers are not supported",
}
"""What to use instead, for ops that models often hold."""


AnyRule = TypeVar("AnyRule", bound=Rule)


def torch_rule(*targets: str, forms: bool = False) -> Callable[[AnyRule], AnyRule]:
    """Decorator: the function is the rule of these torch ops, named with their library.

    With ``forms`` it gets tables of positions (:mod:`imcc.frontend.tables`) as they are; other
    rules get the constants or values that they stand for.
    """

    def add(rule: AnyRule) -> AnyRule:
        for target in targets:
            RULES[target] = rule
        if forms:
            rule.takes_forms = True  # type: ignore[attr-defined]
        return rule

    return add


def aten_rule(*targets: str, forms: bool = False) -> Callable[[AnyRule], AnyRule]:
    """Decorator: the function is the rule of these aten ops, named without ``aten.``."""
    return torch_rule(*(f"aten.{target}" for target in targets), forms=forms)


@lru_cache(maxsize=1)
def all_rules() -> Mapping[str, Rule]:
    """``RULES`` with those of other packages; raises ``PLUGIN`` if one does not load."""
    importlib.import_module("imcc.frontend.aten")
    for point in plugin_points("imcc.frontend"):
        load_plugin(point, "module of capture rules")
    return RULES
