"""The stateless map from (seed, sample number) to a clip: which record, from when, and where it is cropped.

Nothing here depends on history: not on the samples before, nor on the files that turned out bad.
"""

import functools
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt64

from motionaura_jax.data.frames import resize_crop
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.video import probe, read_clip

Crop = Literal["random", "center"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_record(seed: int, number: int, count: int, attempt: int = 0) -> int:
    """Returns the index of the record that sample `number` (0, 1, ...) reads, out of `count`.

    Sample numbers k count to (k + 1) count - 1 are epoch k and visit every record once, in an order drawn from
    (seed, epoch).  If the record turns out bad, `attempt` 1, 2, ... name its replacements: consecutive records of a
    second order of that epoch, so that `count` attempts reach every record.
    """
    epoch, position = divmod(number, count)
    if attempt == 0:
        return int(_order(seed, epoch, count, replacement=False)[position])
    return int(_order(seed, epoch, count, replacement=True)[(position + attempt) % count])


def sample_rng(seed: int, number: int, attempt: int = 0) -> np.random.Generator:
    """Returns the generator of everything random about a sample except its record."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, number, attempt))))


def load_frames(
    record: Record,
    *,
    num_frames: int,
    height: int,
    width: int,
    fps: float,
    rng: np.random.Generator,
    crop: Crop = "random",
) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads the frames of one clip.

    Args:
      record: what to read.  With `num_frames` 1 images and single frames of videos serve alike.
      num_frames, height, width: size of the clip; the video is resized to cover it, then cropped.
      fps: frames per second at which the video is sampled.
      rng: draws start and crop position, both uniform; three numbers, whatever the mode.
      crop: "center" takes the middle of the video in time and space instead.

    Returns:
      RGB, 0 to 255.

    Raises:
      VideoError: the file cannot be used, or is shorter than the clip.
    """
    info = probe(record.path)
    when, *where = rng.random(3)
    # Rounding must not push the last frame of the latest possible window past the end.
    latest = max(0.0, info.duration - (num_frames - 1) / fps) * (1 - 1e-9)
    start = latest * when
    if crop == "center":
        start, where = max(0.0, (info.duration - num_frames / fps) / 2), [0.5, 0.5]
    frames = read_clip(record.path, start=start, fps=fps, num_frames=num_frames, cover=(height, width))
    return resize_crop(frames, height, width, crop=(where[0], where[1]))


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int, *, replacement: bool) -> np.ndarray:
    """The permutation of range(count) that sorts the records by a hash of (seed, epoch, record).

    Unlike `Generator.permutation` it stays the same in every version of NumPy.
    """
    key = np.random.SeedSequence((seed, epoch, int(replacement))).generate_state(1, np.uint64)[0]
    return np.argsort(_mix(key + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)), kind="stable")


def _mix(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
