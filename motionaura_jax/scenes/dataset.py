"""Data sets of rendered scenes: the scenes of each split, prompts, and files on disk.

A combination is (color, shape, motion) of one object.  A fixed Latin rule over the whole vocabulary holds about 15 % of
them out of the train split, which still contains every value and every pair of values.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from motionaura_jax.core import files
from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.data.media import write_json, write_text, write_video
from motionaura_jax.scenes import renderer
from motionaura_jax.scenes import scene as vocabulary
from motionaura_jax.scenes.scene import Background, Scene, SceneObject, attributes, caption
from motionaura_jax.scenes.world import DETAILS, make_world

Combination = tuple[str, str, str]

SPLITS = ("train", "test")
MARKER = "scenes.json"
MANIFEST = "metadata.jsonl"
_VERSION = 1  # to be raised when the same settings render other pixels
_PLACEMENTS = 128  # attempts to place two objects so that they never touch
_OUTER = 0.4  # beta parameter of their places; under 1 prefers the borders, where two objects have room
_VOCABULARY: dict[str, tuple[str, ...]] = {
    "colors": tuple(vocabulary.COLORS),
    "shapes": vocabulary.SHAPES,
    "motions": vocabulary.MOTIONS,
    "sizes": tuple(vocabulary.SIZES),
    "backgrounds": vocabulary.BACKGROUNDS,
    "background_colors": tuple(vocabulary.BACKGROUND_COLORS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Values that the scenes of a set may have.

    Attributes:
      two_objects: fraction of scenes with a second object.
      spread: size of the central region for a single object; 1 is the whole frame, and with 0 every object is in the middle
        of the frame halfway through the clip.
      world: scenes with more than their captions tell, see `scenes.world`; ignores `backgrounds`, `sizes`, `two_objects` and
        `spread`.
      details: what scenes of the world style have besides place, speed and phase; any of `world.DETAILS`.

    Raises:
      UserError: an unknown or missing value, or values too few for both splits.
    """

    colors: tuple[str, ...] = _VOCABULARY["colors"]
    shapes: tuple[str, ...] = _VOCABULARY["shapes"]
    motions: tuple[str, ...] = _VOCABULARY["motions"]
    sizes: tuple[str, ...] = _VOCABULARY["sizes"]
    backgrounds: tuple[str, ...] = _VOCABULARY["backgrounds"]
    background_colors: tuple[str, ...] = _VOCABULARY["background_colors"]
    two_objects: float = 0.0
    spread: float = 1.0
    world: bool = False
    details: tuple[str, ...] = DETAILS

    def __post_init__(self) -> None:
        for name, values in _VOCABULARY.items():
            chosen = getattr(self, name)
            if not chosen:
                raise UserError(f"scene option {name} is empty; use some of {', '.join(values)}")
            for value in chosen:
                if value not in values:
                    raise UserError(f"scene option {name}: unknown value {value!r}{nearest(value, values)}")
        for name in ("two_objects", "spread"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"scene option {name} is a fraction from 0 to 1, not {getattr(self, name)}")
        if self.two_objects and (len(self.colors) < 2 or "small" not in self.sizes):
            raise UserError("scenes with two objects need two colors and the size 'small'")


PRESETS = {
    # Large objects near the middle over few backgrounds: a small network learns these in minutes.
    "easy": SceneOptions(sizes=("large",), backgrounds=("plain",), background_colors=("gray", "navy"), spread=0.0),
    "full": SceneOptions(two_objects=0.25),
    "world": SceneOptions(sizes=("large",), backgrounds=("plain",), background_colors=("gray", "teal"), world=True),
    # The same without textures, patterns, shadows and second objects: place, speed and phase alone are free.
    "places": SceneOptions(
        sizes=("large",), backgrounds=("plain",), background_colors=("gray", "teal"), world=True, details=()
    ),
    # `places` with fewer words, which two cores learn from scratch within minutes.
    "few": SceneOptions(
        colors=("red", "green", "blue", "yellow"),
        shapes=("circle", "square", "triangle", "star"),
        motions=("left", "right", "up", "down", "growing"),
        sizes=("large",),
        backgrounds=("plain",),
        background_colors=("gray",),
        world=True,
        details=(),
    ),
}


def is_held_out(color: str, shape: str, motion: str) -> bool:
    """Return True for a combination of the test split; depends on the names alone, not on options, seeds or counts."""
    row = list(vocabulary.COLORS).index(color) + 10 * vocabulary.SHAPES.index(shape) + vocabulary.MOTIONS.index(motion)
    return row % 13 in (0, 5)


