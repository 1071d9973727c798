"""Text to video as a trainable system: absorbing diffusion over the tokens of a frozen tokenizer.  MotionAura 3.2, 3.3."""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.data.frames import to_uint8
from motionaura_jax.data.token_cache import TokenCache
from motionaura_jax.diffusion import samplers
from motionaura_jax.diffusion.guidance import Guidance, guided
from motionaura_jax.diffusion.likelihood import nelbo
from motionaura_jax.diffusion.times import stratified
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.fold import fold
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.encoders.text import TextEncoder
from motionaura_jax.models.encoders.text_tokenizer import PAD, TextTokenizer
from motionaura_jax.ops.cross_entropy import linear_cross_entropy
from motionaura_jax.parallel import constraints
from motionaura_jax.systems.base import Batch, Evaluation
from motionaura_jax.systems.text_to_video import advice
from motionaura_jax.systems.text_to_video.layout import check_layout
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe, make_process, make_sampler
from motionaura_jax.systems.text_to_video.resolve import check_captions, resolve
from motionaura_jax.types import Cond, Latent, PyTree
from motionaura_jax.weights.tokenizer import open_tokenizer

_TIMES = 2**32 - 2  # the key of the times, which belong to the step; rows of a batch have smaller numbers


class TextToVideoSystem:
    """Pure functions around one recipe; see `systems.base.System`.

    `params` holds `text` (the encoder) and `denoiser`; `frozen` holds the `tokenizer`.
    """

    Recipe = TextToVideoRecipe

    def __init__(self, recipe: TextToVideoRecipe):
        self.recipe, self._opened = resolve(recipe)
        model, text = self.recipe.model, self.recipe.text
        self.words = TextTokenizer(text.vocabulary, model.text_len)
        self.process = make_process(self.recipe)
        self._encoder = TextEncoder(text.encoder, self.words.size, model.text_dim, model.dtype)
        self._nelbo = jax.jit(self._held_out_bound)
        self._known = TokenCache(lambda video: _encode(self._tokenizer, video), self.recipe.token_cache)
        self._preview = jax.jit(self._sample_and_decode, static_argnames="size")

    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes of the first bucket's batch."""
        bucket = self.recipe.data.all_buckets()[0]
        size = bucket.batch_size
        video = (size, bucket.num_frames, bucket.height, bucket.width, 3)
        spec = {
            "video": jax.ShapeDtypeStruct(video, jnp.float32),
            "fps": jax.ShapeDtypeStruct((size,), jnp.float32),
            "text": jax.ShapeDtypeStruct((size, self.words.length), jnp.int32),
            "sample": jax.ShapeDtypeStruct((size,), jnp.int32),
        }
        if self.recipe.token_cache:
            grid = self._tokenizer.config.latent_shape(*video[1:4])
            spec["tokens"] = jax.ShapeDtypeStruct((size, *grid), jnp.int32)
        return spec

    def to_arrays(self, batch: Mapping[str, Any]) -> Batch:
        """Video in [-1, 1], frame rates, word ids of the captions (`text`), rows in the step; with a cache, `tokens`."""
        text = self.words.batch(batch["caption"])
        arrays = {"video": batch["video"], "fps": batch["fps"], "text": text, "sample": batch["sample"]}
        return {**arrays, "tokens": self._known(batch["video"])} if self.recipe.token_cache else arrays

    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Fresh weights; `extra` is empty."""
        text_key, denoiser_key = jax.random.split(key)
        ids = jnp.zeros((1, self.words.length), jnp.int32)
        params = {"text": self._encoder.init(text_key, ids)["params"]}
        cond = self._condition(params, ids, jnp.ones(1))
        network = SpectralTransformer(self.recipe.model)
        tokens = jnp.zeros((1, 2, 2, 2), jnp.int32)
        return {**params, "denoiser": network.init(denoiser_key, tokens, jnp.ones(1), cond)["params"]}, {}

    def check_data(self) -> None:
        """Warns of captions and of settings for samples that will not act as they read.

        Raises:
          UserError: captions that cannot teach any text, or clips that the mesh cannot share.
        """
        check_captions(self.recipe)
        sizes = jax.sharding.get_abstract_mesh().shape
        for bucket in self.recipe.data.all_buckets() if sizes else ():
            grid = self._tokenizer.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
            check_layout(self.recipe.model, sizes, grid)
        advice.warn_of_words(self.words, self.recipe.sample.prompts)
        advice.warn_of_settings(self.recipe, self.recipe.sample)

    def frozen(self) -> PyTree:
        """The tokenizer.  Raises UserError where its latent space is not the one that the recipe was made with."""
        return {"tokenizer": self._tokenizer}

    def prepare(self, params: PyTree, extra: PyTree, batches: Iterable[Batch]) -> tuple[PyTree, PyTree]:
        """Nothing to prepare."""
        return params, extra

    def loss(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[PyTree, Mapping[str, Array]]]:
        """Mean over clips of the objective of `diffusion`, in nats per token; times are stratified over the step."""
        x0 = _tokens(frozen, batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["sample"])
        corrupt_keys, drop_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        u = stratified(jax.random.fold_in(key, _TIMES), batch["sample"], self._global_batch(batch["video"].shape))
        x_t, target = self.process.corrupt(x0, u, corrupt_keys)
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, self.recipe.diffusion.text_dropout))(drop_keys)
        cond = self._condition(params, jnp.where(dropped[:, None], PAD, batch["text"]), batch["fps"])
        entropy = self._entropy(params, cond, target, self.process.label_smoothing)
        losses = self.process.reduce(entropy(x_t, self.process.level(u, math.prod(x0.shape[1:]))), x_t, u)
        masked = jnp.mean(x_t == self.process.mask_id)
        return losses.mean(), ({}, {"masked": masked, "dropped": dropped.mean()})

    def advance(
        self, params: PyTree, extra: PyTree, stats: PyTree, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, Mapping[str, Array]]:
        """Nothing moves but the parameters."""
        return params, extra, {}

    def evaluate(self, params: PyTree, extra: PyTree, frozen: PyTree, batches: Iterable[Batch]) -> Evaluation:
        """Bound of the negative log likelihood on held-out clips (nats per token), overall and by masking level.

        `nelbo_25` is the cross entropy with up to 25 % of the tokens masked, and so on; `nelbo_shuffled` is the bound
        with the captions of other clips, which is higher as soon as the model reads them; a single clip has no other.
        The videos show a real clip beside one sampled from its caption, or samples of `sample.prompts`.
        """
        batches = [dict(batch) for batch in batches]
        shifted = np.roll(np.concatenate([batch["text"] for batch in batches]), 1, axis=0)
        others = np.split(shifted, np.cumsum([len(batch["text"]) for batch in batches])[:-1])
        rows = [
            self._nelbo(params, frozen, batch, other, index)
            for index, (batch, other) in enumerate(zip(batches, others, strict=True))
        ]
        true, shuffled = (np.concatenate(part, axis=1) for part in zip(*jax.device_get(rows), strict=True))
        by_level = true.mean(axis=1)
        metrics = {"nelbo": float(true.mean())}
        metrics |= {"nelbo_shuffled": float(shuffled.mean())} if len(shifted) > 1 else {}
        metrics |= {
            f"nelbo_{round(100 * (index + 1) / len(by_level))}": float(value) for index, value in enumerate(by_level)
        }
        videos = self._pictures(params, frozen, batches[0])
        return Evaluation(metrics=metrics, videos=videos, fps=float(batches[0]["fps"][0]))

    def folded(self, params: PyTree) -> PyTree:
        """The parameters that `sample_tokens` takes: transforms along the embedding are merged into the kernels."""
        return {**params, "denoiser": constraints.placed(fold(params["denoiser"], self.recipe.model))}

    def sample_tokens(
        self,
        params: PyTree,
        text: Int[Array, "b l"],
        negative: Int[Array, "b l"],
        fps: Float[Array, " b"],
        keys: Key[Array, " b"],
        x_init: Int[Array, "b t h w"],
        sampler: samplers.Sampler,
        guidance: Guidance | None,
        *,
        steps: int,
    ) -> samplers.Samples:
        """Draws the tokens that are MASK in `x_init`; jit it with `steps` static, then prompts do not recompile.

        Args:
          params: from `folded`.
          text, negative: word ids of the prompt, and of what to guide away from; all padding is the null text.
          keys: one per sample, on which alone the sample depends.
        """
        text, negative, fps, keys, x_init = constraints.batch((text, negative, fps, keys, x_init))
        ids = text if guidance is None else jnp.concatenate([text, negative])
        network = SpectralTransformer(self.recipe.model, folded=True)
        weights = {"params": constraints.gathered(params["denoiser"])}
        cond = self._condition(params, ids, jnp.resize(fps, (len(ids),)))
        memory = network.apply(weights, cond, method="encode_text")

        def model(x_t: Array, m: Array, rates: PyTree) -> Array:
            x_t, m, rates = constraints.batch((x_t, m, rates))
            logits = network.apply(weights, x_t, m, Cond(scalars={"fps": rates}), memory)
            return constraints.tokens(cast(Array, logits))

        return samplers.sample(guided(model, fps, fps, guidance), sampler, keys, x_init, steps=steps)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._opened or open_tokenizer(self.recipe.tokenizer, self.recipe.latent_space)

    def _global_batch(self, shape: Sequence[int]) -> int:
        """Clips in a whole step of this shape, of which the batch at hand may be a part."""
        sizes = (
            b.batch_size for b in self.recipe.data.all_buckets() if (b.num_frames, b.height, b.width) == shape[1:4]
        )
        return max(sizes, default=shape[0])

    def _condition(self, params: PyTree, ids: Array, fps: Array) -> Cond:
        features = self._encoder.apply({"params": constraints.gathered(params["text"])}, ids)
        return Cond(tokens=features, token_mask=ids != PAD, scalars={"fps": fps})  # type: ignore[arg-type]

    def _entropy(
        self, params: PyTree, cond: Cond, target: Int[Array, "b t h w"], label_smoothing: float = 0.0
    ) -> Callable[[Array, Array], Array]:
        """`(x_t, m) -> cross entropy of each token of target` under `cond`.

        With `model.folded_training` in the folded form, which gradients pass.  Where a mesh splits the tokens it is used
        anyway: only transforms along the sequence alone leave channels to split.
        """
        config = self.recipe.model
        folded = config.folded_training or constraints.axis_size("sequence") > 1
        network = SpectralTransformer(config, folded=folded)
        weights = {"params": constraints.gathered((self.folded(params) if folded else params)["denoiser"])}
        flat = target.reshape(len(target), -1)

        def entropy(x_t: Array, m: Array) -> Array:
            features, table = cast(Any, network.apply(weights, x_t, m, cond, method="features"))
            values = linear_cross_entropy(
                features, table, flat, chunk=config.loss_chunk, label_smoothing=label_smoothing
            )
            return values.reshape(target.shape)

        return entropy

    def _held_out_bound(
        self, params: PyTree, frozen: PyTree, batch: Batch, other: Array, index: Array
    ) -> tuple[Array, Array]:
        """Levels by clips, with the captions of the batch and with `other` ones."""
        batch, other = constraints.batch((dict(batch), other))
        x0 = _tokens(frozen, batch)
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), index)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["sample"])

        def bound(text: Array) -> Array:
            cond = self._condition(params, text, batch["fps"])
            return nelbo(self.process, self._entropy(params, cond, x0), x0, keys, levels=self.recipe.sample.levels)

        return constraints.whole((bound(batch["text"]), bound(other)))

    def _pictures(self, params: PyTree, frozen: PyTree, batch: Batch) -> dict[str, np.ndarray]:
        prompts, count = self.recipe.sample.prompts, min(self.recipe.evaluate.pictures, len(batch["sample"]))
        text = self.words.batch(prompts) if prompts else np.asarray(batch["text"])[:count]
        if not len(text):
            return {}
        size = tuple(batch["video"].shape[1:4])
        fps = np.resize(np.asarray(batch["fps"]), len(text))
        drawn = to_uint8(np.asarray(self._preview(params, frozen, text, fps, size=size)))
        if not prompts:
            drawn = np.concatenate([to_uint8(np.asarray(batch["video"][:count])), drawn], axis=3)
        names = (re.sub(r"\W+", "_", self.words.decode(row))[:80] for row in text)
        return {f"{index}_{name}": video for index, (name, video) in enumerate(zip(names, drawn, strict=True))}

    def _sample_and_decode(
        self, params: PyTree, frozen: PyTree, text: Array, fps: Array, *, size: tuple[int, int, int]
    ) -> Array:
        """Videos of `size` for the same keys at every evaluation."""
        text, fps = constraints.batch((text, fps))
        config, tokenizer, count = self.recipe.sample, frozen["tokenizer"], len(text)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.recipe.seed), jnp.arange(count))
        samples = self.sample_tokens(
            self.folded(params),
            text,
            jnp.full_like(text, PAD),
            fps,
            keys,
            self.process.prior((count, *tokenizer.config.latent_shape(*size))),
            make_sampler(config, self.process.vocab_size),
            config.guidance,
            steps=config.num_inference_steps,
        )
        latent = Latent(tokens=samples.tokens, size=size, latent_space=tokenizer.latent_space)
        return constraints.whole(tokenizer.decode(latent))


@jax.jit
def _encode(tokenizer: Tokenizer, video: Array) -> Any:
    return tokenizer.encode(video).tokens


def _tokens(frozen: PyTree, batch: Batch) -> Int[Array, "b t h w"]:
    """The tokens of a batch, where they do not come with it from the tokenizer."""
    return batch["tokens"] if "tokens" in batch else frozen["tokenizer"].encode(batch["video"]).tokens
