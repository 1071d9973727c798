"""Transforms against numpy's float64 FFT and closed forms; the half that Re(fft2) drops; sharded batches need no collective."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from motionaura_jax.ops import fft

SIZES = [(6, 8), (7, 8), (6, 5), (9, 7)]


def signal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def point_even(x: np.ndarray) -> np.ndarray:
    """Return (x[s, d] + x[-s, -d]) / 2."""
    return 0.5 * (x + np.roll(x[:, ::-1, ::-1], (1, 1), (1, 2)))


@pytest.mark.parametrize("size", SIZES)
def test_transforms_equal_numpy(size):
    x = signal(2, *size)
    spectrum = np.fft.fft2(x.astype(np.float64), norm="ortho")

    @jax.jit
    def transforms(a):
        return fft.fft2(a), fft.re_fft2(a), *fft.fft_parts(a, (1, 2)), fft.hartley_nd(a, (1, 2)), *fft.dft(a, -1)

    expected = (
        spectrum,
        spectrum.real,
        spectrum.real,
        spectrum.imag,
        spectrum.real - spectrum.imag,
        np.fft.fft(x, norm="ortho").real,
        np.fft.fft(x, norm="ortho").imag,
    )
    for value, reference in zip(transforms(x), expected, strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("size", [(6, 8), (9, 7)])
@pytest.mark.parametrize("cpu", [True, False])
def test_transforms_of_weights_equal_numpy(size, axis, cpu, monkeypatch):
    """Whole, the half that a real weight needs, and of a complex weight."""
    monkeypatch.setattr(fft, "on_cpu", lambda: cpu)
    x, y = signal(3, *size), signal(3, *size)[::-1]
    expected = (np.fft.fft(a.astype(complex), axis=axis, norm="ortho") for a in (x, x + 1j * y))
    real, complex_ = expected
    kept = np.take(real, np.arange(x.shape[axis] // 2 + 1), axis)
    got = jax.jit(lambda x, y: (fft.dft(x, axis), fft.dft(x, axis, half=True), fft.dft(x, axis, y)))(x, y)
    for parts, spectrum in zip(got, (real, kept, complex_), strict=True):
        np.testing.assert_allclose(parts[0], spectrum.real, atol=1e-5)
        np.testing.assert_allclose(parts[1], spectrum.imag, atol=1e-5)


@pytest.mark.parametrize("axes", [(1,), (1, 2, 3), (1, 2, 3, 4)])
def test_hartley_is_its_own_inverse_and_keeps_energy(axes):
    x = signal(2, 2, 3, 4, 5)
    y, again = jax.jit(lambda a: (fft.hartley_nd(a, axes), fft.hartley_nd(fft.hartley_nd(a, axes), axes)))(x)
    spectrum = np.fft.fftn(x.astype(np.float64), axes=axes, norm="ortho")
    np.testing.assert_allclose(y, spectrum.real - spectrum.imag, atol=1e-5)
    np.testing.assert_allclose(again, x, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(y**2), np.sum(x**2), rtol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_gradient_of_a_symmetric_transform_is_the_transform(size):
    x, weight = signal(1, *size), signal(1, *size) ** 2

    @jax.jit
    def transforms(a):
        return fft.re_fft2(a), *fft.fft_parts(a, (1, 2))

    _, transpose = jax.vjp(transforms, x)
    for i, expected in enumerate(transforms(weight)):
        seeds = [weight if i == j else np.zeros_like(weight) for j in range(3)]
        np.testing.assert_allclose(transpose(tuple(seeds))[0], expected, atol=1e-5)


@pytest.mark.parametrize("length", [6, 7])
def test_sequence_transform_and_inverse(length):
    x = signal(2, length, 3)
    real, imaginary, back, mirrored = jax.jit(lambda a: (*fft.seq_rfft(a), *fft.seq_irfft(*fft.seq_rfft(a), length)))(x)
    spectrum = np.fft.rfft(x.astype(np.float64), axis=1, norm="ortho")
    np.testing.assert_allclose(real, spectrum.real, atol=1e-5)
    np.testing.assert_allclose(imaginary, spectrum.imag, atol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(mirrored, np.roll(x[:, ::-1], 1, axis=1), atol=1e-5)


def test_half_precision_is_computed_in_float32():
    x = jnp.asarray(signal(2, 6, 8), jnp.bfloat16)
    exact = jax.jit(fft.re_fft2)(x.astype(jnp.float32))
    real, parts = jax.jit(lambda a: (fft.re_fft2(a), fft.seq_rfft(a)))(x)
    assert real.dtype == parts[0].dtype == parts[1].dtype == jnp.bfloat16
    assert (real == exact.astype(jnp.bfloat16)).all()


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (5, 3)])
def test_real_part_loses_the_point_odd_half(size):
    """Rank s * d / 2 + 2 for even sizes, and twice the transform leaves the point-even half."""
    s, d = size
    x = signal(1, s, d)
    units = np.eye(s * d, dtype=np.float32).reshape(s * d, s, d)
    completed = lambda columns: fft.join_columns(columns, fft.seq_mirror(columns), d)  # noqa: E731
    matrix, twice, folded = jax.jit(
        lambda: (fft.re_fft2(units), fft.re_fft2(fft.re_fft2(x)), completed(fft.fold_columns(x)))
    )()
    own_mirror = (2 - s % 2) * (2 - d % 2)
    assert np.linalg.matrix_rank(matrix.reshape(s * d, s * d), tol=1e-4) == (s * d + own_mirror) // 2
    np.testing.assert_allclose(twice, point_even(x), atol=1e-5)
    np.testing.assert_allclose(folded, point_even(x), atol=1e-6)


def test_symmetry_is_joint():
    """Row -u is row u with its channels reversed, not a copy of it."""
    y = np.asarray(jax.jit(fft.re_fft2)(signal(1, 8, 6)))
    np.testing.assert_allclose(y, point_even(y), atol=1e-5)
    assert np.abs(y[:, 1:] - y[:, :0:-1]).max() > 0.5


SHARDED = """
import re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from motionaura_jax.ops import fft

