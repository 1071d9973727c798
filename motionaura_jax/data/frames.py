"""From decoded frames to RGB arrays: orientation, aspect ratio, fields, alpha, dynamic range and resizing (libswscale).

One kernel serves every resize: area averaging when shrinking (each output pixel is the mean of the input area it
covers, hence antialiased) and bilinear when enlarging, with full-resolution chroma and accurate rounding.
"""

import functools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorTrc, VideoReformatter
from jaxtyping import Float32, UInt8, UInt16

from motionaura_jax.data.mp4 import KERNEL

BACKGROUND = 255
# Encoders write ratios such as 640:639 to correct for a rounded width: not worth resampling every frame.
SQUARE_TOLERANCE = 0.01
# No real pixel is wider or higher than this; damaged headers state ratios that make frames of any size.
_MAX_PIXEL_ASPECT = 16
_BAND_PIXELS = 2**20  # large frames are converted piece by piece, to bound the memory


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
    rgba = frame
    if frame.format.name not in ("rgba", "bgra"):
        rgba = frame.reformat(format="rgba", interpolation=KERNEL, threads=1)
    opaque = av.VideoFrame(frame.width, frame.height, "bgr24" if rgba.format.name == "bgra" else "rgb24")
    source, target = _pixels(rgba, 4), _pixels(opaque, 3)
    for rows in _bands(frame.height, frame.width):
        target[rows] = over_background(source[rows])
    return opaque


def _pixels(frame: av.VideoFrame, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of a packed 8-bit frame without copying them."""
    plane: Any = frame.planes[0]  # its stubs leave out that it is a buffer
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width * channels]
    return rows.reshape(frame.height, frame.width, channels)


def _bands(height: int, width: int) -> Iterator[slice]:
    """Yield slices of rows that together hold all rows of a picture."""
    step = max(1, _BAND_PIXELS // width)
    return (slice(start, start + step) for start in range(0, height, step))


def over_background(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Composite straight-alpha RGBA over a white background, rounded to the nearest level."""
    blended = np.empty((*rgba.shape[:2], 3), np.uint8)
    for rows in _bands(*rgba.shape[:2]):
        alpha = rgba[rows, :, 3].astype(np.uint16)
        white = BACKGROUND * (255 - alpha) + 128
        for channel in range(3):  # whole rows at once are several times faster than single pixels
            scaled = rgba[rows, :, channel] * alpha + white
            blended[rows, :, channel] = (scaled + (scaled >> 8)) >> 8  # divided by 255
    return blended


class _TopFields:
    """Filter that keeps every other row of interlaced frames, those of one instant.

    It needs no other frame, so that a frame looks the same wherever decoding began.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._made_for: tuple[int, int, str] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        kind = frame.width, frame.height, frame.format.name
        if self._graph is None or kind != self._made_for:
            self._graph, self._made_for = Graph(), kind
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            self._graph.link_nodes(source, self._graph.add("field", "type=top"), self._graph.add("buffersink"))
            self._graph.configure()
        self._graph.push(frame)
        field = self._graph.pull()
        assert isinstance(field, av.VideoFrame)
        return field


def to_standard_range(rgb: UInt16[np.ndarray, "h w 3"], transfer: int) -> UInt8[np.ndarray, "h w 3"]:
    """Map BT.2020 pixels with the PQ or HLG curve (BT.2100) to sRGB.

    White of diffuse objects, 203 cd/m2 (BT.2408), becomes a light gray, and highlights bend toward white instead of being
    clipped.
    """
    light = _linear_light(transfer)
    result = np.empty(rgb.shape, np.uint8)
    for rows in _bands(*rgb.shape[:2]):
        linear = light[rgb[rows]]
        if transfer == ColorTrc.ARIB_STD_B67:  # the curve of a screen of 1000 cd/m2
            luminance = linear @ np.array([0.2627, 0.6780, 0.0593], np.float32)
            linear = linear * (1000 / _WHITE) * np.maximum(luminance, 1e-6)[..., None] ** np.float32(0.2)
        linear = np.clip(linear @ _BT2020_TO_BT709.T, 0, None)
        bent = 1 - (1 - _KNEE) * np.exp(-(np.maximum(linear, _KNEE) - _KNEE) / (1 - _KNEE))
        linear = np.where(linear > _KNEE, bent, linear)
        encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
        result[rows] = np.clip(255 * encoded + 0.5, 0, 255)
    return result


_WHITE, _KNEE = 203.0, 0.6
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


@functools.cache
def _linear_light(transfer: int) -> Float32[np.ndarray, "levels"]:
    """Return the light of each 16-bit level: in units of diffuse white for PQ, of the scene's peak for HLG."""
    level = np.linspace(0, 1, 2**16)
    if transfer == ColorTrc.SMPTE2084:
        root = level ** (32 / 2523)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (16384 / 2610)
        return (light * (10_000 / _WHITE)).astype(np.float32)
    upper = (np.exp((np.maximum(level, 0.5) - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(level <= 0.5, level**2 / 3, upper).astype(np.float32)


class FrameConverter:
    """Converter of the decoded frames of one file to upright, square-pixel RGB of one size.

    The size is that of the first frame as displayed or, with `cover` = (height, width), the smallest size of that
    shape that covers it.  Color conversion and resizing are a single pass.
    """

    def __init__(
        self, aspect: Fraction | None = None, upright: Orientation = UPRIGHT, cover: tuple[int, int] | None = None
    ):
        ratio = float(aspect or 1)
        plausible = 1 / _MAX_PIXEL_ASPECT <= ratio <= _MAX_PIXEL_ASPECT
        self._aspect = ratio if plausible and abs(ratio - 1) > SQUARE_TOLERANCE else 1.0
        self._upright = upright
        self._cover = cover
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()
        self._top_fields = _TopFields()

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
        transfer = frame.color_trc
        high_range = transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
        if frame.interlaced_frame:
            frame = self._top_fields(frame)
        scaled = self._reformatter.reformat(
            _opaque(frame),
            width=width,
            height=height,
            format="rgb48le" if high_range else "rgb24",
            interpolation=KERNEL,
            threads=1,
        ).to_ndarray()
        if high_range:
            scaled = to_standard_range(scaled, transfer)
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
