"""`init_from`: a fresh run starts from trained weights, one that resumes does not look at them."""

import shutil

import jax
import numpy as np
import pytest

from motionaura_jax import config, train
from motionaura_jax.data import scene_set
from motionaura_jax.errors import UserError
from motionaura_jax.weights import steps
from tests.training.toy import ToyRecipe, ToySystem


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    options = scene_set.PRESETS["easy"]
    scene_set.write_scenes(folder, count=6, split="train", options=options, num_frames=4, height=16, width=16, fps=8.0)
    return folder


def make(manifest, *, learning_rate=0.1, last=2, **values):
    data = {"manifest": str(manifest), "num_frames": 4, "height": 16, "width": 16, "batch_size": 2, "held_out": 0.4}
    settings = {
        "system": "toy",
        "data": data,
        "train": {"steps": last, "log_every": 1},
        "optimizer": {"learning_rate": learning_rate, "decay": "constant"},
        "evaluate": {"clips": 1},
        **values,
    }
    return ToySystem(config.build(ToyRecipe, settings))


def weights(workdir, system):
    folder, _ = steps.read_meta(workdir)
    return steps.read_weights(folder, *jax.eval_shape(system.init, jax.random.key(0)))


def test_a_run_starts_from_the_weights_of_another_and_resumes_without_them(scenes, tmp_path):
    first = make(scenes)
    train.fit(first, tmp_path / "first")
    params, extra = weights(tmp_path / "first", first)

    values = {"learning_rate": 0.0, "seed": 5, "init_from": str(tmp_path / "first")}
    second = make(scenes, **values)
    train.fit(second, tmp_path / "second")
    kept, counted = weights(tmp_path / "second", second)
    for name in params:
        np.testing.assert_allclose(kept[name], params[name], rtol=1e-6)  # the average of equal values may round
    assert counted["seen"] == extra["seen"] + 4  # neither reset nor prepared again

    shutil.rmtree(tmp_path / "first")
    resumed = make(scenes, last=4, **values)
    assert train.fit(resumed, tmp_path / "second", override=True)["step"] == 4
    assert weights(tmp_path / "second", resumed)[1]["seen"] == extra["seen"] + 8


def test_a_start_that_cannot_be_leaves_the_workdir_free(scenes, tmp_path):
    with pytest.raises(UserError, match="absent: no such checkpoint"):
        train.fit(make(scenes, init_from="absent"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train.fit(make(scenes), tmp_path / "run")["step"] == 2
