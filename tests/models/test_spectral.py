"""Spectral layers: the learned transform, grids, and a demonstration that half of the keys do not suffice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.layers import spectral

GRID = (2, 3, 2)


def signal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax_attention(query, key, value, multiplicity=None):
    weights = np.exp(query @ key.T) * (1 if multiplicity is None else multiplicity)
    return weights @ value / weights.sum(-1, keepdims=True)


def test_learned_transform_contains_the_fixed_ones():
    """w = 1 is Re, w = 1 + i is Hartley, and a complex weight reaches the half that Re drops."""
    x = signal(1, 12, 5)
    weight = signal(2, 5, seed=1)
    one, both = np.stack([np.ones(5), np.zeros(5)]), np.ones((2, 5))
    learned = jax.jit(lambda w: spectral.weighted_transform(x, w, "filter", GRID))
    np.testing.assert_allclose(learned(one), spectral.transform(x, "re_fft2", GRID), atol=1e-5)
    np.testing.assert_allclose(learned(both), spectral.transform(x, "hartley", GRID), atol=1e-5)
    expected = ((weight[0] + 1j * weight[1]) * np.fft.fft2(x, norm="ortho")).real
    np.testing.assert_allclose(learned(weight), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["hartley3d", "seq_hartley", "none"])
def test_kinds_transform_the_axes_they_name(kind):
    x = signal(1, 12, 5)
    axes = {"hartley3d": (1, 2, 3, 4), "seq_hartley": (3,), "none": ()}[kind]
    shaped = x.reshape(1, *GRID, 5) if kind == "hartley3d" else x.reshape(1, 1, 1, 12, 5)
    spectrum = np.fft.fftn(shaped, axes=axes, norm="ortho")
    y = jax.jit(lambda a: spectral.transform(a, kind, GRID))(x)
    np.testing.assert_allclose(y, (spectrum.real - spectrum.imag).reshape(x.shape), atol=1e-5)


def test_half_of_the_keys_do_not_stand_for_all():
    """With the embedding axis transformed, keys u and -u differ, so counting half of them twice is wrong.

    With a real transform of the sequence alone they are equal, and the shortcut is exact.
    """
    x, kernels = signal(1, 8, 6), signal(3, 6, 6, seed=1)
    multiplicity = np.array([1, 2, 2, 2, 1])

    def error(y):
        query, key, value = (y @ kernel for kernel in kernels)
        shortcut = softmax_attention(query, key[:5], value[:5], multiplicity)
        return np.abs(shortcut - softmax_attention(query, key, value)).max()

    assert error(np.asarray(spectral.transform(x, "re_fft2", GRID))[0]) > 0.1
    assert error(np.fft.fft(x[0], axis=0, norm="ortho").real) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_paired_order_lists_each_bin_once(length):
    order = spectral.paired_order(length)
    positive, negative = order[: length // 2 + 1], order[length // 2 + 1 :]
    assert sorted(order) == list(range(length))
    np.testing.assert_array_equal((positive[1 : len(negative) + 1] + negative) % length, 0)


@pytest.mark.parametrize("kind", ["re_fft2", "hartley"])
def test_learned_weight_starts_near_the_fixed_transform(kind):
    layer = spectral.SpectralInput(("q",), 4, kind, GRID, True, jnp.dtype("float32"))
    params = jax.jit(layer.init)(jax.random.key(0), signal(1, 12, 200))["params"]
    real, imaginary = params["filter"]
    assert (real == 1).all()
    assert abs(float(imaginary.mean()) - (kind == "hartley")) < 0.01
    assert 0.015 < float(imaginary.std()) < 0.025
