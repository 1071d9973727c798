"""`motionaura export`: a self-contained folder that commands accept, refusals, and the state after a failure."""

import dataclasses
import json
import shutil
import typing

import jax
import numpy as np
import pytest

from motionaura_jax import export, reconstruct, sample
from motionaura_jax.data.media import write_video
from motionaura_jax.exporters import base
from motionaura_jax.systems import registry
from motionaura_jax.systems.loading import load
from motionaura_jax.weights import release
from tests.systems import tiny
from tests.written import local_paths


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    there = {"data": {"manifest": "/videos/scenes"}, "checkpoint": {"folder": "gs://mine/b"}}
    tiny.save_untrained(folder / "model", **tiny.text_to_video(tokenizer, **there))
    return folder


@pytest.fixture(scope="module")
def released(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases") / "model"
    assert export.main([f"--checkpoint={runs / 'model'}", f"--output={folder}"]) == 0
    return folder


def error_of(flags, capsys):
    capsys.readouterr()
    assert export.main(flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def test_a_release_holds_all_that_sampling_needs(runs, released, tmp_path):
    assert sorted(path.name for path in released.iterdir()) == ["config.json", "model.safetensors", "tokenizer"]
    config = json.loads((released / "config.json").read_text())
    assert config["recipe"]["tokenizer"] == "tokenizer" and config["recipe"]["text"]["vocabulary"]
    assert (config["system"], config["step"], config["weights"]) == ("text_to_video", 0, "averaged")
    assert config["versions"].keys() == {"motionaura_jax", "jax"} and "provenance" not in config
    moved = shutil.copytree(released, tmp_path / "moved")
    videos = []
    for number, checkpoint in enumerate([runs / "model", moved]):
        output = tmp_path / f"{number}.npz"
        assert sample.main([f"--checkpoint={checkpoint}", "--prompt=a red circle", f"--output={output}"]) == 0
        videos.append(np.load(output)["video"])
    np.testing.assert_array_equal(*videos)


def test_a_release_says_nothing_about_the_machine(released):
    recipe = json.loads((released / "config.json").read_text())["recipe"]
    assert local_paths(released) == []
    assert (recipe["data"]["manifest"], recipe["checkpoint"]["folder"]) == ("elsewhere/scenes", "elsewhere/b")


def strings_of(kind, prefix=""):
    """Return the config keys that may hold any text."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from strings_of(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            yield from strings_of(typing.get_args(hint)[0], f"{prefix}{name}.")
        elif hint is str:
            yield prefix + name


def test_every_key_that_may_be_a_place_is_known_as_one():
    recipes = [registry.system_class(name).Recipe for name in ("mbq_vae", "text_to_video")]
    keys = {key for recipe in recipes for key in strings_of(recipe)}
    places = {key for recipe in recipes for key in recipe.places}
    assert places <= keys
    names = ("system", "latent_space", "text.tower_hash", "checkpoint.best", "features.network")
    names += ("optimizer.groups.pattern", "optimizer.groups.clip")
    assert keys - places - set(names) == {"diffusion.schedule", "sample.schedule"}


def test_the_tokenizer_inside_reconstructs(released, tmp_path):
    write_video(tmp_path / "in.gif", np.zeros((4, 16, 16, 3), np.uint8), 8.0)
    flags = [f"--input={tmp_path / 'in.gif'}", f"--output={tmp_path / 'out.gif'}"]
    assert reconstruct.main([f"--checkpoint={released / 'tokenizer'}", *flags]) == 0


def test_a_release_is_exported_again_with_its_provenance(released, tmp_path, capsys):
    first, second = shutil.copytree(released, tmp_path / "first"), tmp_path / "second"
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**config, "provenance": {"data": "scenes"}}))
    capsys.readouterr()
    assert export.main([f"--checkpoint={first}", f"--output={second}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parts"] == ["tokenizer"] and result["output"] == str(second)
    assert result["bytes"] == sum(path.stat().st_size for path in second.rglob("*") if path.is_file())
    assert load(second).provenance == {"data": "scenes"}
    for name in ("model.safetensors", "tokenizer/model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_tokenizer_alone_without_an_average(runs, tmp_path):
    tiny.save_untrained(tmp_path / "raw", system="mbq_vae", model=tiny.TOKENIZER, train={"ema_decay": 0.0})
    assert export.main([f"--checkpoint={tmp_path / 'raw'}", f"--output={tmp_path / 'release'}"]) == 0
    assert load(tmp_path / "release", "mbq_vae").weights == "raw"
    assert not (tmp_path / "release" / "tokenizer").exists()


def test_an_export_does_not_need_what_only_training_reads(tmp_path):
    loss = {"perceptual": 0.1, "perceptual_weights": str(tmp_path / "gone.npz")}
    tiny.save_untrained(tmp_path / "run", system="mbq_vae", model=tiny.TOKENIZER, loss=loss)
    assert export.main([f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'release'}"]) == 0


def test_a_tokenizer_that_moved_is_named(runs, tmp_path, capsys):
    model = tmp_path / "model"
    values = tiny.text_to_video(shutil.copytree(runs / "tokenizer", tmp_path / "before"))
    tiny.save_untrained(model, **values)
    (tmp_path / "before").rename(tmp_path / "after")
    flags = [f"--checkpoint={model}", f"--output={tmp_path / 'release'}"]
    assert "before: no such checkpoint" in error_of(flags, capsys)
    other = tiny.save_tokenizer(tmp_path / "other", codebook_size=8)
    assert "latent space" in error_of([*flags, f"--tokenizer={other}"], capsys)
    assert export.main([*flags, f"--tokenizer={tmp_path / 'after'}"]) == 0
    assert export.main([*flags, f"--part=tokenizer={tmp_path / 'after'}", "--overwrite"]) == 0
    assert "write it as --part=ROLE=PLACE" in error_of([*flags, "--part=tokenizer", "--overwrite"], capsys)
    there = f"--tokenizer={tmp_path / 'after'}"
    assert "stablehlo" in error_of([*flags, there, "--format=zip", "--overwrite"], capsys)
    assert "uses no tokenizer" in error_of(
        [f"--checkpoint={other}", f"--output={tmp_path / 'r'}", "--tokenizer=x"], capsys
    )


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_halves_take_half_the_room_and_are_stable(runs, tmp_path, capsys, dtype):
    half = tmp_path / "half"
    flags = [f"--checkpoint={runs / 'tokenizer'}", f"--dtype={dtype}"]
    assert export.main([*flags, f"--output={half}"]) == 0
    assert export.main([f"--checkpoint={half}", f"--output={tmp_path / 'full'}"]) == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert 0.4 < sizes[0] / sizes[1] < 0.75
    exact, narrow, again = (load(folder) for folder in (runs / "tokenizer", half, tmp_path / "full"))
    for a, b, c in zip(*(jax.tree.leaves((one.params, one.extra)) for one in (exact, narrow, again)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6)
        np.testing.assert_array_equal(b, c)
    # A model trained on the exact tokenizer cannot be exported with the rounded one; one trained on the rounded one can.
    model = [f"--checkpoint={runs / 'model'}", f"--output={tmp_path / 'model'}", f"--dtype={dtype}"]
    assert "export it with this --dtype" in error_of(model, capsys)
    tiny.save_untrained(tmp_path / "run", **tiny.text_to_video(half))
    assert export.main([f"--checkpoint={tmp_path / 'run'}", *model[1:]]) == 0


def test_provenance_is_kept_and_a_broken_one_refused(runs, tmp_path, capsys):
    (tmp_path / "how.json").write_text('{"hours": 1}')
    (tmp_path / "broken.json").write_text("[1]")
    flags = [f"--checkpoint={runs / 'tokenizer'}", f"--output={tmp_path / 'r'}"]
    assert "an object was expected" in error_of([*flags, f"--provenance={tmp_path / 'broken.json'}"], capsys)
    assert export.main([*flags, f"--provenance={tmp_path / 'how.json'}"]) == 0
    assert load(tmp_path / "r").provenance == {"hours": 1}


def test_existing_outputs_and_missing_inputs_are_one_line(runs, released, tmp_path, capsys):
    model = f"--checkpoint={runs / 'model'}"
    assert "add --overwrite" in error_of([model, f"--output={released}"], capsys)
    assert "is not a release folder" in error_of([model, f"--output={runs / 'model'}", "--overwrite"], capsys)
    assert "no such checkpoint" in error_of(["--checkpoint=absent", f"--output={tmp_path / 'r'}"], capsys)
    assert export.main([model, f"--output={shutil.copytree(released, tmp_path / 'old')}", "--overwrite"]) == 0


@pytest.mark.parametrize("form", ["release", "stablehlo", "pytorch"])
def test_an_export_replaces_neither_its_source_nor_a_part_of_it(released, tmp_path, capsys, form):
    there = shutil.copytree(released, tmp_path / "there")
    before = {path: path.read_bytes() for path in there.rglob("*.*") if path.is_file()}
    for target in (there, there / "tokenizer"):
        flags = [f"--checkpoint={there}", f"--output={target}", "--overwrite", f"--format={form}"]
        flags += ["--no_check"] if form == "pytorch" else []
        assert "which is being exported; choose another name for the output" in error_of(flags, capsys)
    assert before == {path: path.read_bytes() for path in there.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize(("value", "other"), [(1e5, "bfloat16"), (3.4e38, "float32")])
def test_weights_too_large_for_a_dtype_are_refused(runs, tmp_path, capsys, monkeypatch, value, other):
    model = load(runs / "tokenizer")
    large = dataclasses.replace(model, params=jax.tree.map(lambda leaf: np.full_like(leaf, value), model.params))
    monkeypatch.setattr(base, "load", lambda place: large)
    dtypes = ("float16", "bfloat16") if other == "float32" else ("float16",)
    for dtype in dtypes:
        line = error_of(["--checkpoint=x", f"--output={tmp_path / 'r'}", f"--dtype={dtype}"], capsys)
        assert f"--dtype={dtype}: params/tokenizer/" in line and f"use --dtype={other}" in line
    assert list(tmp_path.iterdir()) == []


def test_what_reads_back_differently_is_not_kept(runs, tmp_path, capsys, monkeypatch):
    save = release.save_file

    def flip(tensors, path):
        save({name: array + 1 if array.dtype == np.float32 else array for name, array in tensors.items()}, path)

    monkeypatch.setattr(release, "save_file", flip)
    flags = [f"--checkpoint={runs / 'tokenizer'}", f"--output={tmp_path / 'r'}"]
    assert "reads back differently" in error_of(flags, capsys)
    assert list(tmp_path.iterdir()) == []
