"""Videos with numbered frames, written by PyAV with arbitrary time stamps."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

STEP = 8  # gray levels between neighboring test frames


def flat_frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Return frames whose gray level 16 + STEP k encodes their number k."""
    levels = (16 + STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 16) / STEP) for frame in frames]


def encode(
    path: Path,
    frames: np.ndarray,
    *,
    stamps: Sequence[int] | None = None,
    tick: Fraction = Fraction(1, 10),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
) -> Path:
    """Write frames with time stamps in ticks of `tick` seconds (0, 1, 2, ... if not given)."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=1 / tick)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.time_base = tick
        stream.options = dict(options or {})
        prepare(stream)
        for stamp, array in zip(stamps or range(len(frames)), frames, strict=True):
            source = "rgba" if array.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(array, format=source).reformat(
                format=pixels, dst_colorspace=Colorspace.ITU601
            )
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def expected_numbers(times: Sequence[float], instants: Sequence[float]) -> list[int]:
    """Return the expected frame of each instant: the last frame that starts no later, else the first."""
    return [max([i for i, time in enumerate(times) if time <= instant + 1e-4], default=0) for instant in instants]
