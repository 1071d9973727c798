"""Scenes of the style `world`, which have more than their captions tell, and their analytic ground truth.

A caption fixes color, shape and motion of the main object.  Place, speed, phase, texture, background and a shadow or a second
object are free or named only sometimes, so the tokens of a video must agree with each other on them.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from motionaura_jax.scenes import renderer, scene
from motionaura_jax.scenes.scene import Background, Pattern, Scene, SceneObject

# What a scene may have besides place, speed and phase, with what captions may say of it; the last is a shadow or a second object.
_SAID_OF = {
    "texture": ("texture",),
    "ground": ("background",),
    "extra": ("shadow", "second_color", "second_shape"),
}
DETAILS = tuple(_SAID_OF)
FAR = 10.0  # depth of the background
SPEEDS = (0.8, 1.2)  # from 0.75 on, the reader is sure of a motion
_GROWTH_PHASES = (-0.06, 0.06)
_TEXTURE_PERIODS = (14 / 64, 18 / 64)  # about 2 periods on an object, and about 2 cells of 8 pixels
_GROUND_PERIODS = (22 / 64, 29 / 64)
_DRIFTS = (12 / 64, 20 / 64)  # under a seventh of a period per frame at 8 frames
_SHADOWS = (6 / 64, 8 / 64)
_SHADOW_SHARE, _SECOND_SHARE = 0.4, 0.3  # of the scenes; no scene has both
_MENTIONED = 0.35
_APART = 0.28  # least distance of the centers of two objects, where the main one hides a part of the other
_ATTEMPTS = 64


def make_world(
    rng: np.random.Generator,
    combination: tuple[str, str, str],
    pool: Sequence[tuple[str, str, str]],
    background_colors: Sequence[str],
    details: Sequence[str] = DETAILS,
) -> Scene:
    """Return a scene with everything random but color, shape and motion of the main object, which `combination` gives.

    Args:
      pool: combinations from which a second object, which stays still, takes its color and shape.
      details: which of DETAILS the scene may have; all else is the same without the others.
    """
    main = _main_object(rng, combination)
    background = Background(kind="plain", color=_pick(rng, background_colors), pattern=_ground(rng))
    extra, shadow = rng.random(), None
    objects: tuple[SceneObject, ...] = (main,)
    applicable = ["texture", "background", "background_color"]
    if extra < _SHADOW_SHARE:
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(*_SHADOWS)
        shadow = (float(length * math.cos(angle)), float(length * math.sin(angle)))
        applicable += ["shadow"]
    elif extra < _SHADOW_SHARE + _SECOND_SHARE and (choices := _second_choices(main, pool)):
        objects = (main, _second_object(rng, main, choices))
        applicable += ["second_color", "second_shape"]
    mentions = tuple(name for name in applicable if rng.random() < _MENTIONED)
    # Details are left out at the end, so that all else is the same with and without them.
    if "texture" not in details:
        objects = tuple(dataclasses.replace(item, texture=None) for item in objects)
    if "ground" not in details:
        background = dataclasses.replace(background, pattern=None)
    if "extra" not in details:
        objects, shadow = objects[:1], None
    unsaid = {name for detail, names in _SAID_OF.items() if detail not in details for name in names}
    mentions = tuple(name for name in mentions if name not in unsaid)
    return Scene(
        objects=objects,
        background=background,
        template=int(rng.integers(scene.NUM_TEMPLATES)),
        shadow=shadow,
        mentions=mentions,
    )


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _phases(rng: np.random.Generator) -> tuple[float, float]:
    first, second = rng.random(2)
    return float(first), float(second)


def _main_object(rng: np.random.Generator, combination: tuple[str, str, str]) -> SceneObject:
    color, shape, motion = combination
    speed, phase = float(rng.uniform(*SPEEDS)), 0.0
    if motion == "growing":
        phase = float(rng.uniform(*_GROWTH_PHASES))
    elif motion == "rotating":
        phase = float(rng.uniform(0, 2 * math.pi))
    low, high = renderer.center_bounds(shape, "large", motion, speed=speed, phase=phase)
    x, y = low + (high - low) * rng.random(2)
    kind = _pick(rng, scene.PATTERNS)
    # Dots on a square lattice look the same after a quarter turn.
    angle = math.pi / 4 * int(rng.integers(4 if kind == "striped" else 2))
    texture = Pattern(kind=kind, period=float(rng.uniform(*_TEXTURE_PERIODS)), angle=angle, phase=_phases(rng))
    return SceneObject(
        color=color,
        shape=shape,
        size="large",
        motion=motion,
        center=(float(x), float(y)),
        speed=speed,
        phase=phase,
        texture=texture,
    )


def _ground(rng: np.random.Generator) -> Pattern | None:
    kind = _pick(rng, scene.GROUNDS)
    if kind == "plain":
        return None
    vertical = bool(rng.integers(2))
    length = float(rng.uniform(*_DRIFTS) * rng.choice([-1, 1])) if kind == "drifting" else 0.0
    return Pattern(
        kind="striped",
        period=float(rng.uniform(*_GROUND_PERIODS)),
        angle=math.pi / 2 if vertical else 0.0,
        phase=_phases(rng),
        drift=(0.0, length) if vertical else (length, 0.0),
    )


def _second_choices(main: SceneObject, pool: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Return the colors and shapes that a second object may have."""
    return sorted({(color, shape) for color, shape, motion in pool if motion == "still" and color != main.color})


