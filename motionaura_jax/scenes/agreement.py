"""Agreement within a video of the style `world`: one path, one appearance, one shadow, one background over time.

A model that predicts every token well and each on its own mixes several videos that suit the caption.  Such a video still
shows the attributes of its prompt, so that only these measurements tell it from one that a single scene explains.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from motionaura_jax.scenes import scene as vocabulary

Mask = Bool[np.ndarray, "t h w"]

# Largest residual of each part that still counts as agreement; calibrated in tests/scenes/test_agreement.py.
LIMITS: dict[str, float] = {
    "path": 0.02,
    "size": 0.08,
    "shape": 0.18,
    "color": 0.1,
    "texture": 0.07,
    "shadow": 0.8,
    "second": 0.25,
    "background": 0.13,
}
_GRID = 33
_EXTENT = 1.3  # of the sampled square, in radii of the disk with the same area
_SMOOTH = 1.0  # pixels at 64
_DARK = 0.7  # brightness that separates shadow (at most 0.6) from the darkest stripe (0.8)
_MIN_SHADOW = 0.006  # area of a shadow in squared sides
_MIN_CONTRAST = 0.07  # amplitude of background stripes; rendered ones have 0.2
_MIN_DRIFT = 0.1  # sides over the clip; rendered ones have 0.19 or more
_TWO_WAVES = 0.3  # energy ratio of the weaker to the stronger wave of dots; 1 as rendered, 0 for stripes
_BLOCK = 4  # pixels at 64 that the background averages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Residuals of one video; every part agrees if its residual is at most its limit in LIMITS.

    Attributes:
      path: largest distance of the main object's centroid from a straight path at constant speed, in frame sides.
      size: largest relative deviation of its diameter from linear growth.
      shape: 1 - intersection over union of its worst frame with its mean silhouette, in coordinates of the object.
      color: largest distance of its chromaticity in one frame from the mean.
      texture: root mean square deviation of its worst frame from its mean brightness, in coordinates of the object.
      shadow: area in which the shadow of the worst frame differs clearly from the silhouette at one offset, relative to the
        mean area of the shadow.
      second: area in which the still second object comes and goes, relative to its own.
      background: root mean square deviation of the worst frame from still or drifting stripes, relative to the color.
    """

    path: float = math.inf
    size: float = math.inf
    shape: float = math.inf
    color: float = math.inf
    texture: float = math.inf
    shadow: float = math.inf
    second: float = math.inf
    background: float = math.inf

    @property
    def parts(self) -> dict[str, bool]:
        """Return whether each part agrees."""
        return {name: getattr(self, name) <= limit for name, limit in LIMITS.items()}

    @property
    def overall(self) -> bool:
        """Return True if every part agrees."""
        return all(self.parts.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldReading:
    """Further attributes of a video of the style `world`.

    Attributes:
      texture: one of PATTERNS; None without an object.
      shadow: displacement (x, y) in frame sides, None without a shadow.
      background: one of GROUNDS.
      drift: displacement (x, y) of the background over the clip in frame sides.
    """

    texture: str | None
    shadow: tuple[float, float] | None
    background: str
    drift: tuple[float, float]
    agreement: Agreement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """Fitted pose of the main object: centers (T, 2), radii (T,) of the disk with the same area, angles (T,)."""

    centers: Float[np.ndarray, "t 2"]
    radii: Float[np.ndarray, " t"]
    angles: Float[np.ndarray, " t"]


def read_world(frames: Float[np.ndarray, "t h w 3"], masks: list[Mask], color: np.ndarray, turn: float) -> WorldReading:
    """Measure what the style `world` adds.

    Args:
      masks: of the main object and of a second one, if there are any.
      color: median color (3,) of the background.
      turn: clockwise rotation of the main object over the clip in radians.
    """
    unit = min(frames.shape[1:3]) / 64
    near = [ndimage.binary_dilation(mask, np.ones((1, 3, 3)), iterations=max(1, round(2 * unit))) for mask in masks]
    occupied = np.logical_or.reduce([np.zeros(frames.shape[:3], dtype=bool), *near])
    shade = frames @ color / max(float(color @ color), 1.0)
    dark = ~occupied & (ndimage.gaussian_filter(shade, (0, 0.7 * unit, 0.7 * unit)) < _DARK)
    shadow, shadow_residual = _shadow(dark, masks[0] if masks else None, occupied)
    free = ~(occupied | ndimage.binary_dilation(dark, np.ones((1, 3, 3)), iterations=max(1, round(2 * unit))))
    ground, drift, ground_residual = _ground(frames, free, color)
    residuals = {"shadow": shadow_residual, "background": ground_residual, "second": _second(masks, near)}
    texture = None
    if masks and (poses := _track(masks[0])) is not None:
        track, path, size = poses
        residuals |= {"path": path, "size": size, "color": _color(frames, masks[0])}
        texture, appearance = _appearance(frames, masks[0], track, turn)
        residuals |= appearance
    return WorldReading(
        texture=texture, shadow=shadow, background=ground, drift=drift, agreement=Agreement(**residuals)
    )


def _line(values: np.ndarray) -> np.ndarray:
    """Return the least-squares line through `values` (T, ...) over time, evaluated in each frame."""
    times = np.arange(len(values)) - (len(values) - 1) / 2
    slope = np.tensordot(times, values, axes=(0, 0)) / max(float(times @ times), 1.0)
    return values.mean(axis=0) + np.multiply.outer(times, slope)


def _track(mask: Mask) -> tuple[Track, float, float] | None:
    """Return the fitted path and growth with their residuals; None if a frame lacks the object."""
    _, height, width = mask.shape
    areas = mask.sum(axis=(1, 2)).astype(np.float64)
    if areas.min() < 0.008 * min(height, width) ** 2:
        return None
    x = (mask.sum(axis=1) @ np.arange(width)) / areas
    y = (mask.sum(axis=2) @ np.arange(height)) / areas
    centers, radii = np.stack([x, y], axis=-1), np.sqrt(areas / np.pi)
    path, growth = _line(centers), np.maximum(_line(radii), 1.0)
    residual = float(np.linalg.norm(centers - path, axis=1).max()) / min(height, width)
    track = Track(centers=path, radii=growth, angles=np.zeros(len(mask)))
    return track, residual, float(np.abs(radii / growth - 1).max())


def _color(frames: np.ndarray, mask: Mask) -> float:
    """Return the largest deviation of the chromaticity of one frame from the mean."""
    means = np.stack([frame[where].mean(axis=0) for frame, where in zip(frames, mask, strict=True)])
    chroma = means / np.linalg.norm(means, axis=1, keepdims=True)
    return float(np.linalg.norm(chroma - chroma.mean(axis=0), axis=1).max())


def _sample(values: np.ndarray, track: Track) -> Float[np.ndarray, "t g g"]:
    """Sample `values` (T, H, W) on a square grid in coordinates of the object."""
    span = np.linspace(-_EXTENT, _EXTENT, _GRID)
    u, v = np.meshgrid(span, span)
    cosine, sine = np.cos(track.angles)[:, None, None], np.sin(track.angles)[:, None, None]
    radii = track.radii[:, None, None]
    x = track.centers[:, 0, None, None] + radii * (u * cosine - v * sine)
    y = track.centers[:, 1, None, None] + radii * (u * sine + v * cosine)
    time = np.broadcast_to(np.arange(len(values))[:, None, None], x.shape)
    return ndimage.map_coordinates(values.astype(np.float32), [time, y, x], order=1)


def _appearance(frames: np.ndarray, mask: Mask, track: Track, turn: float) -> tuple[str, dict[str, float]]:
    """Return the kind of texture, and the residuals of silhouette and texture.

    The rotation of the silhouettes is known in steps, so the best of a few rates around it is taken.
    """
    unit = min(frames.shape[1:3]) / 64
    color = np.median(frames[mask], axis=0)
    brightness = ndimage.gaussian_filter(frames @ color / max(float(color @ color), 1.0), (0, *[_SMOOTH * unit] * 2))
    steps = np.linspace(-0.5, 0.5, 7) * vocabulary.TURN / 8 if turn else np.zeros(1)
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for rate in turn + steps:
        turned = dataclasses.replace(track, angles=rate * np.linspace(0, 1, len(mask)))
        silhouettes = _sample(mask, turned) > 0.5
        consensus = silhouettes.mean(axis=0) > 0.5
        shared = (silhouettes & consensus).sum(axis=(1, 2)) / np.maximum((silhouettes | consensus).sum(axis=(1, 2)), 1)
        inner = ndimage.binary_erosion(consensus, iterations=2)
        looks = _sample(brightness, turned)
        mean = looks.mean(axis=0)
        deviation = np.sqrt((((looks - mean) ** 2) * inner).sum(axis=(1, 2)) / max(int(inner.sum()), 1)).max()
        if best is None or deviation < best[1]:
            best = float(1 - shared.min()), float(deviation), mean, inner
    assert best is not None
    shape, deviation, mean, inner = best
    return _texture(mean, inner, float(track.radii.mean()) / unit), {"shape": shape, "texture": deviation}


def _texture(mean: Float[np.ndarray, "g g"], inner: Bool[np.ndarray, "g g"], radius: float) -> str:
    """Return the kind of pattern that explains most of the mean appearance; `radius` in pixels at 64."""
    if inner.sum() < 20:
        return vocabulary.PATTERNS[0]
    span = np.linspace(-_EXTENT, _EXTENT, _GRID) * radius
    u, v = (axis[inner] for axis in np.meshgrid(span, span))
    values = mean[inner] - mean[inner].mean()
    best, ratio = -1.0, 0.0
    for period in np.linspace(13, 19, 7):
        for angle in np.arange(4) * math.pi / 4:
            k = 2 * math.pi / period
            first = k * (u * math.cos(angle) + v * math.sin(angle))
            second = k * (v * math.cos(angle) - u * math.sin(angle))
            design = np.stack([np.ones_like(u), np.cos(first), np.sin(first), np.cos(second), np.sin(second)], axis=1)
            weights, *_ = np.linalg.lstsq(design, values, rcond=None)
            explained = float(values @ values - ((values - design @ weights) ** 2).sum())
            if explained > best:
                energies = weights[1] ** 2 + weights[2] ** 2, weights[3] ** 2 + weights[4] ** 2
                best, ratio = explained, min(energies) / max(*energies, 1e-12)
    return "dotted" if ratio > _TWO_WAVES else "striped"


def _shift(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Move masks (T, H, W) by whole pixels; what comes in is False."""
    moved = np.zeros_like(mask)
    height, width = mask.shape[1:]
    target = moved[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    target[...] = mask[:, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return moved


def _shadow(dark: Mask, main: Mask | None, occupied: Mask) -> tuple[tuple[float, float] | None, float]:
    """Return the common offset of the shadow, None without one, and the residual."""
    side = min(dark.shape[1:])
    least = _MIN_SHADOW * side**2
    areas = dark.sum(axis=(1, 2))
    if areas.mean() < least or main is None:
        return None, float(areas.max()) / (2 * least)
    reach = round(0.18 * side)
    offsets = [(dx, dy) for dx in range(-reach, reach + 1) for dy in range(-reach, reach + 1)]
    offsets = [(dx, dy) for dx, dy in offsets if 0.06 * side <= math.hypot(dx, dy) <= reach]

    def overlap(dx: int, dy: int) -> float:
        predicted = _shift(main, dx, dy) & ~occupied
        return float((dark & predicted).sum() / max(int((dark | predicted).sum()), 1))

    dx, dy = max(offsets, key=lambda offset: overlap(*offset))
    # One pixel at the outline and next to the object depends on the sharpness of the picture.
    cross = ndimage.generate_binary_structure(2, 1)[None]
    whole = _shift(main, dx, dy)
    sure = ndimage.binary_erosion(whole, cross) & ~ndimage.binary_dilation(occupied, cross)
    wrong = (sure & ~dark) | (dark & ~ndimage.binary_dilation(whole, cross))
    return (dx / side, dy / side), float(wrong.sum(axis=(1, 2)).max() / max(float(areas.mean()), least))


def _second(masks: list[Mask], near: list[Mask]) -> float:
    """Return the area in which the second object comes and goes while the main one is elsewhere, relative to its own."""
    if len(masks) < 2:
        return 0.0
    visible = ~near[0]
    count = visible.sum(axis=0)
    present = (masks[1] & visible).sum(axis=0)
    changing = np.minimum(present, count - present).sum()
    return float(changing / max(int(present.sum()), 1))


def _ground(frames: np.ndarray, free: Mask, color: np.ndarray) -> tuple[str, tuple[float, float], float]:
    """Return the name of the background, its drift, and the residual of the best fit with stripes."""
    num_frames, height, width = free.shape
    side = min(height, width)
    block = max(1, round(_BLOCK * side / 64))
    rows, columns = height // block, width // block

    def blocks(values: np.ndarray) -> np.ndarray:
        cut = values[:, : rows * block, : columns * block]
        return cut.reshape(num_frames, rows, block, columns, block, -1).mean(axis=(2, 4))

    weight = blocks(free.astype(np.float32))[..., 0]
    means = blocks(frames * free[..., None]) / np.maximum(weight, 1e-6)[..., None]
    weight = np.where(weight > 0.5, weight, 0.0)
    if weight.sum() < 8:
        return "plain", (0.0, 0.0), math.inf
    scale = max(float(color @ color), 1.0)
    shade = means @ color / scale
    off = ((means - shade[..., None] * color) ** 2).sum(axis=-1) / scale
    fit, amplitude, drift = _stripes(shade, weight, block / side)
    per_frame = (((shade - fit) ** 2 + off) * weight).sum(axis=(1, 2)) / np.maximum(weight.sum(axis=(1, 2)), 1e-6)
    name = "plain" if amplitude < _MIN_CONTRAST else "drifting" if math.hypot(*drift) > _MIN_DRIFT else "striped"
    return name, drift if name == "drifting" else (0.0, 0.0), float(np.sqrt(per_frame.max()))


def _stripes(
    shade: Float[np.ndarray, "t r c"], weight: Float[np.ndarray, "t r c"], spacing: float
) -> tuple[Float[np.ndarray, "t r c"], float, tuple[float, float]]:
    """Fit level and one wave along x or y with constant drift; return the fit, the amplitude and the drift (x, y)."""
    num_frames, rows, columns = shade.shape
    times = np.linspace(0, 1, num_frames)[:, None]
    periods, drifts = (
        grid.ravel() for grid in np.meshgrid(np.linspace(20, 31, 12) / 64, np.linspace(-24, 24, 33) / 64)
    )
    best: tuple[float, np.ndarray, float, tuple[float, float]] | None = None
    for axis, count in ((2, columns), (1, rows)):
        # A wave along one axis depends on one coordinate, so sums over the other one suffice.
        total = weight.sum(axis=3 - axis).ravel()
        sums = (weight * shade).sum(axis=3 - axis).ravel()
        moved = np.arange(count) * spacing - drifts[:, None, None] * times
        phase = (2 * np.pi / periods[:, None, None] * moved).reshape(len(periods), -1)
        design = np.stack([np.ones_like(phase), np.cos(phase), np.sin(phase)], axis=-1)
        normal = np.swapaxes(design * total[:, None], 1, 2) @ design + 1e-6 * np.eye(3)
        target = sums @ design
        solution = np.linalg.solve(normal, target[..., None])[..., 0]
        explained = (solution * target).sum(axis=1)
        # Of equal fits, as on a plain background, take the one that drifts least.
        pick = int((explained - 1e-6 * np.abs(drifts) * total.sum()).argmax())
        if best is None or explained[pick] > best[0]:
            fit = np.expand_dims((design[pick] @ solution[pick]).reshape(num_frames, count), 3 - axis)
            move = (float(drifts[pick]), 0.0) if axis == 2 else (0.0, float(drifts[pick]))
            best = float(explained[pick]), fit, float(np.hypot(*solution[pick, 1:])), move
    assert best is not None
    return np.broadcast_to(best[1], shade.shape), best[2], best[3]
