"""Decoding of video and image files by time, with PyAV (FFmpeg) and Pillow.

A clip is given by its start and frame rate.  Each of its instants gets the frame that a player would show: the last one
whose time stamp is not later.  This is exact for variable frame rates.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image, ImageOps

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.frames import (
    UPRIGHT,
    FrameConverter,
    Orientation,
    cover_size,
    orientation,
    over_background,
)
from motionaura_jax.data.timeline import MARGINS, Clock, TimedDecoder, frames_from, hold

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts",
                  ".webm", ".wmv")  # fmt: skip

MAX_FRAME_PIXELS = 2**26
"""Largest frame that is decoded (8192 x 8192)."""
MAX_CLIP_PIXELS = 2**30
"""Largest array that is decoded, frames x height x width (3.2 GB of RGB)."""

# Only plain containers are opened: playlists and scripts (HLS, DASH, concat) name other files or hosts.
_OPEN_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,gif,mpeg,mpegvideo,mpegts,asf,flv,ogg",
    "protocol_whitelist": "file",
}
# Time stamps are multiples of the container's tick: a frame up to half a tick late counts as on time.
_MAX_TOLERANCE = 0.005
_PLAUSIBLE_FPS = 240


class VideoError(UserError):
    """A file that cannot be used; the message is "PATH: fault; remedy"."""

    def __init__(self, path: str | PathLike[str], fault: str, remedy: str):
        self.path, self.fault, self.remedy = Path(path), " ".join(fault.split()), remedy
        super().__init__(f"{path}: {self.fault}; {remedy}")


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
    checked = _checked(path)
    status = checked.stat()
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
        return _collect(_all_frames(info, cover), 1)
    frames = _collect(_frames_at(info, [start + k / fps for k in range(num_frames)], cover), num_frames)
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
      fps: resample by time to this rate; None keeps every frame of the file.
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
    _check_clip_size(info, limit, None)
    if resample and fps is not None:
        frames = _collect(_frames_at(info, [k / fps for k in range(limit)], None), limit)
    else:
        # The header's count may be an estimate: frames beyond it count too.
        ceiling = max_frames or MAX_CLIP_PIXELS // (info.height * info.width)
        frames = _collect(_all_frames(info, None), ceiling)
    return frames, float(fps or info.fps)


def _checked(path: str | PathLike[str]) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise VideoError(path, "is a network address", "download the file and give its local path")
    file = Path(path)
    try:
        if not file.exists():
            raise VideoError(path, "no such file", "check the path or the manifest row")
        if file.is_dir():
            raise VideoError(path, "is a folder, not a video", "give a file, or use the folder as a manifest")
        if file.suffix.lower() not in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
            known = " ".join(suffix[1:] for suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES)
            raise VideoError(path, f"suffix {file.suffix!r} is not that of a video or image", f"use one of: {known}")
        if file.stat().st_size == 0:
            raise VideoError(path, "is empty (0 bytes)", "copy or download it again")
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be read ({error})", "check its path and permissions") from error
    return file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file; turn failures of opening, seeking and decoding inside the block into a VideoError."""
    try:
        with open(path, "rb") as file, av.open(file, "r", options=_OPEN_OPTIONS) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
                raise VideoError(path, f"has no video stream (streams: {kinds})", "remove it or give a video file")
            streams[0].thread_type = "NONE"  # loaders decode several files at once, one per thread
            streams[0].codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
            yield container, streams[0]
    except av.FFmpegError as error:
        raise VideoError(
            path, f"cannot be decoded ({error.strerror})", "the file is damaged or not a video; replace it"
        ) from error
    except OSError as error:
        raise VideoError(path, f"cannot be read ({error.strerror})", "check its permissions") from error


