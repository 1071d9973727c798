"""Agreement: renderings keep it through compression, noise and blur; mixtures of two scenes of one caption lose it."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from motionaura_jax.data.media import write_video
from motionaura_jax.data.video import read_video
from motionaura_jax.scenes.adherence import OVERALL, adherence, cells
from motionaura_jax.scenes.agreement import LIMITS, Agreement
from motionaura_jax.scenes.dataset import PRESETS, combinations, make_scene
from motionaura_jax.scenes.reader import MAIN, read_scene, score_reading
from motionaura_jax.scenes.renderer import render
from motionaura_jax.scenes.scene import Background
from motionaura_jax.scenes.world import variation

WORLD = PRESETS["world"]
POOL = combinations("train", WORLD)


def _world(index):
    return make_scene(index, split="train", options=WORLD, seed=7)


def _compress(video, folder):
    write_video(folder / "clip.mp4", video, 8.0)
    return read_video(folder / "clip.mp4")[0]


def _blur(video, rng, *, time=0.0, space=1.2, noise=12.0):
    blurred = ndimage.gaussian_filter(video.astype(float), (time, space, space, 0))
    return np.clip(np.round(blurred + rng.normal(0, noise, video.shape)), 0, 255).astype(np.uint8)


def _read(count, folder):
    """Return readings of rendered scenes by degradation."""
    rng = np.random.default_rng(0)
    changes = {
        "rendered": lambda video: video,
        "compressed": lambda video: _compress(video, folder),
        "noisy": lambda video: _blur(video, rng),
        "soft": lambda video: _blur(video, rng, time=0.4, space=1.5, noise=6.0),
    }
    return {
        name: [(scene, read_scene(change(render(scene)), world=True)) for scene in map(_world, range(count))]
        for name, change in changes.items()
    }


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    return _read(16, tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize("change", ["rendered", "compressed", "noisy", "soft"])
def test_rendered_scenes_agree_and_show_their_attributes(readings, change):
    assert not [reading.world.agreement for _, reading in readings[change] if not reading.world.agreement.overall]
    rows = {row.attribute: row for row in adherence(readings[change], WORLD)}
    assert rows[OVERALL].share == 1 and set(rows) >= {*MAIN, "texture", "background", f"{OVERALL}_path"}
    assert min(rows[name].hits for name in MAIN) >= 15


@pytest.mark.slow
def test_at_least_99_of_100_renderings_agree(tmp_path):
    for change, pairs in _read(150, tmp_path).items():
        rows = {row.attribute: row.share for row in adherence(pairs, WORLD)}
        assert rows[OVERALL] >= 0.99 and min(rows[name] for name in MAIN) >= 0.98, (change, rows)
        assert min(rows.values()) >= 0.9, (change, rows)


def _mixed(first, second, rng, cells):
    if cells:
        chosen = (rng.random((4, 8, 8)) < 0.5).repeat(2, 0).repeat(8, 1).repeat(8, 2)[..., None]
    else:
        chosen = (rng.permutation(8) < 4)[:, None, None, None]
    return np.where(chosen, first, second)


def _passed(count, *, cells):
    """Return the share of mixtures of two scenes with one caption that seem to agree."""
    rng, passed = np.random.default_rng(1), []
    for index in range(count):
        scene = _world(index)
        other = variation(scene, index, POOL, WORLD.background_colors)
        passed.append(read_scene(_mixed(render(scene), render(other), rng, cells), world=True).world.agreement.overall)
    return np.mean(passed)


@pytest.mark.parametrize("cells", [False, True])
def test_mixtures_of_two_scenes_with_one_caption_do_not_agree(cells):
    assert _passed(12, cells=cells) == 0


def test_places_agree_and_their_mixtures_do_not():
    places, rng, mixed = PRESETS["places"], np.random.default_rng(1), []
    for index in range(12):
        scene = make_scene(index, split="train", options=places, seed=7)
        other = variation(scene, index, combinations("train", places), places.background_colors, places.details)
        video = render(scene)
        assert read_scene(video, world=True).world.agreement.overall
        mixed.append(read_scene(_mixed(video, render(other), rng, True), world=True).world.agreement.overall)
    assert sum(mixed) == 0


@pytest.mark.slow
@pytest.mark.parametrize("cells", [False, True])
def test_at_most_5_of_100_mixtures_agree(cells):
    assert _passed(150, cells=cells) <= 0.05


def _parts(*scenes):
    """Return the parts that disagree in a video that shows the scenes one after the other, frame by frame."""
    videos = [render(scene) for scene in scenes]
    video = np.stack([videos[t % len(videos)][t] for t in range(8)])
    return {name for name, agrees in read_scene(video, world=True).world.agreement.parts.items() if not agrees}


def test_every_part_notices_its_own_disagreement():
    scene = next(s for s in map(_world, range(60)) if s.shadow and s.objects[0].motion == "left")
    item = scene.objects[0]

    def changed(**values):
        return dataclasses.replace(scene, objects=(dataclasses.replace(item, **values),))

    assert _parts(scene) == set()
    assert "path" in _parts(scene, changed(center=(item.center[0], item.center[1] - 0.1)))
    assert {"size", "shape"} & _parts(scene, changed(size="small"))
    assert "shape" in _parts(scene, changed(shape="star" if item.shape != "star" else "square"))
    shifted = dataclasses.replace(item.texture, phase=(item.texture.phase[0] + 0.5, item.texture.phase[1]))
    assert _parts(scene, changed(texture=shifted)) == {"texture"}
    turned = (-scene.shadow[0], -scene.shadow[1])
    assert "shadow" in _parts(scene, dataclasses.replace(scene, shadow=turned))
    other = "gray" if scene.background.color != "gray" else "teal"
    assert "background" in _parts(scene, dataclasses.replace(scene, background=Background(kind="plain", color=other)))
    pair = next(s for s in map(_world, range(60)) if len(s.objects) > 1)
    assert "second" in _parts(pair, dataclasses.replace(pair, objects=pair.objects[:1]))


def test_a_video_without_an_object_does_not_agree():
    scene = _world(0)
    reading = read_scene(render(dataclasses.replace(scene, objects=(), shadow=None)), world=True)
    assert not reading.world.agreement.overall and reading.world.texture is None
    assert not any(score_reading(reading, scene)[name] for name in MAIN)
    assert not Agreement().overall and set(Agreement().parts) == set(LIMITS)


def test_scores_cover_what_the_caption_names(readings):
    for scene, reading in readings["rendered"]:
        assert set(score_reading(reading, scene)) == {*MAIN, *scene.mentions}


def test_rows_of_agreement_have_no_shuffled_baseline(readings):
    rows = {row.attribute: row for row in adherence(readings["rendered"], WORLD)}
    row = rows[OVERALL]
    assert (row.shuffled, row.chance, row.n) == (None, None, 16)
    assert cells(row.to_dict())[3:] == ("", "") and rows["texture"].n < rows["color"].n == 16
