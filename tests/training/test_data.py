"""Training and evaluation data: bad files prevent neither a start nor an evaluation; independent keys stay independent."""

import itertools
import json
import shutil
import threading
from unittest import mock

import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.data import loader
from motionaura_jax.data.loader import held_out_split
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.data.preflight import NoUsableFile
from motionaura_jax.scenes import dataset
from motionaura_jax.training.data import TrainingData
from tests.training.toy import ToyRecipe

SHAPE = {"num_frames": 4, "height": 16, "width": 16}


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Return a folder of eight small mp4 files and nothing else."""
    folder = tmp_path_factory.mktemp("rendered")
    dataset.write_scenes(folder, count=8, split="train", options=dataset.PRESETS["easy"], fps=8.0, **SHAPE)
    return folder / "videos"


def recipe(source, **evaluate):
    data = {**SHAPE, "manifest": str(source), "batch_size": 2, "held_out": 0.01, "scenes": 2}
    return config.build(ToyRecipe, {"system": "toy", "data": data, "evaluate": {"clips": 3, **evaluate}})


def test_a_start_reads_the_first_clips_in_small_batches_and_in_the_reading_threads(clips, tmp_path):
    buckets = ({**SHAPE, "batch_size": 40}, {**SHAPE, "height": 32, "batch_size": 4})
    values = {"system": "toy", "data": {"manifest": str(clips), "buckets": buckets}, "evaluate": {"clips": 1}}
    data, readers, read = TrainingData(config.build(ToyRecipe, values), tmp_path), set(), loader.load_clip

    def load_clip(*arguments, **more):
        readers.add(threading.current_thread())
        return read(*arguments, **more)

    with mock.patch.object(loader, "load_clip", load_clip):
        start = list(itertools.islice(data.preparation(), 3))
    assert threading.current_thread() not in readers
    assert [batch["video"].shape for batch in start] == [(16, 4, 16, 16, 3)] * 3
    first = next(iter(data.batches(0)))["video"]
    np.testing.assert_array_equal(np.concatenate([batch["video"] for batch in start])[:40], first)


def spoil(manifest, *, inside=False):
    """Damage the only held-out file of a folder; `inside` leaves its header intact."""
    _, (record,) = held_out_split(read_manifest(manifest), 0.01)
    data = record.path.read_bytes()
    begin = data.index(b"mdat") + 4
    record.path.write_bytes(data[:begin] + bytes(len(data) - begin) if inside else b"no video")
    return str(record.path)


def rejected(workdir):
    return [json.loads(line)["file"] for line in (workdir / "rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("inside", [False, True])
def test_another_file_takes_the_place_of_bad_held_out_ones(clips, tmp_path, inside):
    folder = shutil.copytree(clips, tmp_path / "clips")
    bad = spoil(folder, inside=inside)
    data = TrainingData(recipe(folder), tmp_path)
    assert [len(batch["video"]) for batch in data.evaluation] == [2, 2]
    assert rejected(tmp_path) == [bad] and data.rejected_count == 1
    assert data.describe().startswith("6 files to train on, 1 held out")
    again = TrainingData(recipe(folder), tmp_path)
    for one, other in zip(data.evaluation, again.evaluation, strict=True):
        np.testing.assert_array_equal(one["video"], other["video"])
    (bad,) = set(rejected(tmp_path))


def test_held_out_files_that_are_named_must_hold_a_usable_one(clips, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"no video")
    with pytest.raises(NoUsableFile, match=r"none of 1 probed files can be used, the first: .*a\.mp4"):
        TrainingData(recipe(clips, manifest=str(folder)), tmp_path)
    with pytest.raises(UserError, match="leave none to train on"):
        two = tmp_path / "two"
        two.mkdir()
        for path in sorted(clips.glob("*.mp4"))[:2]:
            shutil.copy(path, two)
        spoil(two)
        TrainingData(recipe(two), tmp_path / "run")


def test_files_that_the_first_look_finds_bad_are_listed(clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "clips")
    bad = [folder / name for name in ("x.mp4", "y.mp4")]
    for path in bad:
        path.write_bytes(b"no video")
    data = TrainingData(recipe(folder, manifest=str(clips)), tmp_path)
    assert sorted(rejected(tmp_path)) == sorted(map(str, bad)) and data.rejected_count == 2


def test_the_number_of_held_out_scenes_may_change(tmp_path):
    for clips in (3, 2, 5):
        batches = TrainingData(recipe("scenes", clips=clips), tmp_path).evaluation
        indices = {index for batch in batches for index in batch["index"].tolist()}
        assert indices == set(range(clips))
