"""The page: escaped text, playable videos, curves that survive odd data."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from motionaura_jax.pipelines.page import Clip, Page, curve


def points(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()] for line in re.findall(r'points="([^"]*)"', svg)
    ]


def test_a_page_escapes_text_and_refers_to_its_videos(tmp_path):
    page = Page("a <b>", "lead & more")
    page.heading("results")
    page.paragraph("plain <script>")
    page.table(("name", "value"), [("x<y", 1.5)])
    page.progress("half & half", 0.5)
    page.videos(
        [Clip(path="clips/one.mp4", caption="a <i>red</i> circle", note="<bad>", good=False), Clip(path='a"b#1.mp4')]
    )
    page.video_rows(["a <i>blue</i> star"], [("step <1>", [Clip(path="clips/two.mp4", half="right")])])
    page.curves({"loss": {"train": [(0, 1.0), (1, 0.5)]}})
    page.write(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert (
        "<script" not in text
        and "<i>" not in text
        and 'src="a%22b%231.mp4"' in text
        and "a &lt;b&gt;" in text
        and "x&lt;y" in text
    )
    assert 'src="clips/one.mp4"' in text and "autoplay loop muted" in text
    assert '<div class="clip right"><video src="clips/two.mp4"' in text and "step &lt;1&gt;" in text
    assert '<div style="width: 50.0%">' in text and "half &amp; half" in text and "note bad" in text
    assert '<a href="#section0">results</a>' in text and '<h2 id="section0">results</h2>' in text
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", text)


def test_larger_values_are_drawn_higher_and_later_ones_further_right():
    (line,) = points(curve("loss", {"train": [(0, 1.0), (10, 3.0), (20, 2.0)]}))
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1]


@pytest.mark.parametrize("data", [[], [(0, math.nan)], [(5, 2.0)], [(0, 1.0), (1, 1.0)], [(0, -1e-9), (1e6, 1e9)]])
def test_odd_data_still_gives_a_picture(data):
    svg = curve("odd <title>", {"a": data, "b": data})
    ET.fromstring(svg)
    assert all(math.isfinite(value) for line in points(svg) for point in line for value in point)
    assert ("nothing was logged" in svg) == (not any(math.isfinite(y) for _, y in data))


def test_a_page_loads_itself_again_only_on_request(tmp_path):
    for refresh in (0, 5):
        Page("a", "b", refresh=refresh).write(tmp_path / "index.html")
        found = re.findall(r'<meta http-equiv="refresh" content="(\d+)">', (tmp_path / "index.html").read_text())
        assert found == ([str(refresh)] if refresh else [])


def test_positive_values_far_apart_have_a_logarithmic_axis():
    (line,) = points(curve("loss", {"train": [(0, 100.0), (1, 10.0), (2, 1.0)]}))
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
    assert all(f">{tick}</text>" in curve("loss", {"train": [(0, 100.0), (2, 1.0)]}) for tick in (1, 10, 100))
    (line,) = points(curve("loss", {"train": [(0, 10.0), (1, 5.5), (2, 1.0)]}))
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
