"""Quantizers without a codebook: FSQ (Mentzer et al. 2023) and LFQ (Yu et al. 2023, MAGVIT-v2)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_FSQ_MARGIN = 1e-3  # keeps the outermost levels reachable: tanh never gets to 1


def straight_through(values: Float[Array, "*shape"], source: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return exactly `values`, with the gradient of the identity on `source`."""
    return jax.lax.stop_gradient(values) + (source - jax.lax.stop_gradient(source))


def fsq_bound(z: Float[Array, "*shape d"], levels: Sequence[int]) -> Float[Array, "*shape d"]:
    """Squeeze dimension i into the range of `levels[i]` integers, -(L // 2) .. (L - 1) // 2, without rounding.

    Even L needs the half-step offset, or the integers would be L + 1 or asymmetric at the origin (FSQ, equation 1).
    """
    sizes = np.asarray(levels, np.float32)
    half = (sizes - 1) * (1 + _FSQ_MARGIN) / 2
    offset = np.where(sizes % 2 == 0, 0.5, 0.0).astype(np.float32)
    return jnp.tanh(z.astype(jnp.float32) + np.arctanh(offset / half)) * half - offset


def fsq_round(z: Float[Array, "*shape d"], levels: Sequence[int]) -> Float[Array, "*shape d"]:
    """Round the bounded values to integers; the gradient passes straight through the rounding."""
    bounded = fsq_bound(z, levels)
    return straight_through(jnp.round(bounded), bounded)


def fsq_scale(integers: Float[Array, "*shape d"], levels: Sequence[int]) -> Float[Array, "*shape d"]:
    """Return the decoder values in [-1, 1] of the integers of `fsq_round`."""
    return integers / np.asarray([size // 2 for size in levels], np.float32)


def fsq_codes(integers: Float[Array, "*shape d"], levels: Sequence[int]) -> Int[Array, "*shape"]:
    """Return the mixed-radix index, dimension 0 least significant."""
    digits = jax.lax.stop_gradient(integers).astype(jnp.int32) + np.asarray([size // 2 for size in levels], np.int32)
    return (digits * _radix(levels)).sum(-1)


def fsq_values(codes: Int[Array, "*shape"], levels: Sequence[int]) -> Float[Array, "*shape d"]:
    """Return the decoder values of codes; the inverse of `fsq_codes`."""
    sizes = np.asarray(levels, np.int32)
    integers = codes[..., None] // _radix(levels) % sizes - sizes // 2
    return fsq_scale(integers.astype(jnp.float32), levels)


def _radix(levels: Sequence[int]) -> np.ndarray:
    return np.cumprod([1, *levels[:-1]]).astype(np.int32)


def lfq_codes(z: Float[Array, "*shape d"]) -> Int[Array, "*shape"]:
    """Return the sign bits as an index, dimension 0 least significant; a bit is 1 if z > 0."""
    return ((z > 0).astype(jnp.int32) << np.arange(z.shape[-1], dtype=np.int32)).sum(-1)


def lfq_values(codes: Int[Array, "*shape"], dim: int) -> Float[Array, "*shape d"]:
    """Return the decoder values in {-1, +1} of codes; the inverse of `lfq_codes`."""
    bits = codes[..., None] >> np.arange(dim, dtype=np.int32) & 1
    return 2.0 * bits.astype(jnp.float32) - 1.0


def lfq_entropy(z: Float[Array, "n d"], temperature: float) -> Float[Array, ""]:
    """Return E[H(p)] - H(E[p]) in nats over all 2 ** d codes, p(c | z) ~ exp(-|z - c|^2 / temperature).  MAGVIT-v2, eq. 4.

    Exact at any d: p factorizes over bits, so E[H(p)] is a sum of binary entropies, and E[p] is one matrix product of
    the code probabilities of the lower and the upper half of the bits.
    """
    # Distances to +1 and -1 differ by 4 z: bit i is on with probability sigmoid(4 z_i / temperature).
    on = jax.nn.sigmoid(4.0 * z.astype(jnp.float32) / temperature)
    per_position = _entropy_terms(on).sum(-1) + _entropy_terms(1.0 - on).sum(-1)
    lower, upper = _code_probabilities(on[:, : on.shape[-1] // 2]), _code_probabilities(on[:, on.shape[-1] // 2 :])
    average = lower.T @ upper / z.shape[0]
    return per_position.mean() - _entropy_terms(average).sum()


def _code_probabilities(on: Float[Array, "n bits"]) -> Float[Array, "n codes"]:
    table = jnp.ones((on.shape[0], 1), jnp.float32)
    for bit in range(on.shape[1]):
        table = jnp.concatenate([table * (1.0 - on[:, bit : bit + 1]), table * on[:, bit : bit + 1]], axis=1)
    return table


def _entropy_terms(p: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return -p * jnp.log(jnp.maximum(p, math.exp(-40.0)))
