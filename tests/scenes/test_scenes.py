"""Scenes: pixels, captions, held-out combinations, and data sets on disk."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.data.video import read_clip, read_video
from motionaura_jax.scenes import renderer
from motionaura_jax.scenes import scene as vocabulary
from motionaura_jax.scenes.dataset import (
    PRESETS,
    SceneOptions,
    combinations,
    held_out_prompts,
    is_held_out,
    make_scene,
    write_scenes,
)
from motionaura_jax.scenes.renderer import render
from motionaura_jax.scenes.scene import NUM_TEMPLATES, Background, Scene, SceneObject, attributes, caption

PLAIN = Background(kind="plain", color="navy")
TWO_OBJECTS = SceneOptions(two_objects=1.0)


def _scene(background=PLAIN, template=0, **changes):
    item = SceneObject(**{"color": "red", "shape": "circle", "size": "large", "motion": "up"} | changes)
    return Scene(objects=(item,), background=background, template=template)


def test_the_same_index_gives_the_same_bytes_and_another_index_or_seed_does_not():
    def frames(index, seed):
        return render(make_scene(index, split="train", options=PRESETS["full"], seed=seed))

    assert frames(3, 5).dtype == np.uint8 and frames(3, 5).shape == (8, 64, 64, 3)
    np.testing.assert_array_equal(frames(3, 5), frames(3, 5))
    assert (frames(3, 5) != frames(4, 5)).any() and (frames(3, 5) != frames(3, 6)).any()


@pytest.mark.parametrize("size", vocabulary.SIZES)
@pytest.mark.parametrize("shape", vocabulary.SHAPES)
def test_objects_stay_inside_the_frame(shape, size):
    background = np.array(vocabulary.BACKGROUND_COLORS["navy"])
    for motion in vocabulary.MOTIONS:
        for center in itertools.product(*renderer.center_bounds(shape, size, motion).T):
            video = render(_scene(shape=shape, size=size, motion=motion, center=center), num_frames=4)
            border = np.concatenate([video[:, [0, -1]].reshape(-1, 3), video[:, :, [0, -1]].reshape(-1, 3)])
            assert (border == background).all(), (motion, center)


def test_sizes_are_large_against_an_eight_pixel_grid():
    background = np.array(vocabulary.BACKGROUND_COLORS["navy"])
    for size, pixels in (("small", 22), ("large", 34)):
        video = render(_scene(size=size, motion="still"))
        drawn = (video[0] != background).any(axis=-1)
        assert abs(drawn.any(axis=0).sum() - pixels) <= 2 and abs(drawn.any(axis=1).sum() - pixels) <= 2


def test_edges_are_antialiased_mixtures_of_object_and_background():
    object_color = np.array(vocabulary.COLORS["red"], float)
    back = np.array(vocabulary.BACKGROUND_COLORS["navy"], float)
    frame = render(_scene(motion="still"), num_frames=1)[0].astype(float)
    alpha = (frame - back) @ (object_color - back) / ((object_color - back) @ (object_color - back))
    np.testing.assert_allclose(frame, back + alpha[..., None] * (object_color - back), atol=1)
    assert 40 < ((alpha > 0.1) & (alpha < 0.9)).sum() < 200
    assert alpha.sum() == pytest.approx(np.pi * 17**2, rel=0.01)


def test_any_frame_size_shows_the_same_scene():
    scene = _scene(shape="star", motion="right", center=(0.4, 0.6))
    small, wide = render(scene, num_frames=3, height=32, width=32), render(scene, num_frames=5, height=64, width=96)
    assert wide.shape == (5, 64, 96, 3)
    halved = wide[::2, :, 16:80].reshape(3, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - small).mean() < 1
    with pytest.raises(UserError, match="16x16"):
        render(scene, height=8)


def test_colors_are_well_separated_from_each_other_and_from_every_shade_of_the_backgrounds():
    colors = np.array(list(vocabulary.COLORS.values()), float)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert apart[~np.eye(len(colors), dtype=bool)].min() > 85
    shades = np.linspace(1 - vocabulary.SHADE, 1 + vocabulary.SHADE, 9)[:, None, None] * np.array(
        list(vocabulary.BACKGROUND_COLORS.values())
    )
    assert np.linalg.norm(colors[:, None, None] - shades, axis=-1).min() > 85


def test_textures_of_drifting_backgrounds_move_and_others_do_not():
    for kind in vocabulary.BACKGROUNDS:
        video = render(_scene(Background(kind=kind, color="gray", texture=3), motion="still")).astype(float)
        assert (np.abs(video[-1] - video[0]).mean() > 5) == (kind == "drifting")
    moved = render(_scene(Background(kind="drifting", color="gray", texture=3), motion="still"), num_frames=30)
    shift = round(vocabulary.TRAVEL * 64)
    np.testing.assert_allclose(moved[-1, :8, :40].astype(int), moved[0, :8, shift : shift + 40], atol=12)


def test_captions_determine_every_attribute():
    assert caption(_scene(Background(kind="plain", color="gray"))) == (
        "a large red circle moves up over a plain gray background"
    )
    seen = collections.defaultdict(set)
    drawn = [make_scene(index, split="train", options=SceneOptions(two_objects=0.5)) for index in range(300)]
    for template, scene in itertools.product(range(NUM_TEMPLATES), drawn):
        text = caption(dataclasses.replace(scene, template=template))
        seen[text].add(json.dumps(attributes(scene)))
        for item in scene.objects:
            assert f"{item.size} {item.color} {item.shape}" in text
    assert all(len(described) == 1 for described in seen.values())
    assert len({caption(_scene(template=template)) for template in range(NUM_TEMPLATES)}) >= 5


@pytest.mark.parametrize("preset", PRESETS)
def test_split_holds_out_whole_combinations_and_no_value(preset):
    options = PRESETS[preset]
    train, test = set(combinations("train", options)), set(combinations("test", options))
    assert not train & test
    assert 0.12 < len(test) / len(train | test) < 0.18
    assert all(is_held_out(*combination) for combination in test)
    for column, values in enumerate((options.colors, options.shapes, options.motions)):
        held_out = collections.Counter(combination[column] for combination in test)
        assert set(held_out) == set(values) == {combination[column] for combination in train}
        slack = 0.3 * min(held_out.values()) if len(test) > 20 else 2  # a dozen combinations cannot be even
        assert max(held_out.values()) - min(held_out.values()) <= slack
    for columns in itertools.combinations(range(3), 2):
        pairs = {tuple(combination[column] for column in columns) for combination in train}
        assert pairs == {tuple(combination[column] for column in columns) for combination in train | test}
    assert ("red", "circle", "rotating") not in train | test


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_come_from_the_combinations_of_their_split(split):
    allowed = set(combinations(split, TWO_OBJECTS))
    for index in range(200):
        first, second = make_scene(index, split=split, options=TWO_OBJECTS).objects
        assert {(item.color, item.shape, item.motion) for item in (first, second)} <= allowed
        assert first.color != second.color and first.size == second.size == "small"


def test_two_objects_never_touch():
    for index in range(60):
        scene = make_scene(index, split="train", options=SceneOptions(backgrounds=("plain",), two_objects=1.0))
        drawn = [
            (render(dataclasses.replace(scene, objects=(item,))) != np.array(background)).any(axis=-1)
            for item in scene.objects
            for background in [vocabulary.BACKGROUND_COLORS[scene.background.color]]
        ]
        assert not (drawn[0] & drawn[1]).any(), index


def test_held_out_prompts_are_balanced_and_captioned():
    prompts = held_out_prompts(44, 1, SceneOptions(backgrounds=("plain",)))
    assert all(text == caption(scene) for text, scene in prompts)
    items = [scene.objects[0] for _, scene in prompts]
    assert all(is_held_out(item.color, item.shape, item.motion) for item in items)
    for name, values in (("color", vocabulary.COLORS), ("shape", vocabulary.SHAPES), ("motion", vocabulary.MOTIONS)):
        counts = collections.Counter(getattr(item, name) for item in items)
        assert set(counts) == set(values) and max(counts.values()) - min(counts.values()) <= 3
    assert collections.Counter(item.size for item in items) == {"small": 22, "large": 22}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"colors": ("red", "gren")}, "did you mean 'green'"),
        ({"shapes": ()}, "shapes is empty"),
        ({"two_objects": 1.5}, "fraction"),
        ({"two_objects": 0.5, "sizes": ("large",)}, "small"),
    ],
)
def test_bad_options_are_user_errors(changes, fault):
    with pytest.raises(UserError, match=fault):
        SceneOptions(**changes)


def test_options_without_a_split_are_user_errors():
    with pytest.raises(UserError, match="too few combinations"):
        combinations("train", SceneOptions(colors=("red",), shapes=("square",), motions=("left",)))
    with pytest.raises(UserError, match="train"):
        combinations("trian", PRESETS["easy"])


SMALL = {"count": 6, "split": "test", "options": PRESETS["easy"], "num_frames": 4, "height": 32, "width": 32}


def test_a_written_set_holds_the_rendered_scenes_and_their_captions(tmp_path):
    manifest = write_scenes(tmp_path / "set", **SMALL, seed=2)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(rows) == 6
    for index, row in enumerate(rows):
        scene = make_scene(index, split="test", options=PRESETS["easy"], seed=2)
        assert row["caption"] == caption(scene) and row["fps"] == 8.0 and row["split"] == "test"
        assert {"objects": row["objects"], "background": row["background"]} == attributes(scene)
        frames, fps = read_video(manifest.parent / row["file"])
        assert fps == pytest.approx(8.0)
        assert np.abs(frames.astype(int) - render(scene, num_frames=4, height=32, width=32)).mean() < 10


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47)])
def test_a_lossless_set_holds_the_rendered_pixels_bit_for_bit(tmp_path, height, width):
    options = PRESETS["full"]
    size = {"num_frames": 4, "height": height, "width": width}
    manifest = write_scenes(tmp_path / "set", count=3, split="train", options=options, lossless=True, **size)
    for index, record in enumerate(read_manifest(manifest)):
        wanted = render(make_scene(index, split="train", options=options), **size)
        clip = read_clip(record.path, start=0.0, fps=8.0, num_frames=4, cover=(height, width))
        np.testing.assert_array_equal(clip[:, :height, :width], wanted)
        if height == 32:
            assert clip.shape == wanted.shape


def test_a_set_that_was_begun_with_loss_is_finished_and_kept_with_loss(tmp_path):
    folder = tmp_path / "set"
    write_scenes(folder, **SMALL)
    marker = json.loads((folder / "scenes.json").read_text())
    assert marker["hash"].startswith("15ba17e571b9d847") and "world" not in marker["settings"]["options"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    write_scenes(folder, **SMALL, lossless=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before

    write_scenes(tmp_path / "exact", **SMALL, lossless=True)
    with pytest.raises(UserError, match="other settings"):
        write_scenes(tmp_path / "exact", **SMALL)


def test_writing_resumes_and_a_finished_set_is_left_alone(tmp_path):
    folder = tmp_path / "set"
    write_scenes(folder, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    write_scenes(folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before

    marker = json.loads((folder / "scenes.json").read_text())
    (folder / "scenes.json").write_text(json.dumps({**marker, "complete": False}))
    lost = folder / "videos" / "000002.mp4"
    lost.unlink()
    write_scenes(folder, **SMALL)
    assert lost.is_file() and json.loads((folder / "scenes.json").read_text())["complete"] is True
    kept = folder / "videos" / "000001.mp4"
    assert kept.stat().st_mtime_ns == before[kept]


def test_a_folder_with_anything_else_is_refused(tmp_path):
    write_scenes(tmp_path / "set", **SMALL)
    with pytest.raises(UserError, match="other settings"):
        write_scenes(tmp_path / "set", **SMALL | {"count": 7})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="other files"):
        write_scenes(tmp_path / "mine", **SMALL)
    (tmp_path / "odd").mkdir()
    for text in ("[1]", "[" * 10**5, '{"hash": [1], "complete": true}', '{"hash": ""}', "\0"):
        (tmp_path / "odd" / "scenes.json").write_text(text)
        with pytest.raises(UserError, match=r"scenes.json: (not a marker|is damaged).*choose another folder"):
            write_scenes(tmp_path / "odd", **SMALL)
    (tmp_path / "set" / "videos").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "videos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="set/videos: is a link"):
        write_scenes(tmp_path / "set", **SMALL)
    with pytest.raises(UserError, match="cannot hold"):
        write_scenes(tmp_path / "mine" / "notes.txt", **SMALL)
    with pytest.raises(UserError, match="positive"):
        write_scenes(tmp_path / "new", **SMALL | {"count": 0})


def test_spread_draws_single_objects_to_the_middle():
    def offsets(spread: float) -> np.ndarray:
        options = SceneOptions(spread=spread)
        centers = [make_scene(i, split="train", options=options).objects[0].center for i in range(40)]
        return np.abs(np.array(centers) - 0.5).max(axis=1)

    assert offsets(0.0).max() < 0.1 < offsets(1.0).max()
    with pytest.raises(UserError, match="spread is a fraction"):
        SceneOptions(spread=1.5)
