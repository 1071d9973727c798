"""Text as the denoiser is told it: by an encoder that trains along, or by a published one that is frozen.

A text travels as a pytree whose leaves lead with the batch: word ids, or `{"ids", "features"}` where a frozen encoder has
read it already, from a cache or for sampling.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.array_cache import ArrayCache, text_content
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.models.encoders.text_tokenizers import PAD, PretrainedTokenizer, TextTokenizer, WordTokenizer
from motionaura_jax.models.encoders.tower import Tower
from motionaura_jax.parallel import rules
from motionaura_jax.systems.text_to_video.recipe import TextConfig, TextToVideoRecipe
from motionaura_jax.weights import hub
from motionaura_jax.weights.towers import copy_tower, describe_tower, open_tower

TOKENIZER = "tokenizer"
"""Folder in a cache with the tokenizer that its texts were read with."""
DTYPE = "bfloat16"  # of frozen features
TOWER = "t5"

Text = PyTree


class Conditioner(Protocol):
    """From texts to the features that the denoiser reads."""

    @property
    def words(self) -> TextTokenizer:
        """Texts to ids."""

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Fresh parameters; empty where nothing trains."""

    def frozen(self) -> PyTree:
        """What `__call__` needs beside parameters; empty where that is nothing."""

    def batch(self, texts: Iterable[str]) -> Text:
        """Texts of a training batch, on the host."""

    def prompts(self, texts: Iterable[str]) -> Text:
        """Texts to sample from, which `__call__` reads without `frozen`."""

    def null(self) -> Text:
        """The text that stands for no text, as a batch of one."""

    def read(self, frozen: PyTree, text: Text) -> Text:
        """The same texts in a form that `__call__` reads without `frozen`."""

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"]]:
        """Features, and where there are any."""


class TrainedText:
    """Word ids through an encoder that trains with the denoiser."""

    def __init__(self, text: TextConfig, model: SpectralTransformerConfig):
        self.words = WordTokenizer(text.vocabulary, model.text_len)
        self._encoder = T5Encoder(text.encoder.t5(self.words.size, model.text_dim), model.dtype, scanned=False)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Parameters of the encoder."""
        return self._encoder.init(key, jnp.zeros((1, self.words.length), jnp.int32))["params"]

    def frozen(self) -> PyTree:
        """Nothing."""
        return {}

    def batch(self, texts: Iterable[str]) -> Text:
        """Word ids."""
        return self.words.batch(texts)

    prompts = batch

    def null(self) -> Text:
        """Padding alone."""
        return np.full((1, self.words.length), PAD, np.int32)

    def read(self, frozen: PyTree, text: Text) -> Text:
        """The text as it is: only `params` say what it means."""
        return text

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> tuple[Array, Array]:
        """Runs the encoder."""
        return self._encoder.apply({"params": params}, text), text != PAD  # type: ignore[return-value]


class FrozenText:
    """Ids through a published T5, now or once and for all in a cache that `motionaura encode --text` wrote.

    Raises:
      UserError: no such encoder or cache, or one that differs from `text.tower_hash`.
    """

    def __init__(self, text: TextConfig, model: SpectralTransformerConfig):
        self._text, self._length, self._width = text, model.text_len, model.text_dim

    @functools.cached_property
    def words(self) -> PretrainedTokenizer:
        """The encoder's tokenizer."""
        return self._tower_words if self._cache is None else self._opened(self._cache.folder / TOKENIZER)

    @functools.cached_property
    def meta(self) -> Mapping[str, Any]:
        """What the features depend on; see `text_meta`."""
        if self._cache is not None:
            return self._cache.meta
        return text_meta(describe_tower(self._text.tower, TOWER, dtype=DTYPE), self._tower_words)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Nothing trains."""
        return {}

    def save(self, folder: Path, shard_bytes: int) -> None:
        """Writes encoder and tokenizer into an empty folder, which can take the place of `text.tower`.

        Args:
          shard_bytes: largest size of one file of weights.
        """
        copy_tower(self._text.tower, TOWER, folder, shard_bytes)
        self._tower_words.save(folder)

    def frozen(self) -> PyTree:
        """The encoder, where texts come as ids."""
        return {} if self._cache is not None else {"text": self._tower}

    def batch(self, texts: Iterable[str]) -> Text:
        """Ids, with the features that the cache has for them."""
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
        """Ids with features, computed here for texts that no cache has."""
        texts = list(texts)
        if self._cache is not None and (self.knows(texts) or not self._text.tower):
            return self.batch(texts)
        ids = self.words.batch(texts)
        return self.read({"text": self._tower}, ids)

    def knows(self, texts: Iterable[str]) -> bool:
        """Whether every text can be read: always, where that does not depend on a cache."""
        cache = self._cache
        return cache is None or all(cache.key(text_content(text)) in cache for text in texts)

    def check(self, texts: Iterable[str]) -> None:
        """Refuses texts that training needs and the cache lacks.

        Raises:
          UserError: the first of them.
        """
        for text in ("", *texts):
            if not self.knows([text]):
                raise UserError(
                    f"{self._text.cache}: has no features of {shown(repr(text))}; run motionaura encode --text again with it"
                )

    def null(self) -> Text:
        """The empty text."""
        return self.batch([""])

    def read(self, frozen: PyTree, text: Text) -> Text:
        """The text with its features, computed where they do not come with it."""
        if isinstance(text, Mapping):
            return text
        return {"ids": text, "features": tower_features(frozen["text"], text, self.words.pad)}

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> tuple[Array, Array]:
        """Features of texts; nothing trains."""
        text = self.read(frozen, text)
        return text["features"], text["ids"] != self.words.pad

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


def make_conditioner(recipe: TextToVideoRecipe) -> TrainedText | FrozenText:
    """The conditioner that the recipe describes; a frozen encoder is opened when it is needed."""
    kind = FrozenText if recipe.text.is_frozen else TrainedText
    return kind(recipe.text, recipe.model)


def resolve_text(recipe: TextToVideoRecipe) -> TextToVideoRecipe:
    """Fills in what a frozen encoder decides: its hash and the width of its features."""
    meta = FrozenText(recipe.text, recipe.model).meta
    model = dataclasses.replace(recipe.model, text_dim=meta["width"])
    return dataclasses.replace(recipe, text=dataclasses.replace(recipe.text, tower_hash=identity(meta)), model=model)


def text_meta(tower: Tower, words: PretrainedTokenizer) -> dict[str, Any]:
    """What identifies features: encoder, tokenizer and the limit of its ids; `cache.json` of a cache."""
    return {
        "kind": "text",
        "encoder": tower.digest,
        "tokenizer": words.digest,
        "limit": words.limit,
        "width": tower.network.config.d_model,
        "dtype": DTYPE,
    }


def identity(meta: Mapping[str, Any]) -> str:
    """Hash of `text_meta`, 16 hex digits."""
    return hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode()).hexdigest()[:16]


@functools.partial(jax.jit, static_argnames="pad")
def tower_features(tower: Tower, ids: Int[Array, "b l"], pad: int) -> Float[Array, "b l d"]:
    """Features of ids, zero at padding."""
    mask = ids != pad
    return jnp.where(mask[..., None], tower(ids, mask), 0)


def ids_of(text: Text) -> Int[Array, "b l"]:
    """The ids of a text, however it travels."""
    return text["ids"] if isinstance(text, Mapping) else text
