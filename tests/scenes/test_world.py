"""Scenes of the style `world`: pixels of the other styles, captions that leave things open, ground truth against pixels."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import DataConfig
from motionaura_jax.scenes import scene as vocabulary
from motionaura_jax.scenes.dataset import PRESETS, combinations, make_scene
from motionaura_jax.scenes.renderer import render
from motionaura_jax.scenes.scene import Background, Pattern, Scene, SceneObject, attributes, caption
from motionaura_jax.scenes.world import FAR, ground_truth, variation

WORLD = PRESETS["world"]
POOL = combinations("train", WORLD)


def _world(index, split="train", seed=0):
    return make_scene(index, split=split, options=WORLD, seed=seed)


@pytest.mark.parametrize(
    ("style", "pixels", "words"),
    [
        ("easy", "b0a7f0aed5380d91", "645e782c1fc23346"),
        ("full", "21ca11e26ff0a6f3", "956334311a29b80b"),
        ("places", "013dbcdff30791ba", "d6bcef02beaa4784"),
        ("world", "e626a435dc4ce448", "3b597ae9e5d7e059"),
    ],
)
def test_styles_keep_their_pixels_and_captions_to_the_byte(style, pixels, words):
    video, text = hashlib.sha256(), hashlib.sha256()
    for index in range(40):
        for split in ("train", "test"):
            scene = make_scene(index, split=split, options=PRESETS[style], seed=3)
            video.update(render(scene, num_frames=5, height=48, width=56).tobytes())
            text.update(json.dumps([caption(scene), attributes(scene)]).encode())
    assert (video.hexdigest()[:16], text.hexdigest()[:16]) == (pixels, words)


def test_recipes_know_the_style():
    assert config.build(DataConfig, {"scene_style": "world"}).scene_style == "world"
    with pytest.raises(UserError, match="world"):
        config.build(DataConfig, {"scene_style": "worlds"})


def test_captions_name_the_main_object_and_only_what_is_mentioned():
    seen = set()
    for index in range(200):
        scene = _world(index)
        text, item = caption(scene), scene.objects[0]
        words = text.replace(",", "").split()
        assert item.color in words and item.shape in words and "large" not in words
        assert (item.texture.kind in words[:3]) == ("texture" in scene.mentions)
        assert ("shadow" in words) == ("shadow" in scene.mentions) and (scene.shadow or "shadow" not in words)
        assert (scene.background.color in words) == ("background_color" in scene.mentions)
        assert ("next" in words) == bool({"second_color", "second_shape"} & set(scene.mentions))
        assert " a orange" not in f" {text}"
        seen |= set(scene.mentions)
        assert attributes(scene)["mentions"] == list(scene.mentions)
    assert seen == set(vocabulary.MENTIONS)


def test_places_are_worlds_without_their_details():
    places = PRESETS["places"]
    for index in range(40):
        scene, world = make_scene(index, split="train", options=places), _world(index)
        item, other = scene.objects[0], world.objects[0]
        assert item == dataclasses.replace(other, texture=None) and len(scene.objects) == 1
        assert scene.shadow is scene.background.pattern is None
        assert set(scene.mentions) == set(world.mentions) & {"background_color"}
        words = caption(scene).replace(",", "").split()
        assert not {"shadow", "next", "striped", "dotted", "plain"} & set(words)


def test_few_are_places_with_fewer_words():
    few = PRESETS["few"]
    assert set(combinations("train", few)) | set(combinations("test", few)) < set(combinations("train", WORLD)) | set(
        combinations("test", WORLD)
    )
    for split in ("train", "test"):
        for index in range(60):
            scene = make_scene(index, split=split, options=few, seed=0)
            (item,) = scene.objects
            assert (item.color, item.shape, item.motion) in combinations(split, few)
            assert item.texture is None and scene.shadow is None and scene.background.color == "gray"


def test_a_variation_has_the_caption_and_another_world():
    for index in range(20):
        scene = _world(index)
        other = variation(scene, index, POOL, WORLD.background_colors)
        assert caption(other) == caption(scene) and other.objects[0].center != scene.objects[0].center
        assert (render(scene) != render(other)).any()


def test_objects_are_large_and_inside_and_the_second_one_stays_visible():
    for index in range(120):
        scene = _world(index, split="test")
        truth = ground_truth(scene, num_frames=4)
        main = truth.alpha[0]
        assert main[:, [0, -1]].max() == main[:, :, [0, -1]].max() == 0
        assert main.any(axis=1).sum(axis=1).min() >= 22 and main.any(axis=1).sum(axis=1).max() >= 28
        if len(scene.objects) > 1:
            assert scene.objects[0].color != scene.objects[1].color
            area = ground_truth(dataclasses.replace(scene, objects=scene.objects[1:]), num_frames=1).alpha.sum()
            assert truth.alpha[1].sum(axis=(1, 2)).min() > 0.3 * area


def _interior(mask):
    return ndimage.binary_erosion(mask, np.ones((5, 5)), border_value=0)


def _check(scene, **size):
    """Compare ground truth with pixels: masks, order in depth, and frames warped by the flow."""
    truth, video = ground_truth(scene, **size), render(scene, **size).astype(float)
    num_frames, height, width = video.shape[:3]
    empty = render(dataclasses.replace(scene, objects=()), **size).astype(float)
    covered = 1 - truth.alpha.sum(axis=0)
    changed = (video != empty).any(axis=-1)
    assert not (changed & (truth.alpha.sum(axis=0) + truth.shadow < 1e-9)).any()
    solid = (truth.alpha.sum(axis=0) > 0.5) | ((truth.shadow > 0.5) & (empty.sum(axis=-1) > 40))
    assert changed[solid].all() and (covered > -1e-9).all()
    for index, item in enumerate(scene.objects):
        assert (truth.depth[truth.masks[index]] == item.depth).all()
    assert (truth.depth[truth.alpha.sum(axis=0) < 0.3] == FAR).all()
    for t in range(num_frames - 1):
        goal = (
            np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
            + truth.flow[t].transpose(2, 0, 1)[::-1]
        )
        owner, owner2 = (truth.depth[k] for k in (t, t + 1))
        for depth in np.unique(owner):
            same = _interior(owner == depth) & ~truth.occluded[t]
            lit = ndimage.binary_dilation(truth.shadow[t] > 0, np.ones((5, 5)))
            lit2 = ndimage.map_coordinates(
                ndimage.binary_dilation(truth.shadow[t + 1] > 0, np.ones((5, 5))).astype(float),
                goal,
                order=1,
                mode="nearest",
            )
            inner2 = ndimage.map_coordinates(_interior(owner2 == depth).astype(float), goal, order=1)
            same &= (inner2 > 0.99) & ~(lit | (lit2 > 0))
            for channel in range(3):
                warped = ndimage.map_coordinates(video[t + 1, ..., channel], goal, order=3, mode="nearest")
                error = np.abs(warped - video[t, ..., channel])[same]
                assert not error.size or (error.mean() < 2 and error.max() < 16), (t, depth, error.mean(), error.max())
    return truth


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(8, 64, 64), (5, 64, 88), (3, 81, 65)]))
def test_ground_truth_explains_the_pixels(index, size):
    truth = _check(_world(index), num_frames=size[0], height=size[1], width=size[2])
    assert truth.depth.shape == size and truth.flow.shape == (size[0] - 1, *size[1:], 2)


def test_ground_truth_of_the_other_styles():
    for index in range(6):
        assert _check(make_scene(index, split="train", options=PRESETS["full"])).shadow.max() == 0


def test_flow_and_occlusion_of_a_known_scene():
    front = SceneObject(color="red", shape="square", size="large", motion="right", center=(0.5, 0.5), speed=1.2)
    back = SceneObject(color="blue", shape="circle", size="small", motion="still", center=(0.8, 0.5), depth=2.0)
    stripes = Pattern(kind="striped", period=0.4, drift=(0.0, 0.25))
    scene = Scene(objects=(front, back), background=Background(kind="plain", color="gray", pattern=stripes))
    truth = ground_truth(scene, num_frames=2)
    step = 1.2 * vocabulary.TRAVEL * 64
    np.testing.assert_allclose(truth.flow[0][truth.masks[0, 0]], [[step, 0]] * truth.masks[0, 0].sum(), atol=1e-9)
    np.testing.assert_array_equal(truth.flow[0][truth.masks[1, 0]], 0)
    np.testing.assert_allclose(truth.flow[0][truth.depth[0] == FAR], [[0, 16]] * (truth.depth[0] == FAR).sum())
    hidden = truth.masks[1, 0] & truth.masks[0, 1]
    assert hidden.sum() > 50 and truth.occluded[0][hidden].mean() > 0.97
    assert not truth.occluded[0][truth.masks[0, 0]].any()
    assert truth.occluded[0][-16:][truth.depth[0][-16:] == FAR].all()
    still = Scene(objects=(back,), background=Background(kind="plain", color="gray"))
    single = ground_truth(still, num_frames=1)
    assert single.flow.shape == (0, 64, 64, 2) and single.occluded.shape == (0, 64, 64)


def test_growth_and_rotation_flow_about_the_centroid():
    for motion in ("growing", "rotating"):
        item = SceneObject(color="red", shape="square", size="large", motion=motion, phase=0.05)
        scene = Scene(objects=(item,), background=Background(kind="plain", color="gray"))
        flow = ground_truth(scene, num_frames=2).flow[0]
        y, x = 32, 40  # pixel center (40.5, 32.5)
        around = np.array([8.5, 0.5])
        if motion == "growing":
            wanted = around * ((1.05 + 0.25) / (1.05 - 0.25) - 1)
        else:
            cosine, sine = np.cos(vocabulary.TURN), np.sin(vocabulary.TURN)
            wanted = np.array([[cosine, -sine], [sine, cosine]]) @ around - around
        np.testing.assert_allclose(flow[y, x], wanted, atol=1e-9)
