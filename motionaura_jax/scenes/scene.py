"""Scenes of the rendered world and their captions: colored shapes that move over a muted background.  Own construction.

Lengths are fractions of the shorter frame side, and positions run from 0 to 1 over a centered square with that side, so that
one scene renders at every frame size.  Motion spans the whole clip: more frames show the same motion in smaller steps.
"""

import dataclasses
import math
from typing import Any

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 44),
    "green": (46, 186, 66),
    "blue": (48, 92, 246),
    "yellow": (252, 222, 48),
    "purple": (188, 58, 222),
    "orange": (248, 132, 24),
    "cyan": (64, 216, 228),
    "white": (246, 246, 246),
}
BACKGROUND_COLORS: dict[str, tuple[int, int, int]] = {
    "gray": (98, 99, 102),
    "navy": (26, 36, 94),
    "brown": (94, 62, 42),
    "teal": (20, 78, 90),
}
BACKGROUNDS = ("plain", "gradient", "textured", "drifting")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = {"small": 22 / 64, "large": 34 / 64}
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-(0.5**0.5), -(0.5**0.5)),
    "up-right": (0.5**0.5, -(0.5**0.5)),
    "down-left": (-(0.5**0.5), 0.5**0.5),
    "down-right": (0.5**0.5, 0.5**0.5),
}
MOTIONS = (*DIRECTIONS, "still", "growing", "rotating")

TRAVEL = 0.29  # path length over the clip: 18.6 px at 64, 2.7 px per frame at 8 frames
GROWTH = 0.5  # the diameter grows from 1 - GROWTH / 2 to 1 + GROWTH / 2 of the nominal one
TURN = 2 * math.pi / 3  # clockwise over the clip: 17 degrees per frame at 8 frames, under half of every symmetry angle
SHADE = 0.45  # relative brightness swing of gradient and textured backgrounds
MARGIN = 0.02  # free space between an object and the frame border

_FINITE = {"still": "stays still", "growing": "grows", "rotating": "rotates"}
_GERUND = {"still": "staying still", "growing": "growing", "rotating": "rotating"}
_ONE = (
    "a {noun} {finite} over {ground}",
    "on {ground}, a {noun} {finite}",
    "a {noun} is {gerund} over {ground}",
    "{ground} with a {noun} that {finite}",
    "{noun}, {gerund}, {ground}",
)
_TWO = (
    "a {noun} {finite} while a {noun2} {finite2} over {ground}",
    "on {ground}, a {noun} {finite} while a {noun2} {finite2}",
    "{noun}, {gerund}, with {noun2}, {gerund2}, {ground}",
)
NUM_TEMPLATES = len(_ONE) * len(_TWO)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape; `center` (x, y) is the place of its centroid halfway through the clip."""

    color: str
    shape: str
    size: str
    motion: str
    center: tuple[float, float] = (0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Background:
    """A background; `kind` is one of BACKGROUNDS ("drifting" is a texture that moves left), `texture` seeds its pattern."""

    kind: str
    color: str
    texture: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects over a background, in the order of drawing and of the caption; `template` picks the wording."""

    objects: tuple[SceneObject, ...]
    background: Background
    template: int = 0


def can_show(shape: str, motion: str) -> bool:
    """Return True if the motion of the shape is visible; only a rotating circle looks still."""
    return (shape, motion) != ("circle", "rotating")


def caption(scene: Scene) -> str:
    """Describe the scene in words, e.g. "a large red circle moves up over a plain gray background".

    Every wording names every attribute, so that scenes that differ in an attribute have different captions.
    `scene.template`, modulo the number of wordings, changes the wording alone.
    """
    wordings = _ONE if len(scene.objects) == 1 else _TWO
    words = {"ground": _ground(scene.background)}
    for item, suffix in zip(scene.objects, ("", "2"), strict=False):
        words |= _words(item, suffix)
    return wordings[scene.template % len(wordings)].format(**words)


def attributes(scene: Scene) -> dict[str, Any]:
    """Return the attributes of a scene as a JSON object: `objects` (color, shape, size, motion) and `background`."""
    names = ("color", "shape", "size", "motion")
    return {
        "objects": [{name: getattr(item, name) for name in names} for item in scene.objects],
        "background": {"kind": scene.background.kind, "color": scene.background.color},
    }


def _words(item: SceneObject, suffix: str) -> dict[str, str]:
    path = item.motion.replace("-", " and ")
    return {
        f"noun{suffix}": f"{item.size} {item.color} {item.shape}",
        f"finite{suffix}": _FINITE.get(item.motion, f"moves {path}"),
        f"gerund{suffix}": _GERUND.get(item.motion, f"moving {path}"),
    }


def _ground(background: Background) -> str:
    kind = "drifting textured" if background.kind == "drifting" else background.kind
    return f"a {kind} {background.color} background"