def _second_object(rng: np.random.Generator, main: SceneObject, choices: Sequence[tuple[str, str]]) -> SceneObject:
    """Return a small object behind the main one, at a place where most of it stays visible."""
    color, shape = choices[int(rng.integers(len(choices)))]
    low, high = renderer.center_bounds(shape, "small", "still")
    path, _, _ = renderer.poses(main, 9)
    best, room = np.full(2, 0.5), -math.inf
    for _ in range(_ATTEMPTS):
        place = low + (high - low) * rng.random(2)
        distance = float(np.linalg.norm(path - place, axis=1).min())
        if distance > room:
            best, room = place, distance
        if room >= _APART:
            break
    center = (float(best[0]), float(best[1]))
    return SceneObject(color=color, shape=shape, size="small", motion="still", center=center, depth=2.0)


def variation(
    original: Scene,
    seed: int,
    pool: Sequence[tuple[str, str, str]],
    background_colors: Sequence[str],
    details: Sequence[str] = DETAILS,
) -> Scene:
    """Return a scene of the world style with the caption of another one, and everything else that `details` allow random.

    A sampler that mixes the two has followed its prompt, and has not decided for one video.
    """
    rng = np.random.default_rng((seed, 0, 0, 1))  # no scene of a set has a seed of four numbers
    item, wanted = original.objects[0], scene.caption(original)
    while True:
        other = make_world(rng, (item.color, item.shape, item.motion), pool, background_colors, details)
        other = dataclasses.replace(other, template=original.template, mentions=original.mentions)
        if scene.caption(other) == wanted:
            return other


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Geometry of a rendered clip; pixel (x, y) stands for its center.

    Attributes:
      depth: distance of what most of a pixel shows; FAR for the background.
      flow: displacement (x, y) in pixels of the surface at each pixel, from frame t to t + 1.  A background without texture
        or pattern stands still, and shadows do not count as surfaces.
      occluded: pixels of frame t whose point is hidden or out of the picture in frame t + 1.
      alpha: visible share of every object in each pixel, in the order of `scene.objects`.
      shadow: share of each pixel that shows background in shadow.
    """

    depth: Float[np.ndarray, "t h w"]
    flow: Float[np.ndarray, "t-1 h w 2"]
    occluded: Bool[np.ndarray, "t-1 h w"]
    alpha: Float[np.ndarray, "n t h w"]
    shadow: Float[np.ndarray, "t h w"]

    @property
    def masks(self) -> Bool[np.ndarray, "n t h w"]:
        """Return the pixels that mostly show each object."""
        return self.alpha > 0.5

    @property
    def shadow_mask(self) -> Bool[np.ndarray, "t h w"]:
        """Return the pixels that mostly show background in shadow."""
        return self.shadow > 0.5


def ground_truth(world: Scene, *, num_frames: int = 8, height: int = 64, width: int = 64) -> GroundTruth:
    """Return depth, flow, occlusion and masks of the clip that `renderer.render` gives with the same arguments.

    Works for scenes of every style.

    Raises:
      UserError: `num_frames` is not positive or a side is under 16 pixels.
    """
    renderer.check_size(num_frames, height, width)
    size = (num_frames, height, width)
    alpha = np.zeros((len(world.objects), *size))
    free = np.ones(size)  # share of each pixel that no nearer object covers
    poses = {item: renderer.pixel_poses(item, *size) for item in world.objects}
    for item in reversed(renderer.painted(world)):
        covered = np.stack([renderer.coverage(item.shape, *pose, height, width) for pose in poses[item]])
        alpha[world.objects.index(item)] = covered * free
        free = free * (1 - covered)
    layers = np.concatenate([free[None], alpha])
    owner = layers.argmax(axis=0)
    depths = np.array([FAR, *(item.depth for item in world.objects)])
    flow, occluded = _motion(world, owner[:-1], poses)
    return GroundTruth(
        depth=depths[owner],
        flow=flow,
        occluded=occluded,
        alpha=alpha,
        shadow=free * renderer.shadows(world, *size),
    )


Poses = dict[SceneObject, list[tuple[np.ndarray, float, float]]]


def _motion(world: Scene, owner: np.ndarray, poses: Poses) -> tuple[np.ndarray, np.ndarray]:
    """Return flow and occlusion from the owner (T-1, H, W) of each pixel: 0 for the background, else 1 + object index."""
    steps, height, width = owner.shape
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    flow = np.zeros((steps, height, width, 2))
    flow[:] = _ground_drift(world.background) * min(height, width) / max(steps, 1)
    for index, item in enumerate(world.objects, start=1):
        for t in range(steps):
            (center, diameter, angle), (center2, diameter2, angle2) = poses[item][t : t + 2]
            cosine, sine = np.cos(angle2 - angle), np.sin(angle2 - angle)
            turn = np.array([[cosine, -sine], [sine, cosine]]) * (diameter2 / diameter)
            mine = owner[t] == index
            flow[t][mine] = ((grid - center) @ turn.T + center2 - grid)[mine]
    goal = grid + flow
    occluded = (goal < 0).any(axis=-1) | (goal[..., 0] > width) | (goal[..., 1] > height)
    nearness = np.array([-FAR, *(-item.depth for item in world.objects)])
    for index, item in enumerate(world.objects, start=1):
        for t in range(steps):
            hides = (nearness[owner[t]] < -item.depth) & (owner[t] != index)
            occluded[t] |= hides & renderer.inside(item.shape, *poses[item][t + 1], goal[t])
    return flow, occluded


def _ground_drift(background: Background) -> np.ndarray:
    """Return the displacement (x, y) of a background over the clip, in frame sides."""
    if background.pattern is not None:
        return np.array(background.pattern.drift)
    return np.array([-scene.TRAVEL if background.kind == "drifting" else 0.0, 0.0])
