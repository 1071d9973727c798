"""Measurement of the attributes of a rendered scene from its pixels; nothing here is learned.

The background is a line in color space: shades of one color.  An object is a compact area that is nearer to a palette color
than to that line.  Its shape is the silhouette with the best overlap over all rotations, and its motion comes from lines
fitted to centroids and areas over time.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from motionaura_jax.scenes import scene as vocabulary
from motionaura_jax.scenes.agreement import WorldReading, read_world
from motionaura_jax.scenes.renderer import PROFILE_ANGLES, radial_profile
from motionaura_jax.scenes.scene import Scene

Mask = Bool[np.ndarray, "t h w"]

ATTRIBUTES = ("color", "shape", "size", "motion")
MAIN = ("color", "shape", "motion")  # attributes that every caption of the style `world` names

_COLORS = np.array(list(vocabulary.COLORS.values()), dtype=np.float32)
_BACKGROUND_COLORS = np.array(list(vocabulary.BACKGROUND_COLORS.values()), dtype=np.float32)
_MIN_AREA = 0.008  # of the squared side; a small star, the smallest shape, covers 0.06
_TEXTURE_CONTRAST = 0.09  # relative deviation from a vertical gradient; rendered textures have 0.2
_GRADIENT_CONTRAST = 0.4  # relative brightness change from bottom to top; rendered gradients have 0.9
_RADII = np.linspace(0.05, 1.85, 28)  # in radii of the disk with the same area; a triangle reaches 1.56
_ANGLES = 120
_DARKEST = 1 - vocabulary.TEXTURE_SHADE
_BLURS = (0.0, 0.25)  # of half the nominal diameter; 2.75 pixels for a small object at 64
# Turns over a clip that are tried, none first.
_RATES = np.array(sorted(range(-12, 13), key=abs)) * (vocabulary.TURN / 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectReading:
    """Measurements of one object.

    Attributes:
      center: (x, y) as in `SceneObject`.
      diameter: nominal diameter in frame sides.
      travel: displacement (x, y) of the centroid over the clip in frame sides.
      growth: logarithm of the ratio of areas, last frame to first.
      turn: clockwise rotation over the clip in radians.
      overlap: agreement with the ideal silhouette in [0, 1].
    """

    color: str
    shape: str
    size: str
    motion: str
    center: tuple[float, float]
    diameter: float
    travel: tuple[float, float]
    growth: float
    turn: float
    overlap: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneReading:
    """Background and at most two objects, the larger (main) object first; no objects if no compact area stands out.

    `world` has what is measured in the style `world` only.
    """

    objects: tuple[ObjectReading, ...]
    background: str
    background_color: str
    world: WorldReading | None = None

    @property
    def color(self) -> str | None:
        """Return the color of the main object, None without one."""
        return self.objects[0].color if self.objects else None

    @property
    def shape(self) -> str | None:
        """Return the shape of the main object, None without one."""
        return self.objects[0].shape if self.objects else None

    @property
    def size(self) -> str | None:
        """Return the size of the main object, None without one."""
        return self.objects[0].size if self.objects else None

    @property
    def motion(self) -> str | None:
        """Return the motion of the main object, None without one."""
        return self.objects[0].motion if self.objects else None


def _border_mask(height: int, width: int) -> Bool[np.ndarray, "h w"]:
    band = max(2, min(height, width) // 24)
    inner = np.zeros((height, width), dtype=bool)
    inner[band:-band, band:-band] = True
    return ~inner


def _background_line(frames: Float[np.ndarray, "t h w 3"]) -> tuple[np.ndarray, float, float]:
    """Return the background color (3,) and the lowest and highest relative brightness along the frame border.

    An object near the border covers so little of it that median and percentiles ignore the object.
    """
    border = frames[:, _border_mask(*frames.shape[1:3])].reshape(-1, 3)
    color = np.median(border, axis=0)
    shade = border @ color / max(float(color @ color), 1.0)
    low, high = np.percentile(shade, [5, 95])
    return color, min(float(low), 1.0), max(float(high), 1.0)


def _color_distance(frames: np.ndarray, color: np.ndarray) -> Float[np.ndarray, "t h w"]:
    difference = frames - color
    return np.sqrt(np.einsum("thwc,thwc->thw", difference, difference))


def _line_distance(frames: np.ndarray, line: tuple[np.ndarray, float, float]) -> Float[np.ndarray, "t h w"]:
    color, low, high = line
    shade = np.clip(frames @ color / max(float(color @ color), 1.0), low, high)
    return _color_distance(frames, shade[..., None] * color)


def _measured_line(pixels: Float[np.ndarray, "n 3"]) -> tuple[np.ndarray, float, float]:
    """Return the mean color (3,) of an object, and the lowest and highest relative brightness of its texture."""
    color = pixels.mean(axis=0)
    low, high = np.percentile(pixels @ color / max(float(color @ color), 1.0), [5, 95])
    return color, float(low), float(high)


def _block(side: int) -> np.ndarray:
    """Return the smallest piece (t, h, w) of an object, wider than the blended edge of another object."""
    width = max(3, round(side * 5 / 64))
    return np.ones((1, width, width), dtype=bool)


def _find_cores(frames: np.ndarray, away: np.ndarray, *, textured: bool) -> list[tuple[int, Mask]]:
    """Return at most two (palette index, compact area), the larger first; `away` is the distance to the background."""
    if textured:
        distances = np.stack([_line_distance(frames, (color, _DARKEST, 1.0)) for color in _COLORS])
    else:
        distances = np.stack([_color_distance(frames, color) for color in _COLORS])
    nearest = distances.argmin(axis=0)
    foreground = distances.min(axis=0) < away
    side = min(frames.shape[1:3])
    cores = []
    for index in range(len(_COLORS)):
        candidate = foreground & (nearest == index)
        if candidate.sum() > _MIN_AREA * side**2 * len(frames) / 2:
            core = ndimage.binary_opening(candidate, _block(side))
            cores.append((int(core.sum()), index, core))
    cores.sort(key=lambda core: -core[0])
    return [(index, core) for area, index, core in cores[:2] if area > _MIN_AREA * side**2 * len(frames) / 2]


def _segment(frames: np.ndarray, *, world: bool = False) -> tuple[list[tuple[str, Mask]], Mask]:
    """Return (color name, mask) of each object, and the mask of pixels that are background for certain.

    With `world`, objects have dark parts and the background has shadows.
    """
    color, low, high = _background_line(frames)
    away = _line_distance(frames, (color, low * vocabulary.SHADOW_SHADE if world else low, high))
    cores = _find_cores(frames, away, textured=world)
    # The boundary is halfway between background and the measured color, which may differ from the ideal one.
    if world:
        measured = [_line_distance(frames, _measured_line(frames[core])) for _, core in cores]
    else:
        measured = [_color_distance(frames, np.median(frames[core], axis=0)) for _, core in cores]
    owner = np.argmin(np.stack([away, *measured]), axis=0)
    grown = np.ones((1, 3, 3), dtype=bool)
    reach = max(2, min(frames.shape[1:3]) // 24)
    names = list(vocabulary.COLORS)
    found = []
    for number, (index, core) in enumerate(cores, start=1):
        near = ndimage.binary_dilation(core, grown, iterations=2 * reach)
        found.append((names[index], (owner == number) & near))
    occupied = functools.reduce(np.logical_or, (mask for _, mask in found), np.zeros(frames.shape[:3], dtype=bool))
    return found, ~ndimage.binary_dilation(occupied, grown, iterations=2 * reach)


@functools.cache
def _templates() -> tuple[Float[np.ndarray, "b s r a"], Float[np.ndarray, " s"]]:
    """Return the ideal silhouettes (blur, shape, radius, angle) at unit area radius, and their area radii (shape,).

    Reconstructed videos have rounded corners, so every shape is there as rendered and blurred, cut at half height.
    """
    extent = np.linspace(-2.5, 2.5, 301)
    x, y = np.meshgrid(extent, extent)
    bins = np.round(np.arctan2(y, x) * (PROFILE_ANGLES / (2 * np.pi))).astype(int) % PROFILE_ANGLES
    ideal = np.sqrt([np.mean(radial_profile(shape) ** 2) for shape in vocabulary.SHAPES])
    silhouettes = np.empty((len(_BLURS), len(vocabulary.SHAPES), len(_RADII), _ANGLES), dtype=np.float32)
    for (i, blur), (j, shape) in itertools.product(enumerate(_BLURS), enumerate(vocabulary.SHAPES)):
        solid = (np.hypot(x, y) < radial_profile(shape)[bins]).astype(np.float32)
        mask = ndimage.gaussian_filter(solid, blur / (extent[1] - extent[0])) > 0.5
        area_radius = np.sqrt(mask.sum() / np.pi)
        silhouettes[i, j] = _polar(mask[None], np.full((1, 2), (len(extent) - 1) / 2), area_radius[None])[0]
    return silhouettes, ideal


def _polar(masks: Mask, centers: np.ndarray, radii: np.ndarray) -> Float[np.ndarray, "t r a"]:
    """Sample the masks around `centers` (T, 2; x, y) in polar coordinates scaled by `radii` (T,)."""
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    reach = radii[:, None, None] * _RADII[:, None]
    x = centers[:, 0, None, None] + reach * np.cos(angles)
    y = centers[:, 1, None, None] + reach * np.sin(angles)
    time = np.broadcast_to(np.arange(len(masks))[:, None, None], x.shape)
    return ndimage.map_coordinates(masks.astype(np.float32), [time, y, x], order=1)


def _overlaps(polar: Float[np.ndarray, "t r a"]) -> Float[np.ndarray, "b s t a"]:
    """Return intersection over union of every frame with every silhouette turned clockwise by 2 pi k / _ANGLES.

    Turning is a shift in the angle, so one correlation by FFT gives the intersections for all turns.
    """
    templates, _ = _templates()
    weight = _RADII[:, None]
    shared_spectrum = np.einsum("tra,bsra->bsta", np.fft.rfft(polar * weight), np.conj(np.fft.rfft(templates)))
    shared = np.fft.irfft(shared_spectrum, n=_ANGLES)
    total = (polar * weight).sum(axis=(1, 2)) + (templates * weight).sum(axis=(2, 3))[..., None]
    return shared / np.maximum(total[..., None] - shared, 1e-6)


def _match(polar: np.ndarray, times: np.ndarray) -> tuple[str, float, float]:
    """Return (shape, turn over the clip in radians, mean overlap) of the best constant rotation.

    All frames share one rotation rate, so that noise in single frames decides neither shape nor rotation.
    """
    overlaps = _overlaps(polar)
    shifts = np.round(_RATES[:, None] * times * (_ANGLES / (2 * np.pi))).astype(int)
    phases = (shifts[:, :, None] + np.arange(_ANGLES)) % _ANGLES
    turned = overlaps[:, :, np.arange(len(times))[:, None], phases].mean(axis=3).max(axis=(0, 3))
    best = int(turned.max(axis=1).argmax())
    name = vocabulary.SHAPES[best]
    # A circle agrees equally well with every rate; without this, rounding would decide.
    rate = 0.0 if not vocabulary.can_show(name, "rotating") else float(_RATES[turned[best].argmax()])
    return name, rate, float(turned[best].max())


def _slope(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the least-squares change of `values` (T, ...) over the whole clip."""
    offsets = times - times.mean()
    spread = float(offsets @ offsets)
    return np.tensordot(offsets, values, axes=(0, 0)) / spread if spread else np.zeros(values.shape[1:])


