"""Length and frame rate of a video stream: from its header where that is consistent, else from its packets."""

import math
import re
from typing import NamedTuple

from motionaura_jax.data.opening import OpenVideo, VideoError, opened

_PLAUSIBLE_FPS = 240


class Timing(NamedTuple):
    """Number of frames, average rate per second and duration in seconds.  `frames` may be an estimate."""

    frames: int
    fps: float
    duration: float


def header_timing(video: OpenVideo, first_stamp: int) -> Timing | None:
    """Return what the header states, or None if it leaves something out or contradicts itself.

    Edit lists cut frames off the count or off the duration, fragments count for themselves, and the duration of a GIF
    rounds.  Matroska states no count, but a tag with the time at which the stream ends.
    """
    stream = video.stream
    tick, fps = float(stream.time_base or 0), float(stream.average_rate or 0)
    if not 0 < fps <= _PLAUSIBLE_FPS:
        return None
    if stream.frames:
        duration = (stream.duration or 0) * tick
        agree = duration > 0 and math.isclose(stream.frames / duration, fps, rel_tol=0.01)
        return Timing(stream.frames, fps, duration) if agree and stream.frames > 1 else None
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if not tag:
        return None
    duration = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    whole = (video.container.duration or 0) / 1e6
    steady = stream.guessed_rate is not None and math.isclose(float(stream.guessed_rate), fps, rel_tol=0.01)
    # Some programs write the end of the stream and others its length: they differ if it starts late.
    if not steady or duration > 1.01 * whole + 0.1 or first_stamp * tick > 1 / fps or duration * fps < 1.5:
        return None
    return Timing(max(1, round(duration * fps)), fps, duration)


def scanned_timing(video: OpenVideo) -> Timing:
    """Measure the timing from the time stamps of all packets that are shown, without decoding them.

    Raises:
      VideoError: several frames have one time stamp.
    """
    with opened(video.path, video.budget) as again:
        tick = float(again.stream.time_base or 0)
        rate = float(again.stream.average_rate or again.stream.guessed_rate or 25)
        count = stamped = 0
        first, last, length = math.inf, -math.inf, 0
        for packet in again.packets():
            if not packet.size or packet.is_discard:
                continue
            count += 1
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is None:
                continue
            stamped += 1
            first = min(first, stamp)
            if stamp >= last:
                last, length = stamp, packet.duration or 0
    if count > 1 and stamped < 2:  # an elementary stream
        return Timing(count, rate, count / rate)
    if stamped < 2:
        return Timing(1, rate, 1 / rate)
    span = (last - first) * tick
    if span <= 0:
        raise VideoError(video.path, f"has {stamped} frames with one time stamp", "convert it again")
    duration = span + (length * tick or span / (stamped - 1))
    return Timing(stamped, stamped / duration, duration)
