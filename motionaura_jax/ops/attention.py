"""Dot-product attention, the one implementation that every network calls.  Vaswani et al. 2017, section 3.2.

`whole` is the reference: it holds all scores.  `blocks` holds a few heads and rows of queries at a time, so that memory is
linear in the sequence and the scores stay in the cache of a CPU.  `cudnn` is NVIDIA's flash attention (Dao et al. 2022).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motionaura_jax.ops.dispatch import choose, on_ampere, on_cpu

Heads = Float[Array, "b s h d"]
Mask = Bool[Array, "b k"] | None

IMPLEMENTATIONS = ("whole", "blocks", "cudnn")

_MASKED = -1e9  # finite: a row without any key then averages all values instead of giving NaN
_CUDNN_TILE = 8  # cuDNN takes head widths in multiples of this
_CUDNN_WIDTH = 128  # the widest head that its backward pass takes
_CPU_BYTES = 4 * 2**20  # of float32 scores at a time: about the L2 and L3 cache of a core
_DEVICE_BYTES = 256 * 2**20


def split_heads(x: Float[Array, "b s n"], heads: int) -> Heads:
    """Split the last axis into `(heads, n / heads)`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def attend(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Mask = None,
    bias: Float[Array, "#b #h q k"] | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Float[Array, "b q h d"]:
    """Return softmax(scale * query key^T + bias) value, with scores and softmax in float32 or wider.

    Args:
      mask: False where a key is absent.  A row of `mask` without any True gives a finite result without meaning.
      bias: added to the scores, e.g. relative positions or a causal mask.
      scale: d^-0.5 by default; T5 has 1.
      impl: 'whole', 'blocks' (no bias) or 'cudnn' (neither mask nor bias).  'auto' is 'whole' with a bias, because a bias
        takes as much memory as the scores; 'cudnn' for 16-bit inputs without mask on GPUs that have it; else 'blocks'.

    Raises:
      ValueError: `impl` does not support a mask or bias.
      UserError: unknown `impl`.
    """
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    fused = mask is None and query.dtype.itemsize == 2 and width <= _CUDNN_WIDTH and on_ampere()
    auto = "whole" if bias is not None else "cudnn" if fused else "blocks"
    chosen = choose("attention impl", impl, IMPLEMENTATIONS, auto=auto)
    if chosen == "whole":
        return _whole(query, key, value, mask, bias, scale)
    if bias is not None or (chosen == "cudnn" and mask is not None):
        raise ValueError(f"attend: impl={chosen!r} does not support this mask or bias")
    if chosen == "blocks":
        return _blocks(query, key, value, mask, scale)
    # Zeros widen the heads to whole tiles: they change no product, and `scale` is that of the true width.
    padding = ((0, 0), (0, 0), (0, 0), (0, -width % _CUDNN_TILE))
    query, key, value = (jnp.pad(x, padding) for x in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation="cudnn")[..., :width]


def _whole(query: Heads, key: Heads, value: Heads, mask: Mask, bias: Array | None, scale: float) -> Heads:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide)
    if scale != 1.0:
        scores *= scale
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def _blocks(query: Heads, key: Heads, value: Heads, mask: Mask, scale: float) -> Heads:
    """Attend with a few heads at a time; the backward pass recomputes their scores."""
    batch, length, heads, width = query.shape
    count, rows = _block_size(batch * heads, length, key.shape[1])
    query = query * scale
    if count == batch * heads:
        return _by_rows(query, key, value, mask, rows=rows)
    # The loop runs over the leading axis, and sees arrays without axes of length 1: XLA for CPUs may lay those out in
    # another order than the loop wants, and then copies them.
    stacked = lambda x: jnp.moveaxis(x, 2, 1).reshape(-1, count * x.shape[1], width)  # noqa: E731
    masks = None if mask is None else mask.repeat(heads, axis=0).reshape(-1, count, mask.shape[1])

    def attend_block(block: tuple[Array, Array, Array, Array | None]) -> Array:
        query, key, value = (x.reshape(count, -1, 1, width) for x in block[:3])
        return _by_rows(query, key, value, block[3], rows=rows).reshape(-1, width)

    mixed = jax.lax.map(attend_block, (stacked(query), stacked(key), stacked(value), masks))
    return jnp.moveaxis(mixed.reshape(batch, heads, length, width), 1, 2)


def _block_size(heads: int, length: int, keys: int) -> tuple[int, int]:
    """Return the number of heads and of query rows whose float32 scores fill a device's share of the buffer.

    Whole heads come before whole batches, because products are faster the larger they are.  Devices that share the heads
    work on all of them at once, so only rows are cut there.
    """
    budget = (_CPU_BYTES if on_cpu() else _DEVICE_BYTES) // (4 * keys)
    devices = math.prod(jax.sharding.get_abstract_mesh().axis_sizes)
    if devices == 1:
        most = min(max(budget // length, 1), heads)
        heads = next(count for count in range(most, 0, -1) if heads % count == 0)
    rows = budget * devices // heads
    return heads, length if rows >= length else max(rows // 8 * 8, 8)


def _by_rows(query: Heads, key: Heads, value: Heads, mask: Mask, *, rows: int) -> Heads:
    """Attend with at most `rows` scaled queries at a time."""
    batch, length, heads, width = query.shape
    chunks = -(-length // rows)
    rows = -(-length // chunks)  # equal chunks: padding costs as much as queries
    wide = jnp.promote_types(query.dtype, jnp.float32)
    padded = jnp.pad(query, ((0, 0), (0, chunks * rows - length), (0, 0), (0, 0)))
    stacked = jnp.moveaxis(padded.reshape(batch, chunks, rows, heads, width), (1, 3), (0, 2))
    key, value = (jnp.moveaxis(x, 2, 1) for x in (key, value))

    def attend_rows(part: Float[Array, "b h r d"]) -> Float[Array, "b h r d"]:
        """Attend with one chunk of queries."""
        scores = jnp.einsum("bhrd,bhkd->bhrk", part, key, preferred_element_type=wide)
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, _MASKED)
        # Dividing after the second product touches d numbers per row instead of k.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = jnp.einsum("bhrk,bhkd->bhrd", weights.astype(value.dtype), value, preferred_element_type=wide)
        return (mixed / weights.sum(-1, keepdims=True)).astype(value.dtype)

    mixed = jax.lax.map(jax.checkpoint(attend_rows, prevent_cse=False), stacked)
    return jnp.moveaxis(mixed, (0, 2), (1, 3)).reshape(batch, chunks * rows, heads, width)[:, :length]
