"""Text to video as a trainable system: absorbing diffusion over the tokens of a frozen tokenizer.  MotionAura 3.2, 3.3."""

import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import joined, parted
from motionaura_jax.core.types import Cond, Latent, PyTree
from motionaura_jax.data.array_cache import MemoryCache, clip_content, recall
from motionaura_jax.data.fields import Field
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.data.latents import CachedLatents
from motionaura_jax.diffusion import samplers
from motionaura_jax.diffusion.guidance import Guidance, guided
from motionaura_jax.diffusion.likelihood import nelbo
from motionaura_jax.diffusion.times import stratified
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.fold import fold
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.ops.cross_entropy import linear_cross_entropy
from motionaura_jax.parallel import constraints
from motionaura_jax.parallel.local import by_rows
from motionaura_jax.systems.base import Batch, Evaluation, System
from motionaura_jax.systems.text_to_video import advice
from motionaura_jax.systems.text_to_video.conditioners import Conditioner, ids_of, make_conditioner
from motionaura_jax.systems.text_to_video.layout import check_layout
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe, make_process, make_sampler
from motionaura_jax.systems.text_to_video.resolve import check_captions, resolve
from motionaura_jax.systems.text_to_video.stand_in import PlannedText, stand_in
from motionaura_jax.weights.tokenizer import open_tokenizer

_TIMES = 2**32 - 2  # the key of the times, which belong to the step; rows of a batch have smaller numbers


