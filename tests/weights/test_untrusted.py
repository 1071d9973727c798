"""Untrusted releases: nothing is fetched, built or read that their folder does not hold."""

import dataclasses
import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest

from motionaura_jax.conditioning.text import FrozenText
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.systems.loading import load
from motionaura_jax.systems.registry import system_class
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.weights import hub, release
from motionaura_jax.weights.load import open_checkpoint
from tests.systems import tiny


def write(folder, values, **meta):
    """Write a release with zeros for weights."""
    cls = system_class(values["system"])
    recipe = config.build(cls.Recipe, values)
    params, extra = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(cls(recipe).init, jax.random.key(0))
    )
    common = {"system": recipe.system, "recipe": config.to_dict(recipe), "parts": {}, "step": 3, "weights": "raw"}
    release.write_folder(folder, {**common, "versions": {}, **meta}, params, extra)
    return folder


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    values = {**tiny.text_to_video(""), "tokenizer": "tokenizer", "latent_space": "0" * 16}
    write(folder / "model", values, parts={"tokenizer": "tokenizer"})
    write(folder / "tokenizer", {"system": "mbq_vae", "model": tiny.TOKENIZER})
    return folder


@pytest.fixture
def changed(releases, tmp_path):
    """Return a function that copies a release and changes its `config.json`."""

    def change(name, *keys, **meta):
        there = shutil.copytree(releases / name, tmp_path / name, dirs_exist_ok=True)
        values = {**json.loads((there / "config.json").read_text()), **meta}
        for key, value in keys:
            values["recipe"] = release.with_key(values["recipe"], key, value)
        (there / "config.json").write_text(json.dumps(values))
        return there

    return change


def refused(folder):
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_releases_themselves_open(releases):
    assert load(releases / "model").step == 3 and load(releases / "tokenizer").step == 3


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("model", "model.text_len", 2**14),
        ("model", "model.text_len", 10**6),
        ("model", "model.text_len", 10**12),
        ("model", "model.vocab_size", 10**12),
        ("model", "model.width", 10**9),
        ("model", "model.mlp_ratio", 1e300),
        ("model", "text.encoder.layers", 1024),
        ("model", "text.encoder.layers", 10**6),
        ("model", "text.encoder.layers", 10**9),
        ("tokenizer", "model.dec_mb", [10**9, 0]),
        ("tokenizer", "model.dec_mb", [1024, 0]),
        ("tokenizer", "model.dec_mb", [10**6, 0]),
        ("tokenizer", "model.codebook_size", 10**15),
    ],
)
def test_sizes_out_of_proportion_to_the_weights_are_refused_at_once(changed, name, key, value):
    line = refused(changed(name, (key, value)))
    known = (
        "out of proportion",
        "has more layers than the",
        "another architecture",
        "must be at least",
        "must be above",
    )
    assert any(words in line for words in known)


def test_a_config_of_brackets_is_one_line(changed):
    there = changed("model")
    (there / "config.json").write_text("[" * 100_000)
    assert "config.json: is damaged (nested too deeply)" in refused(there)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_numbers_are_refused(releases, tmp_path, value, dtype):
    model = load(releases / "tokenizer")
    leaves, tree = jax.tree.flatten(model.params)
    leaves[-1] = np.full_like(leaves[-1], value)
    meta = json.loads((releases / "tokenizer" / "config.json").read_text())
    release.write_folder(tmp_path / "bad", meta, jax.tree.unflatten(tree, leaves), model.extra, dtype)
    assert "holds values that are not numbers" in refused(tmp_path / "bad")


def test_large_weights_are_numbers(releases, tmp_path):
    model = load(releases / "tokenizer")
    params = jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), model.params)
    meta = json.loads((releases / "tokenizer" / "config.json").read_text())
    release.write_folder(tmp_path / "large", meta, params, model.extra)
    assert load(tmp_path / "large").step == 3


@pytest.mark.parametrize(
    ("meta", "fault"),
    [
        ({"versions": {"motionaura_jax": "99.0.0"}}, "which is newer than this one"),
        ({"versions": {"motionaura_jax": 99}}, "is damaged (the version '99')"),
        ({"versions": {"motionaura_jax": "new"}}, "is damaged (the version 'new')"),
        ({"step": -5}, "'step' is -5"),
        ({"step": True}, "'step' is missing or of the wrong type"),
        ({"provenance": [1]}, "'provenance' must be an object"),
    ],
)
def test_a_description_that_cannot_be_true_is_refused(changed, meta, fault):
    assert fault in refused(changed("model", **meta))


@pytest.mark.parametrize("key", ["tokenizer", "text.tower"])
@pytest.mark.parametrize("place", ["/etc", "../elsewhere", "a/../../b", "~/models", "C:\\models", "gs://there/x"])
def test_a_part_that_is_not_listed_leads_nowhere_either(changed, key, place):
    line = refused(changed("model", (key, place), parts={}))
    assert f"{key} is at" in line and "outside the folder" in line


def test_paths_that_only_training_reads_are_forgotten(changed):
    there = changed("model", ("init_from", "/etc"), ("data.manifest", "../videos"), ("text.cache", "~/cache"))
    recipe = open_checkpoint(there).recipe(TextToVideoRecipe)
    assert (recipe.init_from, recipe.data.manifest) == ("elsewhere/etc", "elsewhere/videos")
    assert recipe.text.cache == "elsewhere/cache"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return the list of what is asked of the hub."""
    calls = []

    def download(name, **options):
        calls.append((name, options.get("revision"), options.get("local_files_only", False)))
        raise OSError("nothing here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def words(recipe):
    with pytest.raises(UserError) as error:
        _ = FrozenText(recipe.text, recipe.model).words
    return str(error.value)


@pytest.mark.parametrize("place", ["someone/t5", "someone/t5@main"])
def test_no_hub_id_of_a_release_is_fetched(changed, asked, place):
    recipe = open_checkpoint(changed("model", ("text.tower", place))).recipe(TextToVideoRecipe)
    line = words(recipe)
    assert "only the checkpoint names this model" in line and "--text_encoder" in line
    assert asked and all(local for _, _, local in asked)
    asked.clear()
    words(recipe.with_text_encoder("someone/t5@main"))
    assert asked == [("someone/t5", "main", False)]


def test_the_tokenizer_of_a_release_is_not_fetched_either(changed, asked):
    recipe = open_checkpoint(changed("model", ("tokenizer", "someone/tok@1"), parts={})).recipe(TextToVideoRecipe)
    with pytest.raises(UserError, match="only the checkpoint names this model"):
        load(recipe.tokenizer)
    with pytest.raises(UserError, match="only the checkpoint names this model"):
        load(str(dataclasses.replace(recipe, seed=1).tokenizer))
    assert asked and all(local for _, _, local in asked)


def test_a_release_names_no_folder_of_this_machine(changed, asked, tmp_path, monkeypatch):
    there = changed("model", ("text.tower", "private/t5"))
    (tmp_path / "private" / "t5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "only the checkpoint names this model" in words(open_checkpoint(there).recipe(TextToVideoRecipe))
    assert hub.model_folder("private/t5").name == "t5"
