"""An exported folder alone: it runs in a process with only torch, matches JAX, and samples the same videos."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from motionaura_jax import assets, export
from motionaura_jax.exporters.pytorch import compare, writer
from motionaura_jax.pipelines.base import Settings
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
from motionaura_jax.scenes.reader import read_scene
from motionaura_jax.weights import convert
from tests.exporters.pytorch.noise import OurNoise
from tests.systems import tiny

torch = pytest.importorskip("torch")

PROMPT = "a large red circle moves up over a plain gray background"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    tiny.save_untrained(folder / "model", noise=0.5, **tiny.text_to_video(tokenizer, model={"width": 32}))
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "scenes"
    assert export.main([f"--checkpoint={assets.SCENES}", f"--output={folder}", "--format=pytorch"]) == 0
    return folder


@pytest.fixture(scope="module")
def small(runs):
    flags = [f"--checkpoint={runs / 'model'}", f"--output={runs / 'small'}", "--format=pytorch", "--no_check"]
    assert export.main(flags) == 0
    return runs / "small"


@pytest.mark.slow
def test_the_committed_model_draws_what_it_is_asked_for(scenes, tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(scenes)!r})
from pipeline_motionaura import MotionAuraPipeline, export_to_video
pipe = MotionAuraPipeline.from_pretrained({str(scenes)!r})
video = pipe({PROMPT!r}, seed=1, output_type="pt").frames[0]
export_to_video(video, {str(tmp_path / "out.mp4")!r})
import torch
torch.save(video, {str(tmp_path / "out.pt")!r})
assert not {{"jax", "flax", "diffusers", "transformers", "motionaura_jax"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-I", "-B", "-c", script], check=True, cwd=tmp_path)
    read = read_scene(torch.load(tmp_path / "out.pt", weights_only=True).numpy())
    assert (read.color, read.shape, read.motion) == ("red", "circle", "up")
    assert (tmp_path / "out.mp4").stat().st_size > 500


@pytest.mark.slow
def test_equal_noise_draws_equal_videos(scenes):
    from motionaura_jax.exporters.pytorch.pipeline_motionaura import MotionAuraPipeline

    ours = TextToVideo(assets.SCENES)
    size = ours.size()
    settings = Settings(size=size, fps=8.0, seed=3, sample=ours.recipe.sample, window=size[0], batch_size=1)
    tokens = ours.latents([Job(prompt=Prompt(text=PROMPT))], settings)
    key = jax.random.key(3)
    for part in (0, 0, 0):  # prompt index, video index, window
        key = jax.random.fold_in(key, part)
    pipe = MotionAuraPipeline.from_pretrained(scenes)
    found = pipe(PROMPT, noise=OurNoise(key[None], ours.recipe.sample.sampler), output_type="np")
    np.testing.assert_array_equal(found.tokens, tokens)
    (frames,) = ours.decode(tokens, size)
    assert np.abs(found.frames[0].astype(int) - frames).max() <= 1


def test_arguments_of_a_call(small):
    from motionaura_jax.exporters.pytorch.pipeline_motionaura import MotionAuraPipeline

    pipe = MotionAuraPipeline.from_pretrained(small)
    little = {"num_frames": 4, "height": 16, "width": 24, "num_inference_steps": 2}
    pair = pipe([PROMPT, "a blue star"], num_videos_per_prompt=2, seed=5, **little).frames
    assert pair.shape == (4, 4, 16, 24, 3) and pair.dtype == np.uint8
    alone = pipe("a blue star", seed=7, **little).frames
    np.testing.assert_array_equal(alone[0], pair[2])
    generator = [torch.Generator().manual_seed(7)]
    np.testing.assert_array_equal(pipe("a blue star", generator=generator, **little).frames, alone)
    unguided = pipe("a blue star", seed=7, guidance_scale=1.0, **little).tokens
    negative = pipe("a blue star", seed=7, negative_prompt="a red circle", guidance_scale=30.0, **little).tokens
    assert unguided.shape == negative.shape and not torch.equal(unguided, negative)
    long = pipe("a blue star", **{**little, "num_frames": 10}, window_frames=4).frames
    assert long.shape == (1, 10, 16, 24, 3)
    with pytest.raises(ValueError, match="no pixels"):
        pipe(PROMPT, height=0)


@pytest.mark.parametrize("name", ["model", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_a_sound_export_is_compared(runs, tmp_path, name, capsys):
    flags = [f"--checkpoint={runs / name}", f"--output={tmp_path / 'there'}", "--format=pytorch", "--json"]
    assert export.main(flags) == 0
    assert json.loads(capsys.readouterr().out)["compared_in_torch"] is True
    assert "| decoded |" in (tmp_path / "there" / "README.md").read_text()
    assert not list((tmp_path / "there").rglob("__pycache__"))


def test_wrong_weights_are_found_out_and_leave_no_folder(runs, tmp_path, capsys, monkeypatch):
    right = convert.export_tensors

    def wrong(rules, params):
        for name, array in right(rules, params):
            square = name.endswith("to_q.weight") and array.shape[0] == array.shape[1]
            yield name, np.ascontiguousarray(array.T) if square else array

    monkeypatch.setattr("motionaura_jax.weights.exported.export_tensors", wrong)
    monkeypatch.setattr(writer, "check", lambda *_: None)  # which would catch it before torch does
    flags = [f"--checkpoint={runs / 'model'}", f"--output={tmp_path / 'there'}", "--format=pytorch"]
    assert export.main(flags) == 2
    assert "'logits' deviates" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_modules_that_do_not_run_are_one_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "_tokenizer_case", lambda tokenizer: ({"video": np.zeros(3, "f4")}, {}))
    flags = [f"--checkpoint={runs / 'tokenizer'}", f"--output={tmp_path / 'there'}", "--format=pytorch"]
    assert export.main(flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "do not run in torch" in line
    assert list(tmp_path.iterdir()) == []


def test_a_model_on_the_hub_is_opened_at_its_revision(small, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from motionaura_jax.exporters.pytorch.modeling_mbq_vae import MBQVAE
    from motionaura_jax.exporters.pytorch.pipeline_motionaura import MotionAuraPipeline

    def download(name, *, revision, allow_patterns):
        assert (name, revision) == ("me/small", "0123abc") and ".py" not in "".join(allow_patterns)
        return str(small)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert MotionAuraPipeline.from_pretrained("me/small", revision="0123abc").defaults.fps == 8
    with pytest.raises(ValueError, match="give its revision"):
        MBQVAE.from_pretrained("me/small")
