"""Exported codes are what transformers loads: checked by loading the checkpoint back."""

import json

import pytest
import torch
from safetensors.torch import load_file

import imcc
from imcc.driver.export import export_checkpoint, pack
from imcc.ir.diagnostics import DiagnosticError

transformers = pytest.importorskip("transformers", reason="needs transformers")


def language_model(tied):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        use_cache=False,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return language_model(tied=False)


def compiled(model, options):
    ids = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    made = imcc.compile(
        model,
        (ids,),
        target="reference",
        passes=f"canonicalize, quantize-weights{{{options}}}",
        calibration=[(ids,)],
    )
    return made, ids


def unpacked(words, bits, count):
    """The packing read bit by bit."""
    made = []
    for row in words.tolist():
        stream = [(word >> place) & 1 for word in row for place in range(32)]
        made.append(
            [
                sum(stream[i * bits + b] << b for b in range(bits)) - 2 ** (bits - 1)
                for i in range(count)
            ]
        )
    return torch.tensor(made)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_packed_without_gaps(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = torch.randint(low, high, (3, 37), generator=torch.Generator().manual_seed(bits))
    words = pack(values, bits)
    assert words.dtype == torch.int32 and words.shape == (3, -(-37 * bits // 32))
    assert torch.equal(unpacked(words, bits, 37), values)


@pytest.mark.parametrize(
    "options",
    [
        'bits=4 group=32 scheme="asymmetric"',
        "bits=3",
        'bits=2 group=32 scheme="asymmetric" init="awq" rounding="gptq"',
    ],
)
def test_transformers_loads_what_the_program_computes(model, tmp_path, options):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    made, ids = compiled(model, options)
    found = export_checkpoint(made, model, tmp_path / "checkpoint")
    assert len(found.quantised) == 15 and not found.dense
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "checkpoint"), dtype=torch.float32, local_files_only=True
    )
    with torch.no_grad():
        wanted, logits = made(ids).logits, loaded(ids).logits
        plain = model(ids).logits
    assert torch.allclose(logits, wanted, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-3)


@pytest.mark.parametrize("options", ["bits=4 group=16", 'bits=4 group=48 scheme="asymmetric"'])
def test_a_table_that_a_product_shares_stays_in_float(options, tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    tied = language_model(tied=True)
    made, ids = compiled(tied, options)
    found = export_checkpoint(made, tied, tmp_path / "checkpoint")
    assert "lm_head" in found.quantised or "lm_head.weight" in found.dense
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "checkpoint"), dtype=torch.float32, local_files_only=True
    )
    assert torch.equal(loaded.model.embed_tokens.weight, tied.model.embed_tokens.weight)
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, made(ids).logits, atol=1e-5)


def test_layers_that_the_format_cannot_hold_are_dense_and_named(model, tmp_path):
    made, _ = compiled(model, 'bits=4 group=48 scheme="asymmetric"')
    found = export_checkpoint(made, model, tmp_path / "checkpoint")
    assert set(found.quantised) == {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    assert "no multiple of the group size 48" in found.dense["lm_head.weight"]
    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert tensors["lm_head.weight"].shape == (128, 64)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert "lm_head" in config["quantization_config"]["ignore"]


def test_nothing_is_overwritten_and_nothing_half_written(model, tmp_path):
    made, _ = compiled(model, "bits=4")
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(DiagnosticError, match="exists already"):
        export_checkpoint(made, model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_program_without_codes_and_a_foreign_model_are_refused(model, tmp_path):
    ids = torch.randint(0, 128, (2, 12))
    plain = imcc.compile(model, (ids,), target="reference", passes="canonicalize")
    with pytest.raises(DiagnosticError, match="no weight of the program is quantised"):
        export_checkpoint(plain, model, tmp_path / "a")
    with pytest.raises(DiagnosticError, match="no config of transformers"):
        export_checkpoint(plain, torch.nn.Linear(2, 2), tmp_path / "b")
