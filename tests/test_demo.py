"""The demo: both trainings, the measurement and its page; restarts, starts from a checkpoint, refusals."""

import json
import re
import sys

import numpy as np
import pytest
from rich.console import Console

from motionaura_jax import assets, demo, export
from motionaura_jax.core import cli, config
from motionaura_jax.pipelines import adherence, demo_page, text_to_video
from motionaura_jax.pipelines.text_to_video import TextToVideo
from motionaura_jax.scenes import renderer
from motionaura_jax.systems import loading
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.training import loop
from tests.systems import tiny

SIZE = ["data.num_frames=4", "data.height=16", "data.width=16", "data.scenes=8", "data.batch_size=4"]
RUN = [*SIZE, "train.log_every=1", "evaluate.every=1", "evaluate.clips=2", "evaluate.pictures=1"]
TOKENIZER = [f"model.{name}={value}" for name, value in tiny.TOKENIZER.items() if not isinstance(value, list)]
TOKENIZER += [f"model.{n}={','.join(map(str, v))}" for n, v in tiny.TOKENIZER.items() if isinstance(v, list)]
DENOISER = ["model.width=16", "model.heads=2", "model.blocks=1", "model.text_dim=8", "sample.num_inference_steps=2"]
DENOISER += ["text.encoder.layers=1", "text.encoder.heads=2"]


