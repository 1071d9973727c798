"""Multi-head attention with normalized queries and keys.  MotionAura section 3.3; Henry et al. 2020."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motionaura_jax.models.layers import rotary
from motionaura_jax.ops.dispatch import on_cpu

Heads = Float[Array, "b s h d"]

_EPSILON = 1e-6
_TILE = 8
_FUSED_WIDTH = 128
_CPU_BYTES = 4 * 2**20
_DEVICE_BYTES = 256 * 2**20


def split_heads(x: Float[Array, "b s n"], heads: int) -> Heads:
    """Splits the last axis into `(heads, n / heads)`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def normalize(x: Heads) -> Heads:
    """Divides each head's vector by its root mean square, in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + _EPSILON)).astype(x.dtype)


def attend(query: Heads, key: Heads, value: Heads, mask: Bool[Array, "b k"] | None = None) -> Heads:
    """Returns softmax(query key^T / sqrt(d)) value with the softmax in float32; `mask` is False where a key is absent.

    Every row of `mask` needs one True.  Where cuDNN's flash attention exists, 16-bit inputs without a mask go through
    it.  It wants head widths in multiples of 8: zeros fill them up and change nothing, as the scale is that of the
    true width.
    """
    width = query.shape[-1]
    if mask is not None or query.dtype.itemsize != 2 or width > _FUSED_WIDTH or not _has_flash_attention():
        return _attend_in_parts(query, key, value, mask)
    padding = ((0, 0), (0, 0), (0, 0), (0, -width % _TILE))
    query, key, value = (jnp.pad(x, padding) for x in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, scale=width**-0.5, implementation="cudnn")[..., :width]


def _has_flash_attention() -> bool:
    """Returns whether the first device is an NVIDIA GPU of the Ampere generation or later."""
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    return capability[:1].isdigit() and float(capability) >= 8.0


def _attend_in_parts(query: Heads, key: Heads, value: Heads, mask: Bool[Array, "b k"] | None) -> Heads:
    """Attends with a few heads at a time, so that scores stay in cache; the backward pass recomputes them.

    Memory is linear in the sequence.  `benchmarks.ops --only=attention` compares with all at once.
    """
    batch, length, heads, width = query.shape
    count, rows = _parts(batch * heads, length, key.shape[1])
    if count == batch * heads:
        return _attend_by_rows(query, key, value, mask, rows=rows)
    # Without axes of length 1, which XLA for CPUs may order otherwise than the loop wants them, and then copies.
    apart = lambda x: jnp.moveaxis(x, 2, 1).reshape(-1, count * x.shape[1], width)  # noqa: E731
    masks = None if mask is None else mask.repeat(heads, axis=0).reshape(-1, count, mask.shape[1])

    def some(part: tuple[Array, Array, Array, Array | None]) -> Array:
        query, key, value = (x.reshape(count, -1, 1, width) for x in part[:3])
        return _attend_by_rows(query, key, value, part[3], rows=rows).reshape(-1, width)

    mixed = jax.lax.map(some, (apart(query), apart(key), apart(value), masks))
    return jnp.moveaxis(mixed.reshape(batch, heads, length, width), 1, 2)


def _parts(heads: int, length: int, keys: int) -> tuple[int, int]:
    """Returns how many heads, and how many rows of queries, have float32 scores that fill a device's share of the buffer.

    Whole heads first, as products are faster the larger they are; but devices that share the heads work on all at once.
    """
    budget = (_CPU_BYTES if on_cpu() else _DEVICE_BYTES) // (4 * keys)
    devices = math.prod(jax.sharding.get_abstract_mesh().axis_sizes)
    if devices == 1:
        most = min(max(budget // length, 1), heads)
        heads = next(count for count in range(most, 0, -1) if heads % count == 0)
    rows = budget * devices // heads
    return heads, length if rows >= length else max(rows // 8 * 8, 8)


def _attend_by_rows(query: Heads, key: Heads, value: Heads, mask: Bool[Array, "b k"] | None, *, rows: int) -> Heads:
    """Attends with at most `rows` queries at a time."""
    batch, length, heads, width = query.shape
    chunks = -(-length // rows)
    rows = -(-length // chunks)  # evenly, as padding costs as much as queries
    wide = jnp.promote_types(query.dtype, jnp.float32)
    padded = jnp.pad(query * width**-0.5, ((0, 0), (0, chunks * rows - length), (0, 0), (0, 0)))
    stacked = jnp.moveaxis(padded.reshape(batch, chunks, rows, heads, width), (1, 3), (0, 2))
    key, value = (jnp.moveaxis(x, 2, 1) for x in (key, value))

    def some(part: Float[Array, "b h r d"]) -> Float[Array, "b h r d"]:
        scores = jnp.einsum("bhrd,bhkd->bhrk", part, key, preferred_element_type=wide)
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = jnp.einsum("bhrk,bhkd->bhrd", weights.astype(value.dtype), value, preferred_element_type=wide)
        return (mixed / weights.sum(-1, keepdims=True)).astype(value.dtype)

    mixed = jax.lax.map(jax.checkpoint(some, prevent_cse=False), stacked)
    return jnp.moveaxis(mixed, (0, 2), (1, 3)).reshape(batch, chunks * rows, heads, width)[:, :length]


class Attention(nn.Module):
    """Attends from `into(x)` to itself, or to the keys and values of a context, and maps the heads back with `out`.

    `into` returns (query, key, value) for self-attention or (query,) alone.  Queries and keys have unit mean square, so
    a logit stays within gain * sqrt(head width); the gain is learned for each head.
    """

    heads: int
    gain: float
    into: nn.Module
    out: nn.Module

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s d"],
        *,
        angle: Float[Array, "s half"] | None = None,
        context: tuple[Heads, Heads] | None = None,
        mask: Bool[Array, "b k"] | None = None,
    ) -> Float[Array, "b s d"]:
        """`angle` rotates queries and keys; `context` holds normalized keys, and values."""
        query, *own = (split_heads(y, self.heads) for y in self.into(x))
        gain = self.param("gain", nn.initializers.constant(self.gain), (self.heads,))
        query = normalize(query) * gain[:, None].astype(query.dtype)
        key, value = context if context is not None else (normalize(own[0]), own[1])
        if angle is not None:
            query, key = rotary.rotate(query, angle), rotary.rotate(key, angle)
        heads = attend(query, key, value, mask)
        return self.out(heads.reshape(*x.shape[:2], -1))
