"""Checkpoints: round trip, refusals, reading for inference, a failing disk."""

import dataclasses
import errno
import importlib.util
import io
import json
import math
import shutil
import subprocess
import sys
import weakref
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.experimental import multihost_utils

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import CheckpointConfig
from motionaura_jax.data import media
from motionaura_jax.training import checkpoint, loop, optimizer, state, workdir
from motionaura_jax.training.monitoring.writers import read_metrics
from motionaura_jax.weights import steps
from tests.training.toy import ToyRecipe, ToySystem

RECIPE = {"system": "toy", "data": {"batch_size": 2}}


@pytest.fixture
def system():
    return ToySystem(config.build(ToyRecipe, RECIPE))


@pytest.fixture
def saved(system, tmp_path):
    """Return a workdir that saved steps 1, 2 and 3 and kept two, and the last state."""
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(keep=2), RECIPE)
    current = fresh(system)
    for step in (1, 2, 3):
        current = dataclasses.replace(
            current, step=jnp.int32(step), ema={**current.ema, "color": jnp.full(3, 1.0 * step)}
        )
        store.save(current, checkpoint.Continuation())
    store.close()
    return tmp_path, current


def fresh(system):
    return state.create(system, optimizer.build(system.recipe.optimizer, 10), seed=0)


def abstract(system):
    return jax.eval_shape(lambda: fresh(system))


def test_everything_comes_back_bit_for_bit(system, saved):
    workdir, expected = saved
    store = checkpoint.Checkpoints(workdir, CheckpointConfig(), RECIPE)
    assert store.latest() == 3
    restored, _ = store.restore(abstract(system))
    store.close()
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_only_the_newest_are_kept(saved):
    assert sorted(p.name for p in (saved[0] / "checkpoints").iterdir()) == ["2", "3"]


def test_inference_reads_the_average_of_the_newest_step_or_of_a_given_one(system, saved):
    workdir, _ = saved
    params, extra = jax.eval_shape(system.init, jax.random.key(0))
    for path, step in ((workdir, 3), (workdir / "checkpoints" / "2", 2)):
        folder, meta = steps.read_meta(path)
        assert meta["step"] == step and meta["recipe"] == RECIPE
        weights, read_extra = steps.read_weights(folder, params, extra)
        np.testing.assert_array_equal(weights["color"], float(step))
        assert int(read_extra["seen"]) == 0


def test_another_architecture_is_refused_by_name(system, saved):
    store = checkpoint.Checkpoints(saved[0], CheckpointConfig(), RECIPE)
    wanted = abstract(system)
    other = {**wanted.params, "color": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with pytest.raises(
        UserError, match=r"params/color is float32\[3\] in the checkpoint and float32\[4\] in the config"
    ):
        store.restore(dataclasses.replace(wanted, params=other))
    half = {**wanted.params, "color": jax.ShapeDtypeStruct((3,), jnp.bfloat16)}
    with pytest.raises(UserError, match=r"params/color is float32\[3\] in the checkpoint and bfloat16\[3\]"):
        store.restore(dataclasses.replace(wanted, params=half))
    store.close()


def newest_file(workdir, name):
    """Return a file of the newest step; the glob `name` may match several equivalent files."""
    return sorted((workdir / "checkpoints" / "3").glob(name))[0]


@pytest.mark.parametrize("name", ["params/manifest.ocdbt", "optimizer/d/*", "ema/_METADATA", "meta/metadata"])
def test_a_damaged_newest_step_is_put_aside_for_the_one_before(system, saved, caplog, name):
    workdir, _ = saved
    path = newest_file(workdir, name)
    path.write_bytes(path.read_bytes()[:50])
    store = checkpoint.Checkpoints(workdir, CheckpointConfig(keep=2), RECIPE)
    restored, _ = store.restore(abstract(system))
    assert int(restored.step) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("motionaura_jax")]
    assert "checkpoints/3: is damaged" in line and "continuing from step 2" in line and "damaged-3" in line
    store.save(
        dataclasses.replace(restored, step=jnp.int32(3)), checkpoint.Continuation()
    )  # the run saves the step a second time
    store.close()
    assert steps.newest(workdir).name == "3"
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "3", "damaged-3"]


