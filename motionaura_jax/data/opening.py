"""Opening of untrusted media files, with PyAV (FFmpeg).

Every reader of media goes through this module. Whatever goes wrong inside a decoder becomes a `VideoError`, which costs a
training one file, and a reading may use processor time and pixels only in proportion to the size of its file.
"""

import contextlib
import dataclasses
import errno
import io
import os
import re
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from motionaura_jax.core.errors import UserError, reason
from motionaura_jax.core.files import kind_of

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".3g2", ".3gp", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
                  ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv")  # fmt: skip

MAX_FRAME_PIXELS = 2**25
"""Largest video frame that is decoded (8192 x 4096)."""
PIXELS_PER_BYTE = 2**16
"""Pixels that each byte of a file may stand for. The stillest real videos reach about half of this."""
MAX_DECODED_PIXELS = 2**30
"""Pixels that one reading may decode: this many, and `PIXELS_PER_BYTE` for each byte of the file."""
MAX_DECODE_SECONDS = 15.0
"""Processor time that one reading may take: this many seconds, and one for each MiB of the file up to two minutes."""

_MAX_EXTRA_SECONDS = 120.0
_DAMAGED = "the file is damaged or not a video; replace it"
# Only plain containers are opened: playlists and scripts (HLS, DASH, concat) name other files or hosts.
_OPEN_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,gif,mpeg,mpegvideo,mpegts,asf,flv,ogg,mxf",
    "protocol_whitelist": "file",
}
# Sound files under the name of a video: pieces of their first bytes.
_SOUND = re.compile(rb"ID3|fLaC|RIFF....WAVE|FORM....AIF[FC]|\xff[\xe2-\xff]", re.DOTALL)
# FFmpeg's own decoders of VP8 and VP9 leave out the alpha channel.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class VideoError(UserError):
    """A file that cannot be used; the message is "PATH: fault; remedy"."""

    def __init__(self, path: str | PathLike[str], fault: str, remedy: str):
        self.path, self.fault, self.remedy = Path(path), " ".join(fault.split()), remedy
        super().__init__(f"{path}: {self.fault}; {remedy}")


class Budget:
    """Limits of one reading: processor time of this thread, and pixels decoded."""

    def __init__(self, path: Path, size: int):
        self._path = path
        self._pixels = MAX_DECODED_PIXELS + PIXELS_PER_BYTE * size
        self.seconds = MAX_DECODE_SECONDS + min(size / 2**20, _MAX_EXTRA_SECONDS)
        self._end = time.thread_time() + self.seconds

    def spend(self, pixels: int = 0) -> None:
        """Count `pixels` as decoded.  Raises VideoError once the reading has used up its pixels or its time."""
        self._pixels -= pixels
        if self._pixels < 0:
            fault = "has too many large frames before the wanted ones for its size in bytes"
        elif time.thread_time() > self._end:
            fault = f"takes more than {self.seconds:.0f} s to decode"
        else:
            return
        raise VideoError(self._path, fault, "scale it down, or encode it again with more key frames")


