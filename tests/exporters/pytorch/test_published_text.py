"""Models with a published T5: releases and exports include or name it, and generate the same videos."""

import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest

from motionaura_jax import assets, encode, export
from motionaura_jax.conditioning import text as conditioners
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.models.encoders.text_tokenizers import PretrainedTokenizer
from motionaura_jax.pipelines.base import Settings
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
from motionaura_jax.systems.loading import load
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from tests.exporters.pytorch.noise import OurNoise
from tests.models import published
from tests.models.test_pretrained_tokenizer import strings
from tests.systems import tiny
from tests.written import local_paths

PROMPT, ID = "a red circle moves up", "me/t5"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a T5 with an unneeded decoder, a model that uses it, and a model trained on cached features."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    published.write_t5(folder / "t5")
    rows = [json.dumps({"file": f"{index}.mp4", "caption": text}) for index, text in enumerate(tiny.CAPTIONS)]
    (folder / "clips.jsonl").write_text("\n".join(rows))
    flags = [f"--text_encoder={folder / 't5'}", f"--manifest={folder / 'clips.jsonl'}", "--limit=9"]
    assert encode.main(["--text", *flags, f"--output={folder / 'cache'}", "--batch_size=3"]) == 0
    for name, text in {"model": {"tower": "t5", "limit": 9}, "cached": {"cache": "cache", "limit": 9}}.items():
        values = tiny.text_to_video(tokenizer)
        values["text"] = {key: str(folder / value) if isinstance(value, str) else value for key, value in text.items()}
        values["data"] = {**values["data"], "manifest": str(folder / "clips.jsonl")}
        tiny.save_untrained(folder / name, noise=0.3, **values)
    return folder


@pytest.fixture(scope="module")
def folder(places, tmp_path_factory):
    return write(places / "model", tmp_path_factory.mktemp("exports") / "model", "--format=pytorch", "--no_check")


def write(checkpoint, output, *flags):
    assert export.main([f"--checkpoint={checkpoint}", f"--output={output}", *flags]) == 0
    return output


