"""Random masking of frames and patches during tokenizer training.  MotionAura section 3.1; ratios in docs/fidelity.md."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.models.autoencoders.config import MaskConfig


def mask_strength(config: MaskConfig, progress: Float[Array, ""] | float) -> Float[Array, ""]:
    """Return the factor on all masking probabilities: 1, then linearly to 0 over the last `config.anneal` of training.

    Training thus ends on whole clips, as inference sees them.  `progress` is step / total_steps in [0, 1].
    """
    if not config.anneal:
        return jnp.ones(())
    return jnp.clip((1.0 - progress) / config.anneal, 0.0, 1.0)


def mask_video(
    config: MaskConfig,
    keys: Key[Array, " b"],
    video: Float[Array, "b t h w 3"],
    fill: Float[Array, "3"],
    strength: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, "b t h w 3"], Int[Array, " b"]]:
    """Mask patches, then one whole frame, of each clip independently.

    Args:
      keys: one key per clip, so that the result does not depend on the batch.
      video: values in [-1, 1].
      fill: RGB value of masked pixels: the learned vector, or a constant.
      strength: from `mask_strength`; 0 turns masking off.

    Returns:
      (masked video, index of the masked frame or -1).  The only frame of an image is never masked.
    """
    # Broadcast the color to clips first: its gradient is then summed over the pixels of each clip, then over clips and
    # devices, so that one pixel-sized sum does not cross devices.
    fills = jnp.broadcast_to(fill, (video.shape[0], 3))
    return jax.vmap(lambda key, clip, color: _mask_clip(config, key, clip, color, strength))(keys, video, fills)


def _mask_clip(
    config: MaskConfig,
    key: Key[Array, ""],
    clip: Float[Array, "t h w 3"],
    fill: Float[Array, "3"],
    strength: Array | float,
) -> tuple[Float[Array, "t h w 3"], Int[Array, ""]]:
    patch_key, frame_key = jax.random.split(key)
    hidden = _patch_mask(config, patch_key, clip.shape, strength)
    clip = jnp.where(hidden[..., None], fill.astype(clip.dtype), clip)
    frames = clip.shape[0]
    if frames == 1:
        return clip, jnp.int32(-1)
    apply_key, index_key, source_key = jax.random.split(frame_key, 3)
    index = jax.random.randint(index_key, (), 0, frames)
    replacement = _replacement(config, source_key, clip, index, fill)
    applied = jax.random.uniform(apply_key) < config.frame_probability * strength
    here = applied & (jnp.arange(frames) == index)
    return jnp.where(here[:, None, None, None], replacement, clip), jnp.where(applied, index, -1).astype(jnp.int32)


def _replacement(
    config: MaskConfig,
    key: Key[Array, ""],
    clip: Float[Array, "t h w 3"],
    index: Int[Array, ""],
    fill: Float[Array, "3"],
) -> Float[Array, "h w 3"]:
    frames = clip.shape[0]
    if config.frame_fill == "fill":
        return jnp.broadcast_to(fill.astype(clip.dtype), clip.shape[1:])
    if config.frame_fill == "copy_neighbour":
        return clip[jnp.where(index == 0, 1, index - 1)]
    return clip[(index + jax.random.randint(key, (), 1, frames)) % frames]  # any frame but the masked one


def _patch_mask(
    config: MaskConfig, key: Key[Array, ""], shape: tuple[int, ...], strength: Array | float
) -> Bool[Array, "t h w"]:
    apply_key, size_key, *grid_keys = jax.random.split(key, 2 + len(config.patch_sizes))
    grids = [_grid(k, shape, size, config.patch_ratio) for k, size in zip(grid_keys, config.patch_sizes, strict=True)]
    chosen = jnp.stack(grids)[jax.random.randint(size_key, (), 0, len(grids))]
    return chosen & (jax.random.uniform(apply_key) < config.patch_probability * strength)


def _grid(key: Key[Array, ""], shape: tuple[int, ...], size: int, ratio: float) -> Bool[Array, "t h w"]:
    frames, height, width = shape[:3]
    cells = jax.random.bernoulli(key, ratio, (frames, -(-height // size), -(-width // size)))
    return jnp.repeat(jnp.repeat(cells, size, axis=1), size, axis=2)[:, :height, :width]
