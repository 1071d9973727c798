"""Perceptual features against torch-free references: a hand-written convolution, and the published weights if present."""

import jax
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.features import perceptual


@pytest.fixture
def weights_file(tmp_path):
    """Write random weights with a quarter of the published channels."""
    rng, arrays, channels = np.random.default_rng(0), {}, 16
    sizes = {2: (4, 16), 3: (4, 16), 4: (8, 32), 5: (8, 32), 6: (12, 48), 7: (12, 48), 8: (16, 64), 9: (16, 64)}
    layers = {"conv1": (3, 3, 3, 16)}
    for number, (narrow, wide) in sizes.items():
        layers[f"fire{number}/squeeze1x1"] = (1, 1, channels, narrow)
        layers[f"fire{number}/expand1x1"] = (1, 1, narrow, wide)
        layers[f"fire{number}/expand3x3"] = (3, 3, narrow, wide)
        channels = 2 * wide
    for name, shape in layers.items():
        arrays[f"{name}/kernel"] = rng.normal(0, np.prod(shape[:3]) ** -0.5, shape).astype(np.float32)
        arrays[f"{name}/bias"] = rng.normal(0, 0.1, shape[-1]).astype(np.float32)
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays)
    return path


def test_the_first_layer_by_hand(weights_file):
    weights = perceptual.load_squeezenet(weights_file)
    image = np.random.default_rng(1).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    first = np.asarray(next(iter(perceptual.squeezenet_features(weights, image))))
    pixels = (image[0, ..., ::-1] * 0.5 + 0.5) * 255 - np.array([103.939, 116.779, 123.68])
    kernel, bias = (np.asarray(weights["conv1"][part], np.float64) for part in ("kernel", "bias"))
    patch = pixels[4:7, 8:11]  # output (2, 4) at stride 2 without padding
    expected = np.maximum(np.einsum("hwc,hwcf->f", patch, kernel) + bias, 0)
    assert first.shape == (1, 15, 15, 16)
    np.testing.assert_allclose(first[0, 2, 4], expected, rtol=1e-4, atol=1e-3)


def test_a_distance_is_zero_for_equal_videos_symmetric_and_differentiable(weights_file):
    weights = perceptual.load_squeezenet(weights_file)
    a, b = np.random.default_rng(2).uniform(-1, 1, (2, 2, 3, 32, 32, 3)).astype(np.float32)
    distance = jax.jit(perceptual.SQUEEZENET.distance)
    np.testing.assert_allclose(distance(weights, a, a), 0.0, atol=1e-6)
    np.testing.assert_allclose(distance(weights, a, b), distance(weights, b, a), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: perceptual.SQUEEZENET.distance(weights, x, b).sum()))(a)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_more_noise_is_further_away_with_the_published_weights(data_root):
    file = data_root and data_root / "weights" / "squeezenet" / "squeezenet_v1.1_imagenet_notop.npz"
    if not file or not file.exists():
        return  # a checkout without the sample data; the synthetic weights above cover the code
    weights = perceptual.load_squeezenet(file)
    rng = np.random.default_rng(3)
    smooth = np.kron(rng.uniform(-1, 1, (1, 1, 4, 4, 3)), np.ones((1, 1, 16, 16, 1))).astype(np.float32)
    noise = rng.normal(size=smooth.shape).astype(np.float32)
    near, far = (float(perceptual.SQUEEZENET.distance(weights, smooth, smooth + s * noise)[0]) for s in (0.02, 0.3))
    assert 0 < near < 0.5 * far


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_file_that_is_no_weights_is_one_line(tmp_path, content):
    path = tmp_path / "weights.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.npz: cannot be read as SqueezeNet weights"):
        perceptual.load_squeezenet(path)


def test_missing_layers_are_named(tmp_path):
    np.savez(tmp_path / "weights.npz", **{"conv1/kernel": np.zeros((3, 3, 3, 4), np.float32)})
    with pytest.raises(UserError, match="lacks conv1/bias"):
        perceptual.load_squeezenet(tmp_path / "weights.npz")
