"""Text to token ids: by words counted from the training captions, or as a published encoder was trained to read it."""

import collections
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models, normalizers, pre_tokenizers

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.tokenizer_files import check_tokenizer

PAD, UNKNOWN = 0, 1
_SPECIAL = ("<pad>", "<unk>")  # the pre-tokenizer takes both apart, so that no caption contains them as words
_FILES = ("tokenizer.json", "spiece.model", "vocab.json", "tokenizer_config.json")


class Encoded(NamedTuple):
    """Ids of one text.

    Attributes:
      ids: without padding.
      cut: the end of the text that did not fit.
      unknown: words that became <unk>.
    """

    ids: list[int]
    cut: str
    unknown: tuple[str, ...]


class TextTokenizer(Protocol):
    """Map from texts to ids.

    Attributes:
      length: positions of a row, padding included.
      pad: id of padding.
    """

    length: int
    pad: int

    @property
    def limit(self) -> int:
        """Return the largest number of ids that a text may have."""

    def encode(self, text: str) -> Encoded:
        """Return the ids of `text`, and what of it was lost."""

    def batch(self, texts: Iterable[str]) -> Int32[np.ndarray, "b l"]:
        """Return the ids of several texts, padded to `length`."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, without padding."""


class WordTokenizer:
    """Tokenizer with one id per word: 0 is padding, 1 an unknown word, and 2 onwards the words of `vocabulary`.

    Text is lower-cased and split at spaces and punctuation.
    """

    pad = PAD

    def __init__(self, vocabulary: Sequence[str], length: int):
        self.length = length
        ids = {word: index for index, word in enumerate((*_SPECIAL, *vocabulary))}
        self._tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=_SPECIAL[UNKNOWN]))
        self._tokenizer.normalizer, self._tokenizer.pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
        self._words = (*_SPECIAL, *vocabulary)

    @property
    def size(self) -> int:
        """Return the number of ids."""
        return len(self._words)

    @property
    def limit(self) -> int:
        """Return the largest number of words that a text may have."""
        return self.length

    def encode(self, text: str) -> Encoded:
        """Return the ids of `text`; an empty text has none."""
        encoding = self._tokenizer.encode(text)
        ids, offsets = encoding.ids[: self.length], encoding.offsets
        cut = text[offsets[self.length][0] :] if len(offsets) > self.length else ""
        unknown = [text[slice(*offset)] for id_, offset in zip(ids, offsets, strict=False) if id_ == UNKNOWN]
        return Encoded(ids, cut, tuple(dict.fromkeys(unknown)))

    def batch(self, texts: Iterable[str]) -> Int32[np.ndarray, "b l"]:
        """Return the ids of several texts, padded to `length`."""
        rows = [self.encode(text).ids for text in texts]
        return np.array([row + [PAD] * (self.length - len(row)) for row in rows], np.int32).reshape(-1, self.length)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of `ids`, without padding."""
        return " ".join(self._words[index] for index in ids if index != PAD)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` for `tokenizers` and `transformers`."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.length,
            "pad_token": _SPECIAL[PAD],
            "unk_token": _SPECIAL[UNKNOWN],
        }
        self._tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def build_vocabulary(captions: Iterable[str], max_words: int) -> tuple[str, ...]:
    """Return the `max_words` most frequent words of the captions, ties in alphabetical order."""
    normalize, split = _normalizer().normalize_str, pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    counts = collections.Counter(word for text in captions for word, _ in split(normalize(text)))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:max_words])


@functools.cache
def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


class PretrainedTokenizer:
    """Tokenizer in the folder of a published encoder: at most `limit` ids per text, its end mark included.

    Attributes:
      digest: hash of everything that decides about ids except `limit`, 16 hex digits.

    Raises:
      UserError: the folder has no tokenizer, or one that needs code of its own.
    """

    def __init__(self, folder: str | Path, length: int, limit: int):
        from transformers import AutoTokenizer  # here, because it takes seconds and only published encoders need it

        self.length, self.limit, self.folder = length, min(limit, length), Path(folder)
        if not any((self.folder / name).is_file() for name in _FILES):
            raise UserError(f"{folder}: has no tokenizer; copy tokenizer.json and tokenizer_config.json there")
        check_tokenizer(self.folder)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except BaseException as error:  # the library raises errors of many kinds for damaged files
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason, remedy = str(error).strip().split("\n")[0], "copy tokenizer.json there again"
            if (self.folder / "spiece.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
                reason, remedy = "spiece.model needs the package sentencepiece", "pip install sentencepiece"
            raise UserError(f"{folder}: its tokenizer cannot be opened ({reason}); {remedy}") from None
        if not self._tokenizer.is_fast or self._tokenizer.pad_token_id is None:
            raise UserError(
                f"{folder}: its tokenizer has no fast version or no padding token; give a folder with tokenizer.json"
            )
        self._tokenizer.model_max_length = self.limit  # `save` writes it for whoever opens the tokenizer next
        self.pad: int = self._tokenizer.pad_token_id
        self.digest = hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]

    def encode(self, text: str) -> Encoded:
        """Return the ids of `text`, and the end of it that did not fit."""
        ids = self._tokenizer(text, truncation=True, max_length=self.limit)["input_ids"]
        whole = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        kept = self.limit - self._tokenizer.num_special_tokens_to_add()
        offsets = whole["offset_mapping"]
        return Encoded(ids, text[offsets[kept][0] :] if len(offsets) > kept else "", ())

    def batch(self, texts: Iterable[str]) -> Int32[np.ndarray, "b l"]:
        """Return the ids of several texts, padded to `length`."""
        rows = list(texts)
        ids = np.full((len(rows), self.length), self.pad, np.int32)
        found = self._tokenizer(rows, truncation=True, max_length=self.limit)["input_ids"] if rows else []
        for row, values in zip(ids, found, strict=True):
            row[: len(values)] = values
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, without padding and other special tokens."""
        return str(self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write the files from which the same tokenizer opens."""
        # Calls with truncation leave it set in the backend, which would give the saved tokenizer another hash.
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.save_pretrained(str(folder))