class TextToVideoSystem(System):
    """Pure functions around one recipe; see `systems.base.System`.

    `params` holds `text` (the encoder) and `denoiser`; `frozen` holds the `tokenizer`.
    """

    Recipe = TextToVideoRecipe

    def __init__(
        self, recipe: TextToVideoRecipe, *, tokenizer: Tokenizer | None = None, text: Conditioner | None = None
    ):
        """`tokenizer` and `text` take the places of those that the recipe names."""
        completed, opened = resolve(recipe)
        super().__init__(completed)
        self._opened = tokenizer or opened
        self.text = text or make_conditioner(self.recipe)
        self.process = make_process(self.recipe)
        self._nelbo = jax.jit(self._held_out_bound)
        self._known = MemoryCache(self.recipe.token_cache)
        self._preview = jax.jit(self._sample_and_decode, static_argnames="size")

    @classmethod
    def planned(cls, values: Mapping[str, Any]) -> Self:
        """See `stand_in`."""
        recipe, tokenizer, text = stand_in(values)
        system = cls(recipe, tokenizer=tokenizer, text=text)
        system._check_mesh()
        return system

    def uncounted(self) -> str:
        """A published text encoder that is not here."""
        return self.text.uncounted if isinstance(self.text, PlannedText) else ""

    @property
    def fields(self) -> tuple[str | Field, ...]:
        """Tokens of a `latent_cache`, or videos to encode."""
        return (self._cached.field, "fps", "caption") if self.recipe.latent_cache else super().fields

    @functools.cached_property
    def _cached(self) -> CachedLatents:
        recipe = self.recipe
        return CachedLatents(recipe.latent_cache, "tokens", recipe.latent_space, recipe.data.shapes)

    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes of the first bucket's batch."""
        bucket = self.recipe.data.all_buckets()[0]
        size = bucket.batch_size
        video = (size, bucket.num_frames, bucket.height, bucket.width, 3)
        spec = {
            "video": jax.ShapeDtypeStruct(video, jnp.float32),
            "fps": jax.ShapeDtypeStruct((size,), jnp.float32),
            "text": jax.eval_shape(lambda: _repeat(self.text.null(), size)),
            "sample": jax.ShapeDtypeStruct((size,), jnp.int32),
        }
        if self.recipe.latent_cache:
            del spec["video"]
        if self.recipe.latent_cache or self.recipe.token_cache:
            grid = self._tokenizer.config.latent_shape(*video[1:4])
            spec["tokens"] = jax.ShapeDtypeStruct((size, *grid), jnp.int32)
        return spec

    def to_arrays(self, batch: Mapping[str, Any]) -> Batch:
        """Video in [-1, 1] or `tokens` or both, frame rates, captions (`text`: ids, or features), rows in the step."""
        arrays = {name: batch[name] for name in ("video", "tokens", "fps", "sample") if name in batch}
        arrays["text"] = self.text.batch(batch["caption"])
        if self.recipe.token_cache and "tokens" not in batch:
            video = batch["video"]
            arrays["tokens"] = recall(self._known, [clip_content(clip) for clip in video], lambda: self._encode(video))
        return arrays

    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Fresh weights; `extra` is empty."""
        text_key, denoiser_key = jax.random.split(key)
        return {"text": self.text.init(text_key), "denoiser": self._initialized({}, denoiser_key)}, {}

    def extended(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        """Adds adapters, which start as the frozen weights do and change nothing yet."""

        def fresh(denoiser: PyTree, key: Key[Array, ""]) -> PyTree:
            return parted({"denoiser": self._initialized(denoiser, key)}, self.recipe.trained)[0]

        # The frozen weights stay where they are: nothing that this returns depends on them.
        return joined(params, jax.jit(fresh)(params["denoiser"], key))

    def _initialized(self, denoiser: PyTree, key: Key[Array, ""]) -> PyTree:
        """The parameters of the denoiser, with fresh ones in the place of those that are missing."""
        model = self.recipe.model
        text = jnp.zeros((1, model.text_len, model.text_dim), model.dtype)
        cond = Cond(tokens=text, token_mask=jnp.zeros(text.shape[:2], bool), scalars={"fps": jnp.ones(1)})
        devices = constraints.axis_size("sequence")  # which have to divide the tokens of any clip
        inputs = jnp.zeros((1, 2, 2, 2 * devices), jnp.int32), jnp.ones(1), cond
        network = SpectralTransformer(model)
        _, filled = network.apply({"params": denoiser}, *inputs, rngs={"params": key}, mutable="params")
        return filled["params"]

    def check_data(self) -> None:
        """Warns of captions and of settings for samples that will not act as they read.

        Raises:
          UserError: captions that cannot teach any text, clips that the mesh cannot share, or adapters to nothing.
        """
        if self.recipe.trained and not self.recipe.init_from:
            raise UserError(
                f"config.model.lora.rank={self.recipe.model.lora.rank}: adapters need a trained model; name it with "
                f"--config.init_from=CHECKPOINT"
            )
        check_captions(self.recipe, self.text)
        _ = self.fields  # opens a latent cache, which may be another one's
        self._check_mesh()
        advice.warn_of_words(self.text.words, self.recipe.sample.prompts)
        advice.warn_of_settings(self.recipe, self.recipe.sample)

    def frozen(self) -> PyTree:
        """The tokenizer, and a text encoder that does not train.

        Raises UserError where one is not what the recipe was made with.
        """
        return {"tokenizer": self._tokenizer, **self.text.frozen()}

    def loss(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[PyTree, Mapping[str, Array]]]:
        """Mean over clips of the objective of `diffusion`, in nats per token; times are stratified over the step."""
        x0 = _tokens(frozen, batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["sample"])
        corrupt_keys, drop_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        u = stratified(jax.random.fold_in(key, _TIMES), batch["sample"], self._global_batch(batch))
        x_t, target = self.process.corrupt(x0, u, corrupt_keys)
        dropped = jax.vmap(lambda k: jax.random.bernoulli(k, self.recipe.diffusion.text_dropout))(drop_keys)
        cond = self._condition(params, frozen, _drop(batch["text"], dropped, self.text.null()), batch["fps"])
        entropy = self._entropy(params, cond, target, self.process.label_smoothing)
        losses = self.process.reduce(entropy(x_t, self.process.level(u, math.prod(x0.shape[1:]))), x_t, u)
        masked = jnp.mean(x_t == self.process.mask_id)
        return losses.mean(), ({}, {"masked": masked, "dropped": dropped.mean()})

    def evaluate(self, params: PyTree, extra: PyTree, frozen: PyTree, batches: Iterable[Batch]) -> Evaluation:
        """Bound of the negative log likelihood on held-out clips (nats per token), overall and by masking level.

        `nelbo_25` is the cross entropy with up to 25 % of the tokens masked, and so on; `nelbo_shuffled` is the bound
        with the captions of other clips, which is higher as soon as the model reads them; a single clip has no other.
        The videos show a real clip beside one sampled from its caption, or samples of `sample.prompts`.
        """
        batches = [dict(batch) for batch in batches]
        others, clips = _shuffled([batch["text"] for batch in batches])
        rows = [
            self._nelbo(params, frozen, batch, other, index)
            for index, (batch, other) in enumerate(zip(batches, others, strict=True))
        ]
        true, shuffled = (np.concatenate(part, axis=1) for part in zip(*jax.device_get(rows), strict=True))
        by_level = true.mean(axis=1)
        metrics = {"nelbo": float(true.mean())}
        metrics |= {"nelbo_shuffled": float(shuffled.mean())} if clips > 1 else {}
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
        text: PyTree,
        negative: PyTree,
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
          text, negative: the prompt, and what to guide away from, both from `text.prompts`; "" is the null text.
          keys: one per sample, on which alone the sample depends.
        """
        text, negative, fps, keys, x_init = constraints.batch((text, negative, fps, keys, x_init))
        denoise = self.denoise(params, text, negative, fps, guidance)
        return samplers.sample(denoise, sampler, keys, x_init, steps=steps)

    def denoise(
        self, params: PyTree, text: PyTree, negative: PyTree, fps: Float[Array, " b"], guidance: Guidance | None
    ) -> samplers.Denoise:
        """The guided denoiser of a sampler, which reads the text once for all steps; arguments as in `sample_tokens`."""
        both = text if guidance is None else jax.tree.map(lambda *parts: jnp.concatenate(parts), text, negative)
        network = SpectralTransformer(self.recipe.model, folded=True)
        weights = {"params": constraints.gathered(params["denoiser"])}
        cond = self._condition(params, {}, both, jnp.resize(fps, (len(ids_of(both)),)))
        memory = network.apply(weights, cond, method="encode_text")

        def model(x_t: Array, m: Array, rates: PyTree) -> Array:
            x_t, m, rates = constraints.batch((x_t, m, rates))
            logits = network.apply(weights, x_t, m, Cond(scalars={"fps": rates}), memory)
            return constraints.tokens(cast(Array, logits))

        return guided(model, fps, fps, guidance)

    def _check_mesh(self) -> None:
        sizes = {"tensor": self.recipe.mesh.tensor, "sequence": self.recipe.mesh.sequence}
        for bucket in self.recipe.data.all_buckets():
            grid = self._tokenizer.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
            check_layout(self.recipe.model, sizes, grid)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._opened or open_tokenizer(self.recipe.tokenizer, self.recipe.latent_space)

    @functools.cached_property
    def _encode(self) -> Callable[[np.ndarray], np.ndarray]:
        return by_rows(_tokens_of, self._tokenizer)

    def _global_batch(self, batch: Batch) -> int:
        """Clips in a whole step of this shape, of which the batch at hand may be a part."""
        if "video" not in batch:  # a latent cache holds clips of one shape, and a shape has one batch size
            return self.recipe.data.all_buckets()[0].batch_size
        shape = batch["video"].shape
        sizes = (
            b.batch_size for b in self.recipe.data.all_buckets() if (b.num_frames, b.height, b.width) == shape[1:4]
        )
        return max(sizes, default=shape[0])

    def _condition(self, params: PyTree, frozen: PyTree, text: PyTree, fps: Array) -> Cond:
        features, mask = self.text(constraints.gathered(params["text"]), frozen, text)
        return Cond(tokens=features, token_mask=mask, scalars={"fps": fps})

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
        self, params: PyTree, frozen: PyTree, batch: Batch, other: PyTree, index: Array
    ) -> tuple[Array, Array]:
        """Levels by clips, with the captions of the batch and with `other` ones."""
        batch, other = constraints.batch((dict(batch), other))
        x0 = _tokens(frozen, batch)
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), index)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["sample"])

        def bound(text: PyTree) -> Array:
            cond = self._condition(params, frozen, text, batch["fps"])
            return nelbo(self.process, self._entropy(params, cond, x0), x0, keys, levels=self.recipe.sample.levels)

        return constraints.whole((bound(batch["text"]), bound(other)))

    def _pictures(self, params: PyTree, frozen: PyTree, batch: Batch) -> dict[str, np.ndarray]:
        prompts, count = self.recipe.sample.prompts, min(self.recipe.evaluate.pictures, len(batch["sample"]))
        text = self.text.batch(prompts) if prompts else jax.tree.map(lambda leaf: leaf[:count], batch["text"])
        ids = np.asarray(ids_of(text))
        if not len(ids):
            return {}
        size = tuple(batch["video"].shape[1:4])
        fps = np.resize(np.asarray(batch["fps"]), len(ids))
        drawn = to_uint8(np.asarray(self._preview(params, frozen, text, fps, size=size)))
        if not prompts:
            drawn = np.concatenate([to_uint8(np.asarray(batch["video"][:count])), drawn], axis=3)
        names = (re.sub(r"\W+", "_", self.text.words.decode(row))[:80] for row in ids)
        return {f"{index}_{name}": video for index, (name, video) in enumerate(zip(names, drawn, strict=True))}

    def _sample_and_decode(
        self, params: PyTree, frozen: PyTree, text: PyTree, fps: Array, *, size: tuple[int, int, int]
    ) -> Array:
        """Videos of `size` for the same keys at every evaluation."""
        text, fps = constraints.batch((text, fps))
        config, tokenizer, count = self.recipe.sample, frozen["tokenizer"], len(fps)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.recipe.seed), jnp.arange(count))
        samples = self.sample_tokens(
            self.folded(params),
            self.text.read(frozen, text),
            _repeat(self.text.read(frozen, self.text.null()), count),
            fps,
            keys,
            self.process.prior((count, *tokenizer.config.latent_shape(*size))),
            make_sampler(config, self.process.vocab_size),
            config.guidance,
            steps=config.num_inference_steps,
        )
        latent = Latent(tokens=samples.tokens, size=size, latent_space=tokenizer.latent_space)
        return constraints.whole(tokenizer.decode(latent))


