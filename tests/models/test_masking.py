"""Random masking: fractions, fills, independence from the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.autoencoders.config import MaskConfig
from motionaura_jax.models.autoencoders.masking import mask_strength, mask_video

mask = jax.jit(mask_video, static_argnums=0)
FILL = jnp.array([0.25, -0.5, 0.75])


def _video(batch: int, frames: int = 4, size: int = 64) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (batch, frames, size, size, 3), minval=-1.0, maxval=1.0)


def _keys(batch: int) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(batch, dtype=jnp.int32))


def _hidden(video: jax.Array, masked: jax.Array) -> np.ndarray:
    return np.asarray((masked != video).all(-1))


def test_whole_frame_takes_the_fill() -> None:
    config, video = MaskConfig(frame_probability=1.0, patch_probability=0.0), _video(64, size=8)
    masked, index = mask(config, _keys(64), video, FILL)
    hidden = _hidden(video, masked)
    for clip, frame in enumerate(np.asarray(index)):
        assert hidden[clip, frame].all() and hidden[clip].sum() == 64
        np.testing.assert_array_equal(masked[clip, frame], jnp.broadcast_to(FILL, (8, 8, 3)))
    assert set(np.asarray(index).tolist()) == {0, 1, 2, 3}


def test_patch_fraction_and_sizes() -> None:
    config, video = MaskConfig(frame_probability=0.0, patch_probability=1.0, patch_ratio=0.3), _video(64)
    masked, index = mask(config, _keys(64), video, FILL)
    hidden = _hidden(video, masked)
    assert (np.asarray(index) == -1).all()
    assert hidden.mean() == pytest.approx(0.3, abs=0.03)
    cells = hidden.reshape(64, 4, 4, 16, 4, 16)
    assert (cells.all((3, 5)) == cells.any((3, 5))).all()
    coarse = hidden.reshape(64, 4, 2, 32, 2, 32)
    clips_with_large_patches = (coarse.all((3, 5)) == coarse.any((3, 5))).all((1, 2, 3))
    assert 0.3 < clips_with_large_patches.mean() < 0.7


def test_probabilities_are_scaled_by_the_strength() -> None:
    config, video = MaskConfig(frame_probability=0.8, patch_probability=0.0), _video(400, 2, 2)
    _, index = mask(config, _keys(400), video, FILL, 0.5)
    assert float((index >= 0).mean()) == pytest.approx(0.4, abs=0.07)
    masked, index = mask(MaskConfig(frame_probability=1.0, patch_probability=1.0), _keys(400), video, FILL, 0.0)
    np.testing.assert_array_equal(masked, video)
    assert int(index.max()) == -1


def test_strength_anneals_to_zero_at_the_end() -> None:
    config = MaskConfig(anneal=0.2)
    values = [float(mask_strength(config, progress)) for progress in (0.0, 0.8, 0.9, 1.0)]
    np.testing.assert_allclose(values, [1.0, 1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("fill", ["copy_neighbour", "shuffle"])
def test_masked_frame_is_another_frame_of_the_clip(fill: str) -> None:
    config, video = MaskConfig(frame_probability=1.0, patch_probability=0.0, frame_fill=fill), _video(32, size=4)
    masked, index = mask(config, _keys(32), video, FILL)
    distances = set()
    for clip, frame in enumerate(np.asarray(index)):
        source = [i for i in range(4) if bool((video[clip, i] == masked[clip, frame]).all())]
        assert len(source) == 1 and source[0] != frame
        distances.add(abs(source[0] - int(frame)))
    assert distances == {1} if fill == "copy_neighbour" else distances > {1}


def test_image_keeps_its_only_frame() -> None:
    config, video = MaskConfig(frame_probability=1.0, patch_probability=0.0), _video(3, 1, 8)
    masked, index = mask(config, _keys(3), video, FILL)
    np.testing.assert_array_equal(masked, video)
    assert index.tolist() == [-1, -1, -1]


def test_result_does_not_depend_on_the_batch() -> None:
    config, video = MaskConfig(frame_probability=1.0, patch_probability=1.0), _video(4, 4, 32)
    whole, index = mask(config, _keys(4), video, FILL)
    part, part_index = mask(config, _keys(4)[2:3], video[2:3], FILL)
    np.testing.assert_array_equal(whole[2:3], part)
    assert int(index[2]) == int(part_index[0])


def test_fill_is_learned_and_odd_sizes_work() -> None:
    config = MaskConfig(frame_probability=1.0, patch_probability=1.0)
    video = _video(2)[:, :, :37, :51]
    gradient = jax.grad(lambda fill: mask(config, _keys(2), video, fill)[0].sum())(FILL)
    assert bool((gradient > 0).all())
