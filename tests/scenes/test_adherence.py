"""Adherence: rendered scenes obey, blank and exchanged videos do not, and the control sits near chance."""

import numpy as np
import pytest

from motionaura_jax.scenes.adherence import HEADER, adherence, cells
from motionaura_jax.scenes.dataset import SceneOptions, held_out_prompts
from motionaura_jax.scenes.reader import read_scene
from motionaura_jax.scenes.renderer import render

OPTIONS = SceneOptions(backgrounds=("plain",))


@pytest.fixture(scope="module")
def truth():
    """Scenes with what is read from their own renderings."""
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
