"""Companions stay aligned with their video to the pixel, and unrequested fields are not read."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.data import clips, fields
from motionaura_jax.data.buckets import Bucket, ClipShape
from motionaura_jax.data.clips import choose_view, load_clip, sample_rng
from motionaura_jax.data.fields import (
    FIELDS,
    VIDEO,
    ClipField,
    FrameField,
    decode_column,
    resize_nearest,
    resolve,
    sources,
)
from motionaura_jax.data.frames import resize_area
from motionaura_jax.data.loader import Loader
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.data.media import write_video
from motionaura_jax.data.preflight import Rejections
from motionaura_jax.data.video import VideoError, read_video

CELL = 8  # side of a constant cell in pixels
LEVEL = 8  # gray levels between the values of neighboring labels


def read_labels(record, view):
    """Return the labels of the mask video: one channel, the gray level divided by LEVEL."""
    return decode_column("mask")(record, view)[..., :1] // LEVEL


MASK = FrameField(name="mask", read=read_labels, resize=resize_nearest, column="mask")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of videos of random cells that change every frame, with masks of the same labels; b.mp4 has no mask.

    The mask of `half` has half the resolution of its video.
    """
    folder = tmp_path_factory.mktemp("companions")
    rng = np.random.default_rng(0)
    rows = []
    for name, rows_of_cells, columns_of_cells, shrink in (("a", 6, 9, 1), ("half", 8, 5, 2)):
        labels = rng.integers(0, 32, (12, rows_of_cells, columns_of_cells, 1))
        frames = (labels * LEVEL).astype(np.uint8).repeat(CELL, 1).repeat(CELL, 2).repeat(3, 3)
        write_video(folder / f"{name}.mp4", frames, 8, lossless=True)
        write_video(folder / "masks" / f"{name}.mp4", frames[:, ::shrink, ::shrink], 8, lossless=True)
        rows.append({"file": f"{name}.mp4", "mask": f"masks/{name}.mp4", "caption": name})
    write_video(folder / "b.mp4", frames, 8)
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"file": "b.mp4"}]))
    return folder


@given(
    index=st.sampled_from([0, 2]),
    scale=st.sampled_from([1, 2, 4]),
    height=st.integers(1, 48),
    width=st.integers(1, 40),
    frames=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    crop=st.sampled_from(["random", "center"]),
)
def test_a_companion_shares_window_resize_crop_and_flip(
    manifest: Path, index: int, scale: int, height: int, width: int, frames: int, seed: int, crop: Any
) -> None:
    """Each mask pixel is the label of the same video pixel, at any integer scale."""
    record = read_manifest(manifest, ["mask"])[index]
    size = (48, 72) if index == 0 else (64, 40)
    # One side of the clip spans the whole scaled picture, so the scale is exactly `scale`.
    whole = size[0] // scale, size[1] // scale
    height, width = (whole[0], min(width, whole[1])) if seed % 2 else (min(height, whole[0]), whole[1])
    shape = ClipShape(num_frames=frames, height=height, width=width, fps=8)
    clip = load_clip(record, shape, (VIDEO, MASK), rng=sample_rng(0, seed), crop=crop, flip=0.5)
    assert clip["video"].shape == (frames, height, width, 3) and clip["mask"].shape == (frames, height, width, 1)
    # Area averages of constant cells may be off by rounding, by less than half of LEVEL.
    seen = np.rint(clip["video"].mean(-1, keepdims=True) / LEVEL)
    np.testing.assert_array_equal(seen, clip["mask"])


def test_a_view_says_exactly_which_pixels_a_clip_shows(manifest: Path) -> None:
    record = read_manifest(manifest, ["mask"])[0]
    shape, whole = ClipShape(num_frames=3, height=48, width=40, fps=8), read_video(record.path)[0]
    flipped = []
    for number in range(12):
        view = choose_view(record, shape, rng=sample_rng(5, number), flip=0.5)
        first = int(view.start * 8 + 1e-3)
        expected = whole[first : first + 3, view.top : view.top + 48, view.left : view.left + 40]
        video = load_clip(record, shape, (VIDEO,), rng=sample_rng(5, number), flip=0.5)["video"]
        np.testing.assert_array_equal(video, expected[:, :, ::-1] if view.flipped else expected)
        flipped.append(view.flipped)
    assert 0 < sum(flipped) < 12


def test_flipping_moves_neither_window_nor_crop(manifest: Path) -> None:
    record, shape = read_manifest(manifest)[0], ClipShape(num_frames=2, height=24, width=24, fps=8)
    for number in range(8):
        plain, always = (choose_view(record, shape, rng=sample_rng(1, number), flip=flip) for flip in (0.0, 1.0))
        assert dataclasses.replace(plain, flipped=True) == always


