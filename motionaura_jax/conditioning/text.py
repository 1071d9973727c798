"""Text as a condition: through an encoder that trains with the denoiser, or through a frozen published one.

A raw text is word ids, or `{"ids", "features"}` once a frozen encoder has read it, for a cache or for sampling.
"""

import abc
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.conditioning.base import Fields, repeat
from motionaura_jax.conditioning.config import TextConfig
from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.array_cache import ArrayCache, text_content
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.models.encoders.text_tokenizers import PAD, PretrainedTokenizer, TextTokenizer, WordTokenizer
from motionaura_jax.models.encoders.tower import Tower
from motionaura_jax.parallel import rules
from motionaura_jax.weights import hub
from motionaura_jax.weights.towers import copy_tower, describe_tower, open_tower, planned_text_tower

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer"
"""Folder in a cache with the tokenizer that its texts were read with."""
DTYPE = "bfloat16"  # of frozen features
TOWER = "t5"

Text = PyTree


class TextShape(Protocol):
    """Length, width and precision of the text that a denoiser reads; configs of denoisers have them."""

    @property
    def text_len(self) -> int:
        """Return how many positions a text has."""

    @property
    def text_dim(self) -> int:
        """Return the width of the features."""

    @property
    def dtype(self) -> str:
        """Return the precision of the features."""


class _TextInput(abc.ABC):
    """Base of conditioners on text, which turns captions of a loader's batch into raw texts."""

    @abc.abstractmethod
    def batch(self, texts: Iterable[str]) -> Text:
        """Return the raw texts of a training batch."""

    @abc.abstractmethod
    def null(self) -> Text:
        """Return the text that stands for no text, as a batch of one."""

    def host(self, batch: Mapping[str, Any]) -> Text:
        """Return the raw texts of captions."""
        return self.batch(batch["caption"])

    def abstract(self, size: int) -> PyTree:
        """Return shapes and dtypes of `size` raw texts."""
        return jax.eval_shape(lambda: repeat(self.null(), size))


