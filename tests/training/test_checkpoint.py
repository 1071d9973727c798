"""Checkpoints: round trip, refusals, what inference reads, a disk that fails."""

import dataclasses
import errno
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax import config
from motionaura_jax.errors import UserError
from motionaura_jax.recipe import CheckpointConfig
from motionaura_jax.training import checkpoint, optimizer, state
from motionaura_jax.weights import steps
from tests.training.toy import ToyRecipe, ToySystem

RECIPE = {"system": "toy", "data": {"batch_size": 2}}


@pytest.fixture
def system():
    return ToySystem(config.build(ToyRecipe, RECIPE))


@pytest.fixture
def saved(system, tmp_path):
    """A workdir with steps 1, 2 and 3 of which two are kept, and the last state."""
    store = checkpoint.Checkpoints(tmp_path, CheckpointConfig(keep=2), RECIPE)
    current = fresh(system)
    for step in (1, 2, 3):
        current = dataclasses.replace(
            current, step=jnp.int32(step), ema={**current.ema, "color": jnp.full(3, 1.0 * step)}
        )
        store.save(current)
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
    restored = store.restore(abstract(system))
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


@pytest.mark.parametrize("make", [lambda p: p / "absent", lambda p: p])
def test_no_checkpoint_is_one_line(tmp_path, make):
    with pytest.raises(UserError, match=r"no such checkpoint|holds no finished checkpoint"):
        steps.read_meta(make(tmp_path))


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
    with pytest.raises(UserError, match=f"checkpoints: could not save a checkpoint .*{message}"):
        store.save(fresh(system))
    store.close()


@pytest.mark.parametrize("limit", [10, 200])
def test_a_full_disk_prints_one_line(root, tmp_path, limit):
    """Files end after `limit` bytes; orbax and its threads would report that in hundreds of lines."""
    program = f"""
import pathlib, resource, signal, sys
from motionaura_jax import cli
from tests.training.test_checkpoint import CheckpointConfig, ToyRecipe, ToySystem, RECIPE, checkpoint, config, fresh

def save():
    state = fresh(ToySystem(config.build(ToyRecipe, RECIPE)))
    store = checkpoint.Checkpoints(pathlib.Path({str(tmp_path)!r}), CheckpointConfig(), RECIPE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        store.save(state)
    finally:
        store.close()

sys.exit(cli.run(save, as_json=False))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr == f"error: {tmp_path}/checkpoints: could not save a checkpoint (File too large); "
        "free space and run the same command again\n"
    )
