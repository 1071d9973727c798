"""The frame a player shows at each instant: every frame holds until the next, the last one for its duration."""

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.data.media import write_video
from motionaura_jax.data.opening import opened
from motionaura_jax.data.timeline import Clock, TimedFrame, frames_from, hold


def timeline(starts: list[float], last: float) -> list[TimedFrame]:
    """Return frames that begin at `starts`; the last one lasts `last` seconds."""
    frame = av.VideoFrame(16, 16, "rgb24")
    ends = [*starts[1:], starts[-1] + last]
    return [TimedFrame(frame=frame, start=start, end=end) for start, end in zip(starts, ends, strict=True)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.lists(st.integers(0, 99), min_size=1, max_size=20))
def test_each_instant_shows_the_last_frame_begun(gaps: list[int], instants: list[int]) -> None:
    starts = [float(sum(gaps[:index])) for index in range(len(gaps))]
    frames = timeline(starts, 1.0)
    shown = [frame.start for frame in hold(frames, sorted(instants), 1e-6)]
    within = [instant for instant in sorted(instants) if instant <= starts[-1] + 2]
    assert shown == [max(start for start in starts if start <= instant) for instant in within]


def test_rounded_stamps_count_as_on_time() -> None:
    """Matroska rounds 1/24 s to 42 ms."""
    frames = timeline([0, 0.042, 0.083, 0.125], 0.042)
    assert [frame.start for frame in hold(frames, [k / 24 for k in range(4)], 5e-4)] == [0, 0.042, 0.083, 0.125]


def test_nothing_to_hold() -> None:
    assert list(hold([], [0.0], 1e-6)) == []


@pytest.mark.parametrize("margin", [0.0, 0.5, 9.0])
def test_decoding_begins_with_the_frame_on_display(tmp_path: Path, margin: float) -> None:
    write_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8), 10)
    with opened(tmp_path / "a.mp4") as video:
        frames = frames_from(video, Clock.of(video.stream, 0, 10), 1.25, margin)
        assert frames is not None
        assert [round(frame.start, 3) for frame in frames] == [1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]


def test_decoding_that_began_too_late_is_reported(tmp_path: Path) -> None:
    """A wrong clock origin makes the seek land after the wanted frame, as happens with some containers."""
    write_video(tmp_path / "a.mp4", np.zeros((20, 16, 16, 3), np.uint8), 10)
    with opened(tmp_path / "a.mp4") as video:
        late = Clock.of(video.stream, -10 * round(1 / (video.stream.time_base or 1)), 10)
        assert frames_from(video, late, 0.5, 0.0) is None
