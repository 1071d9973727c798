"""A published T5 that reads prompts for the transformer, as transformers opens it; frozen when the transformer was trained.

tokenizer = PublishedTokenizer.from_pretrained("FOLDER/tokenizer")
encoder = PublishedT5.from_pretrained("FOLDER/text_encoder")
ids = tokenizer(["a large red circle moves up"])
features = encoder(ids, ids != tokenizer.pad)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn


class PublishedTokenizer:
    """Text to ids; `tokenizer_config.json` says how many a text has at most, its end mark included."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self.pad = tokenizer, int(tokenizer.pad_token_id)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Opens the tokenizer in `folder`, which runs no code of its own."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids `(b, length)` with padding; what is longer is cut."""
        found = self._tokenizer(list(texts), padding="max_length", truncation=True)["input_ids"]
        return torch.tensor(found).reshape(len(found), -1)


class PublishedT5(nn.Module):
    """Ids `(b, l)` and a mask `(b, l)`, True where there is text, to features `(b, l, width)`, zero elsewhere."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder

    @classmethod
    def from_pretrained(
        cls, place: str | Path, *, revision: str | None = None, torch_dtype: torch.dtype = torch.float32
    ) -> Self:
        """Opens a folder, or an id on the Hugging Face hub at `revision`; never a pickle.

        Raises:
          OSError: there is none.
        """
        from transformers import T5EncoderModel

        settings: dict[str, Any] = {"revision": revision} if revision else {"local_files_only": True}
        return cls(
            T5EncoderModel.from_pretrained(str(place), use_safetensors=True, dtype=torch_dtype, **settings)
        ).eval()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.encoder(input_ids=ids, attention_mask=mask.to(ids.dtype)).last_hidden_state
        return found * mask[..., None]