@functools.lru_cache(maxsize=65536)
def _probe(path: Path, _mtime_ns: int, _bytes: int) -> VideoInfo:
    """Run the cached part of `probe`.  Time stamp and size are arguments so that a changed file is read again."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = _read_still(path).shape[:2]
        return VideoInfo(path=path, frames=1, fps=1.0, duration=0.0, height=height, width=width)
    with _opened(path) as (container, stream):
        _check_frame_size(path, stream.height, stream.width)
        first = next(container.decode(stream), None)
        if first is None:
            raise VideoError(path, "holds no video frame", "remove it or replace it")
        upright = orientation(first)
        height, width = FrameConverter(stream.sample_aspect_ratio, upright).size(first)
        _check_frame_size(path, height, width)
        frames, fps, duration = _header_timing(stream)
    if not duration or not fps or fps > _PLAUSIBLE_FPS:
        frames, fps, duration = _scanned_timing(path)
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


def _header_timing(stream: VideoStream) -> tuple[int, float, float]:
    """Return (frames, fps, seconds) as the header states them, with 0 for those that it does not state.

    A duration without a number of frames is a guess of the demuxer, except for the tag in Matroska files.
    """
    fps = float(stream.average_rate or 0)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if stream.frames:
        duration = float((stream.duration or 0) * (stream.time_base or 0))
        counted = stream.frames / duration if duration else 0.0
        fps = fps if math.isclose(fps, counted, rel_tol=0.01) else counted  # the rate of a GIF is a guess
    else:
        duration = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) if tag else 0.0
    return stream.frames or max(1, round(duration * fps)), fps, duration


def _scanned_timing(path: Path) -> tuple[int, float, float]:
    """Return (frames, fps, seconds) from the time stamps of all packets, without decoding them."""
    with _opened(path) as (container, stream):
        stamps = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.size and p.pts is not None]
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        tick = float(stream.time_base or 0)
    if len(stamps) < 2:
        return 1, rate, 1 / rate
    span = (max(stamps)[0] - min(stamps)[0]) * tick
    duration = span + (max(stamps)[1] * tick or span / (len(stamps) - 1))
    return len(stamps), len(stamps) / duration, duration


def _check_frame_size(path: Path, height: int, width: int) -> None:
    if height * width > MAX_FRAME_PIXELS:
        raise VideoError(path, f"{width}x{height} exceeds the limit of {MAX_FRAME_PIXELS} pixels", "scale it down")


def _check_clip_size(info: VideoInfo, num_frames: int, cover: tuple[int, int] | None) -> None:
    height, width = cover_size(info.height, info.width, cover) if cover else (info.height, info.width)
    if num_frames * height * width > MAX_CLIP_PIXELS:
        raise VideoError(
            info.path,
            f"{num_frames} frames of {width}x{height} exceed the limit of {MAX_CLIP_PIXELS} pixels",
            "ask for fewer frames, a lower fps or a smaller size",
        )


def _read_still(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as image:
            _check_frame_size(path, image.height, image.width)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                upright = Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8))
            if upright.has_transparency_data:
                return over_background(np.asarray(upright.convert("RGBA")))
            return np.array(upright.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise VideoError(path, f"exceeds the limit of {MAX_FRAME_PIXELS} pixels", "scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise VideoError(path, "cannot be decoded as an image", "replace it, or correct its suffix") from error


def _all_frames(info: VideoInfo, cover: tuple[int, int] | None) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield every frame of a file as RGB, without regard to time."""
    if info.path.suffix.lower() in IMAGE_SUFFIXES:
        still = av.VideoFrame.from_ndarray(_read_still(info.path), format="rgb24")
        yield FrameConverter(cover=cover)(still)
        return
    with _opened(info.path) as (container, stream):
        convert = FrameConverter(stream.sample_aspect_ratio, info.upright, cover)
        clock = Clock.of(stream, info.first_stamp, info.fps)
        decoder = TimedDecoder(container, stream, clock, skip_until=-math.inf, from_start=True)
        yield from (convert(timed.frame) for timed in decoder)


def _frames_at(
    info: VideoInfo, instants: Sequence[float], cover: tuple[int, int] | None
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield the RGB frame on display at each instant (seconds, increasing); stop early if the file ends."""
    for margin in MARGINS:
        with _opened(info.path) as (container, stream):
            clock = Clock.of(stream, info.first_stamp, info.fps)
            tolerance = min(clock.tick / 2, _MAX_TOLERANCE) + 1e-6
            frames = frames_from(container, stream, clock, instants[0] + tolerance, margin)
            if frames is None:
                continue
            convert = FrameConverter(stream.sample_aspect_ratio, info.upright, cover)
            shown = None
            for timed in hold(frames, instants, tolerance):
                if timed is not shown:
                    shown, picture = timed, convert(timed.frame)
                yield picture
            return


def _collect(frames: Iterator[UInt8[np.ndarray, "h w 3"]], limit: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Stack up to `limit` frames; no frames give an empty video."""
    taken = list(itertools.islice(frames, limit))
    return np.stack(taken) if taken else np.empty((0, 0, 0, 3), np.uint8)
