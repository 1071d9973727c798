"""Non-finite losses: steps skipped, data windows rolled back and skipped, and runs ended with the batches saved."""

import json

import jax
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.data.windows import SkippedWindows
from motionaura_jax.scenes import dataset
from motionaura_jax.training import data, loop
from motionaura_jax.training.monitoring.writers import read_metrics
from motionaura_jax.weights import steps
from tests.training.toy import ToyRecipe, ToySystem

SHAPE = {"num_frames": 2, "height": 16, "width": 16}


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    dataset.write_scenes(folder, count=10, split="train", options=dataset.PRESETS["easy"], fps=8.0, **SHAPE)
    return folder


def make(clips, **values):
    """Return a toy run of 12 steps that saves every 2; `values` are settings of `train` or of the toy."""
    train_keys = {key: values.pop(key) for key in list(values) if key in ("max_skipped", "max_rollbacks", "log_every")}
    recipe = {
        "system": "toy",
        "data": {**SHAPE, "manifest": str(clips), "batch_size": 2, "held_out": 0.3},
        "train": {"steps": 12, "log_every": 2, "max_skipped": 3, **train_keys},
        "checkpoint": {"every": 2, "keep": 20},
        "evaluate": {"every": 100, "clips": 2},
        **values,
    }
    return ToySystem(config.build(ToyRecipe, recipe))


def poison(system, workdir, *positions):
    """Replace the batches of some data steps by NaN, wherever they are read."""
    source = data.TrainingData(system.recipe, workdir / "look").batches(0)
    bad = [batch["video"] for position, batch in zip(range(12), source, strict=False) if position in positions]
    to_arrays = system.to_arrays

    def poisoned(batch):
        arrays = to_arrays(batch)
        match = any(np.array_equal(batch["video"], video) for video in bad)
        return {**arrays, "video": arrays["video"] * np.nan} if match else arrays

    system.to_arrays = poisoned
    return system


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def assert_same_weights(one, other):
    abstract = jax.eval_shape(ToySystem(config.build(ToyRecipe, {"system": "toy"})).init, jax.random.key(0))
    trees = [steps.read_weights(steps.read_meta(workdir)[0], *abstract) for workdir in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_steps_change_nothing_and_no_checkpoint_is_made_among_them(clips, tmp_path):
    system = poison(make(clips), tmp_path, 3, 4)
    assert loop.fit(system, tmp_path)["step"] == 12
    assert saved_steps(tmp_path) == [2, 6, 8, 10, 12]  # not 4, and what was due then not 5
    assert not (tmp_path / "non_finite").exists()
    assert steps.read_meta(tmp_path)[1]["skipped_windows"] == []


def test_a_streak_goes_back_and_around_its_data(clips, tmp_path, monkeypatch, caplog):
    rolled, reference = tmp_path / "rolled", tmp_path / "reference"
    system = poison(make(clips), rolled, 5, 6, 7)
    assert loop.fit(system, rolled)["step"] == 12
    assert "not finite for 3 steps up to step 8; going back to step 4" in caplog.text
    assert steps.read_meta(rolled)[1]["skipped_windows"] == [[5, 8]]
    rows = [row for row in read_metrics(rolled / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12] and all(row["loss"] is not None for row in rows)

    # Equal to a run that never saw this data.
    monkeypatch.setattr(data, "SkippedWindows", lambda: SkippedWindows.of([(5, 8)]))
    loop.fit(make(clips), reference)
    assert_same_weights(rolled, reference)


@pytest.mark.slow(quick=True)
def test_a_run_that_resumes_leaves_out_what_was_given_up(clips, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.fit(poison(make(clips), whole, 3, 4, 5), whole)
    system = poison(make(clips), parts, 3, 4, 5)
    init = system.to_arrays
    seen = []

    def fail_late(batch):
        seen.append(batch["index"])
        if len(seen) == 14:
            raise RuntimeError("pulled the plug")
        return init(batch)

    system.to_arrays = fail_late
    with pytest.raises(RuntimeError, match="plug"):
        loop.fit(system, parts)
    assert 2 < saved_steps(parts)[-1] < 12
    loop.fit(make(clips), parts)
    assert steps.read_meta(parts)[1]["skipped_windows"] == [[3, 6]]
    assert_same_weights(whole, parts)


def test_what_cannot_be_mended_is_given_up_with_batches_and_keys(clips, tmp_path):
    with pytest.raises(UserError, match=r"not finite for 3 steps up to step 7, after 2 rollback.*with --override"):
        loop.fit(make(clips, explode_from=4, max_rollbacks=2, log_every=1), tmp_path)
    reports = sorted((tmp_path / "non_finite").iterdir())
    assert [path.name for path in reports] == [f"{last:07d}-0.json" for last in (6, 9, 12)]
    report = json.loads(reports[-1].read_text())
    # Steps count from 1, data steps from 0; two windows of three were skipped before.
    assert report["skipped_windows"] == [[4, 10]] and report["seed"] == 0
    assert [(row["step"], row["data_step"]) for row in report["steps"]] == [(5, 10), (6, 11), (7, 12)]
    assert all(row["loss"] in ("inf", "nan") for row in report["steps"])
    row = report["steps"][0]
    assert row["key"] == jax.random.key_data(jax.random.fold_in(jax.random.key(0), 4)).tolist()
    assert len(row["records"]) == len(row["files"]) == 2 and row["files"][0].endswith(".mp4")
    assert saved_steps(tmp_path)[-1] == 4


@pytest.mark.slow(quick=True)
def test_without_a_checkpoint_or_without_rollbacks_the_first_streak_ends_the_run(clips, tmp_path):
    with pytest.raises(UserError, match=r"up to step 3; they changed no weight, .* and run again$"):
        loop.fit(make(clips, explode_from=0, log_every=1), tmp_path / "a")
    with pytest.raises(UserError, match=r"up to step 7; they .*--override$"):
        loop.fit(make(clips, explode_from=4, max_rollbacks=0, log_every=1), tmp_path / "b")
