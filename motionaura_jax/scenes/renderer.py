"""Rendering of scenes with antialiased edges, and the pose of each object in every frame."""

import functools

import numpy as np
from jaxtyping import Bool, Float, UInt8

from motionaura_jax.core.errors import UserError
from motionaura_jax.scenes.scene import (
    BACKGROUND_COLORS,
    COLORS,
    DIRECTIONS,
    GROWTH,
    MARGIN,
    PATTERN_SHADE,
    SHADE,
    SHADOW_SHADE,
    SIZES,
    TEXTURE_SHADE,
    TRAVEL,
    TURN,
    Background,
    Pattern,
    Scene,
    SceneObject,
)

Frames = UInt8[np.ndarray, "t h w 3"]

PROFILE_ANGLES = 5760  # steps so fine that edges are straight to a fortieth of a pixel at 64
SUPERSAMPLING = 4


def _star_outline(points: int, outer: float, inner: float) -> Float[np.ndarray, "v 2"]:
    """Return the vertices of a star with `points` tips, the first of them up."""
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)


def _outline(shape: str) -> Float[np.ndarray, "v 2"]:
    """Return vertices around the centroid, x right and y down, in units of half the nominal diameter.

    The circumradii differ, so that all shapes look equally large.
    """
    if shape == "square":
        return 0.87 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    if shape == "triangle":
        return _star_outline(3, 1.2, 0.6)
    if shape == "star":
        return _star_outline(5, 1.2, 0.55)
    if shape == "cross":
        arm, half = 1.05, 0.36
        corner = np.array([[half, -half], [arm, -half], [arm, half]])
        quarter_turn = np.array([[0, -1], [1, 0]])
        return np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, k).T for k in range(4)])
    return _star_outline(90, 1.0, 1.0)


@functools.cache
def radial_profile(shape: str) -> Float[np.ndarray, " a"]:
    """Return the distance from centroid to outline in each direction 2 pi k / PROFILE_ANGLES, in half nominal diameters.

    Every point of an outline is visible from the centroid, so that this function of the angle describes the shape.
    """
    start = _outline(shape)
    edge = np.roll(start, -1, axis=0) - start
    angles = np.arange(PROFILE_ANGLES) * 2 * np.pi / PROFILE_ANGLES
    # Intersection of each ray from the centroid with each edge: `distance` along the ray, `along` along the edge in [0, 1].
    ray = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, None]
    cross = ray[..., 0] * edge[:, 1] - ray[..., 1] * edge[:, 0]
    cross = np.where(np.abs(cross) < 1e-12, np.nan, cross)
    distance = (start[:, 0] * edge[:, 1] - start[:, 1] * edge[:, 0]) / cross
    along = (start[:, 0] * ray[..., 1] - start[:, 1] * ray[..., 0]) / cross
    hit = (distance > 0) & (along >= -1e-9) & (along <= 1 + 1e-9)
    return np.where(hit, distance, 0.0).max(axis=1)