@functools.cache
def combinations(split: str, options: SceneOptions) -> tuple[Combination, ...]:
    """Return all combinations of a split, "train" or "test".

    Raises:
      UserError: an unknown split, a split without a combination, or a value that training would never see.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{nearest(split, SPLITS)}")
    visible = [
        (color, shape, motion)
        for color in options.colors
        for shape in options.shapes
        for motion in options.motions
        if vocabulary.can_show(shape, motion)
    ]
    held_out = [combination for combination in visible if is_held_out(*combination)]
    train = [combination for combination in visible if not is_held_out(*combination)]
    seen = {value for combination in train for value in combination}
    unseen = {*options.colors, *options.shapes, *options.motions} - seen
    required = 2 if options.two_objects else 1
    if unseen or len({color for color, _, _ in held_out}) < required:
        fault = f"training would never see {', '.join(sorted(unseen))}" if unseen else "too little is held out"
        raise UserError(f"scene options leave too few combinations: {fault}; allow more colors, shapes or motions")
    return tuple(train if split == "train" else held_out)


@functools.lru_cache(maxsize=64)
def _balanced_order(pool: tuple[Combination, ...], seed: int, epoch: int) -> tuple[Combination, ...]:
    """Return the pool in an order in which every prefix has all colors, shapes and motions about equally often."""
    shuffled = [pool[i] for i in np.random.default_rng((seed, epoch, len(pool))).permutation(len(pool))]
    values = sorted({value for combination in pool for value in combination})
    codes = np.array([[values.index(value) for value in combination] for combination in shuffled])
    # Greedy: always the combination whose values were used least, each use counted in shares of all uses of that value.
    used = np.zeros(len(values))
    share = 1 / np.bincount(codes.ravel(), minlength=len(values))
    left = np.ones(len(pool), dtype=bool)
    order = []
    for _ in pool:
        pick = int(np.argmin(np.where(left, used[codes].sum(axis=1), np.inf)))
        left[pick] = False
        used[codes[pick]] += share[codes[pick]]
        order.append(shuffled[pick])
    return tuple(order)


def _place(
    rng: np.random.Generator, combination: Combination, size: str, *, evenness: float = 1.0, spread: float = 1.0
) -> SceneObject:
    """Return an object with a random center: a beta distribution over the free room; `evenness` < 1 prefers the borders."""
    color, shape, motion = combination
    low, high = renderer.center_bounds(shape, size, motion)
    x, y = low + (high - low) * (0.5 + spread * (rng.beta(evenness, evenness, 2) - 0.5))
    return SceneObject(color=color, shape=shape, size=size, motion=motion, center=(float(x), float(y)))


def _clearance(first: SceneObject, second: SceneObject) -> float:
    """Return the smallest distance between the circumscribed circles over a finely sampled clip, in frame sides."""
    (center, diameter, _), (center2, diameter2, _) = renderer.poses(first, 16), renderer.poses(second, 16)
    reach = diameter / 2 * renderer.radial_profile(first.shape).max()
    reach2 = diameter2 / 2 * renderer.radial_profile(second.shape).max()
    return float((np.linalg.norm(center - center2, axis=1) - reach - reach2).min())


def _pair(rng: np.random.Generator, first: Combination, pool: Sequence[Combination]) -> tuple[SceneObject, ...]:
    """Return two objects of different colors at places that keep them apart, or else the best of all attempts."""
    others = [combination for combination in pool if combination[0] != first[0]]
    best: tuple[SceneObject, ...] = ()
    room = -np.inf
    for _ in range(_PLACEMENTS):
        second = others[rng.integers(len(others))]
        pair = (_place(rng, first, "small", evenness=_OUTER), _place(rng, second, "small", evenness=_OUTER))
        clearance = _clearance(*pair)
        if clearance > room:
            best, room = pair, clearance
        if room >= vocabulary.MARGIN:
            break
    return best


def make_scene(index: int, *, split: str, options: SceneOptions, seed: int = 0) -> Scene:
    """Return scene `index` of an endless, balanced sequence that depends on (seed, split, options) alone.

    If a scene has two objects, they are small, differ in color, never touch, and both are combinations of the split.
    """
    pool = combinations(split, options)
    epoch, position = divmod(index, len(pool))
    combination = _balanced_order(pool, seed, epoch)[position]
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    if options.world:
        return make_world(rng, combination, pool, options.background_colors, options.details)
    background = Background(
        kind=options.backgrounds[rng.integers(len(options.backgrounds))],
        color=options.background_colors[rng.integers(len(options.background_colors))],
        texture=int(rng.integers(2**31)),
    )
    template = int(rng.integers(vocabulary.NUM_TEMPLATES))
    if rng.random() < options.two_objects:
        items = _pair(rng, combination, pool)
    else:
        size = options.sizes[(position + epoch) % len(options.sizes)]
        items = (_place(rng, combination, size, spread=options.spread),)
    return Scene(objects=items, background=background, template=template)


def held_out_prompts(n: int, seed: int, options: SceneOptions) -> list[tuple[str, Scene]]:
    """Return `n` pairs (caption, scene) of combinations that training never sees, balanced over the attributes."""
    scenes = [make_scene(index, split="test", options=options, seed=seed) for index in range(n)]
    return [(caption(scene), scene) for scene in scenes]


def _claim(folder: Path, marker: Mapping[str, Any]) -> bool:
    """Mark the folder as the place of this set; return True if the set is complete already."""
    path = folder / MARKER
    if path.is_file():
        found = files.read_json(path, remedy="choose another folder")
        if not (isinstance(found.get("hash"), str) and isinstance(found.get("complete"), bool)):
            raise UserError(f"{path}: not a marker of rendered scenes; choose another folder")
        if found["hash"] != marker["hash"]:
            raise UserError(f"{folder}: has scenes with other settings; choose another folder or remove this one")
        for name in ("videos", MANIFEST):
            files.check_own(folder / name)
        return found["complete"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot hold scenes, {error.strerror}; choose another folder") from error
    if occupied:
        raise UserError(f"{folder}: contains other files than rendered scenes; choose an empty or new folder")
    write_json(path, {**marker, "complete": False})
    return False


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _is_marked(folder: Path, digest: str) -> bool:
    """Return True for a folder whose marker has this hash."""
    try:
        return bool(json.loads((folder / MARKER).read_text(encoding="utf-8"))["hash"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_videos(
    scenes: Mapping[Path, Scene], size: Mapping[str, int], *, fps: float, threads: int, lossless: bool
) -> None:
    """Write the missing videos; a video that exists is complete, because writes are atomic."""

    def write(path: Path, scene: Scene) -> None:
        if not path.is_file():
            write_video(path, renderer.render(scene, **size), fps, lossless=lossless)

    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        try:
            list(executor.map(write, scenes.keys(), scenes.values()))
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def write_scenes(
    folder: Path | str,
    *,
    count: int,
    split: str,
    options: SceneOptions,
    seed: int = 0,
    num_frames: int = 8,
    height: int = 64,
    width: int = 64,
    fps: float = 8.0,
    threads: int = 2,
    lossless: bool = False,
) -> Path:
    """Write `count` scenes as `videos/*.mp4` with `metadata.jsonl`; return the path of the latter.

    The same call finishes an interrupted one and leaves a complete set alone; `scenes.json` tells them apart.

    Args:
      lossless: keep every bit of the rendered pixels, so that two machines train on the same arrays.  A folder that was begun
        without it keeps its files.

    Raises:
      UserError: bad settings, or a folder with other contents.
    """
    if count < 1 or threads < 1 or not fps > 0:
        raise UserError(f"cannot write {count} scenes at {fps} fps in {threads} threads; all must be positive")
    renderer.check_size(num_frames, height, width)
    folder = Path(folder)
    size = {"num_frames": num_frames, "height": height, "width": width}
    settings = {"version": _VERSION, "count": count, "split": split, "seed": seed, "fps": fps, **size}
    settings["options"] = {
        # Sets from before there were these options do not name them.
        name: value
        for name, value in dataclasses.asdict(options).items()
        if (name, value) not in (("world", False), ("details", DETAILS))
    }
    lossless = lossless and not _is_marked(folder, _digest(settings))
    settings |= {"lossless": True} if lossless else {}
    marker = {"settings": settings, "hash": _digest(settings)}
    scenes = {
        folder / "videos" / f"{index:06d}.mp4": make_scene(index, split=split, options=options, seed=seed)
        for index in range(count)
    }
    if _claim(folder, marker):
        return folder / MANIFEST
    (folder / "videos").mkdir(exist_ok=True)
    _write_videos(scenes, size, fps=fps, threads=threads, lossless=lossless)
    rows = [
        {"file": f"videos/{path.name}", "caption": caption(scene), "fps": fps, "split": split, **attributes(scene)}
        for path, scene in scenes.items()
    ]
    write_text(folder / MANIFEST, "".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / MARKER, {**marker, "complete": True})
    return folder / MANIFEST