def error_of(flags, capsys):
    capsys.readouterr()
    assert export.main(flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def drawn(checkpoint, text_encoder=""):
    ours = TextToVideo(checkpoint, text_encoder=str(text_encoder))
    size = ours.size()
    settings = Settings(size=size, fps=8.0, seed=3, sample=ours.recipe.sample, window=size[0], batch_size=1)
    return ours.latents([Job(prompt=Prompt(text=PROMPT))], settings), ours.recipe


@pytest.fixture(scope="module")
def wanted(places):
    """Return what the model draws with its text encoder given by name."""
    return drawn(places / "model", places / "t5")[0]


def test_a_folder_here_goes_along_and_draws_the_same_where_the_first_one_is_gone(places, folder, wanted, tmp_path):
    assert local_paths(folder) == []
    released = shutil.move(write(places / "model", tmp_path / "release"), tmp_path / "moved")
    np.testing.assert_array_equal(drawn(released)[0], wanted)
    exported = shutil.copytree(folder, tmp_path / "export")
    first, second = load(released), load(exported)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    for there, recipe in ((released, first.recipe), (exported, second.recipe)):
        assert recipe.text.tower == str(there / "text_encoder") and recipe.text.cache == ""
    for name in needed:
        assert (released / "text_encoder" / name).read_bytes() == (exported / "text_encoder" / name).read_bytes()


def test_a_run_starts_from_the_export_with_its_encoder(folder, places):
    assert "`text_encoder/` holds" in (folder / "README.md").read_text()
    values = {**tiny.text_to_video(places / "tokenizer"), "tokenizer": "", "init_from": str(folder), "text": {}}
    recipe = TextToVideoSystem(config.build(TextToVideoRecipe, values)).recipe
    assert recipe.text.tower == str(folder / "text_encoder") and recipe.text.tower_hash


def test_large_encoders_are_written_in_shards_without_what_nobody_reads(places, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = shutil.copytree(places / "t5", tmp_path / "t5")
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "decoder.x": np.zeros(3, "f4")}, source / "model.safetensors")
    flags = ["--format=pytorch", "--no_check", "--max_shard_bytes=4000", f"--text_encoder={source}"]
    there = write(places / "cached", tmp_path / "there", *flags) / "text_encoder"
    index = json.loads((there / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == tensors.keys() and len(set(index.values())) > 1
    for name, file in index.items():
        np.testing.assert_array_equal(load_file(there / file)[name], tensors[name])


def test_the_tokenizer_that_goes_along_is_the_one_of_training(places, folder):
    texts = [PROMPT, "", "two, growing " * 9, "ünknown 🎥"]
    ours = PretrainedTokenizer(places / "t5", 12, 9)
    wanted = ours.batch(texts)
    for place in (folder / "tokenizer", folder / "text_encoder"):
        again = PretrainedTokenizer(place, 12, 9)
        assert again.digest == ours.digest
        np.testing.assert_array_equal(again.batch(texts), wanted)


def test_a_thousand_strings_have_the_ids_of_training_in_torch(places, folder):
    pytest.importorskip("torch")
    from motionaura_jax.exporters.pytorch.modeling_published_text import PublishedTokenizer

    texts = strings(1000)
    wanted = PretrainedTokenizer(places / "t5", 12, 9).batch(texts)
    found = PublishedTokenizer.from_pretrained(folder / "tokenizer")(texts)
    np.testing.assert_array_equal(found, wanted[:, :9])


def test_an_encoder_on_the_hub_is_named_with_its_revision(places, wanted, tmp_path, monkeypatch):
    snapshot = shutil.copytree(places / "t5", tmp_path / "0123abc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    there = write(places / "cached", tmp_path / "there", f"--text_encoder={ID}", "--format=pytorch", "--no_check")
    assert not (there / "text_encoder").exists() and (there / "tokenizer" / "tokenizer.json").is_file()
    assert json.loads((there / "model_index.json").read_text())["text_encoder_id"] == f"{ID}@0123abc"
    assert load(there).recipe.text.tower == f"{ID}@0123abc"
    card = (there / "README.md").read_text()
    assert f"`{ID}@0123abc`" in card and "`transformers`" in card
    np.testing.assert_array_equal(drawn(there)[0], wanted)


def test_what_does_not_fit_is_one_line_and_leaves_no_folder(places, tmp_path, capsys):
    output = f"--output={tmp_path / 'there'}"
    other = published.write_t5(tmp_path / "other", seed=1)
    cached = f"--checkpoint={places / 'cached'}"
    assert "name their encoder with --text_encoder" in error_of([cached, output], capsys)
    for form in ("release", "pytorch", "stablehlo"):
        flags = [f"--format={form}", *(["--no_check"] if form == "pytorch" else [])]
        assert (
            "but" in (line := error_of([cached, output, f"--text_encoder={other}", *flags], capsys))
            and "is needed" in line
        )
    with pytest.raises(UserError, match="is needed"):
        drawn(places / "model", other)
    own = [f"--checkpoint={assets.SCENES}", output, f"--text_encoder={other}"]
    tokenizer = [f"--checkpoint={places / 'tokenizer'}", *own[1:]]
    assert all("leave it out" in error_of(flags, capsys) for flags in (own, tokenizer))
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_torch_reads_and_draws_what_jax_does(places, tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from motionaura_jax.exporters.pytorch.pipeline_motionaura import MotionAuraPipeline

    there = write(places / "model", tmp_path / "there", "--format=pytorch", "--json")
    assert json.loads(capsys.readouterr().out)["compared_in_torch"]
    pipe = MotionAuraPipeline.from_pretrained(there)
    tower = load(there).recipe.text.tower
    # Both in float32: with bfloat16 features, as in training, rounding would decide near ties.
    monkeypatch.setattr(conditioners, "DTYPE", "float32")
    values = tiny.text_to_video(places / "tokenizer")
    values["text"] = {"tower": tower, "limit": 9}
    tiny.save_untrained(tmp_path / "run", noise=0.3, **values)
    wanted, recipe = drawn(tmp_path / "run")
    key = jax.random.key(3)
    for part in (0, 0, 0):  # prompt index, video index, window
        key = jax.random.fold_in(key, part)
    found = pipe(PROMPT, noise=OurNoise(key[None], recipe.sample.sampler)).tokens
    np.testing.assert_array_equal(found, wanted)
    named = shutil.copytree(there, tmp_path / "named")
    encoder = shutil.move(named / "text_encoder", tmp_path / "elsewhere")
    again = MotionAuraPipeline.from_pretrained(named, text_encoder=encoder)
    features, mask = again.encode_prompt([PROMPT, ""])
    assert mask.sum(1).tolist() == [6, 1] and not features[~mask].any() and features.dtype == torch.float32
