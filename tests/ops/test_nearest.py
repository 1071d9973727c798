"""Nearest codes against float64 distances, with ties, odd sizes and a memory limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.ops.nearest import nearest_code


def reference(z, codebook):
    return np.square(z[:, None] - codebook[None]).sum(-1).argmin(-1)


def draw(count, size, dim, seed=0):
    """Return small integers: every distance is exact, and many are equal."""
    random = np.random.default_rng(seed)
    return random.integers(-2, 3, (count, dim)).astype(float), random.integers(-2, 3, (size, dim)).astype(float)


@pytest.mark.parametrize("impl", ["blocks", "argmin"])
@pytest.mark.parametrize(("count", "size", "dim", "chunk"), [(37, 300, 3, 8), (5, 256, 2, None), (16, 7, 1, 16)])
def test_ties_give_the_lowest_index(count, size, dim, chunk, impl):
    z, codebook = draw(count, size, dim)
    found = nearest_code(jnp.float32(z), jnp.float32(codebook), chunk=chunk, impl=impl)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, reference(z, codebook))


@settings(max_examples=5)
@given(count=st.integers(1, 20), size=st.integers(1, 400), dim=st.integers(1, 4), chunk=st.integers(1, 30))
def test_any_size(count, size, dim, chunk):
    z, codebook = draw(count, size, dim, seed=count)
    found = nearest_code(jnp.float32(z), jnp.float32(codebook), chunk=chunk)
    np.testing.assert_array_equal(found, reference(z, codebook))


def test_matches_float64_on_random_vectors():
    random = np.random.default_rng(0)
    z, codebook = random.normal(size=(100, 16)), random.normal(size=(1000, 16))
    np.testing.assert_array_equal(nearest_code(jnp.float32(z), jnp.float32(codebook)), reference(z, codebook))


def test_bf16_vectors_are_compared_in_fp32():
    random = np.random.default_rng(0)
    z = jnp.asarray(random.normal(size=(50, 8)), jnp.bfloat16)
    codebook = random.normal(size=(500, 8))
    expected = reference(np.asarray(z, np.float64), codebook)
    np.testing.assert_array_equal(nearest_code(z, jnp.float32(codebook)), expected)


def test_every_index_is_a_code_even_for_bad_vectors():
    z = jnp.array([[jnp.nan, 0.0], [jnp.inf, jnp.inf], [-jnp.inf, 1.0]])
    found = nearest_code(z, jnp.ones((130, 2)))
    assert bool(jnp.all((found >= 0) & (found < 130)))


def test_carries_no_gradient():
    z, codebook = (jnp.float32(value) for value in draw(6, 9, 2))
    # The selected codes depend on the codebook only through the look-up.
    gradient = jax.grad(lambda codebook: codebook[nearest_code(z, codebook)].sum())(codebook)
    counts = np.bincount(reference(np.asarray(z), np.asarray(codebook)), minlength=9)
    np.testing.assert_array_equal(gradient, np.repeat(counts[:, None], 2, axis=1))


def test_vmap():
    pairs = [draw(9, 150, 3, seed) for seed in range(2)]
    z, codebook = (jnp.float32(np.stack(parts)) for parts in zip(*pairs, strict=True))
    expected = np.stack([reference(*pair) for pair in pairs])
    np.testing.assert_array_equal(jax.vmap(nearest_code)(z, codebook), expected)


def test_never_holds_all_distances():
    """262,144 vectors among 16,384 codes: all scores would be 16 GiB."""
    arguments = (jax.ShapeDtypeStruct((262_144, 32), jnp.float32), jax.ShapeDtypeStruct((16_384, 32), jnp.float32))
    memory = jax.jit(nearest_code, static_argnames="chunk").lower(*arguments, chunk=256).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 128 * 2**20


def test_faults_are_named():
    z, codebook = jnp.zeros((3, 2)), jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="chunk is 0"):
        nearest_code(z, codebook, chunk=0)
    with pytest.raises(UserError, match="nearest impl: unknown value 'block'"):
        nearest_code(z, codebook, impl="block")
