"""Step folders under awkward paths, of another name, empty, or with descriptions of another form."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import CheckpointConfig
from motionaura_jax.training import checkpoint, loop, optimizer, state
from motionaura_jax.weights import steps
from tests.training.toy import ToyRecipe, ToySystem

RECIPE = {"system": "toy", "data": {"batch_size": 2}}
SYSTEM = ToySystem(config.build(ToyRecipe, RECIPE))


def fresh(step=0):
    created = state.create(SYSTEM, optimizer.build(SYSTEM.recipe.optimizer, 10), seed=0)
    return dataclasses.replace(created, step=jnp.int32(step))


def save(workdir, *numbers, folder=""):
    store = checkpoint.Checkpoints(workdir, CheckpointConfig(folder=folder, keep=5), RECIPE)
    for number in numbers:
        store.save(fresh(number), checkpoint.Continuation())
    store.close()


def restore(workdir):
    """Return the step that a rerun continues from, after it has saved the one after."""
    store = checkpoint.Checkpoints(workdir, CheckpointConfig(keep=5), RECIPE)
    restored, _ = store.restore(jax.eval_shape(fresh))
    step = int(restored.step)
    store.save(dataclasses.replace(restored, step=jnp.int32(step + 1)), checkpoint.Continuation())
    store.close()
    return step


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save(folder, 40, 60)
    return folder


@pytest.fixture
def saved(two_steps, tmp_path):
    """Return a workdir with the steps 40 and 60."""
    return shutil.copytree(two_steps, tmp_path / "run")


# ---------------------------------------------------------------- Paths
@pytest.mark.parametrize("name", ["[exp1]", "[!a]b", "a*?", "**", "a b\n%#@~{x}"])
def test_any_character_but_a_backslash_may_be_in_a_path(tmp_path, name):
    workdir = tmp_path / name
    for folder in ("", str(tmp_path / name / "[0]")):
        save(workdir, 1, folder=folder)
        step, meta = steps.read_meta(folder or workdir)
        assert meta["step"] == 1
        params, _ = steps.read_weights(step, *jax.eval_shape(SYSTEM.init, jax.random.key(0)))
        np.testing.assert_array_equal(params["matrix"], np.eye(3))
    assert restore(workdir) == 1


def test_a_path_that_is_a_pattern_reads_no_neighbor(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "aXb")
    save(tmp_path / "a?b", 1)
    assert restore(tmp_path / "a?b") == 1


@pytest.mark.skipif(os.sep != "/", reason="the separator of this system is a backslash")
@pytest.mark.parametrize("where", ["workdir", "folder"])
def test_a_path_that_cannot_be_read_back_is_refused_before_the_first_step(tmp_path, where):
    values = {**RECIPE, "checkpoint": {"folder": str(tmp_path / "a\\b") if where == "folder" else ""}}
    workdir = tmp_path / ("a\\b" if where == "workdir" else "run")
    with pytest.raises(UserError, match=r"cannot be stored under a path with a backslash; choose another folder"):
        loop.fit(ToySystem(config.build(ToyRecipe, values)), workdir)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- A save counts when it was read
@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("params/manifest.ocdbt", r"checkpoints/1: is damaged \("),
        ("optimizer/_METADATA", r"is damaged \(optimizer"),
        ("params/d", "is damaged"),
        ("meta/metadata", "is damaged"),
    ],
)
def test_the_first_checkpoint_is_read_after_it_was_saved(tmp_path, monkeypatch, file, fault):
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE)
    write = store._manager.wait_until_finished

    def lose():
        write()
        path = tmp_path / "checkpoints" / "1" / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    monkeypatch.setattr(store._manager, "wait_until_finished", lose)
    store.save(fresh(1), checkpoint.Continuation())
    with pytest.raises(UserError, match=rf"{fault}.*, although it was just saved; choose another folder"):
        store.wait()
    store.close()


def test_other_numbers_in_the_first_checkpoint_end_the_run(tmp_path):
    save(tmp_path, 1)
    other = fresh(1)
    trees = {"params": {**other.params, "color": other.params["color"] + 1}}
    with pytest.raises(UserError, match="params is not what was saved"):
        steps.read_back(steps.newest(tmp_path), 1, trees)


def test_a_step_that_orbax_skips_ends_the_run(saved):
    store = checkpoint.Checkpoints(saved, CheckpointConfig(), RECIPE)
    store.save(fresh(50), checkpoint.Continuation())
    with pytest.raises(UserError, match="step 50 was not saved, because there is a step 60; move that one away"):
        store.close()


# ---------------------------------------------------------------- Stray steps
def test_an_empty_newest_step_gives_way_to_the_one_before(saved, caplog):
    (saved / "checkpoints" / "80").mkdir()
    assert steps.newest(saved).name == "60"
    assert restore(saved) == 60
    assert names(saved) == ["40", "60", "61", "damaged-80"]
    assert "checkpoints/80: is damaged" in caplog.text and "continuing from step 60" in caplog.text


def test_a_renamed_step_counts_as_what_it_holds(saved, caplog):
    (saved / "checkpoints" / "60").rename(saved / "checkpoints" / "500")
    assert steps.newest(saved).name == "40"
    assert steps.read_meta(saved / "checkpoints" / "500")[1]["step"] == 60  # chosen by the user
    assert restore(saved) == 40
    assert names(saved) == ["40", "41", "damaged-500"]
    assert "checkpoints/500: is damaged (it holds step 60; if the folder was renamed, give it that name" in caplog.text


def test_a_renamed_step_alone_is_refused_with_its_number(saved):
    (saved / "checkpoints" / "60").rename(saved / "checkpoints" / "500")
    shutil.rmtree(saved / "checkpoints" / "40")
    with pytest.raises(UserError, match="it holds step 60"):
        steps.read_meta(saved)
    store = checkpoint.Checkpoints(saved, CheckpointConfig(), RECIPE)
    with pytest.raises(UserError, match=r"not even step 500 \(.*it holds step 60.*move it away"):
        store.check_new()
    store.close()
    assert names(saved) == ["500"]


def test_an_empty_folder_with_a_number_keeps_no_run_from_starting(tmp_path):
    (tmp_path / "checkpoints" / "99999999" / "params").mkdir(parents=True)
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE)
    store.check_new()
    store.save(fresh(1), checkpoint.Continuation())
    store.close()
    assert names(tmp_path) == ["1", "damaged-99999999"]


@pytest.mark.parametrize("name", ["007", "²", "٣", "1٣", "-5", "6.0", "9" * 30])
def test_names_that_orbax_does_not_write_are_no_steps(saved, name):
    (saved / "checkpoints" / name).mkdir()
    assert steps.newest(saved).name == "60"
    assert restore(saved) == 60
    assert steps.newest(saved).name == "61"


def test_a_file_with_the_name_of_a_step_is_no_step(saved):
    (saved / "checkpoints" / "70").write_text("")
    assert steps.newest(saved).name == "60"
    assert restore(saved) == 60


# ---------------------------------------------------------------- Forms
META = [
    "[1]",
    "[" * 10**5,
    '{"a":' * 1000,
    "null",
    "\xff",
    '{"step": 60}',
    ({"step": -5}, "holds step -5"),
    ({"step": "60"}, "no usable step"),
    ({"recipe": [1]}, "no usable recipe"),
    ({"version": 3}, "no usable version"),
    ({"version": "x.y"}, "Invalid version"),
    ({"checksums": 3}, "no usable checksums"),
    ({"skipped_windows": [[1]]}, "no usable skipped_windows"),
    ({"skipped_windows": {"a": 1}}, "no usable skipped_windows"),
    ({"open_window": [["a", 3]]}, "no usable open_window"),
]


@pytest.mark.parametrize("content", META, ids=range(len(META)))
def test_meta_of_another_form_is_damage(saved, content):
    path = saved / "checkpoints" / "60" / "meta" / "metadata"
    changes, fault = content if isinstance(content, tuple) else ({}, "")
    text = json.dumps({**json.loads(path.read_text()), **changes}) if changes else content
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(steps.Damaged, match=f"checkpoints/60: is damaged .*{fault}"):
        steps.read_meta(saved / "checkpoints" / "60")
    assert restore(saved) == 40


def test_losses_that_are_no_numbers_are_kept(tmp_path):
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE)
    store.save(fresh(1), checkpoint.Continuation(open_window=[[1, {"loss": float("nan")}]]))
    store.close()
    assert str(steps.read_meta(tmp_path)[1]["open_window"]) == "[[1, {'loss': nan}]]"


@pytest.mark.parametrize("text", ['{"checkpoint": {"folder": 3}}', '{"checkpoint": 3}', "[1]", "[" * 10**5, "\0"])
def test_a_config_of_another_form_is_one_line(saved, tmp_path, text):
    (saved / "config.json").write_text(text)
    assert steps.newest(saved).name == "60"  # the checkpoints are where they usually are
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: is damaged .*; restore the file"):
        steps.read_meta(empty)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["meta/metadata", "params/_METADATA", "params/manifest.ocdbt", "optimizer/d/pipe"])
def test_a_pipe_in_a_step_is_damage_and_hangs_nothing(saved, name):
    path = saved / "checkpoints" / "60" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert restore(saved) == 40


def test_a_missing_device_is_no_damage(tmp_path):
    error = RuntimeError("Unable to initialize backend 'cuda': no driver")
    with pytest.raises(RuntimeError, match="Unable to initialize"), steps._reading(tmp_path), steps._orbax():
        raise error


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, IndexError])
def test_only_faults_inside_orbax_count_as_damage(saved, monkeypatch, error):
    def fail(*_):
        raise error("our own")

    with monkeypatch.context() as ours:
        ours.setattr(steps, "_check_meta", fail)
        with pytest.raises(error, match="our own"):
            steps.read_step(saved / "checkpoints" / "60")
    monkeypatch.setattr(steps.ocp.Checkpointer, "metadata", fail)
    with pytest.raises(steps.Damaged, match=r"is damaged .*our own"):
        steps.stored_item(steps.newest(saved), "params")
