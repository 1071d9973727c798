"""Unitary Fourier and Hartley transforms of real arrays.  MotionAura section 3.3.

This is the only module that calls `jnp.fft`.  XLA does not partition an FFT: under plain `jit` every device gathers a whole
sharded operand.  When a mesh is set, each transform here therefore runs in a `jax.shard_map` island, with the transformed
axes local and the others split.  Everything computes in float32 or wider and returns the dtype of its input.

`s` and `u` are positions and frequencies of the sequence, `d` those of the embedding.  Index -u means n - u (mod n).
"""

import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import layout
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Complex, Float

from motionaura_jax.ops.dispatch import on_cpu

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that prefer to split the first free axis of an activation; all others prefer the last (channels)."""

ACTIVATION_AXES = (*BATCH_AXES, "sequence")
WEIGHT_AXES = ("tensor", "fsdp", "sequence")
"""Mesh axes that split what is transformed; devices along the other axes transform copies."""

_LEADING = ("fsdp", "sequence")  # of those, the axes that prefer to split the first axis of a weight, its layers
_LINE = 16  # float32 numbers in a cache line of 64 bytes


def fft2(x: Float[Array, "b s d"]) -> Complex[Array, "b s d"]:
    """Return the whole complex transform over the last two axes: the reference of the fast forms."""
    return _island(lambda a: jnp.fft.fft2(a, norm="ortho"), "bsd", "bsd", "sd", _wide(x))


def dft(
    x: Float[Array, "..."], axis: int, imaginary: Float[Array, "..."] | None = None, *, half: bool = False
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return real and imaginary part of the transform of a weight along one axis, e.g. for `fold`.

    Args:
      x: the weight, or its real part.
      imaginary: its imaginary part.
      half: return frequencies 0..n/2 alone, which determine the others if the weight is real.
    """
    letters = string.ascii_lowercase[: x.ndim]

    def local(a: Array, *b: Array) -> tuple[Array, Array]:
        if on_cpu():
            return by_complex_transforms(a, *b)
        if b:
            spectrum = jnp.fft.fft(jax.lax.complex(a, *b), axis=axis, norm="ortho")
            return spectrum.real, spectrum.imag
        spectrum = jnp.fft.rfft(a, axis=axis, norm="ortho")
        return (spectrum.real, spectrum.imag) if half else _completed(spectrum, (axis % a.ndim,), a.shape[axis])

    def by_complex_transforms(a: Array, *b: Array) -> tuple[Array, Array]:
        """Transform each part on its own, twice the work: trained models keep the rounding that they had on CPUs."""
        spectrum, *others = (jnp.fft.fft(part, axis=axis, norm="ortho") for part in (a, *b))
        real, imag = spectrum.real, spectrum.imag
        for other in others:
            real, imag = real - other.imag, imag + other.real
        kept = a.shape[axis] // 2 + 1 if half else a.shape[axis]
        real, imag = (jax.lax.slice_in_dim(part, 0, kept, axis=axis) for part in (real, imag))
        return real, imag

    parts = [_wide(part) for part in (x, imaginary) if part is not None]
    return _island(local, letters, letters, letters[axis], *parts, over=WEIGHT_AXES, leading=_LEADING)


def split_as_dft(x: Array, axis: int) -> Array:
    """Split a value computed from the results of `dft` along `axis` as they are."""
    mesh = jax.sharding.get_abstract_mesh()
    if _is_whole(mesh):
        return x
    letters = string.ascii_lowercase[: x.ndim]
    free = {c: n for c, n in zip(letters, x.shape, strict=True) if c != letters[axis]}
    split = _assign({name: mesh.shape[name] for name in WEIGHT_AXES if name in mesh.shape}, free, _LEADING)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(split.get(c) or None for c in letters)))


