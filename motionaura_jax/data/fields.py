"""Fields of a clip: what a batch can hold, and how each field follows the clip's window, resize, crop and flip.

A field is declared once, as a `FrameField` (one value per pixel and frame) or a `ClipField` (one value per clip).  The
loader knows nothing else about it.  A system lists the fields that it needs; nothing else is read or decoded.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.data.buckets import ClipShape
from motionaura_jax.data.frames import resize_area, to_float
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.preflight import Preflight, Rejections
from motionaura_jax.data.video import read_clip

Frames = Shaped[np.ndarray, "t h w c"]
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Part of a recording that a clip shows.  All frame fields of the clip share it, so they stay aligned to the pixel.

    Attributes:
      start: time of the first frame of the clip, in seconds from the first frame of the file.
      fps, num_frames: frame k shows the instant start + k / fps.
      resized: (height, width) of the whole picture after resizing, in pixels.
      top, left, height, width: rectangle that is cut out of the resized picture, in pixels.
      flipped: the rectangle is mirrored left to right.
    """

    start: float
    fps: float
    num_frames: int
    resized: Size
    top: int
    left: int
    height: int
    width: int
    flipped: bool = False


def resize_nearest(frames: Frames, size: Size) -> Frames:
    """Resize to (height, width) by taking the nearest pixel: the right choice for labels, which have no mean."""
    rows, columns = (
        ((2 * np.arange(new) + 1) * old // (2 * new)) for new, old in zip(size, frames.shape[1:3], strict=True)
    )
    return frames[:, rows[:, None], columns[None, :]]


def flip_columns(frames: Frames) -> Frames:
    """Mirror left to right.  A field of directions must also negate its horizontal component."""
    return frames[:, :, ::-1]


def decode_column(column: str) -> Callable[[Record, View], Frames]:
    """Return a reader of the video that the manifest names in `column`: RGB at the instants of the view, full size."""

    def read(record: Record, view: View) -> Frames:
        return read_clip(record.file(column), start=view.start, fps=view.fps, num_frames=view.num_frames)

    return read


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameField:
    """Field with a value per pixel and frame: the video itself, or a companion such as a mask or a depth map.

    Attributes:
      name: key in the batch.
      read: returns `num_frames` frames `(t, h, w, c)` at the instants of a view.  They show the whole picture, at any
        resolution.  Raises VideoError for a file that cannot be used.
      resize: brings frames to `view.resized`.  A field whose values are distances in pixels must scale them here.
      flip: mirrors frames left to right.
      collate: turns the clips of a batch into the batch's array.
      column: manifest column with the file of the companion; empty for the video.
    """

    name: str
    read: Callable[[Record, View], Frames]
    resize: Callable[[Frames, Size], Frames] = resize_area
    flip: Callable[[Frames], Frames] = flip_columns
    collate: Callable[[Sequence[Frames]], Any] = np.stack
    column: str = ""

    def load(self, record: Record, view: View) -> Frames:
        """Read the frames of a record that `view` shows, `(t, view.height, view.width, c)`."""
        frames = self.read(record, view)
        if frames.shape[1:3] != view.resized:
            frames = self.resize(frames, view.resized)
        cut = frames[:, view.top : view.top + view.height, view.left : view.left + view.width]
        return np.ascontiguousarray(self.flip(cut) if view.flipped else cut)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipField:
    """Field with one value per clip, read without decoding the video.

    Attributes:
      name: key in the batch.
      load: returns the value of a record.  Raises VideoError for a record that has none.
      collate: turns the values of a batch into one array or list.
      source: the field that this one was computed from, if any.  Held-out batches carry the source instead.
      check: looks at all training records before training starts; for fields that come from elsewhere than the file.
    """

    name: str
    load: Callable[[Record, ClipShape], Any]
    collate: Callable[[Sequence[Any]], Any] = np.stack
    source: str = ""
    check: Callable[[Sequence[Record], Rejections], Preflight] | None = None


Field = FrameField | ClipField


def _read_video(record: Record, view: View) -> Frames:
    # Decoding straight to the covering size converts color and resizes in one pass.
    cover = view.height, view.width
    return read_clip(record.path, start=view.start, fps=view.fps, num_frames=view.num_frames, cover=cover)


def _collate_video(clips: Sequence[Frames]) -> Any:
    # Clips stay 8 bit until here: one float array per batch, not one per clip as well.
    return to_float(np.stack(clips))


# `video`: float32 (b, t, h, w, 3) in [-1, 1]; `fps`: float32 (b,); `caption`: list of b texts, "" where unknown.
VIDEO = FrameField(name="video", read=_read_video, collate=_collate_video)
FPS = ClipField(name="fps", load=lambda _, shape: shape.fps, collate=lambda rates: np.array(rates, np.float32))
CAPTION = ClipField(name="caption", load=lambda record, _: record.caption or "", collate=list)

FIELDS: dict[str, Field] = {field.name: field for field in (VIDEO, FPS, CAPTION)}
"""Fields that any system can ask for by name."""


def resolve(fields: Sequence[str | Field]) -> tuple[Field, ...]:
    """Replace the names among `fields` by the fields that they name.

    Raises:
      UserError: a name that is not in FIELDS.
    """
    found: list[Field] = []
    for field in fields:
        if isinstance(field, str):
            if field not in FIELDS:
                raise UserError(f"the data has no field {field!r}{nearest(field, FIELDS)}")
            field = FIELDS[field]
        found.append(field)
    return tuple(found)


def sources(fields: Sequence[str | Field]) -> tuple[Field, ...]:
    """Return `fields` with each one that was computed from another field replaced by that field."""
    names: dict[str, str | Field] = {}
    for field in resolve(fields):
        source = field.source if isinstance(field, ClipField) else ""
        names.setdefault(source or field.name, source or field)
    return resolve(tuple(names.values()))
