"""Antialiased and unbiased resizing, reversible conversion to floats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.data.frames import cover_size, over_background, resize_area, to_float, to_uint8


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_shrinking_averages_the_area_of_each_pixel() -> None:
    frames = noise(2, 48, 64, 3)
    means = frames.astype(np.float64).reshape(2, 12, 4, 16, 4, 3).mean((2, 4))
    assert np.abs(resize_area(frames, (12, 16)) - means).max() <= 2
    assert abs((resize_area(frames, (12, 16)) - means).mean()) < 0.6


def test_fine_patterns_do_not_alias() -> None:
    checkers = (np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8)
    frames = np.repeat(checkers[None, ..., None], 3, axis=-1)
    for size in (48, 40, 31):
        assert np.abs(resize_area(frames, (size, size)).astype(int) - 127).max() < 32, size


def test_enlarging_interpolates() -> None:
    ramp = np.linspace(0, 255, 16).round().astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (1, 16, 16, 3)).copy()
    steps = np.diff(resize_area(frames, (64, 64))[0, 32, :, 0].astype(int))
    assert steps.min() >= 0
    assert steps.max() <= 6


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_cover_is_the_smallest_of_its_shape(height: int, width: int, to_height: int, to_width: int) -> None:
    size = cover_size(height, width, (to_height, to_width))
    assert size[0] >= to_height
    assert size[1] >= to_width
    assert size[0] == to_height or size[1] == to_width
    assert size[0] * width == pytest.approx(size[1] * height, abs=max(height, width))
    assert resize_area(np.zeros((1, height, width, 3), np.uint8), size).shape == (1, *size, 3)


def test_floats_reach_both_ends_and_come_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    video = to_float(levels)
    assert video.dtype == np.float32
    assert (video[0], video[255]) == (-1, 1)
    np.testing.assert_allclose(video, levels.astype(np.float64) / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(to_uint8(video), levels)
    np.testing.assert_array_equal(to_uint8(np.array([-3, 7], np.float32)), [0, 255])
    with pytest.raises(ValueError, match="expected uint8"):
        to_float(video)


def test_compositing_over_white() -> None:
    rgba = noise(5, 7, 4)
    alpha = rgba[..., 3:] / 255.0
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(over_background(rgba) - expected).max() <= 0.5 + 1e-9
