"""Target files: what is refused, how overrides act, canonical text."""

import re
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imcc.backends.crossbar.noise import noise_models
from imcc.backends.crossbar.target_keys import TargetKeys as CrossbarKeys
from imcc.backends.sparse_snn.target import ENGINES
from imcc.backends.targets import _metadata, find_target, list_targets, model_of, write_toml
from imcc.ir.diagnostics import DiagnosticError


def refused(target, *overrides):
    with pytest.raises(DiagnosticError) as caught:
        find_target(target, overrides)
    return caught.value.diagnostics


def test_presets_are_listed_with_their_backend():
    found = {item.name: item.backend for item in list_targets()}
    assert found["rram"] == "crossbar"
    assert found["reference"] == "reference"


def test_unknown_target_names_the_nearest():
    (item,) = refused("ram")
    assert item.code.id == "IMC501"
    assert "rram" in item.suggestions


def test_missing_file():
    (item,) = refused("/nowhere/rram.toml")
    assert item.code.id == "IMC501"
    assert "rram" in item.suggestions


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("adc.bits=0", ["key adc.bits", "at least 1 and at most 16", "found 0"]),
        ("adc.bits=true", ["key adc.bits", "valid integer", "found true"]),
        ('array.rows="many"', ["key array.rows", "valid integer"]),
        ("array.rows=0", ["key array.rows", "at least 1 and at most 4096"]),
        ("adc.columns_per_adc=129", ["columns_per_adc (129)", "array.columns (128)"]),
        (
            "adc.range=exact",
            [
                "adc.range",
                "128 rows sums to up to 384",
                "codes up to 255",
                "adc.bits = 9 or array.rows = 85",
            ],
        ),
        ("adc.range=fixed", ["key adc", "full_scale"]),
        ("adc.full_scale=9.0", ["key adc", "full_scale"]),
        ("device.levels=3", ["array.cell_bits (2) needs 4 levels", "device.levels is 3"]),
        ("array.encoding=offsett", ["key array.encoding", "'offset'"]),
        ("array.wires.model=exact", ["array.wires", "word_line_ohm"]),
        ("device.g_max_ms=1.0", ["unknown key device.g_max_ms", "g_max_us"]),
        ("device.stuck.off_fraction=1.5", ["key device.stuck.off_fraction"]),
        ("device.drift.model=gaussian_read", ["device.drift.model", "a model of drift"]),
        ("device.variation.model=pcm_drift", ["device.variation.model", "between devices"]),
        ("device.on_off_ratio=1.0", ["key device.on_off_ratio", "at least 1.001"]),
        ("timing.clock_ns=1e300", ["key timing.clock_ns", "1e-06 and at most 1e+12", "1e+300"]),
        ("timing.clock_ns=1e-300", ["key timing.clock_ns", "at least 1e-06"]),
        ("off_chip.bits_per_ns=1e-300", ["key off_chip.bits_per_ns", "at least 1e-09"]),
        ("hierarchy.crossbars_per_pe=99999999999999999999", ["crossbars_per_pe", "at most 65536"]),
        ("components.off_chip.energy_pj=1e300", ["key components.off_chip.energy_pj", "1e+12"]),
        ("device.write_noise.tolerance_fraction=1e-300", ["tolerance_fraction", "at least 1e-06"]),
        ("device.write_noise.sigma_fraction=nan", ["key device.write_noise.sigma_fraction"]),
        ("device.read_noise.model=gausian_read", ["device.read_noise.model", "gaussian_read"]),
        (
            "device.read_noise.model=gaussian_write",
            ["key device.read_noise.model", "a model of read noise"],
        ),
        ("components.adc.energy_pj=1.0", ["components.adc", "exclude each other"]),
        ("backend=nothing", ["unknown backend 'nothing'"]),
        ("adc.bits.more=3", ["adc.bits is a value, not a table"]),
        ("adc.bits", ["does not set a key"]),
    ],
)
def test_bad_values_say_where_and_what(override, words):
    text = "\n".join(item.render() for item in refused("rram", override))
    for word in words:
        assert word in text


def numbers_of(model, path=()):
    """Numeric keys of a model and of the models within it, with the rules of each."""
    for name, field in model.model_fields.items():
        inner = model_of(field.annotation)
        if inner is not None:
            yield from numbers_of(inner, (*path, name))
        elif any(kind in str(field.annotation) for kind in ("int", "float")):
            yield (*path, name), [*field.metadata, *_metadata(field.annotation)]


def test_every_number_has_bounds():
    models = [CrossbarKeys, *ENGINES.values(), *(held.Keys for held in noise_models().values())]
    seen = 0
    for model in models:
        for path, rules in numbers_of(model):
            seen += 1
            for names in (("ge", "gt"), ("le", "lt")):
                found = [rule for rule in rules for name in names if hasattr(rule, name)]
                assert found, f"{model.__name__}: {'.'.join(path)} lacks {' or '.join(names)}"
    assert seen > 150


