"""The demo: its three acts and their page; restarts, signals, starts from a checkpoint, refusals."""

import collections
import json
import re
import sys

import numpy as np
import pytest

from motionaura_jax import assets, demo, export
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.pipelines import acts, adherence, demo_page
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


@pytest.fixture(autouse=True)
def _no_included_model(tmp_path, monkeypatch):
    """Leave out the first act, which takes as long as all others of a tiny demo."""
    monkeypatch.setattr(assets, "SCENES", tmp_path / "absent")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a demo with two steps per training and a tiny model for the first act."""
    folder = tmp_path_factory.mktemp("demo")
    included = tiny.text_to_video(tiny.save_tokenizer(folder / "included" / "tokenizer"))
    tiny.save_untrained(folder / "included" / "model", **included)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "SCENES", folder / "included" / "model")
        assert run(folder, "--seeds=2", "--tokenizer.train.steps=2", "--denoiser.train.steps=2") == 0
    return folder


def sources(page):
    return re.findall(r'<video src="([^"]+)"', page.read_text())


@pytest.mark.slow(quick=True)
def test_a_page_with_three_acts_of_playing_videos_curves_and_tables(finished):
    page = (finished / "index.html").read_text()
    videos = sources(finished / "index.html")
    assert all((finished / video).stat().st_size > 0 for video in videos)
    kinds = collections.Counter(re.sub(r"_?\d.*", "", video) for video in videos)
    # Two evaluations and the scene of one prompt; the reconstruction of the last evaluation.
    assert kinds == {
        "videos/first": 8,
        "tokenizer/samples/": 1,
        "text_to_video/samples/": 3,
        "videos/drawn": 3,
        "videos/kept": 3,
    }
    assert page.count("<polyline") >= 6 and page.count("wrong: ") + page.count("all right") == 14
    for cell in ("agreement path", "copying neighbors", "train tokenizer", "train denoiser", "measuring"):
        assert f"<td>{cell}</td>" in page
    assert "http-equiv" not in page and "stopped" not in page and page.count("trained for 2 steps") == 2


@pytest.mark.slow(quick=True)
def test_both_trainings_share_the_rendered_scenes(finished):
    one, other = (finished / stage / "scenes" for stage in ("tokenizer", "text_to_video"))
    names = [sorted(path.relative_to(place) for path in place.rglob("*.mp4")) for place in (one, other)]
    assert names[0] == names[1] and len(names[0]) == 10
    # Copies keep the time of the original, so nothing was rendered twice.
    assert (one / names[0][0]).stat().st_mtime_ns == (other / names[0][0]).stat().st_mtime_ns


@pytest.mark.slow(quick=True)
def test_the_same_command_goes_on_where_it_ended(finished, capsys, monkeypatch):
    monkeypatch.setattr(assets, "SCENES", "gone")  # the first act is not repeated
    before = json.loads((finished / "seconds.json").read_text())
    assert run(finished, "--tokenizer.train.steps=2", "--denoiser.train.steps=2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["tokenizer"]["step"], result["denoiser"]["step"]) == (2, 2) and "loss" not in result["denoiser"]
    rows = {row["attribute"]: row for row in result["adherence"]}
    assert {"color", "motion", "shape"} <= rows.keys() and "background" not in rows
    for row in rows.values():
        assert row["n"] == 3 and row["low"] <= row["share"] <= row["high"]
        assert 0 <= row["tokenizer_share"] <= 1
        assert 0 <= row["one_step_share"] <= 1
    assert {name: len(row) for name, row in result["bounds"].items()} == dict.fromkeys(demo_page.BOUNDS, 4)
    assert np.isfinite(result["tokenizer_psnr"]) and result["page"] == str(finished / "index.html")
    assert result["seconds"].pop("first videos") == before.pop("first videos")
    assert all(result["seconds"][stage] > seconds for stage, seconds in before.items())
    assert "videos/first_07.mp4" in sources(finished / "index.html")


def test_a_stopped_training_ends_the_demo_until_it_is_run_again(tmp_path, capsys, monkeypatch):
    stages = []
    monkeypatch.setattr(loop, "fit", lambda system, workdir, notify: stages.append(workdir.name) or {"stopped": True})
    assert run(tmp_path) == 0
    assert "run the same command again to resume" in capsys.readouterr().err
    page = (tmp_path / "index.html").read_text()
    assert stages == ["tokenizer"] and "http-equiv" not in page and f"The demo is {demo_page.RESUME}" in page


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (UserError("no space left"), 2)])
def test_the_page_of_a_demo_that_fails_is_valid_and_no_longer_reloads(tmp_path, monkeypatch, error, status):
    pages = []

    def fit(system, workdir, notify):
        pages.append((tmp_path / "index.html").read_text())
        raise error

    monkeypatch.setattr(loop, "fit", fit)
    assert run(tmp_path) == status
    assert '<meta http-equiv="refresh"' in pages[0] and "Now: training the tokenizer" in pages[0]
    page = (tmp_path / "index.html").read_text()
    assert "http-equiv" not in page and f"The demo is {demo_page.RESUME}" in page


def test_videos_are_drawn_and_shown_at_the_rate_of_the_first_bucket(tmp_path, monkeypatch):
    values = tiny.text_to_video("tokenizer", data={"buckets": [{**tiny.SIZE, "fps": 16.0}]})
    rates = []

    class Pipeline:
        recipe, step = config.build(TextToVideoRecipe, values), 1
        size, window, check = lambda self: (4, 16, 16), lambda *_: 4, lambda *_: None

        def __init__(self, checkpoint):
            assert checkpoint == tmp_path / "text_to_video"

        def generate(self, jobs, settings):
            rates.append(settings.fps)
            return (np.zeros((4, 16, 16, 3), np.uint8) for _ in jobs)

    def kept(pipeline, prompts):
        return adherence.Kept(rows=adherence.measure(pipeline, prompts).rows, shown=[], psnr=20.0)

    monkeypatch.setattr(loading, "open_system", lambda recipe, workdir: None)
    monkeypatch.setattr(loop, "fit", lambda system, workdir, notify: {})
    monkeypatch.setattr(acts, "TextToVideo", Pipeline)
    monkeypatch.setattr(adherence, "measure_tokenizer", kept)
    monkeypatch.setattr(adherence, "bounds", lambda *_, **__: {key: [1.0] for key in demo_page.BOUNDS})
    monkeypatch.setattr(demo_page, "save_videos", lambda shown, output, name, fps: rates.append(fps) or [])
    assert run(tmp_path) == 0 and rates == [16.0] * 5


def test_full_trains_longer_unless_a_flag_sets_the_steps(tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(acts, "play", lambda output, recipes, **_: found.update(output=output, **recipes) or None)
    monkeypatch.chdir(tmp_path)
    steps = {stage: config.read(place)["train"]["steps"] for stage, place in demo.CONFIGS.items()}
    assert demo.main(["--full", "--denoiser.train.steps=7"]) == 0
    assert found["tokenizer"].train.steps == demo.FULL * steps["tokenizer"] and found["denoiser"].train.steps == 7
    assert str(found["output"]) == "runs/demo_full"
    assert demo.main([]) == 0 and str(found["output"]) == "runs/demo"
    assert {stage: found[stage].train.steps for stage in steps} == steps


def test_a_browser_opens_only_where_there_is_a_display(tmp_path, monkeypatch, caplog):
    opened = []
    monkeypatch.setattr(acts.webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    acts.show_in_browser(tmp_path / "index.html")
    assert not opened and f"open {tmp_path / 'index.html'} yourself" in caplog.text
    monkeypatch.setenv("DISPLAY", ":0")
    caplog.clear()
    acts.show_in_browser(tmp_path / "index.html")
    assert opened == [(tmp_path / "index.html").as_uri()] and not caplog.text
    acts.show_in_browser(tmp_path / "index.html")  # no browser starts
    assert "yourself" in caplog.text


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


@pytest.mark.slow(quick=True)
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
    counts = {"drawn": 3, "first": 8, "kept": 3}
    assert drawn == [f"{name}_0{index}.mp4" for name, count in counts.items() for index in range(count)]
    before, after = (TextToVideo(folder) for folder in (committed, output / "text_to_video"))
    assert after.digest == before.digest and after.recipe.tokenizer == str(committed / "tokenizer")
    assert "<h3>Tokenizer</h3>" not in (output / "index.html").read_text()


def test_going_on_needs_the_committed_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(assets, "SCENES", tmp_path / "absent")
    assert demo.main(["--continue", f"--output={tmp_path / 'new'}"]) == 2
    assert "absent: the committed checkpoint is missing; run the demo without" in capsys.readouterr().err


@pytest.mark.slow(quick=True)
def test_an_untrained_model_is_measured_like_any_other(finished):
    pipeline = TextToVideo(finished / "text_to_video")
    prompts = adherence.prompts_for(pipeline, 3)
    drawn = adherence.measure(pipeline, prompts, seeds=2, keep=2)
    assert {row.n for row in drawn.rows if row.attribute != "background_color"} == {6}
    assert [one.prompt for one in drawn.shown] == [p for p, _ in prompts[:2]]
    kept = adherence.measure_tokenizer(pipeline, prompts, keep=1)
    (one,) = kept.shown
    np.testing.assert_array_equal(
        one.video[:, :, :16], renderer.render(prompts[0][1], num_frames=4, height=16, width=16)
    )
    assert 0 < kept.psnr < 40
