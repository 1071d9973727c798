"""Decoding of video and image files by time, with PyAV (FFmpeg) and Pillow.

A clip is given by its start and frame rate.  Each of its instants gets the frame that a player would show: the last one
whose time stamp is not later.  This is exact for variable frame rates.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from motionaura_jax.data.frames import UPRIGHT, FrameConverter, Orientation, cover_size, orientation
from motionaura_jax.data.images import read_still
from motionaura_jax.data.opening import (
    IMAGE_SUFFIXES,
    PIXELS_PER_BYTE,
    VIDEO_SUFFIXES,
    Budget,
    OpenVideo,
    VideoError,
    check_frame_size,
    check_path,
    frame_limit,
    media_errors,
    opened,
)
from motionaura_jax.data.timeline import MARGINS, Clock, TimedDecoder, frames_from, hold
from motionaura_jax.data.timing import header_timing, scanned_timing

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "VideoError", "VideoInfo", "check_duration", "probe", "read_clip",
           "read_video"]  # fmt: skip

logger = logging.getLogger(__name__)

MAX_CLIP_PIXELS = 2**30
"""Largest array that is decoded, frames x height x width (3.2 GB of RGB)."""
MAX_WHOLE_PIXELS = 2**26
"""Largest whole video: this many pixels and `PIXELS_PER_BYTE` for each byte of the file, up to `MAX_CLIP_PIXELS`."""

# Time stamps are multiples of the container's tick: a frame up to half a tick late counts as on time.
_MAX_TOLERANCE = 0.005
_MAX_SIDES = 64  # longer side of a picture in units of the shorter one

Picture = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Header of a file.  A still image or a one-frame video has `frames` 1, `fps` 1 and `duration` 0.

    Attributes:
      frames: the container's count, or an estimate.
      fps: average frame rate.
      duration: in seconds.
      height, width: displayed size in pixels, with rotation and sample aspect ratio applied.
      first_stamp: time stamp of the first frame in ticks of the stream; times count from it.
      upright: turns stored frames upright.
    """

    path: Path
    frames: int
    fps: float
    duration: float
    height: int
    width: int
    first_stamp: int = 0
    upright: Orientation = UPRIGHT


def probe(path: str | PathLike[str]) -> VideoInfo:
    """Read the header and one frame, which stores the rotation.  The result is cached until the file changes.

    Raises:
      VideoError: the file is missing, unreadable or holds no usable video.
    """
    checked, status = check_path(path)
    return _probe(checked, status.st_mtime_ns, status.st_size)


def check_duration(info: VideoInfo, *, start: float = 0.0, fps: float, num_frames: int) -> None:
    """Raise VideoError if the file ends before the last of the instants start, start + 1 / fps, ..."""
    span = (num_frames - 1) / fps
    if info.frames == 1 and num_frames > 1:
        kind = "is a still image" if info.path.suffix.lower() in IMAGE_SUFFIXES else "holds a single frame"
        raise VideoError(info.path, f"{kind}, too short for {num_frames} frames", "lower data.num_frames to 1")
    if info.frames > 1 and start + span >= info.duration:
        fault = f"lasts {info.duration:.2f} s, too short for {num_frames} frames at {fps:g} fps"
        fault += f" from {start:.2f} s" if start else ""
        raise VideoError(info.path, fault, "lower data.num_frames or raise data.fps")


