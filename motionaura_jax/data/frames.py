"""From decoded frames to RGB arrays: orientation, sample aspect ratio, alpha and antialiased resizing (libswscale).

One kernel serves every resize: area averaging when shrinking (each output pixel is the mean of the input area it
covers, hence antialiased) and bilinear when enlarging, with full-resolution chroma and accurate rounding.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float32, UInt8

# Without FULL_CHR_H_INT the YUV to RGB step is biased by -1.5 to -2.3 gray levels (measured on real clips).
KERNEL = int(Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
BACKGROUND = 255
# Encoders write ratios such as 640:639 to correct for a rounded width: not worth resampling every frame.
SQUARE_TOLERANCE = 0.01


def cover_size(height: int, width: int, cover: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (height, width) of the same shape that covers `cover` = (height, width), in pixels."""
    scale = max(cover[0] / height, cover[1] / width)
    return max(cover[0], round(height * scale)), max(cover[1], round(width * scale))


class Orientation(NamedTuple):
    """Steps that turn a stored frame upright, in the order in which they apply."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False


UPRIGHT = Orientation()


def orientation(frame: av.VideoFrame) -> Orientation:
    """Read the display matrix of a frame, rounded to quarter turns and mirrorings.

    The matrix maps the pixel (x, y) to (a x + c y, b x + d y).  Call this once per file: reading the side data of a frame
    makes PyAV create a reference cycle that keeps the frame and the decoder's memory alive.
    """
    a, b, c, d = _display_matrix(frame)
    if abs(b) > abs(a):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


def _display_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
    try:
        side_data: Any = frame.side_data
        data = side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV cannot list side data of kinds that it does not know (EXIF), but it still reports the rotation.
        angle = math.radians(frame.rotation)
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return a, b, c, d


def _opaque(frame: av.VideoFrame) -> av.VideoFrame:
    """Composite a frame with an alpha channel over white; return other frames unchanged."""
    if frame.format.name != "pal8" and not any(component.is_alpha for component in frame.format.components):
        return frame
    rgba = frame.reformat(format="rgba", interpolation=KERNEL, threads=1).to_ndarray()
    return av.VideoFrame.from_ndarray(over_background(rgba), format="rgb24")


def over_background(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Composite straight-alpha RGBA over a white background, rounded to the nearest level."""
    alpha = rgba[..., 3:].astype(np.uint32)
    blended = rgba[..., :3] * alpha + BACKGROUND * (255 - alpha)
    return ((blended + 127) // 255).astype(np.uint8)


class FrameConverter:
    """Converter of the decoded frames of one file to upright, square-pixel RGB of one size.

    The size is that of the first frame as displayed or, with `cover` = (height, width), the smallest size of that
    shape that covers it.  Color conversion and resizing are a single pass.
    """

    def __init__(
        self, aspect: Fraction | None = None, upright: Orientation = UPRIGHT, cover: tuple[int, int] | None = None
    ):
        self._aspect = float(aspect) if aspect and abs(aspect - 1) > SQUARE_TOLERANCE else 1.0
        self._upright = upright
        self._cover = cover
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return the (height, width) in pixels of every array that this converter makes; `frame` is the first frame."""
        if self._size is None:
            height, width = frame.height, max(1, round(frame.width * self._aspect))
            if self._upright.transpose:
                height, width = width, height
            self._size = cover_size(height, width, self._cover) if self._cover else (height, width)
        return self._size

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """Convert one frame."""
        height, width = self.size(frame)
        if self._upright.transpose:
            height, width = width, height
        scaled = self._reformatter.reformat(
            _opaque(frame), width=width, height=height, format="rgb24", interpolation=KERNEL, threads=1
        ).to_ndarray()
        if self._upright.transpose:
            scaled = scaled.transpose(1, 0, 2)
        return scaled[:: -1 if self._upright.flip_rows else 1, :: -1 if self._upright.flip_columns else 1]


def resize_area(frames: UInt8[np.ndarray, "t h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "t height width 3"]:
    """Resize RGB frames to exactly `size` = (height, width) with the kernel of the module."""
    reformatter = VideoReformatter()
    scaled = (
        reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"),
            width=size[1],
            height=size[0],
            format="rgb24",
            interpolation=KERNEL,
            threads=1,
        )
        for frame in frames
    )
    return np.stack([frame.to_ndarray() for frame in scaled])


def to_float(frames: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Map 0 to 255 onto -1 to 1, both ends exact.  Raises ValueError for any type but uint8."""
    if frames.dtype != np.uint8:
        raise ValueError(f"expected uint8 frames, got {frames.dtype}")
    video = np.divide(frames, np.float32(127.5), dtype=np.float32)
    video -= 1
    return video


def to_uint8(video: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Invert `to_float`: round to the nearest level and clip values beyond -1 to 1."""
    return ((np.clip(video, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8)