def _name_motion(travel: np.ndarray, growth: float, turn: float) -> str:
    """Return the nearest motion; every threshold is half of the value of a rendered motion."""
    if np.linalg.norm(travel) > vocabulary.TRAVEL / 2:
        return max(vocabulary.DIRECTIONS, key=lambda name: float(travel @ np.array(vocabulary.DIRECTIONS[name])))
    grown = 2 * np.log((1 + vocabulary.GROWTH / 2) / (1 - vocabulary.GROWTH / 2))
    if growth > grown / 2:
        return "growing"
    return "rotating" if abs(turn) > vocabulary.TURN / 2 else "still"


def _read_object(color: str, masks: Mask) -> ObjectReading | None:
    """Measure one object from its masks; None if no frame shows it."""
    num_frames, height, width = masks.shape
    side = min(height, width)
    areas = masks.sum(axis=(1, 2)).astype(np.float64)
    shown = np.flatnonzero(areas > _MIN_AREA * side**2)
    if not len(shown):
        return None
    masks, areas = masks[shown], areas[shown]
    times = shown / max(num_frames - 1, 1)
    y = (masks.sum(axis=2) @ np.arange(height)) / areas
    x = (masks.sum(axis=1) @ np.arange(width)) / areas
    centers = np.stack([x, y], axis=-1)
    shape, turn, overlap = _match(_polar(masks, centers, np.sqrt(areas / np.pi)), times)
    equivalent = _templates()[1][vocabulary.SHAPES.index(shape)]
    diameter = float(np.mean(2 * np.sqrt(areas / np.pi))) / float(equivalent) / side
    travel = _slope(centers / side, times)
    growth = float(_slope(np.log(areas), times))
    middle = (centers.mean(axis=0) + 0.5 - np.array([width - side, height - side]) / 2) / side
    return ObjectReading(
        color=color,
        shape=shape,
        size=min(vocabulary.SIZES, key=lambda name: abs(np.log(diameter / vocabulary.SIZES[name]))),
        motion=_name_motion(travel, growth, turn),
        center=(float(middle[0]), float(middle[1])),
        diameter=diameter,
        travel=(float(travel[0]), float(travel[1])),
        growth=growth,
        turn=turn,
        overlap=overlap,
    )


