"""Text form: both round trips, diagnostics with places, properties over made modules."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imcc.ir import parse_module, parse_type, print_module, structural_difference, verify
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dims import Monomial, parse_dim, product
from imcc.ir.types import DTYPES, QuantType, SpikesType, TensorType
from imcc.testing.strategies import modules

VALID = """// imc 1
module @m phase("captured") resources("w.safetensors") {
  resource @w : tensor<3x4xq<s8, axis=0>> sha256("ab")
  resource @s : tensor<3xf32>
  state @u : tensor<3xf32> init(@s)
  func @inference(%x: tensor<Bx4xf32>, %xs: tensor<f32>, %u: tensor<3xf32> state(@u)) -> \
(tensor<Bx3xf32>, tensor<3xf32> state(@u)) target("rram") {
    %q = quant.quantize %x, %xs {bits = 8, signed = false, scope = "fc"} : tensor<Bx4xq<u8>> \
loc("a.py":3)
    %w = core.constant {value = @w} : tensor<3x4xq<s8, axis=0>>
    %s = core.constant {value = @s} : tensor<3xf32>
    %a = quant.linear %q, %w : tensor<Bx3xi32>
    %y = quant.rescale %a, %s, bias=%u : tensor<Bx3xf32>
    core.return %y, %u
  }
}
"""

dims = st.one_of(
    st.integers(0, 9999),
    st.builds(
        lambda c, s: Monomial(c, tuple(sorted(s))),
        st.integers(1, 99),
        st.lists(st.sampled_from("BS"), min_size=1, max_size=3),
    ),
)


def test_round_trip_is_exact():
    module = parse_module(VALID)
    verify(module)
    assert print_module(module) == VALID
    assert structural_difference(module, parse_module(print_module(module))) is None
    assert structural_difference(module, module.clone()) is None


@settings(deadline=None, max_examples=60)
@given(modules())
def test_round_trip_of_made_modules(module):
    verify(module)
    text = print_module(module)
    again = parse_module(text)
    assert structural_difference(module, again) is None
    assert print_module(again) == text


@given(st.lists(dims, max_size=5), st.sampled_from(DTYPES))
def test_tensor_types_round_trip(shape, element):
    kind = TensorType(tuple(shape), element)
    assert parse_type(str(kind)) is kind


@given(
    st.integers(1, 32),
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 1)),
    st.one_of(st.none(), st.integers(1, 999)),
    st.booleans(),
)
def test_quantised_types_round_trip(bits, signed, axis, group, symmetric):
    kind = TensorType((3, Monomial(1, ("B",))), QuantType(bits, signed, axis, group, symmetric))
    assert parse_type(str(kind)) is kind


def test_spikes_type_round_trips():
    kind = SpikesType((4, Monomial(1, ("B",)), 512))
    assert parse_type(str(kind)) is kind
    assert str(kind) == "spikes<4xBx512>"
    wide = SpikesType((4, 512), "f64")
    assert str(wide) == "spikes<4x512xf64>" and parse_type(str(wide)) is wide
    assert parse_type("spikes<4x512xf32>") is SpikesType((4, 512))
    assert wide.dense is TensorType((4, 512), "f64")


@given(dims)
def test_dims_round_trip(dim):
    assert parse_dim(str(dim)) == dim
    assert product([dim, 1]) == dim


FAULTS = {
    "unknown op": ("quant.liner %q", "quant.linear", "IMC105"),
    "undefined value": ("quant.linear %qq,", "quant.linear %q,", "IMC103"),
    "wrong result type": ("%w : tensor<Bx7xi32>", "%w : tensor<Bx3xi32>", "IMC203"),
    "unknown resource": ("{value = @t}", "{value = @s}", "IMC201"),
    "attribute out of range": ("bits = 99", "bits = 8", "IMC107"),
    "unknown attribute": ("bitz = 8", "bits = 8", "IMC107"),
    "attribute of wrong kind": ('bits = "8"', "bits = 8", "IMC107"),
    "operands missing": ("quant.linear %q :", "quant.linear %q, %w :", "IMC106"),
    "value defined twice": (
        "%w = core.constant {value = @s}",
        "%s = core.constant {value = @s}",
        "IMC104",
    ),
    "other version": ("// imc 2", "// imc 1", "IMC102"),
    "no version": ("//", "// imc 1", "IMC102"),
    "bad type": ("tensor<Bx3xi33>", "tensor<Bx3xi32>", "IMC108"),
    "unknown dialect type": ("%w : !no.such<a=1>", "%w : tensor<Bx3xi32>", "IMC108"),
    "unknown phase": ('phase("done")', 'phase("captured")', "IMC201"),
    "no return": ("", "    core.return %y, %u\n", "IMC201"),
    "returns too little": ("core.return %y\n", "core.return %y, %u\n", "IMC201"),
    "unknown state": ("%u: tensor<3xf32> state(@v)", "%u: tensor<3xf32> state(@u)", "IMC207"),
    "operand type": ("quant.rescale %q, %s", "quant.rescale %a, %s", "IMC202"),
    "closing brace missing": ("", "  }\n}\n", "IMC101"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_gives_a_diagnostic(name):
    wrong, right, code = FAULTS[name]
    assert right in VALID
    text = VALID.replace(right, wrong, 1)
    with pytest.raises(DiagnosticError) as caught:
        verify(parse_module(text, "m.imc"))
    found = [item.code.id for item in caught.value.diagnostics]
    assert code in found, (found, str(caught.value))
    first = next(item for item in caught.value.diagnostics if item.code.id == code)
    if name not in ("unknown phase",):
        assert first.text is not None and first.text.file == "m.imc"


def test_several_faults_in_one_run():
    text = VALID.replace("quant.linear", "quant.liner").replace("bits = 8", "bits = 77")
    with pytest.raises(DiagnosticError) as caught:
        parse_module(text)
    assert {item.code.id for item in caught.value.diagnostics} >= {"IMC105", "IMC107"}


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_mutated_text_never_raises_anything_else(data):
    text = VALID
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        length = data.draw(st.integers(0, 12))
        new = data.draw(st.text(string.printable, max_size=4))
        text = text[:place] + new + text[place + length :]
    try:
        verify(parse_module(text))
    except DiagnosticError as failed:
        assert failed.diagnostics


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\x01\x02",
        "// imc 1\n" + "[" * 5000,
        "// imc 1\nmodule @m {" + "{" * 9999,
        "// imc 1\nmodule @m { func @f() -> () { core.reshape %x {shape = "
        + ("[" * 200 + "]" * 200)
        + "} : tensor<f32> } }",
        "// imc 1\nmodule @m { func @f(%x: tensor<f32>) -> () { %y = core.reshape %x {shape = "
        + ("[[1], " * 2000 + "[1]" + "]" * 2000)
        + "} : tensor<f32>\n core.return } }",
        "// imc 1\nmodule @m { resource @a : tensor<" + "9" * 6000 + "xf32> }",
    ],
)
def test_hostile_text_is_refused(text):
    with pytest.raises(DiagnosticError):
        verify(parse_module(text))
