"""Likelihood bound of a denoiser on held-out tokens, level by level.  Hoogeboom et al. 2022 (ARDM), eq. 4."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def masked_exactly(key: Key[Array, ""], allowed: Bool[Array, "t h w"], count: Float[Array, ""]) -> Bool[Array, "t h w"]:
    """Choose `count` of the allowed positions at random, all subsets of this size with equal probability."""
    noise = jnp.where(allowed, jax.random.uniform(key, allowed.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(noise.ravel())).reshape(allowed.shape)
    return (rank < count) & allowed


def nelbo(
    entropy: Callable[[Int[Array, "b t h w"], Float[Array, " b"]], Float[Array, "b t h w"]],
    x0: Int[Array, "b t h w"],
    keys: Key[Array, " b"],
    *,
    mask_id: int,
    levels: int = 16,
    mask: Bool[Array, "b t h w"] | None = None,
) -> Float[Array, "levels b"]:
    """Return the mean cross entropy of the masked tokens, nats per token, at `levels` rising shares of masking.

    The bound equals the mean over n = 1..S of the cross entropy with exactly n of S tokens masked, whatever the
    schedule, because the weights m'/m turn the binomial counts into a uniform one.  Row l samples n uniformly from the
    l-th of `levels` equal parts of 1..S.  The mean over rows is thus an unbiased estimate of the bound per token.  It has
    far less noise than weighting at random times, and is exact in n if `levels` is S.

    Args:
      entropy: `(x_t, m) -> -log p(x0)` of each token, called once per level; m is the masked share of all tokens, n / S
        without a `mask`.
      keys: one key per sample; reuse them to compare models on the same masks.
      mask_id: id of MASK.
      levels: number of rows; each costs one forward pass.
      mask: tokens that may be masked (S of them); the others are context.
    """
    allowed = jnp.ones(x0.shape, bool) if mask is None else mask
    size = allowed.sum((1, 2, 3))

    def corrupt(key: Array, x: Array, allowed: Array, size: Array, row: Array) -> tuple[Array, Array, Array]:
        count_key, order_key = jax.random.split(jax.random.fold_in(key, row))
        share = (row + 1.0 - jax.random.uniform(count_key)) / levels
        count = jnp.clip(jnp.ceil(share * size), 1, jnp.maximum(size, 1))
        masked = masked_exactly(order_key, allowed, count)
        return jnp.where(masked, mask_id, x), masked, count / x.size

    def one(row: Array) -> Array:
        x_t, masked, m = jax.vmap(corrupt, (0, 0, 0, 0, None))(keys, x0, allowed, size, row)
        return jnp.where(masked, entropy(x_t, m), 0.0).sum((1, 2, 3)) / jnp.maximum(masked.sum((1, 2, 3)), 1)

    return jax.lax.map(one, jnp.arange(levels))
