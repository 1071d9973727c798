"""Measured attributes of rendered scenes equal the true ones, also after compression, blur and noise."""

import collections
import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from motionaura_jax.data.media import write_video
from motionaura_jax.data.video import read_video
from motionaura_jax.metrics.frame import psnr
from motionaura_jax.scenes import scene as vocabulary
from motionaura_jax.scenes.dataset import SceneOptions, make_scene
from motionaura_jax.scenes.reader import ATTRIBUTES, read_scene, score_reading
from motionaura_jax.scenes.renderer import render
from motionaura_jax.scenes.scene import Background, Scene, SceneObject

ALL = (*ATTRIBUTES, "background", "background_color")
SMOOTH = SceneOptions(backgrounds=("plain", "gradient"))


def _accuracy(count, options, change=lambda video: video, **size):
    right = collections.Counter()
    for index in range(count):
        scene = make_scene(index, split="train", options=options, seed=11)
        right.update(score_reading(read_scene(change(render(scene, **size))), scene))
    return {name: right[name] / count for name in ALL}


def _degrade(video, rng):
    blurred = ndimage.gaussian_filter(video.astype(float), (0, 1.2, 1.2, 0))
    return np.clip(np.round(blurred + rng.normal(0, 12, video.shape)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("count", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_reads_rendered_scenes(count):
    accuracy = _accuracy(count, SceneOptions())
    assert min(accuracy.values()) >= 0.99, accuracy


def test_reads_scenes_from_video_files(tmp_path):
    def through_file(video):
        write_video(tmp_path / "clip.mp4", video, 8.0)
        return read_video(tmp_path / "clip.mp4")[0]

    accuracy = _accuracy(50, SceneOptions(), through_file)
    assert min(accuracy.values()) >= 0.99, accuracy


def test_reads_blurred_and_noisy_scenes():
    rng = np.random.default_rng(0)
    scores = []

    def change(video):
        degraded = _degrade(video, rng)
        scores.append(psnr(video, degraded))
        return degraded

    accuracy = _accuracy(60, SMOOTH, change)
    assert 23 < np.mean(scores) < 26
    assert min(accuracy[name] for name in ("color", "shape", "motion")) >= 0.95, accuracy


@pytest.mark.parametrize(("num_frames", "height", "width"), [(4, 48, 32), (16, 64, 96)])
def test_reads_other_frame_sizes(num_frames, height, width):
    accuracy = _accuracy(20, SMOOTH, num_frames=num_frames, height=height, width=width)
    assert min(accuracy.values()) >= 0.95, accuracy


def test_reads_both_of_two_objects():
    accuracy = _accuracy(60, SceneOptions(two_objects=1.0))
    assert min(accuracy.values()) >= 0.99, accuracy


def test_measures_in_the_units_of_the_scene():
    item = SceneObject(color="cyan", shape="triangle", size="large", motion="left", center=(0.6, 0.5))
    background = Background(kind="plain", color="gray")
    measured = read_scene(render(Scene(objects=(item,), background=background), height=64, width=80)).objects[0]
    np.testing.assert_allclose(measured.center, item.center, atol=0.01)
    np.testing.assert_allclose(measured.travel, (-vocabulary.TRAVEL, 0), atol=0.01)
    assert measured.diameter == pytest.approx(vocabulary.SIZES["large"], rel=0.03)
    assert measured.growth == pytest.approx(0, abs=0.03) and measured.turn == 0 and measured.overlap > 0.9

    turning = Scene(objects=(dataclasses.replace(item, motion="rotating", center=(0.5, 0.5)),), background=background)
    assert read_scene(render(turning)).objects[0].turn == pytest.approx(vocabulary.TURN, rel=0.15)
    growing = Scene(objects=(dataclasses.replace(item, motion="growing", center=(0.5, 0.5)),), background=background)
    assert read_scene(render(growing)).objects[0].growth == pytest.approx(2 * np.log(5 / 3), rel=0.05)


def test_a_single_frame_reads_as_still():
    scene = make_scene(0, split="train", options=SMOOTH)
    reading = read_scene(render(scene, num_frames=1))
    assert reading.motion == "still" and reading.color == scene.objects[0].color


def test_scrambled_pictures_read_as_something():
    rng = np.random.default_rng(0)
    video = render(make_scene(0, split="train", options=SMOOTH))
    tiles = video.reshape(8, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(8, 64, 8, 8, 3)
    mixed = tiles[:, rng.permutation(64)].reshape(8, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(video.shape)
    flat = [np.full_like(video, value) for value in (0, 128, 255)]
    noise = rng.integers(0, 256, video.shape, dtype=np.uint8)
    saturated = np.where(rng.random((8, 64, 64, 1)) < 0.5, np.uint8(0), np.array([222, 38, 44], np.uint8))
    for odd in (mixed, *flat, noise, saturated):
        reading = read_scene(odd)
        assert reading.background in vocabulary.BACKGROUNDS and reading.background_color in vocabulary.BACKGROUND_COLORS
        assert all(item.color in vocabulary.COLORS and item.shape in vocabulary.SHAPES for item in reading.objects)


def test_a_scene_without_objects_scores_nothing():
    scene = make_scene(0, split="train", options=SMOOTH)
    empty = render(dataclasses.replace(scene, objects=()))
    reading = read_scene(empty)
    assert (reading.objects, reading.color, reading.shape, reading.size, reading.motion) == ((), None, None, None, None)
    score = score_reading(reading, scene)
    assert not any(score[name] for name in ATTRIBUTES) and score["background"] and score["background_color"]


def test_scores_tell_which_attribute_is_wrong():
    scene = make_scene(3, split="train", options=SMOOTH)
    other = dataclasses.replace(scene.objects[0], color="red" if scene.objects[0].color != "red" else "blue")
    score = score_reading(read_scene(render(dataclasses.replace(scene, objects=(other,)))), scene)
    assert [name for name in ALL if not score[name]] == ["color"]


def test_other_arrays_are_value_errors():
    for odd in (np.zeros((8, 64, 64, 3)), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            read_scene(odd)
