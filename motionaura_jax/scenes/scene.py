"""Scenes of the rendered world and their captions: colored shapes that move over a muted background.  Own construction.

Lengths are fractions of the shorter frame side, and positions run from 0 to 1 over a centered square with that side, so that
one scene renders at every frame size.  Motion spans the whole clip: more frames show the same motion in smaller steps.

A scene of the style `world` has more than its caption tells: speed, phase, texture, pattern, shadow, a second object.
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

PATTERNS = ("striped", "dotted")
TEXTURE_SHADE = 0.32  # the dark part of an object's texture has 1 - TEXTURE_SHADE of the brightness of its color
PATTERN_SHADE = 0.2  # relative brightness swing of a background pattern
SHADOW_SHADE = 0.5  # brightness of a background in shadow
GROUNDS = ("plain", "striped", "drifting")  # backgrounds of the world style; "drifting" has stripes that move

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
_WORLD = (
    "{a noun} {finite}{ground}{extra}",
    "{noun}, {gerund}{ground}{extra}",
    "{a noun} is {gerund}{ground}{extra}",
)
NUM_TEMPLATES = len(_ONE) * len(_TWO)

# What a caption of the world style may name besides color, shape and motion of the main object.
MENTIONS = ("texture", "background", "background_color", "shadow", "second_color", "second_shape")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
    """Stripes, or dots on a square lattice.

    Attributes:
      kind: one of PATTERNS.
      period: distance of neighboring stripes or dots.
      angle: clockwise angle of the wave vector to the x axis, in radians.
      phase: position of the lattice along its two directions, in periods.
      drift: displacement (x, y) over the clip.
    """

    kind: str
    period: float
    angle: float = 0.0
    phase: tuple[float, float] = (0.0, 0.0)
    drift: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape.

    Attributes:
      center: place (x, y) of its centroid halfway through the clip.
      speed: factor on the travel, the growth or the turn of its motion.
      phase: angle in the first frame in radians for a rotating object; for a growing one, the difference of its mean
        diameter from the nominal one, relative to the latter.
      texture: pattern in coordinates of the object, which moves, grows and turns with it.
      depth: distance from the camera; nearer objects hide others.
    """

    color: str
    shape: str
    size: str
    motion: str
    center: tuple[float, float] = (0.5, 0.5)
    speed: float = 1.0
    phase: float = 0.0
    texture: Pattern | None = None
    depth: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Background:
    """A background.

    Attributes:
      kind: one of BACKGROUNDS; "drifting" is a texture that moves left.
      texture: seed of the texture.
      pattern: stripes or dots instead; then `kind` is "plain".
    """

    kind: str
    color: str
    texture: int = 0
    pattern: Pattern | None = None

    @property
    def ground(self) -> str:
        """Return the kind, or with a pattern the name in GROUNDS."""
        if self.pattern is None:
            return self.kind
        return "drifting" if any(self.pattern.drift) else "striped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects over a background, in the order of the caption.

    Attributes:
      template: picks the wording of the caption.
      shadow: displacement (x, y) of the shadows that the objects cast on the background; None for no shadows.
      mentions: which of MENTIONS the caption of a scene of the world style names; None for all other styles, whose captions
        name every attribute.
    """

    objects: tuple[SceneObject, ...]
    background: Background
    template: int = 0
    shadow: tuple[float, float] | None = None
    mentions: tuple[str, ...] | None = None


def can_show(shape: str, motion: str) -> bool:
    """Return True if the motion of the shape is visible; only a rotating circle looks still."""
    return (shape, motion) != ("circle", "rotating")


def caption(scene: Scene) -> str:
    """Describe the scene in words, e.g. "a large red circle moves up over a plain gray background".

    Every wording names every attribute, so that scenes that differ in an attribute have different captions, except for
    those of the style `world`: their captions name color, shape and motion of the first object, and `scene.mentions`.
    `scene.template`, modulo the number of wordings, changes the wording alone.
    """
    if scene.mentions is not None:
        return _world_caption(scene, scene.mentions)
    wordings = _ONE if len(scene.objects) == 1 else _TWO
    words = {"ground": _ground(scene.background)}
    for item, suffix in zip(scene.objects, ("", "2"), strict=False):
        words |= _words(item, suffix)
    return wordings[scene.template % len(wordings)].format(**words)


def attributes(scene: Scene) -> dict[str, Any]:
    """Return the attributes of a scene as a JSON object: `objects` (color, shape, size, motion) and `background`."""
    names = ("color", "shape", "size", "motion")
    described: dict[str, Any] = {
        "objects": [{name: getattr(item, name) for name in names} for item in scene.objects],
        "background": {"kind": scene.background.ground, "color": scene.background.color},
    }
    if scene.mentions is not None:
        described |= {"shadow": scene.shadow is not None, "mentions": list(scene.mentions)}
        for row, item in zip(described["objects"], scene.objects, strict=True):
            row["texture"] = item.texture.kind if item.texture else "plain"
    return described


def _words(item: SceneObject, suffix: str) -> dict[str, str]:
    path = item.motion.replace("-", " and ")
    return {
        f"noun{suffix}": f"{item.size} {item.color} {item.shape}",
        f"finite{suffix}": _FINITE.get(item.motion, f"moves {path}"),
        f"gerund{suffix}": _GERUND.get(item.motion, f"moving {path}"),
    }


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _world_caption(scene: Scene, mentions: tuple[str, ...]) -> str:
    """Describe the part of a scene that `mentions` names."""
    item, background = scene.objects[0], scene.background
    texture = f"{item.texture.kind} " if item.texture and "texture" in mentions else ""
    noun = f"{texture}{item.color} {item.shape}"
    words = _words(item, "") | {"noun": noun, "a noun": _article(noun), "ground": "", "extra": ""}
    kind = (
        {"drifting": "drifting striped"}.get(background.ground, background.ground) if "background" in mentions else ""
    )
    color = background.color if "background_color" in mentions else ""
    if kind or color:
        words["ground"] = f" over a {' '.join(filter(None, (kind, color)))} background"
    if "shadow" in mentions:
        words["extra"] = " with a shadow"
    second = scene.objects[1] if len(scene.objects) > 1 else None
    if second and {"second_color", "second_shape"} & set(mentions):
        color = f"{second.color} " if "second_color" in mentions else ""
        thing = second.shape if "second_shape" in mentions else "thing"
        words["extra"] = f" next to {_article(color + thing)}"
    return _WORLD[scene.template % len(_WORLD)].format(**words)


def _ground(background: Background) -> str:
    kind = "drifting textured" if background.kind == "drifting" else background.kind
    return f"a {kind} {background.color} background"
