"""Published T5 text encoder, loaded with transformers; it was frozen while the video transformer trained.

tokenizer = PublishedTokenizer.from_pretrained("FOLDER/tokenizer")
encoder = PublishedT5.from_pretrained("FOLDER/text_encoder")
ids = tokenizer(["a red circle moves up"])
features = encoder(ids, ids != tokenizer.pad)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn


class PublishedTokenizer:
    """Tokenizer from text to ids; `tokenizer_config.json` sets the maximum length, including the end-of-text id."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self.pad = tokenizer, int(tokenizer.pad_token_id)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load the tokenizer in `folder`; no code from the folder runs."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids `(b, length)`, padded or truncated."""
        found = self._tokenizer(list(texts), padding="max_length", truncation=True)["input_ids"]
        return torch.tensor(found).reshape(len(found), -1)


class PublishedT5(nn.Module):
    """Encoder from ids `(b, l)` and a mask `(b, l)`, True at text, to features `(b, l, width)`, zero elsewhere."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder

    @classmethod
    def from_pretrained(
        cls,
        place: str | Path,
        *,
        revision: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
        download: bool = True,
    ) -> Self:
        """Load a local folder, or a Hugging Face hub id at `revision`; only safetensors, never pickled weights.

        Args:
          download: fetch a hub id that is not in the local cache.

        Raises:
          OSError: the model was not found.
        """
        from transformers import T5EncoderModel

        settings: dict[str, Any] = {"revision": revision} if revision else {}
        encoder = T5EncoderModel.from_pretrained(
            str(place),
            use_safetensors=True,
            dtype=torch_dtype,
            local_files_only=not (revision and download),
            **settings,
        )
        return cls(encoder).eval()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.encoder(input_ids=ids, attention_mask=mask.to(ids.dtype)).last_hidden_state
        return found * mask[..., None]
