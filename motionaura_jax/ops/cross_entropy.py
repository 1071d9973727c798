"""Cross entropy of a linear head that never holds all of its logits.

The log-sum-exp runs over chunks of codes with a running maximum, as in Milakov & Gimelshein 2018 ("Online normalizer
calculation for softmax", algorithm 3).  The backward pass computes each chunk of logits a second time.  Chunks are of codes
instead of tokens, because each row of the table is then gathered once and its gradient summed over devices once, however
many chunks there are.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Tokens = Float[Array, "b s d"]
Table = Float[Array, "k d"]
Bias = Float[Array, " k"] | None
Values = Float[Array, "b s"]
Sums = tuple[Values, Values, Values, Values]
Chunk = tuple[Array, Array, Array | None]
"""Ids, rows of the table, and bias of some codes."""


def cross_entropy(
    logits: Float[Array, "... k"], target: Int[Array, "..."], *, label_smoothing: float = 0.0
) -> Float[Array, "..."]:
    """Return -log softmax(logits)[target] in nats, computed in float32; smoothing mixes in the mean over all codes."""
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
    if label_smoothing:
        chosen = (1.0 - label_smoothing) * chosen + label_smoothing * logits.mean(-1)
    return normalizer - chosen


def linear_logits(hidden: Tokens, table: Table, bias: Bias = None) -> Float[Array, "b s k"]:
    """Return hidden table^T + bias, multiplied in the precision of `hidden` and accumulated in float32."""
    logits = jnp.einsum("bsd,kd->bsk", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias.astype(jnp.float32)


def linear_cross_entropy(
    hidden: Tokens,
    table: Table,
    target: Int[Array, "b s"],
    *,
    chunk: int,
    bias: Bias = None,
    label_smoothing: float = 0.0,
) -> Values:
    """Return `cross_entropy(linear_logits(hidden, table, bias), target)` with the logits of `chunk` codes at a time.

    Values and gradients equal those of the whole form up to rounding.  Logits, log-sum-exp and the sums of both gradients
    are float32; the gradients of logits enter the backward products in the precision of `hidden`.

    Args:
      chunk: codes at a time; the memory is two to three arrays of b s `chunk` numbers.  0, or at least the number of
        codes, keeps all logits and computes them once.
    """
    if not 0 < chunk < len(table):
        return cross_entropy(linear_logits(hidden, table, bias), target, label_smoothing=label_smoothing)
    return _in_chunks(hidden, table, bias, target, -(-len(table) // chunk), label_smoothing)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _in_chunks(
    hidden: Tokens, table: Table, bias: Bias, target: Int[Array, "b s"], chunks: int, smoothing: float
) -> Values:
    return _forward(hidden, table, bias, target, chunks, smoothing)[0]


def _forward(
    hidden: Tokens, table: Table, bias: Bias, target: Int[Array, "b s"], chunks: int, smoothing: float
) -> tuple[Values, tuple[Tokens, Table, Bias, Int[Array, "b s"], Values]]:
    """Return the loss, and with it what the backward pass needs."""

    def add_chunk(sums: Sums, part: Chunk) -> tuple[Sums, None]:
        """Update, over the codes so far: maximum, sum of exp(score - maximum), score of the target, sum of scores."""
        top, mass, chosen, total = sums
        ids, scores = part[0], _scores(hidden, part, len(table))
        higher = jnp.maximum(top, scores.max(-1))
        # A new maximum rescales the sum of the earlier chunks.
        mass = mass * jnp.exp(top - higher) + jnp.exp(scores - higher[..., None]).sum(-1)
        chosen += jnp.where(ids == target[..., None], scores, 0.0).sum(-1)
        total += jnp.where(ids < len(table), scores, 0.0).sum(-1) if smoothing else 0.0
        return (higher, mass, chosen, total), None

    zero = jnp.zeros(target.shape, jnp.float32)
    start = (jnp.full_like(zero, -jnp.inf), zero, zero, zero)
    (top, mass, chosen, total), _ = jax.lax.scan(add_chunk, start, _strided(table, bias, chunks))
    normalizer = top + jnp.log(mass)
    value = normalizer - (1.0 - smoothing) * chosen - smoothing * total / len(table)
    return value, (hidden, table, bias, target, normalizer)


def _backward(
    chunks: int, smoothing: float, saved: tuple[Tokens, Table, Bias, Int[Array, "b s"], Values], cotangent: Values
) -> tuple[Tokens, Table, Bias, None]:
    """Return the gradients of `hidden` and `table`: each chunk's softmax minus the (smoothed) target, times the other factor.

    That of `bias` is the sum of these differences over all positions.
    """
    hidden, table, bias, target, normalizer = saved

    def add_chunk(total: Tokens, part: Chunk) -> tuple[Tokens, tuple[Table, Bias]]:
        """Add the chunk's share to the gradient of `hidden`; return the gradients of its rows of the table and of their bias."""
        ids, rows, _ = part
        probability = jnp.exp(_scores(hidden, part, len(table)) - normalizer[..., None])
        truth = jnp.where(ids == target[..., None], 1.0 - smoothing, 0.0) + smoothing / len(table)
        exact = cotangent[..., None] * (probability - truth)
        of_bias = None if bias is None else exact.sum((0, 1))
        slope = exact.astype(hidden.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        of_rows = product("bsk,bsd->kd", slope, hidden)
        return total + product("bsk,kd->bsd", slope, rows.astype(hidden.dtype)), (of_rows, of_bias)

    def in_order(parts: Array, like: Array) -> Array:
        # Chunk c holds rows c, c + chunks, ...: swapping the axes restores the order, and the cut drops the padding.
        return parts.swapaxes(0, 1).reshape(-1, *like.shape[1:])[: len(like)].astype(like.dtype)

    start = jnp.zeros(hidden.shape, jnp.float32)
    of_hidden, (of_rows, of_bias) = jax.lax.scan(add_chunk, start, _strided(table, bias, chunks))
    biases = None if of_bias is None or bias is None else in_order(of_bias, bias)
    return of_hidden.astype(hidden.dtype), in_order(of_rows, table), biases, None


_in_chunks.defvjp(_forward, _backward)


def _scores(hidden: Tokens, part: Chunk, count: int) -> Float[Array, "b s k"]:
    """Return the logits of one chunk; those of padding rows are -inf."""
    ids, rows, bias = part
    return jnp.where(ids < count, linear_logits(hidden, rows, bias), -jnp.inf)


def _strided(table: Table, bias: Bias, chunks: int) -> Chunk:
    """Return ids, rows and bias of the chunks along a leading axis.

    Each takes every `chunks`-th row, so that rows that are sharded over devices never leave their device.
    """
    size = -(-len(table) // chunks)

    def strided(values: Array) -> Array:
        padded = jnp.pad(values, ((0, size * chunks - len(values)), *[(0, 0)] * (values.ndim - 1)))
        return padded.reshape(size, chunks, *values.shape[1:]).swapaxes(0, 1)

    ids = jnp.arange(size * chunks).reshape(size, chunks).swapaxes(0, 1)
    return ids, strided(table), None if bias is None else strided(bias)