def _read_background(frames: np.ndarray, free: Mask) -> tuple[str, str]:
    """Return (kind, color name) from the pixels `free` of objects."""
    if free.sum() < 0.02 * free.size:
        free = np.broadcast_to(_border_mask(*frames.shape[1:3]), free.shape)
    typical = np.median(frames[free], axis=0)
    names = list(vocabulary.BACKGROUND_COLORS)
    color = names[int(np.linalg.norm(_BACKGROUND_COLORS - typical, axis=1).argmin())]
    # Smoothing removes noise and keeps textures, which are coarse.
    smooth = ndimage.gaussian_filter(frames.mean(axis=-1), (0, 1.5, 1.5)) / max(float(typical.mean()), 1.0)
    rows = np.broadcast_to(np.linspace(1, 0, frames.shape[1])[:, None], free.shape)
    slope, level = np.polyfit(rows[free], smooth[free], 1)
    rest = smooth - slope * rows - level
    if rest[free].std() > _TEXTURE_CONTRAST:
        return ("drifting" if _changes(rest, free) else "textured"), color
    return ("gradient" if abs(slope) > _GRADIENT_CONTRAST else "plain"), color


def _changes(rest: np.ndarray, free: Mask) -> bool:
    """Return True if the pattern changes over the clip, by the share of the variance that is over time.

    Rendered drifting textures have a share of 0.19 or more, still ones 0.03 or less, even after lossy compression.
    """
    count = free.sum(axis=0)
    mean = (rest * free).sum(axis=0) / np.maximum(count, 1)
    in_time = float((((rest - mean) * free) ** 2).sum())
    return in_time > 0.1 * float(((rest * free) ** 2).sum())


