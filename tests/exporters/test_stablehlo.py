"""`export --format=stablehlo`: graphs for all platforms and batch sizes that match the package but do not need it."""

import json
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from safetensors.numpy import load_file

from motionaura_jax import export
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.exporters import stablehlo
from motionaura_jax.models.encoders.text_tokenizers import PAD
from motionaura_jax.pipelines.base import Settings
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
from motionaura_jax.systems.loading import load, load_autoencoder
from tests.models import published
from tests.systems import tiny
from tests.written import local_paths

STEPS, PROMPTS = 4, ("a red circle", "two blue squares")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    sample = {"sampler": "halton", "guidance_scale": 3.0}
    tiny.save_untrained(folder / "model", noise=0.2, **tiny.text_to_video(tokenizer, sample=sample))
    return folder


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    place = tmp_path_factory.mktemp("serving") / "model"
    assert export.main([f"--checkpoint={runs / 'model'}", f"--output={place}", "--format=stablehlo"]) == 0
    return place


@pytest.fixture(scope="module")
def run(folder):
    manifest = json.loads((folder / stablehlo.MANIFEST).read_text())
    weights = load_file(folder / stablehlo.WEIGHTS)
    programs = {}

    def call(name, **inputs):
        graph = manifest["graphs"][name]
        if name not in programs:
            programs[name] = jax.export.deserialize(bytearray((folder / graph["file"]).read_bytes()))
        assert programs[name].platforms == stablehlo.PLATFORMS
        assert inputs.keys() == graph["inputs"].keys()
        outputs = programs[name].call({key: weights[key] for key in graph["weights"]}, inputs)
        for key, output in outputs.items():
            assert list(output.shape[1:]) == graph["outputs"][key]["shape"][1:]
            assert output.dtype == graph["outputs"][key]["dtype"]
        return {key: np.asarray(output) for key, output in outputs.items()}

    return call


def test_the_folder_says_nothing_about_the_machine(folder):
    assert local_paths(folder) == []


@pytest.fixture(scope="module")
def pipeline(runs):
    return TextToVideo(runs / "model")


def start(pipeline, seeds):
    """Return inputs of `sample` for the first prompts."""
    words, count = pipeline._system.text.words, len(seeds)
    grid = pipeline.autoencoder.geometry.latent_shape(*pipeline.size())
    return {
        "ids": words.batch(PROMPTS[:count]),
        "negative_ids": np.full((count, words.length), PAD, np.int32),
        "fps": np.full(count, 8.0, np.float32),
        "seed": np.array(seeds, np.uint32),
        "tokens": np.full((count, *grid), pipeline.autoencoder.vocab_size, np.int32),
        "guidance_scale": np.float32(3.0),
        "temperature": np.float32(1.0),
    }


def test_the_loop_draws_what_the_pipeline_draws_at_any_batch_size(run, pipeline):
    size, seeds = pipeline.size(), (5, 9)
    both = run("sample", **start(pipeline, seeds))["tokens"]
    for row, (seed, prompt) in enumerate(zip(seeds, PROMPTS, strict=True)):
        settings = Settings(size=size, fps=8.0, seed=seed, sample=pipeline.recipe.sample, window=size[0], batch_size=1)
        np.testing.assert_array_equal(
            both[row : row + 1], pipeline.latents([Job(prompt=Prompt(text=prompt))], settings)
        )
    np.testing.assert_array_equal(run("sample", **start(pipeline, seeds[:1]))["tokens"], both[:1])


def test_steps_one_by_one_are_the_loop(run, pipeline):
    inputs = start(pipeline, (5, 9))
    wanted, free = run("sample", **inputs)["tokens"], inputs["tokens"] == pipeline.autoencoder.vocab_size
    for index in range(STEPS):
        inputs["tokens"] = run("step", **inputs, free=free, index=np.int32(index))["tokens"]
    np.testing.assert_array_equal(inputs["tokens"], wanted)


