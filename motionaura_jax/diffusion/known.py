"""Parts of a clip that are given: for inpainting, windows of long videos and interpolation.  Own construction."""

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Bool, Key


def latent_mask(
    mask: Bool[Array, "b t h w"], strides: tuple[int, int, int], *, causal: bool = False, grow: int = 1
) -> Bool[Array, "b t2 h2 w2"]:
    """Return the latent cells to generate for the pixels to generate: each cell that holds one, and its neighbors in space.

    Args:
      mask: True at pixels to generate; videos of any size, padded to whole cells.
      strides: frames, rows and columns of a cell.
      causal: the first latent frame holds one frame alone.
      grow: rows and columns of neighbors, because a cell also encodes pixels near it.
    """
    frames, rows, columns = strides
    before = frames - 1 if causal else 0  # as if the other frames of the first cell came before the clip
    sizes = (before + mask.shape[1], *mask.shape[2:])
    ends = [(0, -size % stride) for size, stride in zip(sizes, strides, strict=True)]
    mask = jnp.pad(mask, ((0, 0), (before, ends[0][1]), *ends[1:]))
    cells = reduce(mask, "b (t f) (h r) (w c) -> b t h w", "max", f=frames, r=rows, c=columns)
    side = 2 * grow + 1
    return jax.lax.reduce_window(cells, False, jax.lax.bitwise_or, (1, 1, side, side), (1, 1, 1, 1), "SAME")


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
