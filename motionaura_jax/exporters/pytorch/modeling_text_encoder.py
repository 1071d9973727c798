"""Jointly trained text encoder with the T5 architecture (Raffel et al. 2020) and its word tokenizer, in plain PyTorch.

tokenizer = WordTokenizer.from_pretrained("FOLDER/tokenizer")
encoder = TextEncoder.from_pretrained("FOLDER/text_encoder")
ids = tokenizer(["a red circle moves up"])
features = encoder(ids, ids != tokenizer.pad)
"""

import dataclasses
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionaura_jax.exporters.pytorch.modeling_utils import Pretrained

PAD, UNKNOWN = 0, 1
_SPECIAL = ("<pad>", "<unk>")
_MASKED = -1e9  # finite, so that softmax stays defined for an empty text


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Architecture settings; relative distances fall into `buckets`, logarithmically spaced up to `max_distance` words."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    buckets: int
    max_distance: int


class WordTokenizer:
    """Tokenizer from text to word ids: NFKC, lower case, split at spaces and punctuation; vocabulary in `tokenizer.json`."""

    pad = PAD

    def __init__(self, ids: Mapping[str, int], length: int):
        self.ids, self.length = dict(ids), length

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read `tokenizer.json` and `tokenizer_config.json`."""
        model = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))["model"]
        settings = json.loads((Path(folder) / "tokenizer_config.json").read_text("utf-8"))
        return cls(model["vocab"], settings["model_max_length"])

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids `(b, length)`; 0 is padding, 1 an unknown word; longer texts are truncated."""
        rows = [[self.ids.get(word, UNKNOWN) for word in split_words(text)][: self.length] for text in texts]
        return torch.tensor([row + [PAD] * (self.length - len(row)) for row in rows]).reshape(-1, self.length)


def split_words(text: str) -> list[str]:
    """Split as BERT does: at spaces, with each punctuation mark a word of its own."""
    words = [""]
    for character in "".join(one.lower() for one in unicodedata.normalize("NFKC", text)):
        if character.isspace() and character not in "\x1c\x1d\x1e\x1f":
            words.append("")
        elif _is_punctuation(character):
            words += [character, ""]
        else:
            words[-1] += character
    return [word for word in words if word]


def _is_punctuation(character: str) -> bool:
    symbol = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return symbol or unicodedata.category(character).startswith("P")


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Return the bias bucket `(l, l)` of each query (row) and key (column); half of the buckets serve later keys."""
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    log = torch.log(size.clamp(min=1).double() / exact) / math.log(max_distance / exact)
    shared = (exact + (log * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(size < exact, size, shared)


class RMSNorm(nn.Module):
    """RMS normalization with a learned scale, computed in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), eps=1e-6).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention without logit scaling or biases, as in T5."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, inner = heads, heads * -(-width // heads)
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers)
        scores = (query @ key.transpose(-1, -2)).float() + bias
        return self.output((scores.softmax(-1).to(x.dtype) @ value).transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """Encoder layer: self-attention and gated MLP, each after a norm."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        width, hidden = config.width, round(config.mlp_ratio * config.width)
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.attention = SelfAttention(width, config.heads)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), bias)
        y = self.mlp_norm(x)
        return x + self.out(F.gelu(self.gate(y), approximate="tanh") * self.up(y))


class TextEncoder(Pretrained):
    """Encoder from word ids `(b, l)` and a mask `(b, l)`, True at words, to features `(b, l, width)`.

    No word attends to positions where the mask is False; their features are arbitrary.
    """

    Config = TextEncoderConfig
    config: TextEncoderConfig

    def __init__(self, config: TextEncoderConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.relative_bias = nn.Embedding(config.buckets, config.heads)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return features `(b, l, d)` of word ids `(b, l)`; no word attends to padding, where `mask` `(b, l)` is False."""
        places = relative_buckets(ids.shape[1], self.config.buckets, self.config.max_distance).to(ids.device)
        bias = self.relative_bias(places).movedim(-1, 0).float()
        bias = bias + torch.where(mask, 0.0, _MASKED)[:, None, None, :]
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)
