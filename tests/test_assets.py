"""The model shipped with the package: it opens, records how it was made, and generates what the prompt asks for."""

import json

import numpy as np
import pytest

from motionaura_jax import assets, sample
from motionaura_jax.pipelines.adherence import measure, one_step, prompts_for
from motionaura_jax.pipelines.text_to_video import TextToVideo
from motionaura_jax.scenes.adherence import OVERALL
from motionaura_jax.scenes.dataset import PRESETS, held_out_prompts
from motionaura_jax.scenes.reader import read_scene


def test_the_committed_model_draws_a_prompt_that_it_was_never_trained_on(tmp_path):
    (prompt, scene), *_ = held_out_prompts(1, 0, PRESETS["places"])
    flags = [f"--prompt={prompt}", f"--output={tmp_path / 'drawn.npz'}", "--num_videos_per_prompt=4", "--seed=3"]
    assert sample.main(flags) == 0
    videos, wanted = [np.load(tmp_path / f"drawn_{index:02d}.npz")["video"] for index in range(4)], scene.objects[0]
    read = [read_scene(video, world=True) for video in videos]
    assert {video.shape for video in videos} == {(8, 64, 64, 3)}
    assert all(one.color == wanted.color for one in read)
    assert sum(one.motion == wanted.motion for one in read) >= 3 and sum(one.shape == wanted.shape for one in read) >= 2


@pytest.mark.slow
def test_the_committed_model_obeys_prompts_that_it_was_never_trained_on():
    pipeline = TextToVideo(assets.SCENES)
    rows = {row.attribute: row for row in measure(pipeline, prompts_for(pipeline, 16)).rows}
    for name, least in (("color", 0.9), ("motion", 0.8), ("shape", 0.6)):
        row = rows[name]
        assert row.n == 16 and row.share >= least
        assert abs(row.shuffled - row.chance) < 0.25, name


@pytest.mark.slow
def test_agreement_needs_more_than_one_step():
    """Tokens that are sampled all at once follow the caption, but not each other."""
    pipeline = TextToVideo(assets.SCENES)
    prompts = prompts_for(pipeline, 16)
    many = {row.attribute: row.share for row in measure(pipeline, prompts).rows}
    one = {row.attribute: row.share for row in measure(pipeline, prompts, sample=one_step(pipeline.recipe.sample)).rows}
    assert one["color"] >= 0.9
    assert one[OVERALL] < 0.2 and many[OVERALL] >= one[OVERALL] + 0.4


def test_the_committed_model_says_how_it_was_made():
    config = json.loads((assets.SCENES / "config.json").read_text())
    assert {"seed", "tokenizer", "denoiser"} <= config["provenance"].keys()
    for part in ("tokenizer", "denoiser"):
        assert {"command", "scenes_hash", "steps", "hours"} <= config["provenance"][part].keys()
    assert sum(path.stat().st_size for path in assets.SCENES.rglob("*") if path.is_file()) < 10_000_000
