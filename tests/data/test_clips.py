"""The map from sample numbers to clips: a permutation in every epoch, uniform windows, one rule for bad files."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.data.buckets import ClipShape
from motionaura_jax.data.clips import Crop, load_clip, sample_record, sample_rng
from motionaura_jax.data.fields import VIDEO
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.media import write_video
from motionaura_jax.data.video import VideoError


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10**9), count=st.integers(1, 60))
def test_every_epoch_visits_every_record_once(seed: int, epoch: int, count: int) -> None:
    for attempt in (0, 1):
        seen = [sample_record(seed, epoch * count + position, count, attempt) for position in range(count)]
        assert sorted(seen) == list(range(count))


@given(seed=st.integers(0, 2**32), number=st.integers(0, 10**6), count=st.integers(1, 60))
def test_replacements_reach_every_record(seed: int, number: int, count: int) -> None:
    assert {sample_record(seed, number, count, attempt) for attempt in range(1, count + 1)} == set(range(count))


def test_orders_are_uniform_and_differ_between_epochs_and_seeds() -> None:
    orders = Counter(
        tuple(sample_record(seed, 3 * epoch + k, 3) for k in range(3)) for seed in range(30) for epoch in range(20)
    )
    assert len(orders) == 6
    assert all(60 <= times <= 140 for times in orders.values()), orders  # 600 draws, 100 expected, 4 deviations


def test_order_is_the_same_in_every_version() -> None:
    assert [sample_record(0, number, 8) for number in range(16)] == [0, 2, 1, 5, 4, 7, 6, 3, 3, 1, 5, 6, 0, 4, 7, 2]
    assert sample_rng(1, 2, 3).random() == 0.6704722626516632


def numbered_video(path: Path, count: int = 24, fps: float = 8) -> Record:
    """Return a video whose frame k is gray of level 10 k."""
    frames = np.broadcast_to((10 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, 32, 64, 3)).copy()
    write_video(path, frames, fps, lossless=True)
    return Record(path=path, caption=None, id=path.name)


def load_frames(record: Record, *, rng: np.random.Generator, crop: Crop = "random", **shape: Any) -> np.ndarray:
    return load_clip(record, ClipShape(**shape), (VIDEO,), rng=rng, crop=crop)["video"]


def starts(video: np.ndarray) -> int:
    return round(float(video[0].mean()) / 10)


def test_clip_of_neighboring_frames(tmp_path: Path) -> None:
    record = numbered_video(tmp_path / "a.mp4")
    frames = load_frames(record, num_frames=4, height=16, width=24, fps=8, rng=sample_rng(0, 0))
    assert frames.shape == (4, 16, 24, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_allclose(np.diff(frames.mean((1, 2, 3))), 10)


def test_windows_are_uniform_in_time(tmp_path: Path) -> None:
    record = numbered_video(tmp_path / "a.mp4")
    drawn = Counter(
        starts(load_frames(record, num_frames=9, height=8, width=8, fps=8, rng=sample_rng(0, k))) for k in range(320)
    )
    assert set(drawn) == set(range(16))
    assert all(5 <= times <= 38 for times in drawn.values()), drawn  # 20 expected, 4 deviations


def test_crops_cover_the_surplus(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (4, 16, 64, 3)).copy()
    write_video(tmp_path / "ramp.mp4", ramp, 8, lossless=True)
    record = Record(path=tmp_path / "ramp.mp4", caption=None, id="ramp.mp4")

    def left(number: int, crop: Crop) -> int:
        shape = {"num_frames": 2, "height": 16, "width": 16, "fps": 8}
        return int(load_frames(record, rng=sample_rng(0, number), crop=crop, **shape)[0, 0, 0, 0])

    drawn = [left(number, "random") for number in range(80)]
    assert min(drawn) <= 4
    assert max(drawn) >= 44
    assert {left(number, "center") for number in range(5)} == {24}


def test_center_takes_the_middle_in_time(tmp_path: Path) -> None:
    clip = load_frames(
        numbered_video(tmp_path / "a.mp4"), num_frames=8, height=8, width=8, fps=8, rng=sample_rng(0, 0), crop="center"
    )
    assert starts(clip) == 8


def test_whole_video_is_a_clip(tmp_path: Path) -> None:
    record = numbered_video(tmp_path / "a.mp4", count=12)
    for number in range(40):
        clip = load_frames(record, num_frames=12, height=8, width=8, fps=8, rng=sample_rng(0, number))
        assert starts(clip) == 0


def test_too_short_videos_and_images(tmp_path: Path) -> None:
    record = numbered_video(tmp_path / "a.mp4", count=12)
    with pytest.raises(VideoError, match=r"lasts 1\.50 s, too short .*; lower data\.num_frames or raise data\.fps"):
        load_frames(record, num_frames=13, height=8, width=8, fps=8, rng=sample_rng(0, 0))
    write_video(tmp_path / "still.png", np.full((1, 20, 20, 3), 200, np.uint8), 1)
    still = Record(path=tmp_path / "still.png", caption=None, id="still.png")
    with pytest.raises(VideoError, match="is a still image"):
        load_frames(still, num_frames=2, height=8, width=8, fps=8, rng=sample_rng(0, 0))
    picture = load_frames(still, num_frames=1, height=8, width=8, fps=8, rng=sample_rng(0, 0))
    np.testing.assert_allclose(picture, 200, atol=1)


def test_single_frames_come_from_anywhere_in_a_video(tmp_path: Path) -> None:
    record = numbered_video(tmp_path / "a.mp4", count=12)
    drawn = {
        starts(load_frames(record, num_frames=1, height=8, width=8, fps=8, rng=sample_rng(0, k))) for k in range(120)
    }
    assert drawn == set(range(12))
