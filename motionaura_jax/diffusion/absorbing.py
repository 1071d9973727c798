"""Absorbing-state ("masked") discrete diffusion.  MotionAura section 3.2; Austin et al. 2021, section 3.1."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.likelihood import masked_exactly, nelbo
from motionaura_jax.diffusion.process import Predict, Shape, stratified
from motionaura_jax.diffusion.schedules import Schedule
from motionaura_jax.ops.cross_entropy import cross_entropy, linear_cross_entropy
from motionaura_jax.ops.prediction import Prediction

Objective = Literal["ce_masked", "elbo", "any_order"]
_BOUNDS = ("elbo", "any_order")
_BIASED = ("label_smoothing", "corrupt_visible", "visible_weight", "per_frame")  # settings that a bound cannot have


@dataclass(frozen=True, kw_only=True)
class Absorbing:
    """Process that replaces tokens by MASK and never changes them otherwise; see `process.Process`.

    MASK is the id `vocab_size`: denoisers embed `vocab_size + 1` ids but predict only `vocab_size`, so MASK has no
    probability.

    Attributes:
      vocab_size: number of codes K; tokens lie in [0, K).
      schedule: maps time to the masked fraction.
      objective: "ce_masked" is the mean cross entropy over the masked tokens of a sample. "elbo" weights their sum into the
        exact bound of the negative log likelihood; its weights m'(u) / m(u) have no finite second moment. "any_order" has
        the same expectation, whatever the schedule, and bounded weights: see `loss`.
      min_masked: minimum number of masked tokens for "ce_masked"; the bounds need exact marginals and ignore it.
      label_smoothing: share of the target spread over all codes, in [0, 1).
      corrupt_visible: share of visible tokens replaced by random codes, in [0, 1]; teaches the model to doubt its context.
      visible_weight: weight of the mean cross entropy over the visible tokens, replaced ones included, in "ce_masked".
        Without it the logits at visible positions are untrained, and a sampler with `remask` would rank tokens by them.
      per_frame: share of samples whose latent frames have different masked fractions, in [0, 1]; their mean is m.
      chunk: number of codes whose logits the loss computes at a time for a factored prediction; 0 computes all at once.

    Raises:
      UserError: a setting is out of range, or would make a bound none.
    """

    metric: ClassVar[str] = "nelbo"

    vocab_size: int
    schedule: Schedule
    objective: Objective = "ce_masked"
    min_masked: int = 1
    label_smoothing: float = 0.0
    corrupt_visible: float = 0.0
    visible_weight: float = 0.0
    per_frame: float = 0.0
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.objective not in ("ce_masked", *_BOUNDS):
            raise UserError(f"diffusion: objective {self.objective!r} is none of 'ce_masked', 'elbo' and 'any_order'")
        if self.vocab_size < 1 or self.min_masked < 1:
            raise UserError("diffusion: vocab_size and min_masked must be at least 1")
        if not (
            0.0 <= self.label_smoothing < 1.0 and 0.0 <= self.corrupt_visible <= 1.0 and 0.0 <= self.per_frame <= 1.0
        ):
            raise UserError("diffusion: label_smoothing, corrupt_visible and per_frame are shares between 0 and 1")
        if self.visible_weight < 0:
            raise UserError("diffusion: visible_weight must not be negative")
        biased = [name for name in _BIASED if getattr(self, name)]
        if self.objective in _BOUNDS and biased:
            raise UserError(f"diffusion: {self.objective!r} is a bound only without {', '.join(biased)}; set it to 0")

    @property
    def mask_id(self) -> int:
        """Return the id of MASK."""
        return self.vocab_size

    def sample_time(self, key: Key[Array, ""], sample: Int[Array, " b"], batch_size: int) -> Float[Array, " b"]:
        """Sample stratified times; see `process.stratified`."""
        return stratified(key, sample, batch_size)

    def prior(self, shape: Shape, keys: Key[Array, " b"] | None = None) -> Int[Array, "b t h w"]:
        """Return latents at time 1: MASK everywhere."""
        return jnp.full(shape, self.mask_id, jnp.int32)

    def statistics(self, x_t: Int[Array, "b t h w"]) -> Mapping[str, Float[Array, ""]]:
        """Return the share of tokens that are masked."""
        return {"masked": jnp.mean(x_t == self.mask_id)}

    def level(
        self, time: Float[Array, " b"], shape: Shape, mask: Bool[Array, "b t h w"] | None = None
    ) -> Float[Array, " b"]:
        """Return the masked share of all tokens at `time` for grids of `shape`; tokens outside `mask` count as visible.

        For "ce_masked" it is at least 1 / tokens, the level at which one masked token is expected.
        """
        if self.objective == "any_order":
            size = math.prod(shape) if mask is None else mask.sum((1, 2, 3))
            return _count(time, size) / math.prod(shape)
        m = self.schedule.masked(time)
        if mask is not None:
            m = m * mask.mean((1, 2, 3), dtype=jnp.float32)
        return m if self.objective in _BOUNDS else jnp.maximum(m, 1.0 / math.prod(shape))

    def corrupt(
        self,
        x0: Int[Array, "b t h w"],
        time: Float[Array, " b"],
        keys: Key[Array, " b"],
        mask: Bool[Array, "b t h w"] | None = None,
    ) -> tuple[Int[Array, "b t h w"], Int[Array, "b t h w"]]:
        """Sample z_t ~ q(. | x0) and return it with the target of the loss, which is x0.

        Args:
          x0: clean tokens in [0, vocab_size).
          time: in (0, 1].
          keys: one key per sample; sample i depends on keys[i] alone.
          mask: False at positions that stay clean.
        """
        allowed = jnp.ones(x0.shape, bool) if mask is None else mask
        if self.objective == "any_order":
            count = _count(time, allowed.sum((1, 2, 3)))
            return jnp.where(jax.vmap(masked_exactly)(keys, allowed, count), self.mask_id, x0), x0
        m = self.level(time, x0.shape[1:])  # of the tokens that may be masked

        def one(x: Array, m: Array, key: Array, allowed: Array) -> Array:
            mask_key, replace_key, code_key = jax.random.split(key, 3)
            if self.per_frame:
                m = self._frame_levels(jax.random.fold_in(key, 3), m, len(x))
            noise = jnp.where(allowed, jax.random.uniform(mask_key, x.shape), jnp.inf)
            masked = noise < m
            if self.objective == "ce_masked":
                # Always mask the tokens with the least noise, so that every sample has something to predict.
                count = min(self.min_masked, x.size)
                masked |= noise <= -jax.lax.top_k(-noise.ravel(), count)[0][-1]
            if self.corrupt_visible:
                replaced = allowed & jax.random.bernoulli(replace_key, self.corrupt_visible, x.shape)
                x = jnp.where(replaced, jax.random.randint(code_key, x.shape, 0, self.vocab_size), x)
            return jnp.where(masked & allowed, self.mask_id, x)

        return jax.vmap(one)(x0, m, keys, allowed), x0

    def loss(
        self,
        prediction: Prediction,
        target: Int[Array, "b t h w"],
        x_t: Int[Array, "b t h w"],
        time: Float[Array, " b"],
        mask: Bool[Array, "b t h w"] | None = None,
    ) -> Float[Array, " b"]:
        """Return one loss per sample, in nats per token, float32.

        "ce_masked": mean over the masked tokens of the sample, plus `visible_weight` times that over the visible ones.
        "elbo": m'(u) / m(u) times the sum over the masked tokens, divided by the number of tokens that may be masked; its
        mean over uniform u bounds -log p(x0) per token.
        "any_order": mean over the masked tokens; exactly n = ceil(u S) are masked.  The estimator of the bound is thus
        L = 1/n sum_{i masked} -log p(x0_i | visible tokens), u ~ U(0, 1], and its expectation the mean over n = 1 .. S of the
        cross entropy with n masked tokens: the "elbo" of every schedule, because m'/m turns its binomial counts into
        uniform ones (Hoogeboom et al. 2022, equation 4).  L is at most the largest cross entropy of a token.

        All are normalized within the sample, so the mean over equal microbatches is the mean over the whole batch.
        """
        entropy = self._entropy(prediction, target, self.label_smoothing)
        allowed = jnp.ones(x_t.shape, bool) if mask is None else mask
        masked = (x_t == self.mask_id) & allowed
        total = _per_sample(jnp.where(masked, entropy, 0.0))
        if self.objective == "elbo":
            return self.schedule.weight(time) * total / jnp.maximum(_per_sample(allowed), 1.0)
        loss = total / jnp.maximum(_per_sample(masked), 1.0)
        if self.visible_weight:
            visible = allowed & ~masked
            rest = _per_sample(jnp.where(visible, entropy, 0.0)) / jnp.maximum(_per_sample(visible), 1.0)
            loss += self.visible_weight * rest
        return loss

    def loss_by_level(
        self,
        predict: Predict,
        x0: Int[Array, "b t h w"],
        keys: Key[Array, " b"],
        *,
        levels: int,
        mask: Bool[Array, "b t h w"] | None = None,
    ) -> Float[Array, "levels b"]:
        """Return the bound of the negative log likelihood by masked share, in nats per token; see `likelihood.nelbo`."""

        def entropy(x_t: Array, m: Array) -> Array:
            return self._entropy(predict(x_t, m), x0, 0.0)

        return nelbo(entropy, x0, keys, mask_id=self.mask_id, levels=levels, mask=mask)

    def _frame_levels(self, key: Key[Array, ""], m: Float[Array, ""], frames: int) -> Float[Array, "t 1 1"]:
        """Sample the masked fraction of each latent frame, whose mean is m; in 1 - `per_frame` of the cases all equal m.

        Independent uniform values are scaled towards 0 or 1 until their mean is m, which keeps all of them in [0, 1].
        """
        choice_key, level_key = jax.random.split(key)
        levels = 1.0 - jax.random.uniform(level_key, (frames,))  # in (0, 1]
        mean = levels.mean()
        low = levels * (m / mean)
        high = 1.0 - (1.0 - levels) * ((1.0 - m) / jnp.maximum(1.0 - mean, jnp.finfo(m.dtype).tiny))
        levels = jnp.where(m <= mean, low, high)
        return jnp.where(jax.random.bernoulli(choice_key, self.per_frame), levels, m)[:, None, None]

    def _entropy(
        self, prediction: Prediction, target: Int[Array, "b t h w"], label_smoothing: float
    ) -> Float[Array, "b t h w"]:
        """Return -log p(target) of each token; a factored prediction is evaluated chunk by chunk, to save memory."""
        if prediction.table is None:
            return cross_entropy(prediction.values, target, label_smoothing=label_smoothing)
        flat = target.reshape(len(target), -1)
        values = linear_cross_entropy(
            prediction.values,
            prediction.table,
            flat,
            chunk=self.chunk,
            bias=prediction.bias,
            label_smoothing=label_smoothing,
        )
        return values.reshape(target.shape)


def _count(time: Float[Array, " b"], size: Int[Array, " b"] | int) -> Float[Array, " b"]:
    """Return the number of masked tokens for "any_order": uniform in 1 .. size for uniform times; 0 of 0 tokens."""
    return jnp.minimum(jnp.ceil(jnp.asarray(time, jnp.float32) * size), size)


def _per_sample(values: Array) -> Float[Array, " b"]:
    return jnp.sum(values, tuple(range(1, values.ndim)), dtype=jnp.float32)