class GuardedFile:
    """File for PyAV whose readings check the budget, because a demuxer may search a whole file for one packet.

    PyAV prints a traceback for an exception inside a callback, so failures end the file and are raised by `check`.
    """

    def __init__(self, file: io.BufferedReader, path: Path, budget: Budget):
        self.name = str(path)  # the suffix helps to recognize a container
        self.tell = file.tell
        self._file, self._budget = file, budget
        self._failure: Exception | None = None

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or none after a failure."""
        if self._failure is None:
            try:
                self._budget.spend()
                return self._file.read(size)
            except (OSError, VideoError) as error:
                self._failure = error
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Return the new position, or an error code of FFmpeg for one that no file has."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL

    def check(self) -> None:
        """Raise the failure of an earlier reading."""
        if self._failure is not None:
            raise self._failure


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OpenVideo:
    """A video stream that is being read.  `decoder` is not always that of the stream."""

    path: Path
    file: GuardedFile
    container: InputContainer
    stream: VideoStream
    decoder: VideoCodecContext
    budget: Budget

    def packets(self) -> Iterator[av.Packet]:
        """Yield the packets of the stream from the current position on, and at last an empty one."""
        for packet in self.container.demux(self.stream):
            self.file.check()
            self.budget.spend()
            yield packet

    def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        """Return the frames that `packet` completes."""
        frames = self.decoder.decode(packet)
        for frame in frames:
            check_frame_size(self.path, frame.height, frame.width, frame_limit(self.decoder))
        self.budget.spend(sum(frame.height * frame.width for frame in frames))
        return frames


def check_path(path: str | PathLike[str]) -> tuple[Path, os.stat_result]:
    """Return the path and status of a local file whose suffix is that of a video or image.

    Raises:
      VideoError: it is missing, empty, no regular file, or has another suffix.
    """
    file = Path(path)
    try:
        status = file.stat()
    except FileNotFoundError:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            fault, remedy = "is a network address", "download the file and give its local path"
            raise VideoError(path, fault, remedy) from None
        raise VideoError(path, "no such file", "check the path or the manifest row") from None
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be read ({error})", "check its path and permissions") from error
    kind = kind_of(status)
    if kind == "a folder":
        raise VideoError(path, "is a folder, not a video", "give a file, or use the folder as a manifest")
    if kind is not None:
        raise VideoError(path, f"is {kind}, not a file", "save the video as a file")
    if file.suffix.lower() not in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
        known = " ".join(suffix[1:] for suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        raise VideoError(path, f"suffix {file.suffix!r} is not that of a video or image", f"use one of: {known}")
    if status.st_size == 0:
        raise VideoError(path, "is empty (0 bytes)", "copy or download it again")
    return file, status


def frame_limit(decoder: VideoCodecContext) -> int:
    """Return the largest number of pixels of a frame.  The decoder of GIF keeps several copies of four bytes a pixel."""
    return MAX_FRAME_PIXELS // 2 if decoder.name == "gif" else MAX_FRAME_PIXELS


def check_frame_size(path: Path, height: int, width: int, limit: int) -> None:
    """Raise VideoError for a frame of more than `limit` pixels."""
    if height * width > limit:
        raise VideoError(path, f"{width}x{height} exceeds the limit of {limit} pixels", "scale it down")


@contextlib.contextmanager
def media_errors(path: Path) -> Iterator[None]:
    """Turn whatever the block raises into a VideoError about `path`.

    Decoders raise exceptions of nearly every type for damaged files.  Keep blocks small: they hide faults of our own.
    """
    try:
        yield
    except UserError:
        raise
    except av.error.ExitError as error:
        raise VideoError(path, "takes too long to open or read", "replace it") from error
    except av.FFmpegError as error:
        if _is_sound(path):
            raise VideoError(path, "has no video stream (a sound file)", "remove it or give a video file") from error
        raise VideoError(path, f"cannot be decoded ({error.strerror})", _DAMAGED) from error
    except OSError as error:
        raise VideoError(path, f"cannot be read ({error.strerror or error})", "check its permissions") from error
    except MemoryError as error:
        raise VideoError(path, "needs more memory than there is", "scale it down") from error
    except Exception as error:
        raise VideoError(path, f"cannot be decoded ({reason(error)})", _DAMAGED) from error


@contextlib.contextmanager
def opened(path: Path, budget: Budget | None = None) -> Iterator[OpenVideo]:
    """Open the video stream of a file: the one marked default, else the first.

    Args:
      budget: limits shared with other openings of the same reading.

    Raises:
      VideoError: opening, seeking or decoding inside the block fails, or uses up the budget.
    """
    with media_errors(path), open(path, "rb") as file:
        budget = budget or Budget(path, os.fstat(file.fileno()).st_size)
        # FFmpeg counts padded frames, so its own limit is wider than that of `check_frame_size`.
        limit = {"max_pixels": str(2 * MAX_FRAME_PIXELS)}
        with _container(GuardedFile(file, path, budget), budget.seconds, limit) as (guarded, container):
            stream = _video_stream(path, container)
            decoder = _decoder(path, stream)
            decoder.thread_type = "NONE"  # loaders decode several files at once, one per thread
            decoder.options = limit
            check_frame_size(path, stream.height, stream.width, frame_limit(decoder))
            yield OpenVideo(path=path, file=guarded, container=container, stream=stream, decoder=decoder, budget=budget)


@contextlib.contextmanager
def _container(
    file: GuardedFile, seconds: float, limit: dict[str, str]
) -> Iterator[tuple[GuardedFile, InputContainer]]:
    try:
        # Titles in other encodings than UTF-8 are common and do no harm.
        with av.open(file, "r", options=_OPEN_OPTIONS | limit, metadata_errors="replace", timeout=seconds) as container:
            yield file, container
    except av.FFmpegError:
        file.check()
        raise


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = {"cover picture" if stream.type == "video" else stream.type for stream in container.streams}
        found = ", ".join(sorted(kinds)) or "none"
        raise VideoError(path, f"has no video stream (streams: {found})", "remove it or give a video file")
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


def _decoder(path: Path, stream: VideoStream) -> VideoCodecContext:
    # Without a decoder, PyAV gives a stream no context, whatever its type stubs say.
    context: VideoCodecContext | None = stream.codec_context
    if context is None:
        raise VideoError(path, "is in a codec without a decoder", "convert it to H.264")
    name = _ALPHA_DECODERS.get(context.name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name is None or tags.get("alpha_mode") != "1":
        return context
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, VideoCodecContext)
    return decoder


def _is_sound(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return _SOUND.match(file.read(12)) is not None
    return False