def compiled(function, x, shape, names, spec):
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    sharding = NamedSharding(mesh, spec)
    with jax.set_mesh(mesh):
        program = jax.jit(function, in_shardings=sharding, out_shardings=sharding).lower(x).compile()
        np.testing.assert_allclose(program(jax.device_put(x, sharding)), jax.jit(function)(x), atol=1e-4)
    return re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", program.as_text())

def transforms(a):
    return fft.re_fft2(a) + fft.hartley_nd(a, (1, 2)) + along_sequence(a)

def along_sequence(a):
    sequence, mirrored = fft.seq_irfft(*fft.seq_rfft(a), 6)
    return sequence + 2 * mirrored

x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
assert compiled(transforms, x, (4,), ("data",), P("data")) == []
assert compiled(jax.grad(lambda a: jnp.sum(transforms(a) ** 2)), x, (2, 2), ("data", "fsdp"), P(("data", "fsdp"))) == []
assert compiled(along_sequence, x, (2, 2), ("data", "sequence"), P("data", None, "sequence")) == []
assert compiled(along_sequence, x[:1], (4,), ("data",), P(None, None, "data")) == []
assert "all-gather" in compiled(lambda a: jnp.fft.fft2(a).real, x, (4,), ("data",), P("data"))
"""


def test_sharded_batch_needs_no_collective(root):
    """With a plain `jnp.fft`, the last line, XLA gathers the batch; a batch of one is split by channels instead."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SHARDED]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_program_suits_the_devices_of_the_mesh_that_is_set(platform):
    """The complex layout that XLA on CPUs needs is an error on TPUs."""
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        program = str(jax.make_jaxpr(fft.re_fft2)(jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)))
    assert ("layout_constraint" in program) == (platform == "cpu")