class TrainedText(_TextInput):
    """Word ids through an encoder that trains with the denoiser."""

    def __init__(self, text: TextConfig, model: TextShape):
        self.words = WordTokenizer(text.vocabulary, model.text_len)
        self._encoder = T5Encoder(text.encoder.t5(self.words.size, model.text_dim), model.dtype, scanned=False)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Return parameters of the encoder."""
        return self._encoder.init(key, jnp.zeros((1, self.words.length), jnp.int32))["params"]

    def frozen(self) -> None:
        """Return None: nothing is frozen."""

    def batch(self, texts: Iterable[str]) -> Text:
        """Return word ids."""
        return self.words.batch(texts)

    prompts = batch

    def null(self) -> Text:
        """Return padding alone, for which the denoiser has a learned text (`model.learned_null`)."""
        return np.full((1, self.words.length), PAD, np.int32)

    def read(self, frozen: PyTree, text: Text) -> Text:
        """Return the text unchanged: only `params` say what it means."""
        return text

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> Fields:
        """Run the encoder."""
        return {"tokens": self._encoder.apply({"params": params}, text), "token_mask": text != PAD}


class FrozenText(_TextInput):
    """Ids through a published T5, either in every step or once, into a cache that `motionaura encode --text` wrote.

    Raises:
      UserError: no such encoder or cache, or one that differs from `text.tower_hash`.
    """

    def __init__(self, text: TextConfig, model: TextShape):
        self._text, self._length, self._width = text, model.text_len, model.text_dim

    @functools.cached_property
    def words(self) -> PretrainedTokenizer:
        """The encoder's tokenizer."""
        return self._tower_words if self._cache is None else self._opened(self._cache.folder / TOKENIZER)

    @functools.cached_property
    def meta(self) -> Mapping[str, Any]:
        """Everything that the features depend on; see `text_meta`."""
        if self._cache is not None:
            return self._cache.meta
        return text_meta(describe_tower(self._text.tower, TOWER, dtype=DTYPE), self._tower_words)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Return no parameters: nothing trains."""
        return {}

    def save(self, folder: pathlib.Path, shard_bytes: int) -> None:
        """Write encoder and tokenizer into an empty folder, which can take the place of `text.tower`.

        Args:
          shard_bytes: largest size of one file of weights.
        """
        copy_tower(self._text.tower, TOWER, folder, shard_bytes)
        self._tower_words.save(folder)

    def frozen(self) -> Tower | None:
        """Load the encoder; None with a cache."""
        return None if self._cache is not None else self._tower

    def batch(self, texts: Iterable[str]) -> Text:
        """Return ids, with the features of a cache."""
        texts = list(texts)
        ids = self.words.batch(texts)
        if self._cache is None:
            return ids
        self.check(texts)
        cache, features = self._cache, np.zeros((*ids.shape, self.meta["width"]), jnp.dtype(DTYPE))
        for text, row, into in zip(texts, ids, features, strict=True):
            into[row != self.words.pad] = cache[cache.key(text_content(text))]
        return {"ids": ids, "features": features}

    def prompts(self, texts: Iterable[str]) -> Text:
        """Return ids with features, computed here for texts that no cache has."""
        texts = list(texts)
        if self._cache is not None and (self.knows(texts) or not self._text.tower):
            return self.batch(texts)
        ids = self.words.batch(texts)
        return self.read(self._tower, ids)

    def knows(self, texts: Iterable[str]) -> bool:
        """Tell whether every text can be read; only a cache may lack one."""
        cache = self._cache
        return cache is None or all(cache.key(text_content(text)) in cache for text in texts)

    def check(self, texts: Iterable[str]) -> None:
        """Refuse texts that training needs and the cache lacks.

        Raises:
          UserError: the first of them.
        """
        for text in ("", *texts):
            if not self.knows([text]):
                raise UserError(
                    f"{self._text.cache}: has no features of {shown(repr(text))}; run motionaura encode --text again with it"
                )

    def null(self) -> Text:
        """Return the empty text, as the encoder reads it: an end mark.  The denoiser needs no learned text for it."""
        return self.batch([""])

    def read(self, frozen: PyTree, text: Text) -> Text:
        """Return the text with its features, and compute them if they are missing."""
        if isinstance(text, Mapping):
            return text
        return {"ids": text, "features": tower_features(frozen, text, self.words.pad)}

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> Fields:
        """Return the features; nothing trains."""
        text = self.read(frozen, text)
        return {"tokens": text["features"], "token_mask": text["ids"] != self.words.pad}

    @functools.cached_property
    def _cache(self) -> ArrayCache | None:
        if not self._text.cache:
            return None
        cache = ArrayCache(self._text.cache)
        if cache.meta.get("kind") != "text":
            raise UserError(f"{self._text.cache}: holds no features of texts; make them with motionaura encode --text")
        self._check(identity(cache.meta), self._text.cache)
        return cache

    @functools.cached_property
    def _tower(self) -> Tower:
        # Tensor by tensor to where training wants it: the whole may be too large for one device.
        tower = open_tower(self._text.tower, TOWER, dtype=DTYPE, shard=rules.over_mesh)
        self._check(identity(text_meta(tower, self._tower_words)), self._text.tower)
        return tower

    @functools.cached_property
    def _tower_words(self) -> PretrainedTokenizer:
        return self._opened(hub.model_folder(self._text.tower))

    def _opened(self, folder: Any) -> PretrainedTokenizer:
        return PretrainedTokenizer(folder, self._length, self._text.limit)

    def _check(self, found: str, where: str) -> None:
        wanted = self._text.tower_hash
        if wanted and found != wanted:
            raise UserError(
                f"{where}: this text encoder is {found}, but {wanted} is needed; name the one that the model was trained "
                f"with, and its text.limit"
            )


class PlannedText(FrozenText):
    """A frozen encoder without its weights; without `tower`, features come with the clips as from a cache."""

    def __init__(self, text: TextConfig, model: TextShape, tower: Tower | None):
        super().__init__(text, model)
        self._planned = tower

    @property
    def uncounted(self) -> str:
        """Name the encoder if it runs in every step and is not here; else return an empty string."""
        unknown = self._text.tower and not self._text.cache and self._planned is None
        return f"the text encoder {self._text.tower}, which is no folder here" if unknown else ""

    def frozen(self) -> Tower | None:
        """Return the encoder if it has work left to do."""
        return self._planned

    def null(self) -> Text:
        """Return padding alone."""
        ids = np.full((1, self._length), PAD, np.int32)
        features = np.zeros((*ids.shape, self._width), jnp.dtype(DTYPE))
        return ids if self._planned else {"ids": ids, "features": features}

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> Fields:
        """Return the features."""
        if self._planned:
            return {"tokens": tower_features(frozen, text, PAD), "token_mask": text != PAD}
        return {"tokens": text["features"], "token_mask": text["ids"] != PAD}


def make_text(text: TextConfig, model: TextShape) -> TrainedText | FrozenText:
    """Build the conditioner that the settings describe; a frozen encoder is opened when it is needed."""
    return FrozenText(text, model) if text.is_frozen else TrainedText(text, model)


def planned_tower(text: TextConfig) -> Tower | None:
    """Return the frozen encoder without weights, if it runs in every step and is a folder here.

    Raises:
      UserError: an encoder whose settings we do not know.
    """
    if not text.tower or text.cache or not pathlib.Path(text.tower).is_dir():
        return None
    return planned_text_tower(pathlib.Path(text.tower), dtype=DTYPE)


def warn_of_words(words: TextTokenizer, prompts: Iterable[str]) -> None:
    """Warn about prompts that are cut off, and about their words that the model has never seen."""
    for text in dict.fromkeys(prompts):
        encoded = words.encode(text)
        if encoded.cut:
            logger.warning("prompt %r is longer than %d words; cut: %r", text, words.limit, encoded.cut)
        if encoded.unknown:
            logger.warning("prompt %r: the model has never seen %s", text, ", ".join(map(repr, encoded.unknown)))


def text_meta(tower: Tower, words: PretrainedTokenizer) -> dict[str, Any]:
    """Return what identifies features: encoder, tokenizer and the limit of its ids; written to `cache.json` of a cache."""
    return {
        "kind": "text",
        "encoder": tower.digest,
        "tokenizer": words.digest,
        "limit": words.limit,
        "width": tower.network.config.d_model,
        "dtype": DTYPE,
    }


def identity(meta: Mapping[str, Any]) -> str:
    """Return the hash of `text_meta`, 16 hex digits."""
    return hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode()).hexdigest()[:16]


@functools.partial(jax.jit, static_argnames="pad")
def tower_features(tower: Tower, ids: Int[Array, "b l"], pad: int) -> Float[Array, "b l d"]:
    """Return features of ids, zero at padding."""
    mask = ids != pad
    return jnp.where(mask[..., None], tower(ids, mask), 0)


def ids_of(text: Text) -> Int[Array, "b l"]:
    """Return the ids of a raw text."""
    return text["ids"] if isinstance(text, Mapping) else text