def test_encoding_and_decoding_are_those_of_the_tokenizer(run, runs):
    tokenizer, _ = load_autoencoder(runs / "tokenizer")
    video = np.random.default_rng(0).uniform(-1, 1, (3, 4, 16, 16, 3)).astype(np.float32)
    found, wanted = run("encode", video=video), jax.jit(tokenizer.encode)(video)
    np.testing.assert_array_equal(found["tokens"], wanted.tokens)
    np.testing.assert_allclose(found["values"], wanted.values, atol=1e-5)
    again = run("decode", tokens=found["tokens"])["video"]
    np.testing.assert_allclose(again, jax.jit(tokenizer.decode)(wanted), atol=1e-5)


def serve(folder, output):
    """Return the video that the folder's example generates without this package."""
    script = f"""
import runpy, sys
sys.modules["motionaura_jax"] = sys.modules["flax"] = None
sys.argv = ["serve.py", {PROMPTS[0]!r}, {str(output)!r}, "5"]
runpy.run_path({str(folder / "serve.py")!r}, run_name="__main__")
"""
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
    return np.load(output)["video"]


def test_the_example_serves_without_the_package(folder, run, pipeline, tmp_path):
    tokens = run("sample", **start(pipeline, (5,)))["tokens"]
    wanted = to_uint8(run("decode", tokens=tokens)["video"][0])
    found = serve(folder, tmp_path / "out.npz")
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - wanted).max() <= 1


@pytest.fixture(scope="module")
def published_text(tmp_path_factory):
    """Return a model with a published text encoder."""
    folder = tmp_path_factory.mktemp("published")
    values = tiny.text_to_video(tiny.save_tokenizer(folder / "tokenizer"), sample={"num_inference_steps": 3})
    values["text"] = {"tower": str(published.write_t5(folder / "t5")), "limit": 9}
    tiny.save_untrained(folder / "model", noise=0.3, **values)
    return folder / "model"


def test_a_published_text_encoder_is_a_graph_of_its_own(published_text):
    """Describe the graphs without `sample` and `decode`, which take most of the time."""
    model = load(published_text)
    graphs = stablehlo.denoiser_graphs(model, load(model.recipe.tokenizer))
    (features,) = stablehlo.export(graphs["text"]).out_avals
    assert features.shape[1:] == (12, published.T5["d_model"]) and features.dtype == "bfloat16"
    assert {"ids", "features", "negative_ids", "negative_features"} <= graphs["step"].inputs.keys()
    given = graphs["step"].inputs["features"]
    assert (given.shape, given.dtype) == (features.shape[1:], features.dtype)


@pytest.mark.slow
def test_a_model_with_a_published_text_encoder_is_served_without_the_package(published_text, tmp_path):
    ours, place = TextToVideo(published_text), tmp_path / "place"
    size = ours.size()
    settings = Settings(size=size, fps=8.0, seed=5, sample=ours.recipe.sample, window=size[0], batch_size=1)
    (wanted,) = ours.generate([Job(prompt=Prompt(text=PROMPTS[0]))], settings)
    assert export.main([f"--checkpoint={published_text}", f"--output={place}", "--format=stablehlo"]) == 0
    shutil.rmtree(published_text.parent / "t5")
    about = json.loads((place / stablehlo.MANIFEST).read_text())["graphs"]
    assert about["text"]["outputs"]["features"] == {
        "shape": ["batch", 12, published.T5["d_model"]],
        "dtype": "bfloat16",
    }
    assert {"ids", "features", "negative_ids", "negative_features"} <= about["step"]["inputs"].keys()
    assert np.abs(serve(place, tmp_path / "out.npz").astype(int) - wanted).max() <= 1


def test_a_tokenizer_alone_has_two_graphs(tmp_path):
    """Continuous latents; the model above has tokens."""
    tiny.save_tokenizer(tmp_path / "run", quantizer="none", stem="haar", stem_time=2)
    place = tmp_path / "place"
    assert export.main([f"--checkpoint={tmp_path / 'run'}", f"--output={place}", "--format=stablehlo"]) == 0
    graphs = json.loads((place / stablehlo.MANIFEST).read_text())["graphs"]
    assert graphs.keys() == {"encode", "decode"}
    assert not (place / stablehlo.EXAMPLE).exists()
    assert graphs["decode"]["inputs"].keys() == {"values"}
    assert export.main([f"--checkpoint={tmp_path / 'run'}", f"--output={place}", "--overwrite"]) == 0
