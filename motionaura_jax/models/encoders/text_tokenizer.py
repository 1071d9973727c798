"""Captions to word ids: lower case, split at spaces and punctuation, a vocabulary counted from the training captions."""

import collections
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models, normalizers, pre_tokenizers

PAD, UNKNOWN = 0, 1
_SPECIAL = ("<pad>", "<unk>")  # the splitter takes both apart, so that no caption contains them as words


class Encoded(NamedTuple):
    """Ids of one text, without padding; `cut` is the end that did not fit, `unknown` the words that became <unk>."""

    ids: list[int]
    cut: str
    unknown: tuple[str, ...]


class TextTokenizer:
    """Maps text to at most `length` ids: 0 is padding, 1 an unknown word, 2 and on the words of `vocabulary`."""

    pad = PAD

    def __init__(self, vocabulary: Sequence[str], length: int):
        self.length = length
        ids = {word: index for index, word in enumerate((*_SPECIAL, *vocabulary))}
        self._tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=_SPECIAL[UNKNOWN]))
        self._tokenizer.normalizer, self._tokenizer.pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
        self._words = (*_SPECIAL, *vocabulary)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self._words)

    @property
    def limit(self) -> int:
        """Words of a text at most."""
        return self.length

    def encode(self, text: str) -> Encoded:
        """Returns the ids of `text`; an empty text has none."""
        encoding = self._tokenizer.encode(text)
        ids, offsets = encoding.ids[: self.length], encoding.offsets
        cut = text[offsets[self.length][0] :] if len(offsets) > self.length else ""
        unknown = [text[slice(*offset)] for id_, offset in zip(ids, offsets, strict=False) if id_ == UNKNOWN]
        return Encoded(ids, cut, tuple(dict.fromkeys(unknown)))

    def batch(self, texts: Iterable[str]) -> Int32[np.ndarray, "b l"]:
        """Returns the ids of several texts, padded to `length`."""
        rows = [self.encode(text).ids for text in texts]
        return np.array([row + [PAD] * (self.length - len(row)) for row in rows], np.int32).reshape(-1, self.length)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` for `tokenizers` and `transformers`."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.length,
            "pad_token": _SPECIAL[PAD],
            "unk_token": _SPECIAL[UNKNOWN],
        }
        self._tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the words of `ids`, without padding."""
        return " ".join(self._words[index] for index in ids if index != PAD)


def build_vocabulary(captions: Iterable[str], max_words: int) -> tuple[str, ...]:
    """Returns the `max_words` most frequent words of the captions, ties in alphabetical order."""
    normalize, split = _normalizer().normalize_str, pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    counts = collections.Counter(word for text in captions for word, _ in split(normalize(text)))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:max_words])


@functools.cache
def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