@pytest.mark.parametrize(
    "override",
    [
        "network.hop_ns=1e9",
        "device.read_time_s=1e9",
        "device.endurance_writes=1e15",
        "timing.write_ns=1e9",
        "hierarchy.tiles_per_chip=1000000",
        "components.off_chip.energy_pj=1e6",
        "device.g_max_us=1e-3",
    ],
)
def test_large_values_that_exist_are_taken(override):
    find_target("rram", [override])


@pytest.mark.parametrize("table", ["write_noise", "read_noise", "variation", "drift"])
def test_an_unknown_model_is_one_fault_and_names_those_of_its_kind(table):
    key = f"device.{table}.model"
    (item,) = refused("rram", f"{key}=gausian")
    assert item.message.startswith(f"setting '{key}=gausian': key {key}: must be a model of ")
    kind = {"write_noise": "write", "read_noise": "read", "variation": "device"}.get(table, "drift")
    listed = re.search(r": ([\w, ]+)(; did you mean|, found)", item.message)[1].split(", ")
    assert listed == list(noise_models(kind))
    for other in ("write", "read", "device", "drift"):
        if other != kind:
            assert not set(listed) & (set(noise_models(other)) - {"none"})


def test_a_model_of_another_kind_is_one_fault():
    (item,) = refused("rram", "device.read_noise.model=pcm_write")
    assert "did you mean 'pcm_read'?" in item.message


def test_a_setting_of_a_model_leaves_the_keys_of_the_old_one_behind():
    found = find_target("rram", ["device.write_noise.model=proportional_write"])
    assert found.data["device"]["write_noise"] == {
        "model": "proportional_write",
        "sigma_fraction": 0.02,
    }
    (item,) = refused("rram", "device.write_noise.model=clipformer_write")
    assert item.message == (
        "setting 'device.write_noise.model=clipformer_write': "
        "key device.write_noise.gamma is missing"
    )
    # What a setting says is never left behind.
    (item,) = refused(
        "rram", "device.write_noise.model=proportional_write", "device.write_noise.verify=true"
    )
    assert item.message.startswith("setting 'device.write_noise.verify=true': unknown key")


def test_a_setting_of_a_library_component_replaces_the_figures_of_the_file():
    for chosen in (
        ["components.adc.library=sar_adc_isaac", "components.adc.energy_pj=2.5"],
        ["components.adc.energy_pj=2.5", "components.adc.library=sar_adc_isaac"],
    ):
        adc = find_target("rram", chosen).keys.components.adc
        assert (adc.energy(8), adc.area(8)) == (2.5, 1200.0) and "ISAAC" in adc.source


@pytest.mark.parametrize(
    ("settings", "blamed"),
    [
        (["adc.columns_per_adc=129"], [0]),
        (["dac.bits=1", "array.cell_bits=4", "device.levels=3"], [1, 2]),
        (["adc.bits=8", "adc.range=exact"], [0, 1]),
        (["dac.bits=1", "adc.range=fixed"], [1]),
        (["adc={bits=99, columns_per_adc=8}"], [0]),
        (["dac.bits=1", "dynamic.device.levels=2"], [1]),
        (["dac.bits=1", "components.adc.energy_pj=1.0"], [1]),
        (["dac.bits=1", "nothing.there.at=5"], [1]),
        (["backend=nothing"], [0]),
    ],
)
def test_a_fault_of_a_setting_is_not_that_of_the_preset(settings, blamed):
    (item,) = refused("rram", *settings)
    shown = ", ".join(repr(settings[place]) for place in blamed)
    assert item.message.startswith(f"setting{'s' * (len(blamed) > 1)} {shown}: ")
    assert "rram.toml" not in item.render()


def test_a_fault_of_the_file_stays_its_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "rram"\n[adc]\nbits = 99\n')
    (item,) = refused(str(file), "dac.bits=2")
    assert item.message.startswith(f"{file}: key adc.bits")


@pytest.mark.parametrize("converts", ["column", "pair"])
def test_the_bits_and_rows_that_exact_conversion_is_said_to_take_are_enough(converts):
    exact = ["adc.range=exact", f"adc.converts={converts}", "adc.bits=7"]
    (item,) = refused("rram", *exact)
    bits, rows = re.search(
        r"it takes adc.bits = (\d+) or array.rows = (\d+)", item.message
    ).groups()
    assert find_target("rram", [*exact, f"adc.bits={bits}"])
    assert find_target("rram", [*exact, f"array.rows={rows}"])
    refused("rram", *exact, f"adc.bits={int(bits) - 1}")
    refused("rram", *exact, f"array.rows={int(rows) + 1}")


