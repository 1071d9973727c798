"""The loop: resuming after any interruption, refusals before device work, the content of a workdir."""

import dataclasses
import itertools
import json
import os
import re
import signal

import jax
import numpy as np
import pytest

from motionaura_jax import train
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.scenes import dataset
from motionaura_jax.systems import mbq_vae
from motionaura_jax.systems.base import Evaluation
from motionaura_jax.training import data, in_flight, loop, workdir
from motionaura_jax.training.monitoring.writers import read_metrics
from motionaura_jax.weights import steps
from tests.systems import tiny
from tests.training.toy import ToyRecipe, ToySystem


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Return a folder of eight small mp4 files with captions."""
    folder = tmp_path_factory.mktemp("scenes") / "train"
    dataset.write_scenes(
        folder, count=8, split="train", options=dataset.PRESETS["easy"], num_frames=4, height=32, width=32, fps=8.0
    )
    return folder


def make(manifest, **values):
    settings = {
        "system": "toy",
        "data": {
            "manifest": str(manifest),
            "num_frames": 4,
            "height": 16,
            "width": 16,
            "batch_size": 2,
            "held_out": 0.3,
        },
        "train": {"steps": 6, "log_every": 1},
        "checkpoint": {"every": 2},
        "evaluate": {"every": 3, "clips": 2},
    }
    for key, value in values.items():
        section, name = key.split("__")
        settings.setdefault(section, {})[name] = value
    return ToySystem(config.build(ToyRecipe, settings))


def final_state(workdir, system):
    folder, meta = steps.read_meta(workdir)
    params, extra = jax.eval_shape(system.init, jax.random.key(0))
    return meta["step"], steps.read_weights(folder, params, extra)


def assert_same(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_run_that_fails_midway_and_resumes_equals_one_that_does_not(scenes, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = loop.fit(make(scenes), whole)
    system = make(scenes)
    report, count = system.to_arrays, 0

    def fail_at_the_sixth_batch(batch):
        nonlocal count
        count += 1
        if count == 6:
            raise RuntimeError("pulled the plug")
        return report(batch)

    monkeypatch.setattr(system, "to_arrays", fail_at_the_sixth_batch)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        loop.fit(system, parts)
    resumed = loop.fit(make(scenes), parts)
    assert resumed["loss"] == expected["loss"] and resumed["step"] == 6
    assert_same(final_state(whole, make(scenes)), final_state(parts, make(scenes)))
    steps = [(row["step"], row["loss"]) for row in read_metrics(parts / "metrics.jsonl") if "loss" in row]
    assert steps == [(r["step"], r["loss"]) for r in read_metrics(whole / "metrics.jsonl") if "loss" in r]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_does_nothing_more(scenes, tmp_path):
    first = loop.fit(make(scenes), tmp_path)
    before = final_state(tmp_path, make(scenes))
    again = loop.fit(make(scenes), tmp_path)
    assert first["step"] == again["step"] == 6
    assert_same(before, final_state(tmp_path, make(scenes)))


def test_a_signal_saves_and_ends_the_run(scenes, tmp_path, monkeypatch):
    system = make(scenes, train__steps=100_000, checkpoint__every=100_000, evaluate__every=100_000)
    numbers, to_arrays = itertools.count(1), system.to_arrays

    def be_stopped_at_the_20th_batch(batch):
        if next(numbers) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return to_arrays(batch)

    monkeypatch.setattr(system, "to_arrays", be_stopped_at_the_20th_batch)
    result = loop.fit(system, tmp_path)
    assert result["stopped"] and final_state(tmp_path, system)[0] == result["step"]
    assert 20 - in_flight.BATCHES_AHEAD - 1 <= result["step"] <= 20


def test_a_signal_in_the_middle_of_a_step_is_not_lost(scenes, tmp_path, monkeypatch):
    system = make(scenes, checkpoint__every=100)
    evaluate = system.evaluate

    def evaluate_and_be_stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(system, "evaluate", evaluate_and_be_stopped)
    result = loop.fit(system, tmp_path)
    assert result["stopped"] and result["step"] == 4  # evaluated after step 3, saved after the next
    assert final_state(tmp_path, system)[0] == 4


def test_a_workdir_holds_what_people_look_for(scenes, tmp_path):
    result = loop.fit(make(scenes), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["batch_size"] == 2
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"0000003", "0000003.png", "0000006", "0000006.png"}
    assert (tmp_path / "samples" / "0000006" / "first.mp4").stat().st_size > 0
    assert any((tmp_path / "tensorboard").iterdir())
    row = next(r for r in read_metrics(tmp_path / "metrics.jsonl") if r["step"] == 2)
    assert {"loss", "error", "steps_per_second", "clips_per_second", "memory_gb", "rejected_files"} <= row.keys()
    assert result["eval_clips"] == 2.0


def test_another_config_in_the_workdir_is_refused_with_the_keys(scenes, tmp_path):
    loop.fit(make(scenes), tmp_path)
    with pytest.raises(UserError, match=r"another config \(optimizer.learning_rate: 0.0001 -> 0.5\).*--override"):
        loop.fit(make(scenes, optimizer__learning_rate=0.5), tmp_path)
    result = loop.fit(make(scenes, optimizer__learning_rate=0.5), tmp_path, override=True)
    assert result["step"] == 6
    assert loop.fit(make(scenes, checkpoint__every=1, optimizer__learning_rate=0.5), tmp_path)["step"] == 6
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match="another architecture"):
        loop.fit(make(scenes, optimizer__learning_rate=0.5, optimizer__mu_dtype="bfloat16"), tmp_path, override=True)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(before)


def test_a_start_that_failed_leaves_the_workdir_free(scenes, tmp_path, capsys):
    flags = ["--config=configs/tokenizer.py:tiny", f"--workdir={tmp_path}"]
    assert train.main([*flags, "--config.data.manifest=absnt"]) == 2
    assert "absnt" in capsys.readouterr().err
    assert (tmp_path / "config.json").exists()
    workdir.open_workdir(tmp_path, make("scenes").recipe)
    stale = data.TrainingData(make("scenes", data__scenes=2).recipe, tmp_path)
    (tmp_path / "rejected.jsonl").write_text('{"file": "absnt/a.mp4"}\n')
    (tmp_path / "scenes" / "mine.txt").write_text("not rendered")
    assert stale.evaluation[0]["video"].shape[-2] == 16
    recipe = make("scenes", data__scenes=2, data__height=32).recipe
    workdir.open_workdir(tmp_path, recipe)
    assert data.TrainingData(recipe, tmp_path).evaluation[0]["video"].shape[2] == 32
    assert not (tmp_path / "rejected.jsonl").exists() and (tmp_path / "scenes" / "mine.txt").exists()
    assert loop.fit(make(scenes), tmp_path)["step"] == 6


def test_a_workdir_made_before_a_key_existed_goes_on(scenes, tmp_path):
    loop.fit(make(scenes, train__steps=3), tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["init_from"]
    path.write_text(json.dumps(saved))
    assert loop.fit(make(scenes, train__steps=3), tmp_path)["step"] == 3
    assert json.loads(path.read_text())["init_from"] == ""
    saved["init_from"] = "a/very" * 100
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"init_from: a/very[a/very]{74}\.\.\. -> \)"):
        loop.fit(make(scenes, train__steps=3), tmp_path)


def test_a_loss_that_stays_infinite_stops_the_run_with_one_line(scenes, tmp_path):
    settings = {"train__steps": 50, "train__max_skipped": 3, "checkpoint__every": 1}
    system = make(scenes, **settings)
    system.recipe = config.build(ToyRecipe, {**config.to_dict(system.recipe), "explode_from": 2})
    with pytest.raises(UserError, match=r"not finite for 3 steps up to step 5.*resume .* with --override"):
        loop.fit(system, tmp_path)
    system.recipe = config.build(ToyRecipe, {**config.to_dict(system.recipe), "checkpoint": {"every": 50}})
    with pytest.raises(UserError, match=r"learning_rate and run again$"):
        loop.fit(system, tmp_path / "no checkpoint")
    _, (params, _) = final_state(tmp_path, system)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_one_bad_file_among_good_ones_is_listed_and_counted(scenes, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for source in scenes.rglob("*.mp4"):
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "broken.mp4").write_bytes(b"no video")
    loop.fit(make(folder, evaluate__manifest=str(scenes)), tmp_path / "run")
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [row["file"].endswith("broken.mp4") for row in rejected] == [True]
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert [row["rejected_files"] for row in rows] == [1] * 6


def test_a_run_that_resumes_on_other_files_says_so(scenes, tmp_path, caplog):
    folder = tmp_path / "clips"
    folder.mkdir()
    for source in scenes.rglob("*.mp4"):
        (folder / source.name).write_bytes(source.read_bytes())
    for _ in range(2):
        assert loop.fit(make(folder), tmp_path / "run")["step"] == 6
    assert "not those of step 6" not in caplog.text
    (folder / "another.mp4").write_bytes(source.read_bytes())
    assert loop.fit(make(folder), tmp_path / "run")["step"] == 6
    assert "not those of step 6" in caplog.text


def test_training_goes_on_for_several_clip_shapes(scenes, tmp_path):
    buckets = [
        {"num_frames": 4, "height": 16, "width": 16, "batch_size": 2},
        {"num_frames": 1, "height": 8, "width": 8, "batch_size": 6},
    ]
    system, shapes = make(scenes, data__buckets=buckets), []
    to_arrays = system.to_arrays
    system.to_arrays = lambda batch: shapes.append(batch["video"].shape[:3]) or to_arrays(batch)
    loop.fit(system, tmp_path)
    trained = [shape for shape in shapes if shape != (2, 4, 16)]
    assert trained and set(trained) == {(6, 1, 8)}
    assert int(final_state(tmp_path, system)[1][1]["seen"]) == 100 + 3 * 2 + 3 * 6
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 6 and all(np.isfinite(row["loss"]) for row in rows)


def test_the_use_of_the_codebook_is_logged(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(mbq_vae.MBQVAESystem, "evaluate", lambda *_: Evaluation(metrics={}))
    values = {
        "system": "mbq_vae",
        "model": tiny.TOKENIZER,
        "data": {"manifest": str(scenes), "num_frames": 4, "height": 16, "width": 16, "batch_size": 2, "held_out": 0.3},
        "train": {"steps": 2, "log_every": 1},
        "evaluate": {"clips": 1, "pictures": 0},
    }
    loop.fit(mbq_vae.MBQVAESystem(config.build(mbq_vae.MBQVAERecipe, values)), tmp_path)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row["usage"] <= 1 and 1 <= row["perplexity"] <= 16 for row in rows)


def test_an_exhausted_device_is_one_line_that_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    class JaxRuntimeError(RuntimeError):
        """Exception with the name of jaxlib's own, which cannot be raised from Python."""

    def exhausted(*_):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB")

    monkeypatch.setattr(train, "_train", exhausted)
    assert train.main(["--config=configs/tokenizer.py", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert (
        re.search(r"raise train.accumulation .*has a checkpoint, add --override to train", error)
        and error.count("\n") == 1
    )


def test_no_usable_clip_is_one_line_and_status_2(tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    flags = ["--config=configs/tokenizer.py:tiny", f"--config.data.manifest={tmp_path}"]
    assert train.main([*flags, f"--workdir={tmp_path / 'run'}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line or "Traceback" in line]
    assert len(errors) == 1 and re.search(
        r"^error: none of \d probed files can be used, the first: .*\.mp4: ", errors[0]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/tokenizer.py:tinny"], "unknown preset 'tinny'; did you mean 'tiny'"),
        (
            ["--config=configs/tokenizer.py", "--config.model.chanels=1"],
            "config.model.chanels: no such key; did you mean",
        ),
        (["--config=configs/tokenizer.py", "--config.train.steps=many"], "config.train.steps=many: expected int"),
        (["--config=configs/tokenizer.py", "--config.data.manifest=absent"], "absent"),
        (["--config=configs/tokenizer.py", "--config.system=vae"], "config.system=vae: no such system"),
        (
            ["--config=configs/tokenizer.py", "--config.data.num_frames=0"],
            "config.data.num_frames=0: must be at least 1",
        ),
        (
            ["--config=configs/tokenizer.py", "--config.checkpoint.keep=0"],
            "config.checkpoint.keep=0: must be at least 1",
        ),
        (["--config=configs/tokenizer.py", "--stepz=3"], "unexpected '--stepz=3'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, tmp_path, capsys):
    try:
        status = train.main([*flags, f"--workdir={tmp_path / 'run'}"])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert status == 2 and len(errors) == 1 and captured.out == ""
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in captured.err


def test_checkpoints_that_live_elsewhere_outlive_the_workdir(scenes, tmp_path):
    place = {"checkpoint__folder": str(tmp_path / "bucket")}
    first = loop.fit(make(scenes, train__steps=4, **place), tmp_path / "one")
    assert first["step"] == 4 and steps.read_meta(tmp_path / "one")[0].parent.name == "bucket"
    again = loop.fit(make(scenes, train__steps=4, **place), tmp_path / "two")
    assert again["step"] == 4 and "loss" not in again
    with pytest.raises(UserError, match=r"another config \(optimizer.learning_rate"):
        loop.fit(make(scenes, train__steps=4, optimizer__learning_rate=0.5, **place), tmp_path / "three")
    with pytest.raises(UserError, match=r"another config \(checkpoint.folder"):
        loop.fit(make(scenes, train__steps=4), tmp_path / "one")


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(scenes, tmp_path, caplog):
    loop.fit(make(scenes), tmp_path / "whole")
    loop.fit(make(scenes), tmp_path / "hurt")
    for file in (tmp_path / "hurt" / "checkpoints" / "6").rglob("*"):
        if file.is_file() and file.parent.name != "meta":
            file.write_bytes(file.read_bytes()[:-20])
    assert loop.fit(make(scenes), tmp_path / "hurt")["step"] == 6
    assert "6: is damaged" in caplog.text and "continuing from step 4" in caplog.text
    assert_same(final_state(tmp_path / "whole", make(scenes)), final_state(tmp_path / "hurt", make(scenes)))


def test_where_no_checkpoint_can_be_opened_nothing_starts_anew_over_them(scenes, tmp_path):
    loop.fit(make(scenes), tmp_path)
    for meta in (tmp_path / "checkpoints").glob("*/meta/metadata"):
        meta.write_text("{")
    with pytest.raises(UserError, match="no checkpoint can be read, not even step 6"):
        loop.fit(make(scenes), tmp_path)


def test_a_metric_that_is_measured_no_more_does_not_end_a_run_that_resumes(scenes, tmp_path):
    """The log window that a checkpoint leaves open still contains it."""
    system = make(scenes, train__steps=3, train__log_every=10)
    loop.fit(system, tmp_path)
    again = make(scenes, train__steps=10, train__log_every=10)
    loss = again.loss

    def without(*arguments):
        value, (stats, _) = loss(*arguments)
        return value, (stats, {})

    again.loss = without
    assert loop.fit(again, tmp_path, override=True)["step"] == 10


def test_the_best_checkpoint_stays_over_restarts(scenes, tmp_path):
    settings = {"evaluate__every": 2, "checkpoint__keep": 1, "checkpoint__best": "eval_clips"}
    system = make(scenes, **settings)
    evaluate, scores = system.evaluate, iter([5.0, 1.0, 2.0, 3.0, 4.0])
    system.evaluate = lambda *a: dataclasses.replace(evaluate(*a), metrics={"clips": next(scores)})
    loop.fit(system, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "6"]
    system.recipe = make(scenes, train__steps=10, **settings).recipe
    loop.fit(system, tmp_path, override=True)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "2"]