def test_a_bit_that_turned_over_is_damage(system, tmp_path):
    params = {"matrix": jax.random.normal(jax.random.key(0), (64, 64))}  # large enough to be stored outside the index
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE)
    store.save(dataclasses.replace(fresh(system), params=params), checkpoint.Continuation())
    store.close()
    folder = tmp_path / "checkpoints" / "0"
    path = max((folder / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    whole, silent = path.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            restored = steps.read_item(folder, "params", jax.eval_shape(lambda: params))
        except steps.Damaged as damage:
            silent += "is not what was saved" in str(damage)
        else:
            np.testing.assert_array_equal(restored["matrix"], params["matrix"])  # a byte that nothing reads
    assert silent, "no damage came past orbax"


def test_where_every_step_is_damaged_nothing_is_moved(system, saved):
    workdir, _ = saved
    for folder in (workdir / "checkpoints").iterdir():
        (folder / "params" / "manifest.ocdbt").unlink()
    store = checkpoint.Checkpoints(workdir, CheckpointConfig(), RECIPE)
    with pytest.raises(UserError, match="checkpoints/3: is damaged"):
        store.restore(abstract(system))
    store.close()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "3"]


def test_damaged_weights_are_one_line_for_inference(system, saved):
    newest_file(saved[0], "ema/manifest.ocdbt").write_bytes(b"")
    folder, _ = steps.read_meta(saved[0])
    with pytest.raises(UserError, match=r"checkpoints/3: is damaged .*give another step folder"):
        steps.read_weights(folder, *jax.eval_shape(system.init, jax.random.key(0)))


def test_a_checkpoint_of_a_newer_version_is_refused(system, saved):
    path = newest_file(saved[0], "meta/metadata")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "99.0"}))
    with pytest.raises(UserError, match=r"was written by motionaura_jax 99\.0, which is newer .*upgrade"):
        steps.read_meta(saved[0])
    store = checkpoint.Checkpoints(saved[0], CheckpointConfig(), RECIPE)
    with pytest.raises(UserError, match="newer than this one"):
        store.restore(abstract(system))
    store.close()


def test_an_average_that_was_off_starts_from_the_parameters(system, tmp_path, caplog):
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE)
    store.save(dataclasses.replace(fresh(system), ema=None, step=jnp.int32(4)), checkpoint.Continuation())
    restored, _ = store.restore(abstract(system))
    store.close()
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("motionaura_jax")]
    assert line == "step 4 has no average of the weights; it starts from the parameters of that step"
    jax.tree.map(np.testing.assert_array_equal, restored.ema, fresh(system).params)
    jax.block_until_ready(jax.jit(lambda tree: tree, donate_argnums=0)(restored))  # no buffer is duplicated


def test_an_average_that_is_lost_is_damage(system, saved):
    shutil.rmtree(saved[0] / "checkpoints" / "3" / "ema")
    store = checkpoint.Checkpoints(saved[0], CheckpointConfig(), RECIPE)
    assert int(store.restore(abstract(system))[0].step) == 2
    store.close()


def save_all(system, workdir, config, metrics):
    store = checkpoint.Checkpoints(workdir, config, RECIPE)
    for step, value in enumerate(metrics, start=1):
        current = dataclasses.replace(fresh(system), step=jnp.int32(step))
        store.save(current, checkpoint.Continuation())
        if value is not None:
            store.rate(step, {"eval_psnr": value})
    store.close()
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_the_newest_every_nth_and_the_best_stay(system, tmp_path):
    values = [3.0, 9.0, math.nan, 5.0, 1.0, None, 2.0, 2.0]
    assert save_all(system, tmp_path / "a", CheckpointConfig(keep=2, keep_every=3), values) == [3, 6, 7, 8]
    assert save_all(system, tmp_path / "b", CheckpointConfig(keep=1, best="eval_psnr", keep_best=2), values) == [
        2,
        4,
        8,
    ]
    lowest = CheckpointConfig(keep=1, best="eval_psnr", best_mode="min")
    assert save_all(system, tmp_path / "c", lowest, values) == [5, 8]


