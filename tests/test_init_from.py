"""`init_from`: a fresh run starts from trained weights; a resumed run ignores them."""

import json
import shutil

import jax
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.scenes import dataset
from motionaura_jax.systems import loading
from motionaura_jax.systems.base import Evaluation
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.training import loop
from motionaura_jax.weights import steps
from tests.systems import tiny
from tests.training.toy import ToyRecipe, ToySystem


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    options = dataset.PRESETS["easy"]
    dataset.write_scenes(folder, count=6, split="train", options=options, num_frames=4, height=16, width=16, fps=8.0)
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
    loop.fit(first, tmp_path / "first")
    params, extra = weights(tmp_path / "first", first)

    values = {"learning_rate": 0.0, "seed": 5, "init_from": str(tmp_path / "first")}
    second = make(scenes, **values)
    loop.fit(second, tmp_path / "second")
    kept, counted = weights(tmp_path / "second", second)
    for name in params:
        np.testing.assert_allclose(kept[name], params[name], rtol=1e-6)  # averaging equal values may round
    assert counted["seen"] == extra["seen"] + 4  # neither reset nor prepared a second time

    shutil.rmtree(tmp_path / "first")
    resumed = make(scenes, last=4, **values)
    assert loop.fit(resumed, tmp_path / "second", override=True)["step"] == 4
    assert weights(tmp_path / "second", resumed)[1]["seen"] == extra["seen"] + 8


def tiny_values(tokenizer, scenes, **sections):
    """Return a text-to-video run of two steps that leaves vocabulary and latent space unset."""
    data = {"manifest": str(scenes), "batch_size": 2, "held_out": 0.4}
    values = tiny.text_to_video(tokenizer, data=data, text={"vocabulary": []}, train={"steps": 2}, **sections)
    return {**values, "evaluate": {"clips": 1, "pictures": 0}, "optimizer": {"learning_rate": 1e-3}}


def fit(values, workdir, **options):
    recipe = config.build(TextToVideoRecipe, values)
    return loop.fit(loading.open_system(recipe, workdir), workdir, **options)


@pytest.mark.slow(quick=True)
def test_a_text_to_video_run_resumes_with_the_words_and_codes_that_it_has_learned(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(TextToVideoSystem, "evaluate", lambda *_: Evaluation(metrics={}))  # half of the time
    captions = shutil.copytree(scenes, tmp_path / "captions")
    tokenizer = tiny.save_tokenizer(tmp_path / "tokenizer")
    values = tiny_values(tokenizer, captions)
    fit(values, tmp_path / "run")
    words = json.loads((tmp_path / "run" / "config.json").read_text())["text"]["vocabulary"]

    # One new word, and one that is now the most frequent: embedding rows stay with their words.
    for path in captions.glob("*.txt"):
        path.write_text(f"zebra zebra zebra {path.read_text()}")
    assert fit(values, tmp_path / "run")["step"] == 2
    values["train"] = {"steps": 3}
    assert fit(values, tmp_path / "run", override=True)["step"] == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["text"]["vocabulary"] == words

    # Deliberate differences are refused, even if other settings may be overridden.
    changed = {**values, "text": {**values["text"], "vocabulary": words[::-1]}}
    with pytest.raises(UserError, match=r"config.text.vocabulary=.*run was trained with .*; leave it empty"):
        fit(changed, tmp_path / "run", override=True)
    with pytest.raises(UserError, match=r"config.model.spectral=hartley: .*run was trained with re_fft2"):
        fit({**values, "model": {**values["model"], "spectral": "hartley"}}, tmp_path / "run", override=True)

    # So is a retrained tokenizer.
    shutil.rmtree(tokenizer)
    tiny.save_tokenizer(tokenizer, beta=0.5)
    with pytest.raises(UserError, match=r"has the latent space \w{16}, but \w{16} is needed"):
        fit(values, tmp_path / "run", override=True)


def test_a_start_that_cannot_be_leaves_the_workdir_free(scenes, tmp_path):
    with pytest.raises(UserError, match="absent: no such checkpoint"):
        loop.fit(make(scenes, init_from="absent"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert loop.fit(make(scenes), tmp_path / "run")["step"] == 2