def re_fft2(x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    """Return Re(fft2(x)) over the last two axes at a quarter of the work.

    Re drops the point-odd half (x[s, d] - x[-s, -d]) / 2.  Columns 0..d/2 of the point-even half determine the others; their
    transform over s is conjugate-symmetric in s, and each row of it has a real transform over d.
    """
    width = x.shape[-1]

    def local(a: Array) -> Array:
        """Transform the half that determines the rest, and mirror it."""
        columns = jnp.fft.rfft(fold_columns(a), axis=-2, norm="ortho")  # rows u = 0..s/2
        # A forward transform of conjugate-symmetric rows is real: the inverse real transform of their conjugate.
        rows = _by_rows(jnp.fft.irfft(columns.conj(), n=width, axis=-1, norm="ortho"))
        # The result is point-symmetric, so rows -u are rows u with the columns mirrored.
        reflected = mirror(rows, (-1,))[..., 1 : (a.shape[-2] + 1) // 2, :]
        return jnp.concatenate([rows, reflected[..., ::-1, :]], axis=-2)

    return _island(local, "bsd", "bsd", "sd", _wide(x)).astype(x.dtype)


def fft_parts(x: Float[Array, "b *grid d"], axes: Sequence[int]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the real and the imaginary part of the transform over `axes`, from half of the spectrum."""
    letters = string.ascii_lowercase[: x.ndim]
    axes = [axis % x.ndim for axis in axes]

    def local(a: Array) -> tuple[Array, Array]:
        """Transform half of the last axis, and complete it."""
        half = jnp.fft.rfftn(a, axes=axes, norm="ortho")
        half = _by_rows(half) if axes[-1] == a.ndim - 1 else half
        return _completed(half, axes, a.shape[axes[-1]])

    real, imaginary = _island(local, letters, letters, "".join(letters[axis] for axis in axes), _wide(x))
    return real.astype(x.dtype), imaginary.astype(x.dtype)


def _completed(half: Complex[Array, "..."], axes: Sequence[int], length: int) -> tuple[Array, Array]:
    """Return real and imaginary part of the whole spectrum of a real array.

    The spectrum is conjugate-symmetric: the missing bins of the last of `axes` are conjugates of mirrored ones.  `count` of
    them exist twice, all but frequency 0 and, for an even length, n/2.
    """
    count = length - half.shape[axes[-1]]
    others = jax.lax.slice_in_dim(mirror(half, axes[:-1]), 1, 1 + count, axis=axes[-1])
    others = jnp.flip(others, axes[-1])
    real = jnp.concatenate([half.real, others.real], axis=axes[-1])
    return real, jnp.concatenate([half.imag, -others.imag], axis=axes[-1])


def hartley_nd(x: Float[Array, "b *grid d"], axes: Sequence[int]) -> Float[Array, "b *grid d"]:
    """Return Re - Im of the transform over `axes`: orthogonal and its own inverse."""
    real, imaginary = fft_parts(x, axes)
    return real - imaginary


def seq_rfft(x: Float[Array, "b s c"]) -> tuple[Float[Array, "b u c"], Float[Array, "b u c"]]:
    """Return real and imaginary part of the transform over the sequence, u = 0..s/2."""

    def local(a: Array) -> tuple[Array, Array]:
        half = jnp.fft.rfft(_spread(a), axis=1, norm="ortho")[..., : a.shape[-1]]
        return half.real, half.imag

    real, imaginary = _island(local, "bsc", "buc", "su", _wide(x))
    return real.astype(x.dtype), imaginary.astype(x.dtype)


def seq_irfft(
    real: Float[Array, "b u c"], imaginary: Float[Array, "b u c"], length: int
) -> tuple[Float[Array, "b s c"], Float[Array, "b s c"]]:
    """Invert `seq_rfft` for a sequence of `length`; return that sequence and its mirror image, s -> -s.

    The imaginary part at frequencies 0 and s/2 has no effect.  The inverse is computed by a forward real transform of
    re(u) + im(u) at u and re(u) - im(u) at -u: real plus imaginary part of its result is token s, their difference token -s.
    On a CPU this takes half the time of the library's inverse, because the rows to be transposed afterwards have s/2 + 1
    numbers instead of a power of two.
    """
    paired = (length + 1) // 2

    def local(re: Array, im: Array) -> tuple[Array, Array]:
        plus, minus = (part[:, 1:paired] for part in (re + im, re - im))
        sequence = jnp.concatenate([re[:, :1], plus, re[:, paired:], minus[:, ::-1]], axis=1)
        half = jnp.fft.rfft(sequence, axis=1, norm="ortho")
        first, last = half.real + half.imag, half.real - half.imag
        return joined(first, last), joined(last, first)

    def joined(first: Array, last: Array) -> Array:
        return jnp.concatenate([first, last[:, 1:paired][:, ::-1]], axis=1)

    sequence, mirrored = _island(local, "buc", "bsc", "us", _wide(real), _wide(imaginary))
    return sequence.astype(real.dtype), mirrored.astype(real.dtype)


def mirror(x: Array, axes: Sequence[int]) -> Array:
    """Reverse indices, u -> -u mod n, along `axes`."""
    for axis in axes:
        first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
        rest = jax.lax.slice_in_dim(x, 1, None, axis=axis)
        x = jnp.concatenate([first, jnp.flip(rest, axis)], axis=axis)
    return x


def fold_columns(x: Float[Array, "b s d"]) -> Float[Array, "b s c"]:
    """Return columns 0..d/2 of the point-even half (x[s, d] + x[-s, -d]) / 2; the others are their reflection."""
    columns, opposite = column_pairs(x)
    return 0.5 * (columns + seq_mirror(opposite))


def column_pairs(x: Float[Array, "b s d"]) -> tuple[Float[Array, "b s c"], Float[Array, "b s c"]]:
    """Return the columns 0..d/2, and for each of them column -d."""
    kept = x.shape[-1] // 2 + 1
    return x[..., :kept], jnp.concatenate([x[..., :1], x[..., x.shape[-1] - kept + 1 :][..., ::-1]], axis=-1)


def join_columns(columns: Float[Array, "b s c"], mirrored: Float[Array, "b s c"], width: int) -> Float[Array, "b s d"]:
    """Complete the columns 0..width/2 of a point-symmetric array, given `seq_mirror` of them."""
    count = width - (width // 2 + 1)
    return jnp.concatenate([columns[..., : width // 2 + 1], mirrored[..., count:0:-1]], axis=-1)


def seq_mirror(x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    """Reverse the sequence, s -> -s."""
    return _island(lambda a: mirror(a, (-2,)), "bsc", "bsc", "s", x)


def _wide(x: Array) -> Array:
    """Cast to at least float32, because no backend has a general 16-bit FFT."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _spread(x: Float[Array, "b s c"]) -> Float[Array, "b s k"]:
    """Append a few columns on a CPU: rows a power of two apart would evict each other from the cache when transposed."""
    return jnp.concatenate([x, x[..., :_LINE]], axis=-1) if on_cpu() else x


def _by_rows(x: Array) -> Array:
    """Keep the last axis innermost in memory: in an island, XLA for CPUs may choose a layout that its FFT rejects."""
    on_island = AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types
    if not on_island or not on_cpu():
        return x
    return layout.with_layout_constraint(x, layout.Layout(tuple(range(x.ndim))))


def _island(
    function: Callable[..., Any],
    inputs: str,
    outputs: str,
    local: str,
    *arrays: Array,
    over: Sequence[str] = ACTIVATION_AXES,
    leading: Sequence[str] = BATCH_AXES,
) -> Any:
    """Apply `function` on each device to its part of the arrays.

    Args:
      inputs, outputs: one letter per axis; axes that are in both, and not in `local`, are split.
      local: axes that stay whole, because `function` transforms them.
      over: mesh axes that split the others.
      leading: those that split the first axis they divide; the others split the last.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if _is_whole(mesh):
        return function(*arrays)
    free = {c: n for c, n in zip(inputs, arrays[0].shape, strict=True) if c in outputs and c not in local}
    split = _assign({name: mesh.shape[name] for name in over if name in mesh.shape}, free, leading)

    def spec(letters: str) -> PartitionSpec:
        return PartitionSpec(*(split.get(c) or None for c in letters))

    return jax.shard_map(function, in_specs=spec(inputs), out_specs=spec(outputs))(*arrays)


def _is_whole(mesh: AbstractMesh) -> bool:
    """Return True if one device needs no island, or another island has given each device its part."""
    return math.prod(mesh.axis_sizes) == 1 or AxisType.Manual in mesh.axis_types


def _assign(mesh: Mapping[str, int], sizes: Mapping[str, int], leading: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give every mesh axis to the first array axis that it divides; along a mesh axis that divides none, work is repeated."""
    split: dict[str, tuple[str, ...]] = dict.fromkeys(sizes, ())
    shards = dict.fromkeys(sizes, 1)
    for name, devices in mesh.items():
        for letter in sizes if name in leading else reversed(list(sizes)):
            if sizes[letter] % (shards[letter] * devices) == 0:
                split[letter] += (name,)
                shards[letter] *= devices
                break
    return split
