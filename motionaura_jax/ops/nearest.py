"""Nearest code of a vector quantizer without the table of all distances.  van den Oord et al. 2017, equation 1."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from motionaura_jax.ops.dispatch import choose, on_cpu

IMPLEMENTATIONS = ("blocks", "argmin")

_BLOCK = 128  # codes per block of the two-level search


def nearest_code(
    z: Float[Array, "n d"], codebook: Float[Array, "k d"], *, chunk: int | None = None, impl: str = "auto"
) -> Int[Array, " n"]:
    """Return argmin_k |z_n - e_k|^2 in fp32; equal distances give the lowest index.

    |z|^2 is the same for every code, so the largest score 2 z.e - |e|^2 decides.  There is no gradient: both arguments
    pass through `stop_gradient`, and a quantizer adds its own straight-through estimator.

    Args:
      z: vectors, any float dtype.
      codebook: the codes.
      chunk: vectors per step; the memory is 2 to 3 chunks of k fp32 scores.  None means 256 on CPU (the scores stay
        in the cache) and 4096 on other devices.
      impl: 'blocks', chunked with a two-level maximum; 'argmin', the plain reference, which holds all n k
        scores; 'auto' is 'blocks' on every backend.

    Returns:
      int32 indices in [0, k), also for vectors that are not finite.

    Raises:
      ValueError: `chunk` is less than 1.
      UserError: unknown `impl`.
    """
    chosen = choose("nearest impl", impl, IMPLEMENTATIONS, auto="blocks")
    vectors = lax.stop_gradient(z).astype(jnp.float32)
    codes = lax.stop_gradient(codebook).astype(jnp.float32)
    norms = jnp.sum(codes * codes, axis=-1)
    if chosen == "argmin":
        return jnp.argmin(-_scores(vectors, codes, norms), axis=-1).astype(jnp.int32)
    chunk = (256 if on_cpu() else 4096) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"nearest_code: chunk is {chunk}, must be at least 1")
    return _chunked(vectors, codes, norms, chunk)


def _scores(vectors: Array, codes: Array, norms: Array) -> Float[Array, "n k"]:
    return 2 * jnp.matmul(vectors, codes.T, precision=lax.Precision.HIGHEST) - norms


def _chunked(vectors: Array, codes: Array, norms: Array, chunk: int) -> Int[Array, " n"]:
    """Search a chunk of vectors at a time."""
    count, size = len(vectors), len(codes)
    steps = -(-max(count, 1) // chunk)
    chunk = -(-max(count, 1) // steps)  # equal chunks: padding costs as much as vectors
    width = min(_BLOCK, size)
    extra = -size % width
    # An infinite norm makes the codes that pad the last block lose against every real one.
    codes = jnp.pad(codes, ((0, extra), (0, 0)))
    norms = jnp.pad(norms, (0, extra), constant_values=jnp.inf)
    # Each step takes every steps-th vector, so that vectors that are sharded over devices never leave their device.
    strided = jnp.pad(vectors, ((0, steps * chunk - count), (0, 0))).reshape(chunk, steps, -1).swapaxes(0, 1)
    found = lax.map(lambda rows: _argmax(_scores(rows, codes, norms), width), strided)
    # NaN scores can select a padding code.
    return jnp.minimum(found.swapaxes(0, 1).reshape(-1)[:count], size - 1)


def _argmax(scores: Float[Array, "n k"], width: int) -> Int[Array, " n"]:
    """Return the argmax of each row in two levels: the best block, then the best code in it.

    On CPU a maximum over blocks vectorizes and an argmax over all codes does not.
    """
    blocks = scores.reshape(len(scores), -1, width)
    best = jnp.argmax(blocks.max(axis=-1), axis=-1)
    row = jnp.take_along_axis(blocks, best[:, None, None], axis=1)[:, 0]
    return (best * width + jnp.argmax(row, axis=-1)).astype(jnp.int32)
