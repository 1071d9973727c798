"""Frames of an open video stream on their time axis: decoding from an instant, and the frame on display at a time."""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import av
from av.video.stream import VideoStream

from motionaura_jax.data.opening import OpenVideo

MARGINS = (0.0, 4.0, 32.0, math.inf)
"""Seconds before the wanted instant at which to start decoding, tried in this order until one is early enough."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TimedFrame:
    """A decoded frame and the time during which it is on display, in seconds from the first frame of the file."""

    frame: av.VideoFrame
    start: float
    end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """Converter of a stream's time stamps, in ticks of `tick` seconds, to seconds from its first frame at `origin`."""

    tick: float
    origin: int
    frame_seconds: float

    @classmethod
    def of(cls, stream: VideoStream, origin: int, fps: float) -> "Clock":
        """Return the clock of a stream whose first frame has the time stamp `origin`."""
        return cls(tick=float(stream.time_base or 1 / 90_000), origin=origin, frame_seconds=1 / fps)

    def seconds(self, stamp: int) -> float:
        """Convert a time stamp to seconds."""
        return (stamp - self.origin) * self.tick

    def stamp(self, seconds: float) -> int:
        """Return the last time stamp that is not after `seconds`."""
        return self.origin + math.floor(seconds / self.tick)


class TimedDecoder:
    """Iterator that decodes a stream from its current position on, in order of display.

    A frame that no other frame refers to is not decoded if its packet ends before `skip_until`.  `latest_skippable` is
    the start of the latest packet seen so far that does not begin after `skip_until`.  A decoding error or a damaged
    frame after `skip_until` ends the iteration.  Damaged frames before the first sound one are left out; an error before it
    is raised.
    """

    def __init__(self, video: OpenVideo, clock: Clock, *, skip_until: float, from_start: bool):
        self.latest_skippable = -math.inf
        self._video, self._clock, self._skip_until = video, clock, skip_until
        # A frame without a time stamp follows its predecessor; after a seek its position is unknown.
        self._expected = 0.0 if from_start else math.inf

    def __iter__(self) -> Iterator[TimedFrame]:
        started = False
        try:
            for packet in self._video.packets():
                self._mark_skippable(packet)
                for frame in self._video.decode(packet):
                    timed = self._timed(frame)
                    if frame.is_corrupt and timed.start > self._skip_until:
                        if started:
                            return
                        continue
                    started = True
                    yield timed
        except av.FFmpegError:
            if not started:
                raise

    def _mark_skippable(self, packet: av.Packet) -> None:
        skip = False
        if packet.pts is not None and not packet.is_discard and self._skip_until > -math.inf:
            start = self._clock.seconds(packet.pts)
            skip = self._clock.seconds(packet.pts + (packet.duration or 0)) <= self._skip_until
            if start <= self._skip_until:
                self.latest_skippable = max(self.latest_skippable, start)
        self._video.decoder.skip_frame = "NONREF" if skip else "DEFAULT"

    def _timed(self, frame: av.VideoFrame) -> TimedFrame:
        start = self._expected if frame.pts is None else self._clock.seconds(frame.pts)
        end = start + (frame.duration * self._clock.tick or self._clock.frame_seconds)
        self._expected = end
        return TimedFrame(frame=frame, start=start, end=end)


def frames_from(video: OpenVideo, clock: Clock, instant: float, margin: float) -> Iterator[TimedFrame] | None:
    """Return the frames from the one on display at `instant` (seconds) on, or None if decoding began too late.

    The video must be freshly opened.  Decoding begins at the key frame before `instant - margin`.  That can be too late
    in containers that index key frames by decoding time, with open groups of pictures or with missing time stamps.  A
    margin beyond the start of the file never misses: before its first frame, the first frame is on display.
    """
    from_start = instant <= margin
    if not from_start:
        try:
            video.container.seek(clock.stamp(instant - margin), stream=video.stream)
        except av.FFmpegError:
            return None
    skip_until = instant if margin == 0 else -math.inf
    decoder = TimedDecoder(video, clock, skip_until=skip_until, from_start=from_start)
    frames = iter(decoder)
    current = upcoming = None
    for upcoming in frames:
        if upcoming.start > instant:
            break
        current, upcoming = upcoming, None
    if current is None:
        return _chain(upcoming, frames) if from_start and margin > 0 else None
    if current.start < decoder.latest_skippable:
        return None
    return _chain(current, _chain(upcoming, frames))


def hold(frames: Iterable[TimedFrame], instants: Iterable[float], tolerance: float) -> Iterator[TimedFrame]:
    """Yield the frame on display at each instant (seconds, increasing); stop at an instant past the last frame.

    A frame is on display from its start to the start of the next one.  The last frame stays one more frame duration,
    because headers round.  A frame that starts within `tolerance` seconds after an instant counts as shown.
    """
    source = iter(frames)
    current, upcoming = next(source, None), next(source, None)
    for instant in instants:
        while upcoming is not None and upcoming.start <= instant + tolerance:
            current, upcoming = upcoming, next(source, None)
        if current is None or (upcoming is None and instant > 2 * current.end - current.start):
            return
        yield current


def _chain(first: TimedFrame | None, rest: Iterable[TimedFrame]) -> Iterator[TimedFrame]:
    if first is not None:
        yield first
    yield from rest