def test_a_best_metric_that_does_not_exist_is_told_once_and_ends_nothing(system, tmp_path, caplog):
    assert save_all(system, tmp_path, CheckpointConfig(keep=2, best="eval_psn"), [1.0, 2.0, 3.0]) == [2, 3]
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("motionaura_jax")]
    assert line.startswith(
        "config.checkpoint.best=eval_psn: the evaluation has no such metric; did you mean 'eval_psnr'?"
    )


def test_a_checkpoint_says_where_it_comes_from_and_what_data_was_given_up(system, tmp_path):
    origin = workdir.provenance("0123")
    assert origin["data"] == "0123" and origin["versions"]["jax"] == jax.__version__
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE, origin)
    continuation = checkpoint.Continuation([[3, 5], [9, 11]], [[8, {"loss": 0.1}], [9, {"loss": 1 / 3}]])
    store.save(fresh(system), continuation)
    assert store.restore(abstract(system))[1] == continuation
    store.close()
    assert steps.read_meta(tmp_path)[1]["provenance"] == origin


def test_the_revision_of_a_checkout_is_known_and_that_of_an_installation_is_not(tmp_path, monkeypatch):
    package = tmp_path / "motionaura_jax"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(workdir.motionaura_jax, "__file__", str(package / "__init__.py"))
    assert workdir.provenance("")["revision"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert workdir.provenance("")["revision"] == head
    (package / "__init__.py").write_text("1")
    assert workdir.provenance("")["revision"] == head + "+"


def test_checkpoints_may_live_elsewhere(system, tmp_path):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    settings = CheckpointConfig(folder=str(elsewhere))
    store = checkpoint.Checkpoints(workdir, settings, RECIPE)
    store.save(fresh(system), checkpoint.Continuation())
    store.close()
    media.write_json(workdir / "config.json", {"checkpoint": {"folder": str(elsewhere)}})
    assert {str(steps.newest(place)) for place in (workdir, elsewhere, elsewhere / "0")} == {str(elsewhere / "0")}


def test_an_unknown_scheme_is_one_line():
    with pytest.raises(UserError, match="azure://bucket: azure:// is not among gs, s3"):
        steps.read_meta("azure://bucket")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_path_in_a_bucket_keeps_its_scheme(scheme, tmp_path, monkeypatch):
    place = f"{scheme}://bucket/runs/a"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{place}: needs the Python package .*motionaura-jax.cloud"):
        steps.folder_of(tmp_path, place)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert str(steps.folder_of(tmp_path, place)) == place
    listed = ["100", "500", "500.orbax-checkpoint-tmp"]
    with epath.testing.mock_epath(
        isdir=lambda _, path: str(path).startswith(place) and not str(path).endswith(("/checkpoints", "runs/a/meta")),
        listdir=lambda _, path: listed,
        open=lambda _, path, mode: io.StringIO('{"recipe": {}}'),
        exists=lambda _, path: True,
    ):
        assert str(steps.newest(place)) == f"{place}/500"


@pytest.mark.parametrize("make", [lambda p: p / "absent", lambda p: p])
def test_no_checkpoint_is_one_line(tmp_path, make):
    with pytest.raises(UserError, match=r"no such checkpoint|holds no finished checkpoint"):
        steps.read_meta(make(tmp_path))


def test_the_loop_goes_on_while_a_save_is_written(system, tmp_path, monkeypatch):
    store, current, may_write = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE), fresh(system), Event()
    expected, write = jax.tree.map(np.array, current), store._manager.save
    monkeypatch.setattr(store._manager, "save", lambda *args, **named: may_write.wait(60) and write(*args, **named))
    store.save(current, checkpoint.Continuation())
    assert store.latest() is None
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    jax.block_until_ready(step(current))
    assert current.params["color"].is_deleted()
    may_write.set()
    restored, _ = store.restore(abstract(system))
    store.close()
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_what_a_step_has_consumed_stays_while_a_save_is_written(system, tmp_path, monkeypatch):
    store, consumed, may_write = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE), fresh(system), Event()
    alive, write = weakref.ref(consumed), store._manager.save
    monkeypatch.setattr(store._manager, "save", lambda *args, **named: may_write.wait(60) and write(*args, **named))
    store.save(fresh(system), checkpoint.Continuation())
    store.let_go(consumed)
    del consumed
    assert alive()
    may_write.set()
    store.wait()
    store.let_go(fresh(system))
    assert not alive()
    store.close()