def read_scene(video: UInt8[np.ndarray, "t h w 3"], *, world: bool = False) -> SceneReading:
    """Measure the objects and the background of a clip.

    Any size works.  A single frame reads as "still", and rotation is certain from 5 frames, because no shape then turns by
    half of its symmetry angle in a step.  Pictures without a compact colored area read as a scene without objects.

    Args:
      world: read a scene of the style `world`: textured objects, shadows, stripes; and measure its agreement.

    Raises:
      ValueError: `video` is not a uint8 array of RGB frames of 16 pixels or more.
    """
    is_rgb = video.ndim == 4 and video.shape[-1] == 3 and video.dtype == np.uint8
    if not is_rgb or min(video.shape[1:3]) < 16 or not len(video):
        raise ValueError(f"expected uint8 (T, H, W, 3) with sides of 16 or more, got {video.dtype} {video.shape}")
    frames = video.astype(np.float32)
    found, free = _segment(frames, world=world)
    objects = tuple(reading for color, masks in found if (reading := _read_object(color, masks)) is not None)
    kind, color = _read_background(frames, free)
    if not world:
        return SceneReading(objects=objects, background=kind, background_color=color)
    turn = objects[0].turn if objects and objects[0].motion == "rotating" else 0.0
    ground = np.median(frames[free], axis=0) if free.any() else _background_line(frames)[0]
    more = read_world(frames, [masks for _, masks in found], ground, turn)
    return SceneReading(objects=objects, background=more.background, background_color=color, world=more)


def score_reading(reading: SceneReading, scene: Scene) -> dict[str, bool]:
    """Compare a reading with the wanted scene; keys are ATTRIBUTES, "background" and "background_color".

    For a scene of the style `world`, compare what its caption names: color, shape and motion of the main object, and those
    of MENTIONS that the scene mentions.

    The largest objects found, as many as the scene has, are paired with its objects in the order that agrees best.  An
    attribute is right if it is right for every object of the scene; a missing object is wrong.
    """
    if scene.mentions is not None:
        return _score_world(reading, scene, scene.mentions)
    wanted = len(scene.objects)

    def agreement(order: tuple[ObjectReading | None, ...]) -> dict[str, bool]:
        pairs = list(zip(scene.objects, order, strict=True))
        return {
            name: all(read is not None and getattr(read, name) == getattr(item, name) for item, read in pairs)
            for name in ATTRIBUTES
        }

    padded = [*reading.objects, *[None] * wanted][:wanted]
    result = max(map(agreement, itertools.permutations(padded)), key=lambda right: sum(right.values()))
    result["background"] = reading.background == scene.background.kind
    result["background_color"] = reading.background_color == scene.background.color
    return result


def _score_world(reading: SceneReading, scene: Scene, mentions: Sequence[str]) -> dict[str, bool]:
    item, found = scene.objects[0], reading.objects[0] if reading.objects else None
    right = {name: found is not None and getattr(found, name) == getattr(item, name) for name in MAIN}
    others = [(read.color, read.shape) for read in reading.objects[1:]]
    second = (scene.objects[1].color, scene.objects[1].shape) if len(scene.objects) > 1 else ("", "")
    more = reading.world
    shown = {
        "texture": more is not None and item.texture is not None and more.texture == item.texture.kind,
        "background": reading.background == scene.background.ground,
        "background_color": reading.background_color == scene.background.color,
        "shadow": more is not None and (more.shadow is not None) == (scene.shadow is not None),
        "second_color": second[0] in {color for color, _ in others},
        "second_shape": second[1] in {shape for _, shape in others},
    }
    return right | {name: shown[name] for name in mentions}
