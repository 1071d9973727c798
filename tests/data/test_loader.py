"""Batches depend on (seed, step) alone, not on history, threads, processes or earlier rejections."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.buckets import Bucket, ClipShape
from motionaura_jax.data.clips import load_clip, sample_record, sample_rng
from motionaura_jax.data.fields import VIDEO
from motionaura_jax.data.frames import to_float
from motionaura_jax.data.loader import Batch, Loader, held_out_split
from motionaura_jax.data.manifest import Record, read_manifest
from motionaura_jax.data.media import write_video
from motionaura_jax.data.preflight import NoUsableFile, Rejections, preflight

BUCKETS = [
    Bucket(num_frames=4, height=8, width=12, batch_size=4, weight=2),
    Bucket(num_frames=1, height=16, width=16, batch_size=6, weight=1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return seven videos of 12 frames at 8 fps, with their names as captions, and two bad files."""
    path = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for index in range(7):
        write_video(path / f"v{index}.mp4", rng.integers(0, 256, (12, 18, 24, 3), dtype=np.uint8), 8)
        (path / f"v{index}.txt").write_text(f"video {index}")
    (path / "bad_text.mp4").write_text("not a video")
    (path / "bad_empty.mp4").write_bytes(b"")
    return path


def make(folder: Path, **settings: Any) -> Loader:
    defaults: dict[str, Any] = {"seed": 3, "fps": 8.0, "end_step": 8, "threads": 2}
    return Loader(read_manifest(folder), BUCKETS, **(defaults | settings))


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for key in ("video", "fps", "sample", "index"):
        np.testing.assert_array_equal(one[key], other[key])
    assert one["caption"] == other["caption"]


def test_batches_have_the_shapes_of_the_schedule(folder: Path) -> None:
    loader = make(folder)
    batches = list(loader)
    assert len(batches) == 8
    for step, batch in enumerate(batches):
        bucket = loader.schedule.bucket(step)
        assert batch["video"].shape == (bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, 3)
        assert {key: batch[key].dtype for key in ("video", "fps", "sample", "index")} == {
            "video": np.float32,
            "fps": np.float32,
            "sample": np.int32,
            "index": np.int64,
        }
        assert -1 <= batch["video"].min() <= batch["video"].max() <= 1
        assert batch["fps"].tolist() == [8] * bucket.batch_size
        assert batch["sample"].tolist() == list(range(bucket.batch_size))
        names = [record.caption for record in read_manifest(folder)]
        assert batch["caption"] == [names[index] for index in batch["index"]]


def test_a_bucket_may_have_a_frame_rate_of_its_own(folder: Path) -> None:
    records = [record for record in read_manifest(folder) if record.caption]
    shape = {"num_frames": 4, "height": 8, "width": 12, "batch_size": 2}
    loader = Loader(records, [Bucket(**shape), Bucket(**shape, fps=4)], seed=3, fps=8)
    own, other = loader.batch(1), Loader(records, [Bucket(**shape)] * 2, seed=3, fps=4).batch(1)
    assert loader.batch(0)["fps"].tolist() == [8, 8] and own["fps"].tolist() == [4, 4]
    assert_equal(own, other)
    long = Bucket(num_frames=8, height=8, width=12, batch_size=1, fps=4)  # 1.75 of 1.5 seconds
    with pytest.raises(UserError, match="too short for 8 frames at 4 fps"):
        preflight(records, [long.clip_shape(8)])
    assert preflight(
        records, [bucket.clip_shape(8) for bucket in (long, Bucket(**shape | {"num_frames": 9}))]
    ).usable == len(records)


def test_batch_is_the_documented_map(folder: Path) -> None:
    """First bucket: stream seed 3, samples numbered through its steps 0, 2, 3, 5, ..."""
    records = [record for record in read_manifest(folder) if record.caption]
    loader = Loader(records, BUCKETS[:1], seed=3, fps=8)
    batch = loader.batch(5)
    for position in range(4):
        number = 5 * 4 + position
        index = sample_record(3, number, len(records))
        assert batch["index"][position] == index
        clip = load_clip(records[index], BUCKETS[0].clip_shape(8), (VIDEO,), rng=sample_rng(3, number))
        np.testing.assert_array_equal(batch["video"][position], to_float(clip["video"]))
        assert batch["caption"][position] == records[index].caption


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_resuming_equals_the_tail(folder: Path, start: int, threads: int) -> None:
    whole, rest = make(folder), make(folder, start_step=start, threads=threads)
    resumed = list(rest)
    assert len(resumed) == 8 - start
    for step, batch in enumerate(resumed, start=start):
        assert_equal(batch, whole.batch(step))


def test_endless_iteration(folder: Path) -> None:
    loader = make(folder, start_step=10**12, end_step=None)
    for step, batch in zip(range(10**12, 10**12 + 3), itertools.islice(loader, 3), strict=True):
        assert_equal(batch, loader.batch(step))


def test_processes_share_the_global_batch(folder: Path) -> None:
    """Two processes hold the rows of four; the rows of a process need not be contiguous."""
    whole = Loader(read_manifest(folder), BUCKETS[:1], seed=3, fps=8, end_step=4)
    parts = [
        Loader(read_manifest(folder), BUCKETS[:1], seed=3, fps=8, end_step=4, parts=own, part_count=4)
        for own in ((0, 3), (1, 2))
    ]
    for step, (outer, inner) in enumerate(zip(*parts, strict=True)):
        expected = whole.batch(step)
        for key in ("video", "fps", "sample", "index"):
            np.testing.assert_array_equal(outer[key], expected[key][[0, 3]])
            np.testing.assert_array_equal(inner[key], expected[key][[1, 2]])
        assert inner["caption"] == expected["caption"][1:3]


