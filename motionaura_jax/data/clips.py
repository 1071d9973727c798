"""The stateless map from (seed, sample number) to a clip: which record, from when, and where it is cropped.

Nothing here depends on history: neither on earlier samples nor on the files that could not be used.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt64

from motionaura_jax.data.buckets import ClipShape
from motionaura_jax.data.fields import ClipField, Field, View
from motionaura_jax.data.frames import cover_size
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.video import probe

Crop = Literal["random", "center"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_record(seed: int, number: int, count: int, attempt: int = 0) -> int:
    """Return the index of the record that sample `number` (0, 1, ...) reads, out of `count`.

    Samples k count to (k + 1) count - 1 form epoch k.  They visit every record once, in an order that depends on
    (seed, epoch).  If the record cannot be used, `attempt` 1, 2, ... name its replacements: consecutive records of a
    second order of that epoch, so that `count` attempts reach every record.
    """
    epoch, position = divmod(number, count)
    if attempt == 0:
        return int(_order(seed, epoch, count, replacement=False)[position])
    return int(_order(seed, epoch, count, replacement=True)[(position + attempt) % count])


def sample_rng(seed: int, number: int, attempt: int = 0) -> np.random.Generator:
    """Return the generator of everything random about a sample except its record."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, number, attempt))))


def choose_view(
    record: Record, shape: ClipShape, *, rng: np.random.Generator, crop: Crop = "random", flip: float = 0.0
) -> View:
    """Choose the part of a record that a clip shows.  The picture is resized to just cover the clip, then cropped.

    Args:
      rng: gives start and crop position, both uniform: three numbers in either mode, and one more if `flip` is not 0.
      crop: "center" takes the middle of the video in time and space.
      flip: probability of mirroring left to right.

    Raises:
      VideoError: the header of the file cannot be read.
    """
    info = probe(record.path)
    when, *where = rng.random(3)
    # Rounding must not push the last frame of the latest possible window past the end.
    latest = max(0.0, info.duration - (shape.num_frames - 1) / shape.fps) * (1 - 1e-9)
    start = latest * when
    if crop == "center":
        start, where = max(0.0, (info.duration - shape.num_frames / shape.fps) / 2), [0.5, 0.5]
    resized = cover_size(info.height, info.width, (shape.height, shape.width))
    return View(
        start=start,
        fps=shape.fps,
        num_frames=shape.num_frames,
        resized=resized,
        top=round((resized[0] - shape.height) * where[0]),
        left=round((resized[1] - shape.width) * where[1]),
        height=shape.height,
        width=shape.width,
        flipped=flip > 0 and bool(rng.random() < flip),
    )


def load_clip(
    record: Record,
    shape: ClipShape,
    fields: Sequence[Field],
    *,
    rng: np.random.Generator,
    crop: Crop = "random",
    flip: float = 0.0,
) -> dict[str, Any]:
    """Read the fields of one clip.  With `shape.num_frames` 1, images and single frames of videos serve alike.

    The file is opened only if one of the fields has frames.  `rng`, `crop` and `flip` are those of `choose_view`.

    Returns:
      The value of each field by name: frames `(t, h, w, c)`, uint8 RGB for the video, or whatever a clip field holds.

    Raises:
      VideoError: a file that cannot be used, or is shorter than the clip.
    """
    values: dict[str, Any] = {}
    view: View | None = None
    for field in fields:
        if isinstance(field, ClipField):
            values[field.name] = field.load(record, shape)
        else:
            view = view or choose_view(record, shape, rng=rng, crop=crop, flip=flip)
            values[field.name] = field.load(record, view)
    return values


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int, *, replacement: bool) -> np.ndarray:
    """Return the permutation of range(count) that sorts the records by a hash of (seed, epoch, record).

    Unlike `Generator.permutation` it is the same in every version of NumPy.
    """
    key = np.random.SeedSequence((seed, epoch, int(replacement))).generate_state(1, np.uint64)[0]
    return np.argsort(_mix(key + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)), kind="stable")


def _mix(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Apply the output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