def test_a_file_may_start_with_a_byte_order_mark_and_must_be_utf_8(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_bytes('\ufeffbase = "rram"\r\n[adc]\r\nbits = 6\r\n'.encode())
    assert find_target(str(file)).keys.adc.bits == 6
    file.write_bytes('base = "rram"\nsummary = "caf\xe9"\n'.encode("latin-1"))
    (item,) = refused(str(file))
    assert item.text.line == 2 and "not in UTF-8: byte 0xe9" in item.message
    assert "save the file in UTF-8" in item.help


def test_a_setting_that_is_too_deep():
    for setting in (".".join("a" * 3000) + "=1", "adc=" + "{a=" * 300 + "1" + "}" * 300):
        (item,) = refused("rram", setting)
        assert len(item.message) < 400


def test_a_name_that_no_file_can_have():
    (item,) = refused("x" * 5000)
    assert item.code.id == "IMC501" and len(item.message) < 300


def test_unknown_key_names_the_nearest_key_and_every_fault_is_reported():
    items = refused("rram", "adc.bit=6", "array.row=3", "timing.read_ns=-1.0")
    assert len(items) == 3
    text = "\n".join(item.render() for item in items)
    assert "unknown key adc.bit\n  did you mean 'bits'?" in text
    assert "unknown key array.row\n  did you mean 'rows'?" in text
    assert "timing.read_ns" in text


def test_missing_keys_of_a_file(tmp_path):
    file = tmp_path / "half.toml"
    file.write_text('backend = "crossbar"\n[array]\nrows = 3\n')
    text = "\n".join(item.render() for item in refused(str(file)))
    assert "key array.columns is missing" in text
    assert "key components is missing" in text


def test_file_that_is_not_toml_shows_the_line(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text('backend = "crossbar"\n[array\nrows = 3\n')
    (item,) = refused(str(file))
    assert item.text.line == 2
    assert "[array" in item.window


def test_overrides_change_one_key_and_the_hash():
    plain, changed = find_target("rram"), find_target("rram", ["adc.bits=6"])
    assert changed.keys.adc.bits == 6
    assert changed.sha256 != plain.sha256
    assert changed.text.replace("bits = 6\n", "bits = 8\n") == plain.text
    assert find_target("rram", ["adc.bits=8"]).sha256 == plain.sha256


def test_canonical_text_reads_back(tmp_path):
    target = find_target("rram", ["hierarchy.tiles_per_chip=9"])
    assert tomllib.loads(target.text) == target.data
    file = tmp_path / "copy.toml"
    file.write_text(target.text)
    assert find_target(str(file)).text == target.text


def test_adc_energy_between_and_beyond_figures():
    adc = find_target("rram").keys.components.adc
    assert adc.energy(8) == pytest.approx(1.37)
    assert adc.energy(9) == pytest.approx((1.37 * 11.2) ** 0.5)
    assert adc.energy(3) is None
    assert adc.energy(11) is None


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.lists(st.integers(0, 9), max_size=3),
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
TABLES = st.dictionaries(
    KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=3)), max_size=4
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TABLES)
def test_toml_writer_round_trip(data):
    assert tomllib.loads(write_toml(data)) == data


def test_presets_hold_what_differs_from_rram(tmp_path):
    for name in ("fefet", "pcm", "sram"):
        target, base = find_target(name), find_target("rram")
        assert target.keys.components.adc == base.keys.components.adc
        assert target.keys.device != base.keys.device
    # No figure without a source: PCM's read energy is unknown, not that of RRAM.
    assert find_target("pcm").energy_pj("cell_read") is None
    assert find_target("sram").write_noise.silent and find_target("sram").levels == 2
    file = tmp_path / "mine.toml"
    file.write_text('base = "fefet"\n[adc]\nbits = 5\n[device.read_noise]\nmodel = "none"\n')
    mine = find_target(str(file))
    assert mine.keys.adc.bits == 5 and mine.read_noise.silent
    assert mine.write_noise == find_target("fefet").write_noise


def test_platforms_of_the_transformer_papers():
    trexsim, vit_x = find_target("trexsim"), find_target("vit-x")
    for target in (trexsim, vit_x):
        assert (target.keys.array.rows, target.keys.array.columns) == (64, 64)
        assert target.keys.array.cell_bits == 2 and target.keys.dac.bits == 1
    assert trexsim.keys.adc.bits == 6 and trexsim.crossbars_per_tile == 64
    assert trexsim.write_noise == find_target("fefet").write_noise
    assert not trexsim.read_noise.silent
    assert vit_x.keys.device.g_max_us == 10.0 and vit_x.keys.device.on_off_ratio == 100.0
    # Every sum of 64 rows has a code, and weights are written exactly.
    assert vit_x.top_code >= vit_x.largest_column_sum(64) and vit_x.write_noise.silent