def test_parts_must_divide_the_batch(folder: Path) -> None:
    with pytest.raises(UserError, match=r"batch size 6 does not divide into 4 parts; make data\.batch_size"):
        make(folder, part_count=4)


def test_seeds_and_epochs_differ(folder: Path) -> None:
    one, other = make(folder).batch(0), make(folder, seed=4).batch(0)
    assert (one["video"] != other["video"]).any()
    assert (one["video"] != make(folder).batch(9 * 3)["video"]).any()


def test_replacement_ignores_history_and_each_file_is_listed_once(folder: Path, tmp_path: Path) -> None:
    rejected = tmp_path / "run" / "rejected.jsonl"
    met = Rejections(rejected)
    loader = make(folder, rejections=met, end_step=24)
    batches = list(loader)
    good = {index for index, record in enumerate(read_manifest(folder)) if record.caption}
    assert all(set(batch["index"].tolist()) <= good for batch in batches)
    rows = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert {Path(row["file"]).name for row in rows} == {"bad_text.mp4", "bad_empty.mp4"}
    assert len(met) == len(rows) == 2
    assert all(row["reason"] and row["remedy"] for row in rows)
    met = Rejections(rejected)
    again = make(folder, rejections=met, end_step=24)
    for step in (23, 4, 11):
        assert_equal(again.batch(step), batches[step])
    list(again)
    assert len(met) == 2
    assert len(rejected.read_text().splitlines()) == 2


def test_only_bad_files_stop_with_one_line(folder: Path, tmp_path: Path) -> None:
    records = [record for record in read_manifest(folder) if not record.caption]
    loader = Loader(records, BUCKETS, seed=0, fps=8, rejections=Rejections(tmp_path / "rejected.jsonl"))
    with pytest.raises(
        NoUsableFile, match=r"100 files in a row cannot be used, the last one: .*; see .*rejected\.jsonl"
    ):
        next(iter(loader))


def test_no_records() -> None:
    with pytest.raises(UserError, match=r"no records; check data\.manifest"):
        Loader([], BUCKETS, seed=0, fps=8)


def test_preflight_counts_lists_and_refuses(folder: Path, tmp_path: Path) -> None:
    records = read_manifest(folder)
    met = Rejections(tmp_path / "rejected.jsonl")
    shapes = [bucket.clip_shape(8) for bucket in BUCKETS]
    too_long = [ClipShape(num_frames=60, height=8, width=8, fps=8)]
    report = preflight(records, shapes, rejections=met)
    assert (report.probed, report.usable, len(report.faults)) == (9, 7, 2)
    assert len(met) == len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 2
    assert preflight(records * 40, shapes).probed == 64
    with pytest.raises(UserError, match=r"none of 9 probed files can be used, the first: .*bad_empty\.mp4: is empty"):
        preflight(records, too_long)
    with pytest.raises(UserError, match="too short for 60 frames at 8 fps"):
        preflight(records[2:], too_long)
    with pytest.raises(UserError, match="none of 0"):
        preflight([], shapes)


def named(*names: str) -> list[Record]:
    return [Record(path=Path(name), caption=None, id=name) for name in names]


@given(
    st.lists(st.text(min_size=1), unique=True, max_size=30),
    st.floats(0, 0.999),
    st.integers(0, 2**31),
    st.randoms(use_true_random=False),
)
def test_split_is_a_stable_partition(names: list[str], fraction: float, seed: int, random: Any) -> None:
    records = named(*names)
    train, held = held_out_split(records, fraction, seed)
    assert sorted(r.id for r in train + held) == sorted(names)
    if len(names) >= 2:
        assert train
        assert bool(held) == (fraction > 0)
    shuffled = random.sample(records, len(records))
    assert {r.id for r in held_out_split(shuffled, fraction, seed)[1]} == {r.id for r in held}


def test_split_has_the_fraction_and_keeps_files_together() -> None:
    records = named(*(f"clip{index}.mp4" for index in range(2000))) * 2
    train, held = held_out_split(records, 0.1)
    assert 300 <= len(held) <= 500
    assert not {r.id for r in train} & {r.id for r in held}
    more, _ = held_out_split(records + named("new.mp4"), 0.1)
    assert {r.id for r in train} <= {r.id for r in more}
    with pytest.raises(UserError, match="held-out fraction 1"):
        held_out_split(records, 1)


def test_real_clips(data_root: Path | None) -> None:
    if data_root is None:
        pytest.skip("no real clips here; set MOTIONAURA_DATA")
    buckets = [Bucket(num_frames=9, height=48, width=64, batch_size=4)]
    loader = Loader(read_manifest(data_root / "clips.jsonl"), buckets, seed=0, fps=8, end_step=2)
    batches = list(loader)
    assert [batch["video"].shape for batch in batches] == [(4, 9, 48, 64, 3)] * 2
    assert all(batch["video"].std() > 0.1 and all(batch["caption"]) for batch in batches)