def test_a_field_says_how_it_is_flipped_and_resized(manifest: Path) -> None:
    """Like optical flow: distances in pixels scale with the picture, horizontal ones change sign."""

    def scaled(frames, size):
        factors = np.array([new / old for new, old in zip(size, frames.shape[1:3], strict=True)])[::-1]
        return resize_nearest(frames, size) * factors

    flow = FrameField(
        name="flow",
        read=lambda record, view: np.full((view.num_frames, 12, 18, 2), (8.0, 4.0)),
        resize=scaled,
        flip=lambda frames: frames[:, :, ::-1] * (-1, 1),
    )
    shape = ClipShape(num_frames=2, height=24, width=24, fps=8)
    for flip, sign in ((0.0, 1), (1.0, -1)):
        clip = load_clip(read_manifest(manifest)[0], shape, (flow,), rng=sample_rng(0, 0), flip=flip)
        np.testing.assert_array_equal(clip["flow"], np.broadcast_to((sign * 16.0, 8.0), (2, 24, 24, 2)))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_nearest_pixels_are_pixels_of_the_source(height: int, width: int, new_height: int, new_width: int) -> None:
    frames = np.arange(height * width).reshape(1, height, width, 1)
    found = resize_nearest(frames, (new_height, new_width))[0, ..., 0]
    rows, columns = np.divmod(found, width)
    for places, old, new in ((rows[:, 0], height, new_height), (columns[0], width, new_width)):
        assert np.abs((places + 0.5) / old - (np.arange(new) + 0.5) / new).max() <= 0.5 / old + 1e-9


def test_area_resizing_reaches_exactly_the_size() -> None:
    assert resize_area(np.zeros((2, 10, 17, 3), np.uint8), (7, 5)).shape == (2, 7, 5, 3)


def test_batches_hold_what_was_asked_for_and_nothing_else_is_read(manifest: Path) -> None:
    bucket = Bucket(num_frames=2, height=16, width=16, batch_size=2)
    records, rejected = read_manifest(manifest, ["mask"]), Rejections()
    loader = Loader(records, [bucket], fields=("video", MASK), seed=0, fps=8, flip=0.5, rejections=rejected)
    batch = loader.batch(0)
    assert batch.keys() == {"video", "mask", "sample", "index"}
    assert batch["mask"].shape == (2, 2, 16, 16, 1) and not (batch["index"] == 1).any()
    loader.batch(1)
    assert len(rejected) == 1  # the video without a mask, replaced by others
    with mock.patch.object(clips, "probe", lambda path: pytest.fail("the file was opened")):
        batch = Loader(records, [bucket], fields=("caption", "fps"), seed=0, fps=8).batch(0)
    assert batch.keys() == {"caption", "fps", "sample", "index"}
    with mock.patch.object(fields, "read_clip", lambda *_, **__: pytest.fail("a video was decoded")):
        Loader(records, [bucket], fields=(ClipField(name="id", load=lambda record, _: 0),), seed=0, fps=8).batch(0)


def test_a_companion_that_is_missing_is_one_line(manifest: Path) -> None:
    record = read_manifest(manifest, ["mask"])[1]
    with pytest.raises(VideoError, match=r"b\.mp4: has no mask in the manifest; add a column mask"):
        load_clip(record, ClipShape(num_frames=1, height=8, width=8, fps=8), (MASK,), rng=sample_rng(0, 0))


def test_names_stand_for_fields() -> None:
    assert resolve(("video", MASK, "caption")) == (VIDEO, MASK, FIELDS["caption"])
    with pytest.raises(UserError, match=r"no field 'captoin'; did you mean 'caption'\?"):
        resolve(("captoin",))
    tokens = ClipField(name="tokens", load=lambda record, _: 0, source="video")
    assert sources((tokens, "fps", MASK)) == (VIDEO, FIELDS["fps"], MASK)
    assert sources(("video", tokens)) == (VIDEO,)


def test_companions_of_a_folder_and_of_a_table_agree(manifest: Path) -> None:
    in_folder = read_manifest(manifest, ["mask"])
    assert in_folder == read_manifest(manifest / "metadata.jsonl", ["mask"])
    assert [record.files for record in in_folder] == [
        (("mask", manifest / "masks" / "a.mp4"),),
        (),
        (("mask", manifest / "masks" / "half.mp4"),),
    ]
    assert all(record.files == () for record in read_manifest(manifest / "metadata.jsonl"))
