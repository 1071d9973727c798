"""Text to ids as a published encoder was trained to read it."""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.encoders.text_tokenizer import Encoded

FILES = ("tokenizer.json", "spiece.model", "vocab.json", "tokenizer_config.json")


class TowerTokenizer:
    """The tokenizer in a published folder: at most `limit` ids a text, its end mark included, padded to `length`.

    Attributes:
      pad: id of padding.
      digest: hash of everything that decides about ids except `limit`, 16 hex digits.

    Raises:
      UserError: no tokenizer there, or one that would run code of its own.
    """

    def __init__(self, folder: str | Path, length: int, limit: int):
        from transformers import AutoTokenizer

        self.length, self.limit, self.folder = length, min(limit, length), Path(folder)
        if not any((self.folder / name).is_file() for name in FILES):
            raise UserError(f"{folder}: holds no tokenizer; copy tokenizer.json and tokenizer_config.json there")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except Exception as error:  # whatever a foreign file makes the library raise, the file is at fault
            reason, remedy = str(error).strip().split("\n")[0], "copy tokenizer.json there again"
            if (self.folder / "spiece.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
                reason, remedy = "spiece.model needs the package sentencepiece", "pip install sentencepiece"
            raise UserError(f"{folder}: its tokenizer cannot be opened ({reason}); {remedy}") from None
        if not self._tokenizer.is_fast or self._tokenizer.pad_token_id is None:
            raise UserError(
                f"{folder}: its tokenizer has no fast form, or no padding; give a folder with tokenizer.json"
            )
        self._tokenizer.model_max_length = self.limit  # which `save` tells whoever opens the tokenizer next
        self.pad: int = self._tokenizer.pad_token_id
        self.digest = hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]

    def encode(self, text: str) -> Encoded:
        """Returns the ids of `text`, and the end of it that did not fit."""
        ids = self._tokenizer(text, truncation=True, max_length=self.limit)["input_ids"]
        whole = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        kept = self.limit - self._tokenizer.num_special_tokens_to_add()
        offsets = whole["offset_mapping"]
        return Encoded(ids, text[offsets[kept][0] :] if len(offsets) > kept else "", ())

    def batch(self, texts: Iterable[str]) -> Int32[np.ndarray, "b l"]:
        """Returns the ids of several texts, padded to `length`."""
        rows = list(texts)
        ids = np.full((len(rows), self.length), self.pad, np.int32)
        found = self._tokenizer(rows, truncation=True, max_length=self.limit)["input_ids"] if rows else []
        for row, values in zip(ids, found, strict=True):
            row[: len(values)] = values
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, without padding and marks."""
        return str(self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Writes the files from which the same tokenizer opens."""
        self._tokenizer.backend_tokenizer.no_truncation()  # a trace of past calls, by which it would be another one
        self._tokenizer.save_pretrained(str(folder))
