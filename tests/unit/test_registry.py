"""Walks every op and pass: documentation, examples, rules. A new op cannot forget one."""

import dataclasses

import pytest

from imcc.ir import OPS, parse_module, print_module, structural_difference, verify
from imcc.ir.registry import load_all_dialects, load_semantics
from imcc.ir.rules import EVAL
from imcc.passes.infrastructure import find_pass, parse_pipeline, pass_names, print_pipeline
from imcc.testing.examples import example_module, example_text

load_all_dialects()
OP_NAMES = sorted(name for name, op in OPS.items() if op.__module__.startswith("imcc."))


@pytest.mark.parametrize("name", OP_NAMES)
def test_op_is_documented_and_its_example_round_trips(name):
    op = OPS[name]
    assert op.__doc__ and len(op.__doc__) > 30, "say what the op computes"
    module = example_module(op)
    verify(module)
    text = print_module(module)
    assert text == example_text(op), "the example is written in canonical form"
    assert structural_difference(module, parse_module(text)) is None


@pytest.mark.parametrize("name", OP_NAMES)
def test_op_has_an_eval_rule(name):
    if OPS[name].terminator:
        pytest.skip("a terminator ends the function; the interpreter returns its operands")
    prefix = name.split(".")[0]
    load_semantics(prefix)
    from imcc.backends.crossbar import BACKEND

    BACKEND.load_rules()
    backend = {"xbar": "crossbar", "sparse": "sparse_snn"}.get(prefix)
    assert EVAL.find(name, backend) is not None


@pytest.mark.parametrize("name", pass_names())
def test_pass_is_documented_and_prints_back(name):
    cls = find_pass(name)
    # A dataclass without a docstring gets its signature as one.
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    required = [key for key, spec in cls.options().items() if spec.required]
    if required:
        pytest.skip(f"needs options {required}")
    made = cls()
    assert dataclasses.is_dataclass(made)
    assert parse_pipeline(str(made)) == (made,)
    assert all(spec.doc for spec in cls.options().values()), "document every option"


def test_pipeline_prints_back_exactly():
    text = 'canonicalize, quantize-weights{bits=4 granularity="tensor"}, dead-code'
    assert print_pipeline(parse_pipeline(text)) == text
