"""Sampling videos: seeds and batches, one compiled program, windows, tiles, valid sizes, warnings."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from motionaura_jax import assets
from motionaura_jax.core.errors import UserError
from motionaura_jax.pipelines import decoding
from motionaura_jax.pipelines.adherence import prompts_for
from motionaura_jax.pipelines.base import Settings, window_starts
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from tests.systems import tiny


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Return the workdirs of a tokenizer and of a text-to-video model with open gates, so that text matters."""
    tokenizer = tiny.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    folder = tmp_path_factory.mktemp("model")
    tiny.save_untrained(folder, noise=0.3, **tiny.text_to_video(tokenizer, diffusion={"text_dropout": 0.0}))
    return tokenizer, folder


@pytest.fixture(scope="module")
def traced(workdirs):
    """Count the traces of a program; each trace is one compilation."""
    counts = []
    original = TextToVideoSystem.sample

    def counting(self, *args, **kwargs):
        counts.append(1)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToVideoSystem, "sample", counting)
        yield counts


@pytest.fixture(scope="module")
def pipeline(workdirs, traced):
    return TextToVideo(workdirs[1])


def settings(pipeline, batch_size=2, num_frames=4, **sample):
    size = pipeline.size(num_frames)
    return Settings(
        size=size,
        fps=8.0,
        seed=3,
        sample=dataclasses.replace(pipeline.recipe.sample, **sample),
        window=pipeline.window(None, num_frames),
        batch_size=batch_size,
    )


JOBS = [Job(prompt=Prompt(text=text, position=position)) for position, text in enumerate(tiny.CAPTIONS[:3])]


def test_a_seed_gives_the_same_video_whatever_it_is_drawn_with(pipeline):
    together = list(pipeline.generate(JOBS, settings(pipeline)))
    alone = [next(pipeline.generate([job], settings(pipeline))) for job in reversed(JOBS)]
    assert together[0].shape == (4, 16, 16, 3) and together[0].dtype == np.uint8
    for video, again in zip(together, reversed(alone), strict=True):
        np.testing.assert_array_equal(video, again)
    one_by_one = list(pipeline.generate(JOBS, settings(pipeline, batch_size=1)))
    assert [np.abs(a.astype(int) - b).max() for a, b in zip(together, one_by_one, strict=True)] == [0, 0, 0]


def test_position_and_number_each_make_another_video(pipeline):
    places = itertools.product((0, 1, 2), (0, 1, 2))
    jobs = [Job(prompt=Prompt(text=tiny.CAPTIONS[0], position=p), number=n) for p, n in places]
    tokens = pipeline.latents(jobs, settings(pipeline))
    assert len(np.unique(tokens.reshape(len(jobs), -1), axis=0)) == len(jobs)


def test_nothing_runs_on_the_device_before_something_is_drawn(workdirs, monkeypatch):
    monkeypatch.setattr(TextToVideoSystem, "for_inference", None)
    fresh = TextToVideo(workdirs[1])
    assert fresh.size() == (4, 16, 16) and list(fresh.generate([], settings(fresh))) == []
    with pytest.raises(TypeError):
        next(fresh.generate(JOBS[:1], settings(fresh)))


@pytest.fixture(scope="module")
def trained():
    """Return the committed model; all samplers share its decoder."""
    return TextToVideo(assets.SCENES)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["confidence", "halton", "ancestral"])
def test_the_committed_model_draws_the_same_at_any_batch_size(trained, sampler):
    """Real weights open every gate; programs compile as for users; the last batch is not full."""
    size = trained.size()
    jobs = [Job(prompt=Prompt(text=text, position=p)) for p, (text, _) in enumerate(prompts_for(trained, 4))]
    videos, sample = [], dataclasses.replace(trained.recipe.sample, sampler=sampler)
    for batch_size in (1, 3):
        chosen = Settings(size=size, fps=8.0, seed=0, sample=sample, window=size[0], batch_size=batch_size)
        videos.append(list(trained.generate(jobs, chosen)))
    np.testing.assert_array_equal(*videos)


