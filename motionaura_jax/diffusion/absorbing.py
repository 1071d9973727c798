"""Absorbing-state ("masked") discrete diffusion.  MotionAura section 3.2; Austin et al. 2021, section 3.1."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.schedules import Schedule
from motionaura_jax.ops.cross_entropy import cross_entropy


@dataclass(frozen=True, kw_only=True)
class Absorbing:
    """Tokens turn into MASK and never change otherwise.

    MASK is the id `vocab_size`: denoisers embed `vocab_size + 1` ids but predict only `vocab_size`, so that MASK has
    no probability.

    Attributes:
      vocab_size: number of codes K; tokens lie in [0, K).
      schedule: maps time to the masked fraction.
      objective: "ce_masked" is the mean cross entropy over the masked tokens of a sample; "elbo" weights their sum into
        the exact bound of the negative log likelihood.
      min_masked: tokens masked at least, for "ce_masked"; "elbo" needs the exact marginals and forces none.
      label_smoothing: share of the target spread over all codes, in [0, 1).
      corrupt_visible: share of the visible tokens replaced by random codes, in [0, 1]; teaches the model to doubt its
        context, which a sampler with `remask` relies on.

    Raises:
      UserError: settings under which "elbo" would be no bound, or out of range.
    """

    vocab_size: int
    schedule: Schedule
    objective: Literal["ce_masked", "elbo"] = "ce_masked"
    min_masked: int = 1
    label_smoothing: float = 0.0
    corrupt_visible: float = 0.0

    def __post_init__(self) -> None:
        if self.objective not in ("ce_masked", "elbo"):
            raise UserError(f"diffusion: objective {self.objective!r} is neither 'ce_masked' nor 'elbo'")
        if self.vocab_size < 1 or self.min_masked < 1:
            raise UserError("diffusion: vocab_size and min_masked must be at least 1")
        if not (0.0 <= self.label_smoothing < 1.0 and 0.0 <= self.corrupt_visible <= 1.0):
            raise UserError("diffusion: label_smoothing and corrupt_visible are shares between 0 and 1")
        if self.objective == "elbo" and (self.label_smoothing or self.corrupt_visible):
            raise UserError("diffusion: 'elbo' is a bound only with label_smoothing=0 and corrupt_visible=0")

    @property
    def mask_id(self) -> int:
        """The id of MASK."""
        return self.vocab_size

    def prior(self, shape: tuple[int, ...]) -> Int[Array, "b t h w"]:
        """Returns z at u = 1: MASK everywhere."""
        return jnp.full(shape, self.mask_id, jnp.int32)

    def level(self, u: Float[Array, " b"], size: int) -> Float[Array, " b"]:
        """Returns the masked fraction m at time u for grids of `size` tokens; what the denoiser is conditioned on.

        For "ce_masked" it is at least 1 / size, the smallest level at which a token is expected to be masked.
        """
        m = self.schedule.masked(u)
        return m if self.objective == "elbo" else jnp.maximum(m, 1.0 / size)

    def corrupt(
        self,
        x0: Int[Array, "b t h w"],
        u: Float[Array, " b"],
        keys: Key[Array, " b"],
        mask: Bool[Array, "b t h w"] | None = None,
    ) -> tuple[Int[Array, "b t h w"], Int[Array, "b t h w"]]:
        """Draws z_u ~ q(. | x0) and returns it with the target of the loss, which is x0.

        Args:
          x0: clean tokens in [0, vocab_size).
          u: times in (0, 1].
          keys: one key per sample; sample i depends on keys[i] alone.
          mask: positions where it is False stay clean.
        """
        allowed = jnp.ones(x0.shape, bool) if mask is None else mask
        m = self.level(u, math.prod(x0.shape[1:]))

        def one(x: Array, m: Array, key: Array, allowed: Array) -> Array:
            mask_key, replace_key, code_key = jax.random.split(key, 3)
            noise = jnp.where(allowed, jax.random.uniform(mask_key, x.shape), jnp.inf)
            masked = noise < m
            if self.objective == "ce_masked":
                count = min(self.min_masked, x.size)
                masked |= noise <= -jax.lax.top_k(-noise.ravel(), count)[0][-1]
            if self.corrupt_visible:
                replaced = allowed & jax.random.bernoulli(replace_key, self.corrupt_visible, x.shape)
                x = jnp.where(replaced, jax.random.randint(code_key, x.shape, 0, self.vocab_size), x)
            return jnp.where(masked & allowed, self.mask_id, x)

        return jax.vmap(one)(x0, m, keys, allowed), x0

    def loss(
        self,
        logits: Float[Array, "b t h w k"],
        target: Int[Array, "b t h w"],
        x_t: Int[Array, "b t h w"],
        u: Float[Array, " b"],
        mask: Bool[Array, "b t h w"] | None = None,
    ) -> Float[Array, " b"]:
        """Returns one loss per sample, in nats per token, float32: `reduce` of the cross entropies of all tokens."""
        return self.reduce(cross_entropy(logits, target, label_smoothing=self.label_smoothing), x_t, u, mask)

    def reduce(
        self,
        entropy: Float[Array, "b t h w"],
        x_t: Int[Array, "b t h w"],
        u: Float[Array, " b"],
        mask: Bool[Array, "b t h w"] | None = None,
    ) -> Float[Array, " b"]:
        """Returns one loss per sample from the cross entropy of each token, for denoisers that compute it themselves.

        "ce_masked": mean over the masked tokens of the sample.  "elbo": m'(u) / m(u) times the sum over them, divided
        by the number of tokens that may be masked; its mean over uniform u bounds -log p(x0) per token.  Both are
        normalized within the sample, so the mean over equal microbatches is the mean over the whole batch.
        """
        allowed = jnp.ones(x_t.shape, bool) if mask is None else mask
        masked = (x_t == self.mask_id) & allowed
        total = _per_sample(jnp.where(masked, entropy, 0.0))
        if self.objective == "elbo":
            return self.schedule.weight(u) * total / jnp.maximum(_per_sample(allowed), 1.0)
        return total / jnp.maximum(_per_sample(masked), 1.0)


def _per_sample(values: Array) -> Float[Array, " b"]:
    return jnp.sum(values, tuple(range(1, values.ndim)), dtype=jnp.float32)
