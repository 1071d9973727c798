"""The page of the demo, built from files alone: while a training runs, at the end, and with files that are damaged."""

import html.parser
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from motionaura_jax.core import cli
from motionaura_jax.core.errors import UserError
from motionaura_jax.data import media
from motionaura_jax.pipelines import demo_page
from motionaura_jax.pipelines.adherence import Shown
from motionaura_jax.pipelines.demo_page import DemoPage, Stage

SHARES = {"share": 0.9, "low": 0.8, "high": 0.95, "chance": 0.125, "shuffled": 0.1}
ROW = {"attribute": "background_color", **SHARES, "one_step_share": 0.3, "tokenizer_share": 1.0}
BOUNDS = {"true": [1.0, 2.0], "shuffled": [3.0, 4.0], "no text": [2.0, 3.0], "neighbors": [1.5, 4.0]}
RESULT = {"prompts": 32, "seeds": 1, "adherence": [ROW], "bounds": BOUNDS, "tokenizer_psnr": 25.25}
RESULT |= {"seconds": {"train denoiser": 90.0}}


class Balanced(html.parser.HTMLParser):
    """Check that every element is closed by its own end tag."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def folder(tmp_path):
    """Return a folder as a demo leaves it in the middle of the second training."""
    for name, files in (("tokenizer", ["clip_0"]), ("text_to_video", ["0_a_red_star", "1_a_blue_cross"])):
        workdir = tmp_path / name
        for step in range(10, 100, 10):
            for file in files:
                (workdir / "samples" / f"{step:07d}").mkdir(parents=True, exist_ok=True)
                (workdir / "samples" / f"{step:07d}" / f"{file}.mp4").write_bytes(b"")
        rows = [{"step": 50, "mse": 0.5, "loss": 3.0, "steps_per_second": 2.0}, {"step": 90, "loss": None, "mse": 0.1}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = [Shown(prompt="a <b>red</b> star", video=np.zeros((2, 16, 16, 3), np.uint8), right={"color": False})]
    media.write_json(tmp_path / demo_page.FIRST, {"first": demo_page.save_videos(shown, tmp_path, "first", 8.0)})
    return tmp_path


def page_of(folder, now, *, running=True):
    stages = [
        Stage(name="tokenizer", workdir=folder / "tokenizer", steps=90),
        Stage(name="denoiser", workdir=folder / "text_to_video", steps=290),
    ]
    page = DemoPage(folder, stages)
    if running:
        with page:
            page.tell(now)
            text = page.path.read_text()
            page.tell("")
    else:
        page.tell(now)
        text = page.path.read_text()
    Balanced(text)
    return text


def test_a_running_demo_reloads_and_says_how_far_it_is(folder):
    text = page_of(folder, "training the denoiser")
    assert '<meta http-equiv="refresh"' in text and "Now: training the denoiser" in text
    assert "trained for 90 steps" in text and "step 90 of 290, 2.00 steps/s, about 1 min 40 s left" in text
    assert 'style="width: 31.0%"' in text and "Follows after both trainings" in text
    assert "a &lt;b&gt;red&lt;/b&gt; star" in text and "wrong: color" in text
    # The newest reconstruction alone; six of nine evaluations of the two prompts, and their scenes.
    assert text.count("tokenizer/samples/") == 1 and "tokenizer/samples/0000090" in text
    assert text.count("text_to_video/samples/") == 14 and text.count('"clip right"') == 12
    assert "<th>step 10</th>" in text and "<th>step 90</th>" in text and "<th>a red star</th>" in text


def test_the_end_of_a_demo_stops_the_reloads(folder):
    page_of(folder, "training the denoiser")
    media.write_json(folder / demo_page.VERDICT, {**RESULT, "step": 290, "generated": [], "reconstructed": []})
    for text in ((folder / "index.html").read_text(), page_of(folder, "", running=False)):
        assert "http-equiv" not in text and "Now:" not in text and "Written" not in text
    assert "<td>background color</td><td>90 %</td><td>80-95 %</td>" in text and "after 290 steps" in text


def test_a_demo_that_is_ended_says_so_on_its_page(folder):
    page = DemoPage(folder, [])
    with pytest.raises(KeyboardInterrupt), page:
        page.tell("measuring")
        raise KeyboardInterrupt
    text = page.path.read_text()
    assert f"The demo is {demo_page.RESUME}." in text and "http-equiv" not in text


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"first": 3}', '{"first": [{}]}', '{"first": [{"file": "x", "prompt": 1, "wrong": 2}]}']
)
def test_damaged_files_leave_their_part_out(folder, text):
    for name in (demo_page.FIRST, demo_page.VERDICT, "tokenizer/metrics.jsonl"):
        (folder / name).write_text(text)
    found = page_of(folder, "training the tokenizer")
    assert "videos appear here" in found and "rendering scenes and compiling" in found


def test_a_video_that_is_gone_is_made_again(folder):
    assert demo_page.read(folder / demo_page.FIRST)
    (folder / "videos" / "first_00.mp4").unlink()
    assert demo_page.read(folder / demo_page.FIRST) is None


def test_a_page_that_cannot_be_written_is_one_warning(folder, monkeypatch, caplog):
    def full(path, text):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("motionaura_jax.pipelines.page.write_text", full)
    page = DemoPage(folder, [], pause=0.0)
    with page:
        page.tell("measuring")
        page.follow(1)
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_a_training_rewrites_the_page_at_most_every_few_seconds(folder, monkeypatch):
    written = []
    monkeypatch.setattr(DemoPage, "_write", lambda page: written.append(1))
    page = DemoPage(folder, [], pause=1000.0)
    page._written = float("-inf")
    page.follow(1)
    page._written = demo_page.time.monotonic()
    page.follow(2)
    assert len(written) == 1


def test_sentences_name_the_baselines_that_are_not_beaten():
    good = demo_page.findings(RESULT)
    assert all("as well" not in line for line in good) and len(good) == 3
    row = {**ROW, "one_step_share": 0.85, "shuffled": None}
    lines = demo_page.findings({"adherence": [ROW, row], "bounds": {**BOUNDS, "neighbors": [0.5, 4.0]}})
    assert lines[0].endswith("does as well in background color.") and lines[1] == good[1]
    assert lines[2] == "Copying visible neighbors predicts tokens as well with masked shares up to 50 %."


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_gets_the_verdict_and_the_page(capsys, monkeypatch, width):
    monkeypatch.setattr(cli, "console", lambda: Console(file=sys.stderr, width=width))
    demo_page.show({**RESULT, "page": "runs/demo/index.html"})
    shown = capsys.readouterr().err
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "measure result interval chance shuffled one step limit" in rows
    assert "background color 90 % 80-95 % 12 % 10 % 30 % 100 %" in rows
    assert {"copying neighbors 1.50 4.00", "train denoiser 1.5", "in all 1.5"} < set(rows)
    assert "page: runs/demo/index.html" in rows and "\x1b" not in shown