def test_a_negative_prompt_guides(pipeline):
    def tokens(negative, scale):
        jobs = [Job(prompt=dataclasses.replace(job.prompt, negative=negative or job.prompt.text)) for job in JOBS]
        return pipeline.latents(jobs, settings(pipeline, guidance_scale=scale, temperature=0.5))

    alone = tokens("", 1.0)
    np.testing.assert_array_equal(tokens("", 6.0), alone)  # guiding away from the prompt itself changes nothing
    first, second = tokens("two red circles", 6.0), tokens("still", 6.0)
    assert (first != alone).any() and (second != alone).any() and (first != second).any()


def test_prompts_temperatures_and_guidance_strengths_do_not_recompile(pipeline, traced):
    list(pipeline.generate(JOBS[:1], settings(pipeline)))
    before = len(traced)
    for change in ({}, {"temperature": 0.5}, {"guidance_scale": 2.0}, {"choice_temperature": 1.0}):
        list(pipeline.generate(JOBS, settings(pipeline, **change)))
    assert len(traced) == before


@pytest.mark.parametrize(
    "chosen",
    [
        {"sampler": "ancestral", "guidance_scale": 1.0},
        {"sampler": "ancestral", "remask_rate": 0.5, "guidance_start": 0.5},
        {"sampler": "halton", "guidance_scale": 1.0},
    ],
)
def test_every_sampler_fills_the_video(pipeline, chosen):
    tokens = pipeline.latents(JOBS[:2], settings(pipeline, **chosen))
    assert tokens.shape == (2, 2, 4, 4) and tokens.min() >= 0 and tokens.max() < 16


def test_long_videos_are_continued_window_by_window(pipeline, traced):
    chosen = settings(pipeline, num_frames=10)
    assert (chosen.window, chosen.size[0]) == (4, 10)
    long = pipeline.latents(JOBS[:2], chosen)
    before = len(traced)
    short = pipeline.latents(JOBS[:2], settings(pipeline))
    assert long.shape == (2, 5, 4, 4) and long.max() < 16 and len(traced) == before
    np.testing.assert_array_equal(long[:, :2], short)
    assert next(pipeline.generate(JOBS[:1], chosen)).shape == (10, 16, 16, 3)


@pytest.mark.parametrize(("total", "length"), [(5, 2), (5, 5), (3, 8), (9, 4), (7, 1)])
def test_windows_cover_everything_and_overlap(total, length):
    starts = window_starts(total, length)
    covered = {start + i for start in starts for i in range(length)}
    assert covered >= set(range(total)) and starts[0] == 0 and starts[-1] == max(0, total - length)
    assert all(0 < b - a <= max(1, length - length // 2) for a, b in itertools.pairwise(starts))


def test_large_videos_decode_in_tiles(pipeline, monkeypatch):
    chosen = settings(pipeline)
    whole = next(pipeline.generate(JOBS[:1], chosen))
    monkeypatch.setattr(decoding, "WHOLE_PIXELS", 1)
    monkeypatch.setattr(decoding, "TILE", (4, 12, 12))
    tiles = next(pipeline.generate(JOBS[:1], chosen))
    assert tiles.shape == whole.shape and np.abs(tiles.astype(int) - whole).mean() < 25


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((5, None, None), "--num_frames=5: this model makes 2, 4, 6, ...; the nearest is 4 or 6"),
        ((None, 3, None), "--height=3: this model makes 4, 8, 12, ...; the nearest is 4"),
        ((None, None, 17), "--width=17: this model makes 4, 8, 12, ...; the nearest is 16 or 20"),
    ],
)
def test_an_impossible_size_names_the_nearest_possible_ones(pipeline, size, message):
    with pytest.raises(UserError) as error:
        pipeline.size(*size)
    assert str(error.value) == message


def test_an_impossible_window_is_called_by_its_own_name(pipeline):
    with pytest.raises(
        UserError, match=r"^--window_frames=5: this model makes 2, 4, 6, \.\.\.; the nearest is 4 or 6$"
    ):
        pipeline.window(5, 8)
    assert pipeline.window(6, 8) == 6 and pipeline.window(6, 4) == 4


