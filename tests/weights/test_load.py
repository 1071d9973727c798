"""Loading workdirs, step folders and releases; settings that a text-to-video run takes from its initial model."""

import dataclasses
import gc
import json
import re
import shutil

import jax
import numpy as np
import pytest

from motionaura_jax import export
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import partition
from motionaura_jax.pipelines.text_to_video import TextToVideo
from motionaura_jax.systems.loading import load, load_autoencoder, open_autoencoder
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.weights.load import load_start
from tests.systems import tiny


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return workdirs of a tokenizer and a text-to-video model on it, and a release of the latter in another place."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    tiny.save_untrained(folder / "model", **tiny.text_to_video(tokenizer))
    release = tmp_path_factory.mktemp("releases") / "model"
    assert export.main([f"--checkpoint={folder / 'model'}", f"--output={release}"]) == 0
    return {"tokenizer": tokenizer, "model": folder / "model", "release": release}


def assert_same(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_workdir_step_folder_and_release_are_one_thing(places):
    step = places["model"] / "checkpoints" / "0"
    models = [load(places[name], "text_to_video") for name in ("model", "release")] + [load(step)]
    for model in models[1:]:
        assert_same((models[0].params, models[0].extra), (model.params, model.extra))
        assert (model.step, model.weights) == (0, "averaged")
        assert dataclasses.replace(model.recipe, tokenizer="x") == dataclasses.replace(models[0].recipe, tokenizer="x")


def placed_since(known):
    """Return the bytes of device arrays not in `known`; keep `known` alive, or freed arrays would be miscounted."""
    gc.collect()
    old = {id(array) for array in known}
    return sum(array.nbytes for array in jax.live_arrays() if id(array) not in old)


def test_weights_stay_in_host_memory_until_somebody_places_them(places, tmp_path):
    exported = tmp_path / "exported"
    flags = [f"--checkpoint={places['model']}", f"--output={exported}", "--format=pytorch", "--no_check"]
    assert export.main(flags) == 0
    system = start(places, model={**tiny.DENOISER, "lora": {"rank": 2, "targets": ["q"]}})
    known = jax.live_arrays()
    opened = [load(place) for place in (places["model"], places["release"], exported)]
    pipeline = TextToVideo(places["release"])
    assert opened and pipeline and placed_since(known) == 0
    adapters, frozen = partition(load_start(system)[0], system.recipe.added)
    assert placed_since(known) == sum(leaf.nbytes for leaf in jax.tree.leaves(adapters)) > 0
    assert_same(frozen, opened[0].params)


def test_the_tokenizer_of_a_release_is_found_from_anywhere(places, tmp_path, monkeypatch):
    expected = load_autoencoder(places["tokenizer"])[0].latent_space
    shutil.copytree(places["release"], tmp_path / "deep" / "moved")
    for folder, name in ((tmp_path, "deep/moved"), (tmp_path / "deep", "moved"), (tmp_path / "deep" / "moved", ".")):
        monkeypatch.chdir(folder)
        assert open_autoencoder(load(name, "text_to_video").recipe.tokenizer).latent_space == expected


def test_a_release_of_another_system_or_of_other_settings_is_one_line(places, tmp_path):
    with pytest.raises(UserError, match=r"release.*model: holds a text_to_video; a mbq_vae is needed here"):
        load(places["release"], "mbq_vae")
    place = re.escape(f"{places['release']}/tokenizer")
    with pytest.raises(UserError, match=f"an autoencoder is needed here; its tokenizer is {place}$"):
        load_autoencoder(places["release"])
    folder = shutil.copytree(places["release"], tmp_path / "foreign")
    config_file = folder / "config.json"
    config_file.write_text(config_file.read_text().replace('"text_to_video"', '"video_to_text"'))
    for name in (None, "text_to_video"):
        with pytest.raises(UserError, match=r"foreign: its saved config.system=video_to_text: no such system"):
            load(folder, name)
    folder = shutil.copytree(places["release"], tmp_path / "changed")
    meta = json.loads((folder / "config.json").read_text())
    meta["recipe"]["model"]["wide"] = 3
    (folder / "config.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"changed: its saved config.model.wide: no such key"):
        load(folder, "text_to_video")


def start(places, origin="release", **values):
    """Return a recipe that leaves unset what it takes from its initial model."""
    given = {**tiny.text_to_video("", text={"vocabulary": []}), "init_from": str(places[origin]), **values}
    return TextToVideoSystem(config.build(TextToVideoRecipe, given))


@pytest.mark.parametrize("origin", ["release", "model"])
def test_words_codes_and_tokenizer_come_with_the_weights(places, origin):
    system, trained = start(places, origin), load(places[origin], "text_to_video")
    assert system.recipe.text.vocabulary == trained.recipe.text.vocabulary
    assert system.recipe.latent_space == trained.recipe.latent_space != ""
    assert system.recipe.model.vocab_size == 16
    assert system.recipe.tokenizer == trained.recipe.tokenizer
    assert system.frozen()["tokenizer"].latent_space == trained.recipe.latent_space
    assert_same(load_start(system), (trained.params, trained.extra))


def test_the_saved_recipe_does_without_what_it_started_from(places):
    recipe = dataclasses.replace(start(places).recipe, init_from="gone")
    assert TextToVideoSystem(recipe).recipe == recipe
    with pytest.raises(UserError, match="gone: no such checkpoint"):
        load_start(TextToVideoSystem(recipe))


def test_the_tokenizer_may_have_moved_but_not_changed(places, tmp_path):
    moved = shutil.copytree(places["tokenizer"], tmp_path / "moved")
    system = start(places, tokenizer=str(moved))
    assert system.recipe.tokenizer == str(moved) and system.frozen()
    other = tiny.save_tokenizer(tmp_path / "other", codebook_size=8)
    with pytest.raises(UserError, match=r"other: the tokenizer of step 0 has the latent space \w{16}, but \w{16}"):
        start(places, tokenizer=str(other)).frozen()


def test_other_words_or_codes_are_refused(places):
    text = tiny.text_to_video("")["text"]
    with pytest.raises(UserError, match=r"config.text.vocabulary=.*: .* was trained with .*; leave it empty"):
        load_start(start(places, text={**text, "vocabulary": text["vocabulary"][::-1]}))
    with pytest.raises(UserError, match=r"config.latent_space=0123: .* was trained with \w{16}; leave it empty"):
        load_start(start(places, latent_space="0123", model={**tiny.DENOISER, "vocab_size": 16}))


def test_weights_of_another_transform_are_refused_although_they_fit(places):
    for model, text, message in (
        ({"spectral": "hartley"}, {}, r"config.model.spectral=hartley: .* was trained with re_fft2; give that value"),
        ({"rope": "flat1d"}, {}, r"config.model.rope=flat1d: .* was trained with auto; give that value"),
        ({}, {"max_distance": 32}, r"config.text.encoder.max_distance=32: .* was trained with 16; give that value"),
    ):
        given = tiny.text_to_video("", text={"vocabulary": []})
        given["text"]["encoder"] = {**given["text"]["encoder"], **text}
        system = start(places, model={**tiny.DENOISER, **model}, text=given["text"])
        with pytest.raises(UserError, match=message):
            load_start(system)


def test_another_architecture_is_refused(places):
    with pytest.raises(UserError, match=r"another architecture: the file holds .*; the config needs "):
        load_start(start(places, model={**tiny.DENOISER, "width": 8}))
    with pytest.raises(UserError, match="holds a mbq_vae; a text_to_video is needed here"):
        start(places, "tokenizer")


def test_a_recipe_needs_a_tokenizer_or_a_start():
    with pytest.raises(UserError, match=r"config.tokenizer: name the workdir of a trained tokenizer"):
        config.build(TextToVideoRecipe, tiny.text_to_video(""))
