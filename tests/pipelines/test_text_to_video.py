"""Drawing videos: seeds and batches, one compiled program, windows, tiles, possible sizes, warnings."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from motionaura_jax.errors import UserError
from motionaura_jax.pipelines import text_to_video
from motionaura_jax.pipelines.prompts import Prompt, read_prompts
from motionaura_jax.pipelines.text_to_video import Job, Settings, TextToVideo, window_starts
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from tests.systems import tiny


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """An untrained tokenizer and a text-to-video model on it."""
    tokenizer = tiny.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    folder = tmp_path_factory.mktemp("model")
    tiny.save_untrained(folder, **tiny.text_to_video(tokenizer, diffusion={"text_dropout": 0.0}))
    return tokenizer, folder


@pytest.fixture(scope="module")
def traced(workdirs):
    """How often a program was traced; one trace is one compilation."""
    counts = []
    original = TextToVideoSystem.sample_tokens

    def counting(self, *args, **kwargs):
        counts.append(1)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToVideoSystem, "sample_tokens", counting)
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


JOBS = [Job(prompt=Prompt(text=text), index=index) for index, text in enumerate(tiny.CAPTIONS[:3])]


def test_a_seed_gives_the_same_video_whatever_it_is_drawn_with(pipeline):
    together = list(pipeline.draw(JOBS, settings(pipeline)))
    alone = [next(pipeline.draw([job], settings(pipeline))) for job in reversed(JOBS)]
    assert together[0].shape == (4, 16, 16, 3) and together[0].dtype == np.uint8
    for video, again in zip(together, reversed(alone), strict=True):
        np.testing.assert_array_equal(video, again)
    one_by_one = list(pipeline.draw(JOBS, settings(pipeline, batch_size=1)))
    assert [np.abs(a.astype(int) - b).max() for a, b in zip(together, one_by_one, strict=True)] == [0, 0, 0]


def test_another_index_is_another_video(pipeline):
    first, second = (next(pipeline.draw([Job(prompt=JOBS[0].prompt, index=i)], settings(pipeline))) for i in (0, 1))
    assert (first != second).any()


def test_prompts_temperatures_and_guidance_strengths_do_not_recompile(pipeline, traced):
    list(pipeline.draw(JOBS[:1], settings(pipeline)))
    before = len(traced)
    for change in ({}, {"temperature": 0.5}, {"guidance_scale": 2.0}, {"choice_temperature": 1.0}):
        list(pipeline.draw(JOBS, settings(pipeline, **change)))
    assert len(traced) == before


@pytest.mark.parametrize("sampler", ["ancestral", "halton"])
def test_every_sampler_fills_the_video(pipeline, sampler):
    tokens = pipeline.tokens(JOBS[:2], settings(pipeline, sampler=sampler, guidance_scale=1.0))
    assert tokens.shape == (2, 2, 4, 4) and tokens.min() >= 0 and tokens.max() < 16


def test_long_videos_are_continued_window_by_window(pipeline, traced):
    chosen = settings(pipeline, num_frames=10)
    assert (chosen.window, chosen.size[0]) == (4, 10)
    long = pipeline.tokens(JOBS[:2], chosen)
    before = len(traced)
    short = pipeline.tokens(JOBS[:2], settings(pipeline))
    assert long.shape == (2, 5, 4, 4) and long.max() < 16 and len(traced) == before
    np.testing.assert_array_equal(long[:, :2], short)
    assert next(pipeline.draw(JOBS[:1], chosen)).shape == (10, 16, 16, 3)


@pytest.mark.parametrize(("total", "length"), [(5, 2), (5, 5), (3, 8), (9, 4), (7, 1)])
def test_windows_cover_everything_and_overlap(total, length):
    starts = window_starts(total, length)
    covered = {start + i for start in starts for i in range(length)}
    assert covered >= set(range(total)) and starts[0] == 0 and starts[-1] == max(0, total - length)
    assert all(0 < b - a <= max(1, length - length // 2) for a, b in itertools.pairwise(starts))


def test_large_videos_decode_in_tiles(pipeline, monkeypatch):
    chosen = settings(pipeline)
    whole = next(pipeline.draw(JOBS[:1], chosen))
    monkeypatch.setattr(text_to_video, "WHOLE_PIXELS", 1)
    monkeypatch.setattr(text_to_video, "TILE", (4, 12, 12))
    tiles = next(pipeline.draw(JOBS[:1], chosen))
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


def test_the_tokenizer_may_move_but_must_be_the_same(workdirs, pipeline, tmp_path):
    tokenizer, folder = workdirs
    moved = tmp_path / "moved"
    tokenizer.rename(moved)
    try:
        with pytest.raises(UserError, match=r"the tokenizer of .* is not there; name its folder with --tokenizer"):
            TextToVideo(folder)
        assert TextToVideo(folder, str(moved)).digest == pipeline.digest
    finally:
        moved.rename(tokenizer)
    with pytest.raises(UserError, match="is needed; name the tokenizer"):
        TextToVideo(folder, str(tiny.save_tokenizer(tmp_path / "other", codebook_size=8)))


def test_broken_lines_of_a_prompts_file_are_named_and_left_out(tmp_path, caplog):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "negative_prompt": "b"}\n{"prompt": \n\n{"text": "c"}\n"d"\n{"prompt": "e"}\n')
    with caplog.at_level(logging.WARNING, "motionaura_jax"):
        prompts = read_prompts(path)
    assert prompts == [Prompt(text="a", negative="b", position=0), Prompt(text="e", position=5)]
    assert [f"line {n} is left out" in caplog.text for n in (2, 3, 4, 5)] == [True, False, True, True]
    plain = tmp_path / "prompts.txt"
    plain.write_bytes(b"a red circle\n\xff\xfe\n  two \n")
    assert [prompt.text for prompt in read_prompts(plain)] == ["a red circle", "two"]


def test_a_prompts_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    for name, message in (("empty.txt", "has no usable prompt"), ("absent.txt", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path / name)