def poses(item: SceneObject, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centers (T, 2) as (x, y), nominal diameters (T,) and clockwise angles (T,) in radians."""
    progress = np.linspace(-0.5, 0.5, num_frames) if num_frames > 1 else np.zeros(1)
    direction = np.array(DIRECTIONS.get(item.motion, (0.0, 0.0)))
    centers = np.array(item.center) + item.speed * TRAVEL * progress[:, None] * direction
    scale = 1 + item.phase + item.speed * GROWTH * progress if item.motion == "growing" else np.ones(num_frames)
    angles = item.phase + item.speed * TURN * (progress + 0.5) if item.motion == "rotating" else np.zeros(num_frames)
    return centers, SIZES[item.size] * scale, angles


def center_bounds(
    shape: str, size: str, motion: str, *, speed: float = 1.0, phase: float = 0.0
) -> Float[np.ndarray, "2 2"]:
    """Return the lowest and the highest (x, y) of a center that keeps the object inside the frame for the whole clip."""
    outline = _outline(shape)
    low, high = outline.min(axis=0), outline.max(axis=0)
    if motion == "rotating":
        high = np.full(2, np.linalg.norm(outline, axis=1).max())
        low = -high
    radius = SIZES[size] / 2 * (1 + phase + speed * GROWTH / 2 if motion == "growing" else 1)
    path = speed * TRAVEL / 2 * np.abs(DIRECTIONS.get(motion, (0.0, 0.0)))
    bounds = np.stack([MARGIN + path - radius * low, 1 - MARGIN - path - radius * high])
    middle = bounds.mean(axis=0)  # an object that does not fit is centered
    return np.stack([np.minimum(bounds[0], middle), np.maximum(bounds[1], middle)])


def _weights(positions: np.ndarray, count: int) -> np.ndarray:
    """Return normalized Gaussian interpolation weights (position, lattice point); smooth, without a period."""
    weights = np.exp(-0.5 * ((positions[:, None] - np.arange(count)) / 0.5) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _texture(seed: int, shift: np.ndarray, height: int, width: int) -> Float[np.ndarray, "t h w"]:
    """Return smooth noise in [-1, 1] with about seven cells per side, moved left by `shift` (T,) sides."""
    cells, side = 7.0, min(height, width)
    y = 1 + np.arange(height) / side * cells
    x = 1 + np.arange(width) / side * cells
    rows, columns = int(y[-1]) + 3, int(x[-1] + cells * shift.max()) + 3
    lattice = np.random.default_rng(seed).uniform(-1.5, 1.5, (rows, columns))
    vertical = _weights(y, rows) @ lattice
    frames = [vertical @ _weights(x + cells * s, columns).T for s in shift]
    return np.clip(np.stack(frames), -1, 1)


def _backdrop(background: Background, num_frames: int, height: int, width: int) -> Float[np.ndarray, "t h w 3"]:
    color = np.array(BACKGROUND_COLORS[background.color], dtype=np.float64)
    shade = np.zeros((num_frames, height, width))
    if background.kind == "gradient":
        shade += np.linspace(1, -1, height)[:, None]
    elif background.kind == "textured":
        shade += _texture(background.texture, np.zeros(1), height, width)
    elif background.kind == "drifting":
        shade += _texture(background.texture, TRAVEL * np.linspace(0, 1, num_frames), height, width)
    if background.pattern is not None:
        return color * (1 + PATTERN_SHADE * _waves(background.pattern, num_frames, height, width)[..., None])
    return color * (1 + SHADE * shade[..., None])


def _lattice(pattern: Pattern, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a smooth wave in [-1, 1] at (x, y): the cosine across stripes, the mean of two cosines for dots."""
    cosine, sine = np.cos(pattern.angle), np.sin(pattern.angle)
    across = np.cos(2 * np.pi * ((x * cosine + y * sine) / pattern.period - pattern.phase[0]))
    if pattern.kind == "striped":
        return across
    return (across + np.cos(2 * np.pi * ((y * cosine - x * sine) / pattern.period - pattern.phase[1]))) / 2


def _waves(pattern: Pattern, num_frames: int, height: int, width: int) -> Float[np.ndarray, "t h w"]:
    """Return the wave of a background pattern in every frame."""
    side = min(height, width)
    x = (np.arange(width) + 0.5 - (width - side) / 2) / side
    y = (np.arange(height)[:, None] + 0.5 - (height - side) / 2) / side
    moves = np.linspace(0, 1, num_frames)[:, None] * np.array(pattern.drift)
    return np.stack([_lattice(pattern, x - dx, y - dy) for dx, dy in moves])


def object_shade(
    item: SceneObject, center: np.ndarray, diameter: float, angle: float, height: int, width: int
) -> Float[np.ndarray, "h w"]:
    """Return the relative brightness of the textured object at every pixel; center (x, y) and diameter in pixels."""
    if item.texture is None:
        return np.ones((height, width))
    # Coordinates of the object: frame sides from the centroid, at the nominal size, before it turns.
    x, y = np.arange(width) + 0.5 - center[0], np.arange(height)[:, None] + 0.5 - center[1]
    unit = SIZES[item.size] / diameter
    cosine, sine = np.cos(angle), np.sin(angle)
    wave = _lattice(item.texture, (x * cosine + y * sine) * unit, (y * cosine - x * sine) * unit)
    # Dots cover less than half of the area; edges are a few pixels wide, so that a tokenizer can represent them.
    threshold = 0.0 if item.texture.kind == "striped" else 0.2
    return 1 - TEXTURE_SHADE * np.clip(0.5 + 1.5 * (wave - threshold), 0, 1)


def coverage(shape: str, center: np.ndarray, diameter: float, angle: float, height: int, width: int) -> np.ndarray:
    """Return the fraction (H, W) of every pixel that the shape covers; center (x, y) and diameter in pixels."""
    profile = radial_profile(shape)
    reach = profile.max() * diameter / 2 + 1
    box = np.zeros((height, width))
    x0, x1 = max(int(center[0] - reach), 0), min(int(center[0] + reach) + 2, width)
    y0, y1 = max(int(center[1] - reach), 0), min(int(center[1] + reach) + 2, height)
    if x0 >= x1 or y0 >= y1:
        return box
    offsets = (np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    x = (np.arange(x0, x1)[:, None] + offsets).ravel() - center[0]
    y = (np.arange(y0, y1)[:, None] + offsets).ravel() - center[1]
    turned = np.arctan2(y[:, None], x) - angle
    edge = profile[np.round(turned * (PROFILE_ANGLES / (2 * np.pi))).astype(np.int32) % PROFILE_ANGLES]
    inside = np.hypot(y[:, None], x) < edge * (diameter / 2)
    box[y0:y1, x0:x1] = inside.reshape(y1 - y0, SUPERSAMPLING, x1 - x0, SUPERSAMPLING).mean(axis=(1, 3))
    return box


def inside(
    shape: str, center: np.ndarray, diameter: float, angle: float, points: Float[np.ndarray, "*n 2"]
) -> Bool[np.ndarray, "*n"]:
    """Return True for points (x, y) inside the outline; all lengths in pixels."""
    x, y = points[..., 0] - center[0], points[..., 1] - center[1]
    turn = (np.arctan2(y, x) - angle) * (PROFILE_ANGLES / (2 * np.pi))
    return np.hypot(y, x) < radial_profile(shape)[np.round(turn).astype(np.int32) % PROFILE_ANGLES] * (diameter / 2)


def check_size(num_frames: int, height: int, width: int) -> None:
    """Check that shapes can be told apart at a size.

    Raises:
      UserError: `num_frames` is not positive or a side is under 16 pixels.
    """
    if num_frames < 1 or min(height, width) < 16:
        raise UserError(f"cannot render {num_frames} frames of {height}x{width}; use at least 1 frame of 16x16 pixels")


def render(scene: Scene, *, num_frames: int = 8, height: int = 64, width: int = 64) -> Frames:
    """Render the scene; the same scene and size give the same bytes.

    Raises:
      UserError: `num_frames` is not positive or a side is under 16 pixels.
    """
    check_size(num_frames, height, width)
    frames = _backdrop(scene.background, num_frames, height, width)
    if scene.shadow is not None:
        frames *= 1 - (1 - SHADOW_SHADE) * shadows(scene, num_frames, height, width)[..., None]
    for item in painted(scene):
        color = np.array(COLORS[item.color], dtype=np.float64)
        for frame, pose in zip(frames, pixel_poses(item, num_frames, height, width), strict=True):
            alpha = coverage(item.shape, *pose, height, width)[..., None]
            shade = object_shade(item, *pose, height, width)[..., None]
            frame += alpha * (color * shade - frame)
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def painted(scene: Scene) -> list[SceneObject]:
    """Return the objects from back to front."""
    return sorted(scene.objects, key=lambda item: -item.depth)


def pixel_poses(item: SceneObject, num_frames: int, height: int, width: int) -> list[tuple[np.ndarray, float, float]]:
    """Return center (x, y) and diameter in pixels and clockwise angle in radians, per frame."""
    side = min(height, width)
    corner = np.array([width - side, height - side]) / 2
    centers, diameters, angles = poses(item, num_frames)
    return list(zip(corner + centers * side, diameters * side, angles, strict=True))


def shadows(scene: Scene, num_frames: int, height: int, width: int) -> Float[np.ndarray, "t h w"]:
    """Return the fraction of every pixel of the background that lies in shadow, as if no object hid it."""
    dark = np.zeros((num_frames, height, width))
    if scene.shadow is None:
        return dark
    move = np.array(scene.shadow) * min(height, width)
    for item in scene.objects:
        poses_by_frame = pixel_poses(item, num_frames, height, width)
        for frame, (center, diameter, angle) in zip(dark, poses_by_frame, strict=True):
            covered = coverage(item.shape, center + move, diameter, angle, height, width)
            np.maximum(frame, covered, out=frame)
    return dark
