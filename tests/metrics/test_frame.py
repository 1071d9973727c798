"""PSNR and SSIM against closed forms and a slow reference that sums every window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionaura_jax.metrics.frame import MAX_PSNR, psnr, ssim


def test_psnr_of_a_constant_offset_is_its_closed_form():
    a = np.full((3, 8, 8, 3), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20.0)
    assert psnr(np.full((1, 4, 4, 3), 10, np.uint8), np.full((1, 4, 4, 3), 15, np.uint8)) == pytest.approx(
        20 * np.log10(255 / 5)
    )


def test_psnr_averages_decibels_over_frames_not_errors():
    a = np.zeros((2, 4, 4, 1))
    b = np.stack([np.full((4, 4, 1), 0.1), np.full((4, 4, 1), 0.01)])
    assert psnr(a, b) == pytest.approx(30.0)


def test_psnr_of_equal_frames_is_finite():
    a = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert psnr(a, a) == MAX_PSNR
    assert psnr(np.zeros((1, 4, 4, 3)), np.ones((1, 4, 4, 3))) == pytest.approx(0.0)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 6, 3), (2, 4, 4, 1), (2, 3, 4, 5, 3)]))
@settings(max_examples=20, deadline=None)
def test_psnr_is_symmetric_and_the_same_for_bytes_and_unit_floats(seed, shape):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    assert psnr(a, b) == psnr(b, a)
    assert psnr(a / 255, b / 255) == pytest.approx(psnr(a, b))


def _slow_ssim(a, b):
    """Compute SSIM window by window with centered moments, in place of filtered second moments."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for frame_a, frame_b in zip(a, b, strict=True):
        for channel in range(a.shape[-1]):
            for y in range(a.shape[1] - 10):
                for x in range(a.shape[2] - 10):
                    p = frame_a[y : y + 11, x : x + 11, channel]
                    q = frame_b[y : y + 11, x : x + 11, channel]
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


def test_ssim_agrees_with_a_reference_that_sums_every_window():
    rng = np.random.default_rng(1)
    a = rng.random((2, 14, 17, 3))
    b = np.clip(0.7 * a + 0.3 * rng.random(a.shape), 0, 1)
    assert ssim(a, b) == pytest.approx(_slow_ssim(a, b), abs=1e-10)
    a_bytes, b_bytes = np.round(255 * a).astype(np.uint8), np.round(255 * b).astype(np.uint8)
    assert ssim(a_bytes, b_bytes) == pytest.approx(_slow_ssim(a_bytes / 255, b_bytes / 255), abs=1e-10)


def test_ssim_closed_forms():
    rng = np.random.default_rng(2)
    a = rng.random((1, 16, 16, 3))
    assert ssim(a, a) == pytest.approx(1.0)
    low, high = np.full((1, 16, 16, 1), 0.25), np.full((1, 16, 16, 1), 0.75)
    assert ssim(low, high) == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4))


def test_ssim_falls_with_noise():
    rng = np.random.default_rng(3)
    a = rng.random((1, 32, 32, 3)) * 0.5 + 0.25
    noise = rng.uniform(-1, 1, a.shape)
    scores = [ssim(a, np.clip(a + amount * noise, 0, 1)) for amount in (0.0, 0.1, 0.25)]
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input_is_a_value_error(metric):
    good = np.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match="shapes"):
        metric(good, np.zeros((2, 16, 16, 3)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metric(good, good - 1)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metric(good, good + np.nan)
    with pytest.raises(ValueError, match="uint8 or float"):
        metric(good, good.astype(np.int32))
    with pytest.raises(ValueError, match="H, W, C"):
        metric(good[:0], good[:0])


@pytest.mark.parametrize(("height", "width", "known"), [(10, 16, False), (16, 10, False), (11, 11, True)])
def test_ssim_is_nan_where_no_window_fits(height, width, known):
    frames = np.full((2, height, width, 3), 99, np.uint8)
    assert np.isnan(ssim(frames, frames)) != known
    assert psnr(frames, frames) == MAX_PSNR
