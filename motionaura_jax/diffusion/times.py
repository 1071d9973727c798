"""Training times that cover (0, 1] evenly in every step.  Kingma et al. 2021 (VDM), appendix I.1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def stratified(key: Key[Array, ""], sample: Int[Array, " b"], batch_size: int) -> Float[Array, " b"]:
    """Draws one time per sample such that the global batch has exactly one in each of its `batch_size` equal strata.

    u_i = (permutation[sample_i] + offset) / batch_size.  Permutation and offset depend on `key` alone, so that the time
    of a sample depends neither on the microbatch nor on the device it is in.  Each u_i by itself is uniform.

    Args:
      key: shared by all samples of the step (not the per-sample keys).
      sample: rows within the global batch, in [0, batch_size).
      batch_size: global batch size, over all devices and microbatches.
    """
    order_key, offset_key = jax.random.split(key)
    stratum = jax.random.permutation(order_key, batch_size)[sample]
    offset = 1.0 - jax.random.uniform(offset_key)  # in (0, 1]
    return (stratum + offset) / jnp.float32(batch_size)
