"""Adherence of rendered, blank and swapped videos; Wilson intervals against published numbers and their equation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.scenes.adherence import HEADER, adherence, cells, wilson
from motionaura_jax.scenes.dataset import SceneOptions, held_out_prompts
from motionaura_jax.scenes.reader import read_scene
from motionaura_jax.scenes.renderer import render

OPTIONS = SceneOptions(backgrounds=("plain",))


@pytest.fixture(scope="module")
def truth():
    """Return scenes with the attributes read from their renderings."""
    scenes = [scene for _, scene in held_out_prompts(48, 1, OPTIONS)]
    return [(scene, read_scene(render(scene, num_frames=6, height=48, width=48))) for scene in scenes]


def test_rendered_scenes_obey_and_their_exchange_is_chance(truth):
    rows = {row.attribute: row for row in adherence(truth, OPTIONS)}
    expected = {"color": 1 / 8, "motion": 1 / 11, "shape": 1 / 5, "size": 1 / 2, "background_color": 1 / 4}
    assert {name: row.chance for name, row in rows.items()} == pytest.approx(expected)
    for row in rows.values():
        deviation = (row.chance * (1 - row.chance) / row.n) ** 0.5
        assert (row.hits, row.n) == (48, 48) and row.interval[0] > 0.92
        assert abs(row.shuffled - row.chance) < 3 * deviation, row


def test_a_video_without_an_object_is_a_miss(truth):
    blank = read_scene(np.full((4, 32, 32, 3), 99, np.uint8))
    rows = {row.attribute: row for row in adherence([(scene, blank) for scene, _ in truth], OPTIONS)}
    for name in ("color", "motion", "shape", "size"):
        assert (rows[name].hits, rows[name].shuffled_hits) == (0, 0) and rows[name].interval[0] < 1e-9
    assert 0 < rows["background_color"].share < 1


def test_several_videos_of_a_prompt_never_meet_it_in_the_control(truth):
    different = next(pair for pair in truth if pair[0].objects[0].color != truth[0][0].objects[0].color)
    rows = {row.attribute: row for row in adherence([truth[0]] * 4 + [different] * 4, OPTIONS)}
    assert (rows["color"].share, rows["color"].shuffled, rows["color"].n) == (1.0, 0.0, 8)
    with pytest.raises(ValueError, match="two different scenes"):
        adherence([truth[0]] * 4, OPTIONS)


def test_only_attributes_with_a_choice_are_counted(truth):
    options = SceneOptions(shapes=("circle", "square"), sizes=("large",), backgrounds=("plain", "gradient"))
    rows = {row.attribute: row.chance for row in adherence(truth, options)}
    assert "size" not in rows and (rows["shape"], rows["background"]) == (0.5, 0.5)


def test_a_row_as_numbers_and_as_text(truth):
    row = adherence(truth, OPTIONS)[0].to_dict()
    assert (row["attribute"], row["hits"], row["n"], row["share"]) == ("color", 48, 48, 1.0)
    assert row["high"] == pytest.approx(1.0)
    text = cells({**row, "attribute": "background_color", "low": 0.9255, "shuffled": 0.0})
    assert text == ("background color", "100.0 %", "92.5 to 100.0 %", "12.5 %", "0.0 %")
    assert len(text) == len(HEADER)


def test_known_intervals():
    # Newcombe 1998, table I, method 3 (without continuity correction).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.1, 4))
def test_bounds_solve_the_score_equation(case, z):
    successes, n = case
    low, high = wilson(successes, n, z)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1
    for bound in (low, high):
        assert abs(successes / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_mirrored_counts_have_mirrored_intervals():
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "n", "z"), [(0, 0, 1.96), (-1, 5, 1.96), (6, 5, 1.96), (1, 5, -1.0)])
def test_bad_counts_are_value_errors(successes, n, z):
    with pytest.raises(ValueError, match="not a success rate"):
        wilson(successes, n, z)