def read_clip(
    path: str | PathLike[str], *, start: float, fps: float, num_frames: int, cover: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode `num_frames` frames at the instants start, start + 1 / fps, ...

    Args:
      path: local file; an image is a video of one frame.
      start: seconds from the first frame.
      fps: frames per second of the result, whatever the rate of the file.
      num_frames: length of the result.
      cover: (height, width); decode straight to the smallest size of the video's shape that covers it.

    Returns:
      RGB, 0 to 255, at the displayed size or the covering size.  Alpha is composited over white.

    Raises:
      VideoError: the file cannot be used, or ends before the last instant.
    """
    if num_frames < 1 or not fps > 0 or not start >= 0:
        raise ValueError(f"need num_frames >= 1, fps > 0, start >= 0, got {num_frames}, {fps}, {start}")
    info = probe(path)
    check_duration(info, start=start, fps=fps, num_frames=num_frames)
    _check_clip_size(info, num_frames, cover)
    if info.frames == 1:
        still = next((picture for _, picture in _all_frames(info, cover)), None)
        if still is None:
            raise _without_frames(info.path)
        return still[None]
    instants = [start + k / fps for k in range(num_frames)]
    frames = _stacked(_frames_at(info, instants, cover), num_frames)
    if len(frames) < num_frames:
        raise VideoError(
            path,
            f"decodes only up to {start + len(frames) / fps:.2f} s of the {info.duration:.2f} s its header promises",
            "the file is damaged or cut off; replace it",
        )
    return frames


def read_video(
    path: str | PathLike[str], *, fps: float | None = None, max_frames: int | None = None
) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """Decode a file from its first frame on.

    Args:
      path: local file; an image is a video of one frame.
      fps: resample by time to this rate; None keeps every frame of the file, unless their rate varies: then the file is
        resampled to one to two times its average rate, so that every frame comes at its time.
      max_frames: stop after this many frames.

    Returns:
      (RGB frames, 0 to 255; frames per second).  A file that was cut off gives the frames before the damage.

    Raises:
      VideoError: the file cannot be used, or is too large to hold in memory.
    """
    if (fps is not None and not fps > 0) or (max_frames is not None and max_frames < 1):
        raise ValueError(f"need fps > 0 and max_frames >= 1, got {fps}, {max_frames}")
    info = probe(path)
    resample = fps is not None and info.frames > 1
    count = max(1, math.ceil(info.duration * fps - 1e-6)) if fps is not None and resample else info.frames
    limit = count if max_frames is None else min(count, max_frames)
    size = info.path.stat().st_size
    most = min(MAX_WHOLE_PIXELS + PIXELS_PER_BYTE * size, MAX_CLIP_PIXELS)
    if limit * info.height * info.width > most:
        raise _too_large(info, limit, most, size)
    if resample and fps is not None:
        instants = [k / fps for k in range(limit)]
        frames = _stacked(_frames_at(info, instants, None), limit)
        if not len(frames):
            raise _without_frames(info.path)
        return frames, float(fps)
    # The header's count may be an estimate: frames beyond it count too.
    ceiling = most // (info.height * info.width)
    timed = list(itertools.islice(_all_frames(info, None), min(max_frames or ceiling + 1, ceiling + 1)))
    if not timed:
        raise _without_frames(info.path)
    if len(timed) > ceiling:
        raise _too_large(info, len(timed), most, size)
    rate, shown = _constant_rate(info, [time for time, _ in timed])
    timed.reverse()
    frames = _stacked((timed.pop()[1] for _ in range(len(timed))), len(timed))  # never holds all of them twice
    return frames if shown is None else frames[shown[: max_frames or ceiling]], float(fps or rate)


def _constant_rate(info: VideoInfo, times: Sequence[float]) -> tuple[float, list[int] | None]:
    """Return the rate at which to show frames that begin at `times`, and which frames; None stands for each one once."""
    if len(times) < 2:
        return info.fps, None
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0 else info.fps
    if all(abs(time - times[0] - k / rate) <= 0.5 / rate + _MAX_TOLERANCE for k, time in enumerate(times)):
        return info.fps if math.isclose(rate, info.fps, rel_tol=0.01) else rate, None
    begins = np.maximum.accumulate(times)
    rate = max(rate, min(2 * rate, 1 / max(float(np.median(np.diff(begins))), 1e-6)))
    logger.warning("%s: has a variable frame rate; resampled by time to %.5g fps", info.path, rate)
    instants = begins[0] + np.arange(math.floor(span * rate + _MAX_TOLERANCE) + 1) / rate
    return rate, np.maximum(np.searchsorted(begins, instants + _MAX_TOLERANCE, side="right") - 1, 0).tolist()


@functools.lru_cache(maxsize=65536)
def _probe(path: Path, _mtime_ns: int, _bytes: int) -> VideoInfo:
    """Run the cached part of `probe`.  Time stamp and size are arguments so that a changed file is read again."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = read_still(path).shape[:2]
        _check_shape(path, height, width)
        return VideoInfo(path=path, frames=1, fps=1.0, duration=0.0, height=height, width=width)
    with opened(path) as video:
        first = next((frame for frame in _decoded(video) if not frame.is_corrupt), None)
        if first is None:
            raise _without_frames(path)
        upright = orientation(first)
        height, width = FrameConverter(video.stream.sample_aspect_ratio, upright).size(first)
        check_frame_size(path, height, width, frame_limit(video.decoder))
        _check_shape(path, height, width)
        frames, fps, duration = header_timing(video, first.pts or 0) or scanned_timing(video)
    if frames == 1:
        fps, duration = 1.0, 0.0
    return VideoInfo(
        path=path,
        frames=frames,
        fps=fps,
        duration=duration,
        height=height,
        width=width,
        first_stamp=first.pts or 0,
        upright=upright,
    )


def _without_frames(path: Path) -> VideoError:
    return VideoError(path, "holds no frame that can be decoded", "remove it or replace it")


def _decoded(video: OpenVideo) -> Iterator[av.VideoFrame]:
    for packet in video.packets():
        yield from video.decode(packet)


def _check_shape(path: Path, height: int, width: int) -> None:
    if max(height, width) > _MAX_SIDES * min(height, width):
        raise VideoError(path, f"{width}x{height} is too narrow", "crop it or leave it out")


def _check_clip_size(info: VideoInfo, num_frames: int, cover: tuple[int, int] | None) -> None:
    height, width = cover_size(info.height, info.width, cover) if cover else (info.height, info.width)
    if num_frames * height * width > MAX_CLIP_PIXELS:
        raise _too_large(dataclasses.replace(info, height=height, width=width), num_frames, MAX_CLIP_PIXELS)


def _too_large(info: VideoInfo, num_frames: int, most: int, size: int = 0) -> VideoError:
    fault = f"{num_frames} frames of {info.width}x{info.height} exceed the limit of {most} pixels"
    fault += f" for a file of {size} bytes" if most < MAX_CLIP_PIXELS else ""
    return VideoError(info.path, fault, "ask for fewer frames, a lower fps or a smaller size")


def _all_frames(info: VideoInfo, cover: tuple[int, int] | None) -> Iterator[tuple[float, Picture]]:
    """Yield the time in seconds and the RGB picture of every frame of a file."""
    if info.path.suffix.lower() in IMAGE_SUFFIXES:
        still = read_still(info.path)
        with media_errors(info.path):
            yield 0.0, FrameConverter(cover=cover)(av.VideoFrame.from_ndarray(still, format="rgb24"))
        return
    with opened(info.path) as video:
        convert = FrameConverter(video.stream.sample_aspect_ratio, info.upright, cover)
        clock = Clock.of(video.stream, info.first_stamp, info.fps)
        decoder = TimedDecoder(video, clock, skip_until=-math.inf, from_start=True)
        yield from ((timed.start, convert(timed.frame)) for timed in decoder)


def _frames_at(info: VideoInfo, instants: Sequence[float], cover: tuple[int, int] | None) -> Iterator[Picture]:
    """Yield the RGB frame on display at each instant (seconds, increasing); stop early if the file ends."""
    budget: Budget | None = None
    for margin in MARGINS:
        with opened(info.path, budget) as video:
            budget = video.budget
            clock = Clock.of(video.stream, info.first_stamp, info.fps)
            tolerance = min(clock.tick / 2, _MAX_TOLERANCE) + 1e-6
            frames = frames_from(video, clock, instants[0] + tolerance, margin)
            if frames is None:
                continue
            convert = FrameConverter(video.stream.sample_aspect_ratio, info.upright, cover)
            shown = None
            for timed in hold(frames, instants, tolerance):
                if timed is not shown:
                    shown, picture = timed, convert(timed.frame)
                yield picture
            return


def _stacked(pictures: Iterator[Picture], count: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Stack up to `count` pictures of one size, without ever holding them twice; no pictures give an empty video."""
    frames, filled = np.empty((0, 0, 0, 3), np.uint8), 0
    for picture in itertools.islice(pictures, count):
        if not filled:
            frames = np.empty((count, *picture.shape), np.uint8)
        frames[filled] = picture
        filled += 1
    return frames[:filled]