def test_the_default_size_is_that_of_training(pipeline):
    assert pipeline.size() == (4, 16, 16) and pipeline.size(8, 12, None) == (8, 12, 16)


def test_what_will_not_work_as_it_reads_is_said(pipeline, caplog):
    prompts = [Prompt(text="a red zebra moves up " + "a " * 9), Prompt(text="two stars", negative="red")]
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        pipeline.check(prompts, pipeline.recipe.sample)
        pipeline.check(prompts, dataclasses.replace(pipeline.recipe.sample, guidance_scale=1.0))
    for expected in ("is longer than 12 words; cut: 'a a '", "never seen 'zebra'", "never seen 'stars'"):
        assert expected in caplog.text
    assert "without text dropout" in caplog.text and "no effect without guidance" in caplog.text
    assert "ancestral" not in caplog.text and "corrupt_visible" not in caplog.text


@pytest.mark.parametrize(
    ("sample", "warning"),
    [
        ({"remask": 2}, "remask=2: this model was trained without diffusion.corrupt_visible"),
        ({"sampler": "ancestral", "num_inference_steps": 63}, "needs 64 to 256 steps; raise num_inference_steps=63"),
        ({"sampler": "ancestral", "num_inference_steps": 64}, ""),
    ],
)
def test_settings_that_the_training_does_not_support_are_named(pipeline, caplog, sample, warning):
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        pipeline.check([], dataclasses.replace(pipeline.recipe.sample, guidance_scale=1.0, **sample))
    assert warning in caplog.text and bool(caplog.text) == bool(warning)


def test_a_frame_rate_that_was_never_trained_is_said(pipeline, caplog):
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        pipeline.check([], pipeline.recipe.sample, 8.0)
        assert "fps" not in caplog.text
        pipeline.check([], pipeline.recipe.sample, 12.0)
    assert "trained at 8 fps; motion at 12 fps may be wrong" in caplog.text


def test_the_tokenizer_may_move_but_must_be_the_same(workdirs, pipeline, tmp_path):
    tokenizer, folder = workdirs
    moved = tmp_path / "moved"
    tokenizer.rename(moved)
    try:
        with pytest.raises(UserError, match=r"the tokenizer of .* is missing; give its folder with --tokenizer"):
            TextToVideo(folder)
        assert TextToVideo(folder, str(moved)).digest == pipeline.digest
    finally:
        moved.rename(tokenizer)
    with pytest.raises(UserError, match="ftp:// is not among gs, s3"):  # not reported as a missing local file
        TextToVideo(folder, "ftp://host/tokenizer")
    with pytest.raises(UserError, match="is needed; name the tokenizer"):
        TextToVideo(folder, str(tiny.save_tokenizer(tmp_path / "other", codebook_size=8)))


def test_a_call_gives_the_videos_of_the_command(pipeline):
    texts = ["a red circle", "a blue square"]
    sampling = {"num_frames": 4, "seed": 3, "num_inference_steps": 2, "guidance_scale": 2.0}
    videos = pipeline(texts, "green", num_videos_per_prompt=2, batch_size=2, **sampling)
    prompts = [Prompt(text=text, negative="green", position=place) for place, text in enumerate(texts)]
    jobs = [Job(prompt=prompt, number=number) for prompt in prompts for number in range(2)]
    expected = list(pipeline.generate(jobs, pipeline.settings(batch_size=2, **sampling)))
    np.testing.assert_array_equal(videos, expected)
    assert videos.shape == (4, *pipeline.size(4), 3) and videos.dtype == np.uint8


def test_a_call_refuses_what_it_cannot_do(pipeline):
    with pytest.raises(UserError, match=r"guidence_scale: no such setting of sampling; did you mean 'guidance_scale'"):
        pipeline("a red circle", guidence_scale=2.0)
    with pytest.raises(UserError, match="nothing to generate"):
        pipeline([])
    with pytest.raises(UserError, match=r"temperature=-1"):
        pipeline("a red circle", temperature=-1.0)
