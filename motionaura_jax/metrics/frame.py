"""Fidelity of frames: PSNR, and SSIM (Wang et al. 2004).  Results are means over frames, as in MotionAura table 1.

Both take two arrays of shape (..., H, W, C), uint8 (0 to 255) or float (0 to 1).  Values in [-1, 1], the range inside the
models, are an error instead of a wrong score.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import ndimage

MAX_PSNR = 100.0
"""PSNR in dB of equal frames, instead of infinity, so that one perfect frame does not decide the mean."""

_RANGE_TOLERANCE = 1e-3  # of float values outside [0, 1]: rounding, not a wrong range
_GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW = _GAUSSIAN / _GAUSSIAN.sum()
_K1, _K2 = 0.01, 0.03


def _unit_frames(values: ArrayLike, name: str) -> Float[np.ndarray, "n h w c"]:
    array = np.asarray(values)
    if array.ndim < 3 or not array.size:
        raise ValueError(f"{name}: expected frames of shape (..., H, W, C), got {array.shape}")
    scale = 1.0
    if array.dtype == np.uint8:
        scale = 255.0
    elif not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name}: expected uint8 or float frames, got {array.dtype}")
    frames = array.reshape(-1, *array.shape[-3:]).astype(np.float64) / scale
    if not (frames.min() >= -_RANGE_TOLERANCE and frames.max() <= 1 + _RANGE_TOLERANCE):
        raise ValueError(f"{name}: values span [{frames.min():.4g}, {frames.max():.4g}], expected floats within [0, 1]")
    return frames


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    shapes = np.shape(a), np.shape(b)
    if shapes[0] != shapes[1]:
        raise ValueError(f"frames of different shapes: {shapes[0]} and {shapes[1]}")
    return _unit_frames(a, "first argument"), _unit_frames(b, "second argument")


def psnr(a: ArrayLike, b: ArrayLike) -> float:
    """Return the mean over frames of the peak signal-to-noise ratio 10 log10(1 / MSE), in dB.

    Args:
      a, b: (..., H, W, C), uint8 or floats in [0, 1].

    Returns:
      dB, at most MAX_PSNR for every frame.

    Raises:
      ValueError: different shapes, no frames, or values out of range (NaN included).
    """
    first, second = _pair(a, b)
    error = ((first - second) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(error, 10 ** (-MAX_PSNR / 10)))))


def _local_mean(frame: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h-10 w-10 c"]:
    """Return Gaussian means of the windows inside the frame."""
    radius = len(_WINDOW) // 2
    blurred = ndimage.correlate1d(ndimage.correlate1d(frame, _WINDOW, axis=0), _WINDOW, axis=1)
    return blurred[radius:-radius, radius:-radius]


def _ssim_frame(a: Float[np.ndarray, "h w c"], b: Float[np.ndarray, "h w c"]) -> float:
    mean_a, mean_b = _local_mean(a), _local_mean(b)
    variance_a = _local_mean(a * a) - mean_a**2
    variance_b = _local_mean(b * b) - mean_b**2
    covariance = _local_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _K1**2) / (mean_a**2 + mean_b**2 + _K1**2)
    structure = (2 * covariance + _K2**2) / (variance_a + variance_b + _K2**2)
    return float((luminance * structure).mean())


def ssim(a: ArrayLike, b: ArrayLike) -> float:
    """Return the mean over frames of the structural similarity, averaged over channels and valid 11x11 windows.

    Wang et al. 2004, equation 13: Gaussian window with sigma 1.5, K1 = 0.01, K2 = 0.03, population variances.

    Args:
      a, b: (..., H, W, C), uint8 or floats in [0, 1].

    Returns:
      A number in [-1, 1]; 1 for equal frames.  NaN (null in JSON results) for frames with a side under 11, which have no
      window.

    Raises:
      ValueError: different shapes, no frames, or values out of range (NaN included).
    """
    first, second = _pair(a, b)
    if min(first.shape[1:3]) < len(_WINDOW):
        return math.nan
    return float(np.mean([_ssim_frame(x, y) for x, y in zip(first, second, strict=True)]))