def test_the_thread_never_asks_for_the_step_at_which_a_signal_stops_all(system, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE)
    store.save(fresh(system), checkpoint.Continuation())
    store.close()
    assert store.latest() == 0 and not asked


def test_an_unfinished_save_is_not_seen(saved):
    workdir, _ = saved
    unfinished = workdir / "checkpoints" / "4.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert steps.read_meta(workdir)[1]["step"] == 3


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.; free space and run"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded.; free space and run"),
        (
            ValueError("RESOURCE_EXHAUSTED: a.lock: Disk quota exceeded [os_error_code='122']"),
            ".Disk quota exceeded.; free",
        ),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied.; check its permissions"),
    ],
)
def test_a_full_disk_names_the_folder_and_the_remedy(system, tmp_path, monkeypatch, error, message):
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(), RECIPE)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(store._manager, "save", fail)
    store.save(fresh(system), checkpoint.Continuation())
    with pytest.raises(UserError, match=f"checkpoints: could not save a checkpoint .*{message}"):
        store.save(fresh(system), checkpoint.Continuation())  # reports the previous one
    store.close()


def test_a_save_that_fails_ends_the_run_before_the_next_one(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    values = {"data": {"num_frames": 2, "height": 16, "width": 16, "batch_size": 2, "scenes": 6}}
    values |= {"train": {"steps": 600, "log_every": 1}, "checkpoint": {"every": 200}, "evaluate": {"clips": 2}}
    built = ToySystem(config.build(ToyRecipe, {"system": "toy", "batch_seconds": 0.002, **values}))
    monkeypatch.setattr(checkpoint._Manager, "save", fail)
    with pytest.raises(UserError, match=r"No space left on device.; free space and run"):
        loop.fit(built, tmp_path)
    assert 199 <= read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] < 400


def test_a_full_disk_prints_one_line(root, tmp_path):
    """Writes fail after 10 or 200 bytes; orbax and its threads would report that in hundreds of lines."""
    program = f"""
import pathlib, resource, signal, sys
from motionaura_jax.core import cli
from tests.training.test_checkpoint import *
from tests.training.test_checkpoint import RECIPE, fresh

state = fresh(ToySystem(config.build(ToyRecipe, RECIPE)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)

def save(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    store = checkpoint.Checkpoints(pathlib.Path({str(tmp_path)!r}, str(limit)), CheckpointConfig(), RECIPE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        store.save(state, checkpoint.Continuation())
    finally:
        store.close()

sys.exit(sum(cli.run(lambda: save(limit), as_json=False) for limit in (10, 200)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 + 2 and done.stdout == ""
    assert done.stderr == "".join(
        f"error: {tmp_path}/{limit}/checkpoints: could not save a checkpoint (File too large); "
        "free space and run the same command again\n"
        for limit in (10, 200)
    )