def _repeat(text: PyTree, count: int) -> PyTree:
    """A batch of `count` times the same text."""
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), count, axis=0), text)


def _drop(text: PyTree, dropped: Bool[Array, " b"], null: PyTree) -> PyTree:
    """The texts with `null` in the place of those that are dropped."""
    return jax.tree.map(lambda n, t: jnp.where(dropped.reshape(-1, *[1] * (t.ndim - 1)), n, t), null, text)


def _shuffled(texts: Sequence[PyTree]) -> tuple[list[PyTree], int]:
    """The same batches of texts, each clip with the text of the clip before, and the number of clips."""
    shifted = jax.tree.map(lambda *parts: np.roll(np.concatenate(parts), 1, axis=0), *texts)
    ends = np.cumsum([len(ids_of(text)) for text in texts])
    parts = [
        jax.tree.map(operator.itemgetter(slice(start, end)), shifted)
        for start, end in itertools.pairwise([0, *ends.tolist()])
    ]
    return parts, len(ids_of(shifted))


def _tokens_of(tokenizer: Tokenizer, video: Array) -> Any:
    return tokenizer.encode(video).tokens


def _tokens(frozen: PyTree, batch: Batch) -> Int[Array, "b t h w"]:
    """The tokens of a batch, where they do not come with it from the tokenizer."""
    return batch["tokens"] if "tokens" in batch else _tokens_of(frozen["tokenizer"], batch["video"])