def run(output, *flags):
    stages = {"tokenizer": [*RUN, *TOKENIZER], "denoiser": [*RUN, *DENOISER]}
    keys = [f"--{stage}.{key}" for stage, stage_keys in stages.items() for key in stage_keys]
    return demo.main([f"--output={output}", "--prompts=3", *keys, *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a demo with two steps per training."""
    folder = tmp_path_factory.mktemp("demo")
    assert run(folder, "--seeds=2", "--tokenizer.train.steps=2", "--denoiser.train.steps=2") == 0
    return folder


def test_a_page_with_prompts_playing_videos_curves_and_the_table(finished):
    page = (finished / "index.html").read_text()
    sources = re.findall(r'<video src="([^"]+)"', page)
    assert len(sources) == 6 and all((finished / source).stat().st_size > 0 for source in sources)
    assert page.count("<polyline") >= 6 and page.count("wrong: ") + page.count("all right") == 6
    for cell in ("background color", "tokenizer PSNR", "train tokenizer", "train denoiser", "measuring"):
        assert f"<td>{cell}</td>" in page


def test_the_same_command_goes_on_where_it_ended(finished, capsys):
    before = json.loads((finished / "seconds.json").read_text())
    assert run(finished, "--tokenizer.train.steps=2", "--denoiser.train.steps=2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["tokenizer"]["step"], result["denoiser"]["step"]) == (2, 2) and "loss" not in result["denoiser"]
    rows = {row["attribute"]: row for row in result["adherence"]}
    assert {"color", "motion", "shape"} <= rows.keys() and "background" not in rows
    for row in rows.values():
        assert row["n"] == 3 and row["low"] <= row["share"] <= row["high"] and 0 <= row["tokenizer_share"] <= 1
        assert 0 <= row["one_step_share"] <= 1
    assert np.isfinite(result["tokenizer_psnr"]) and result["page"] == str(finished / "index.html")
    assert all(result["seconds"][stage] > seconds for stage, seconds in before.items())


def test_the_terminal_gets_one_table_and_the_page(capsys, monkeypatch):
    monkeypatch.setattr(cli, "console", lambda: Console(file=sys.stderr, width=100))
    shares = {"share": 0.9, "low": 0.8, "high": 0.95, "chance": 0.125, "shuffled": 0.1, "tokenizer_share": 1.0}
    shares["one_step_share"] = 0.3
    result = {"adherence": [{"attribute": "background_color", "n": 32, **shares}], "page": "runs/demo/index.html"}
    demo_page.show({**result, "tokenizer_psnr": 25.25, "seconds": {"train denoiser": 90.0}})
    rows = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert rows[1] == "measure result 95 % interval chance shuffled one step tokenizer"
    assert "background color 90.0 % 80.0 to 95.0 % 12.5 % 10.0 % 30.0 % 100.0 %" in rows
    assert {"videos measured 32", "tokenizer PSNR 25.2 dB", "train denoiser 1.5 min"} < set(rows)
    assert "page: runs/demo/index.html" in rows


def test_a_stopped_training_ends_the_demo_until_it_is_run_again(tmp_path, capsys, monkeypatch):
    stages = []
    monkeypatch.setattr(loop, "fit", lambda system, workdir: stages.append(workdir.name) or {"stopped": True})
    assert run(tmp_path) == 0
    assert "run the same command again to resume" in capsys.readouterr().err
    assert stages == ["tokenizer"] and not (tmp_path / "index.html").exists()


def test_videos_are_drawn_and_shown_at_the_rate_of_the_first_bucket(tmp_path, monkeypatch):
    values = tiny.text_to_video("tokenizer", data={"buckets": [{**tiny.SIZE, "fps": 16.0}]})
    rates = []

    class Pipeline:
        recipe = config.build(TextToVideoRecipe, values)
        size, window, check = lambda self: (4, 16, 16), lambda *_: 4, lambda *_: None

        def __init__(self, checkpoint):
            assert checkpoint == tmp_path / "text_to_video"

        def generate(self, jobs, settings):
            rates.append(settings.fps)
            return (np.zeros((4, 16, 16, 3), np.uint8) for _ in jobs)

    def kept(pipeline, prompts):
        return adherence.Kept(rows=adherence.measure(pipeline, prompts).rows, shown=[], psnr=20.0)

    monkeypatch.setattr(loading, "open_system", lambda recipe, workdir: None)
    monkeypatch.setattr(loop, "fit", lambda system, workdir: {})
    monkeypatch.setattr(text_to_video, "TextToVideo", Pipeline)
    monkeypatch.setattr(adherence, "measure_tokenizer", kept)
    monkeypatch.setattr(demo_page, "write", lambda result, drawn, kept, fps: rates.append(fps))
    assert run(tmp_path) == 0 and rates == [16.0] * 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--denoiser.train.stepz=3"], "denoiser.train.stepz: no such key; did you mean 'steps'"),
        (["--tokenizer.train"], "write it as --tokenizer.KEY=VALUE"),
        (["--denoiser.data.manifest=videos"], "the demo measures rendered scenes"),
        (["--continue"], "leave this flag out"),
    ],
)
def test_bad_input_is_one_line_before_any_training(tmp_path, capsys, flags, message):
    assert run(tmp_path / "new", *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0] and not list(tmp_path.iterdir())


def test_too_few_prompts_for_a_control_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo.main([f"--output={tmp_path / 'new'}", "--prompts=1"])
    assert "argument --prompts: 1: must be at least 2" in capsys.readouterr().err


def test_going_on_starts_from_the_committed_checkpoint(finished, tmp_path, capsys, monkeypatch):
    committed, output = tmp_path / "committed", tmp_path / "new"
    assert export.main([f"--checkpoint={finished / 'text_to_video'}", f"--output={committed}"]) == 0
    monkeypatch.setattr(assets, "SCENES", committed)
    keys = ["data.scenes=8", "data.batch_size=4", "train.log_every=1", "evaluate.clips=2", "evaluate.pictures=1"]
    flags = [f"--denoiser.{key}" for key in [*keys, "train.steps=1", "optimizer.learning_rate=0", "train.ema_decay=0"]]
    assert demo.main(["--continue", f"--output={output}", "--prompts=3", *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "tokenizer" not in result and result["denoiser"]["step"] == 1 and not (output / "tokenizer").exists()
    drawn = sorted(path.name for path in (output / "videos").iterdir())
    assert drawn == [f"{name}_0{index}.mp4" for name in ("drawn", "kept") for index in range(3)]
    before, after = (TextToVideo(folder) for folder in (committed, output / "text_to_video"))
    assert after.digest == before.digest and after.recipe.tokenizer == str(committed / "tokenizer")
    assert "tokenizer:" not in (output / "index.html").read_text()


def test_going_on_needs_the_committed_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(assets, "SCENES", tmp_path / "absent")
    assert demo.main(["--continue", f"--output={tmp_path / 'new'}"]) == 2
    assert "absent: the committed checkpoint is missing; run the demo without" in capsys.readouterr().err


def test_an_untrained_model_is_measured_like_any_other(finished):
    pipeline = TextToVideo(finished / "text_to_video")
    prompts = adherence.prompts_for(pipeline, 3)
    drawn = adherence.measure(pipeline, prompts, seeds=2, keep=2)
    assert {row.n for row in drawn.rows} == {6} and [one.prompt for one in drawn.shown] == [p for p, _ in prompts[:2]]
    kept = adherence.measure_tokenizer(pipeline, prompts, keep=1)
    (one,) = kept.shown
    np.testing.assert_array_equal(
        one.video[:, :, :16], renderer.render(prompts[0][1], num_frames=4, height=16, width=16)
    )
    assert 0 < kept.psnr < 40
