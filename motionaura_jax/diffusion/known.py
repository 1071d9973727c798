"""Latent frames that a sample is given, as windows of long videos and interpolation have them.  Own construction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key


def known_frames(keys: Key[Array, " b"], frames: int, share: float) -> Bool[Array, "b t"]:
    """Choose which of `frames` latent frames are given; each sample depends on its key alone.

    In `share` of the samples some frames are given and some are not: with equal odds a prefix of uniformly distributed
    length, or keyframes, each frame with a probability that is itself uniform.  In the other samples none is.

    Raises:
      ValueError: fewer than 2 frames: one is given and another generated.
    """
    if frames < 2:
        raise ValueError(f"frames={frames}: a clip needs at least 2 to have one that is given")

    def one(key: Array) -> Array:
        chosen, kind, length, rate, noise, kept, hidden = jax.random.split(key, 7)
        places = jnp.arange(frames)
        prefix = places < jax.random.randint(length, (), 1, frames)
        keyframes = jax.random.uniform(noise, (frames,)) < jax.random.uniform(rate)
        # At least one frame is given and another one is not: two different places, each uniform.
        given = jax.random.randint(kept, (), 0, frames)
        open_ = (given + jax.random.randint(hidden, (), 1, frames)) % frames
        keyframes = (keyframes | (places == given)) & (places != open_)
        known = jnp.where(jax.random.bernoulli(kind), prefix, keyframes)
        return known & jax.random.bernoulli(chosen, share)

    return jax.vmap(one)(keys)
