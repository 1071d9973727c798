"""Linear maps into and out of a spectral domain.  MotionAura section 3.3, equations 2-5.

A transform is T(x) = Re(w * F x), with the unitary Fourier transform F over the axes of its kind and a weight w: 1 for
`re_fft2`, 1 + i for the Hartley kinds, learned for `filter` and for cross-attention.

Every layer exists in two forms that compute the same values.  `SpectralInput` and `SpectralOutput` apply T to activations.
`FoldedInput` and `FoldedOutput` exploit that the transform along the embedding is a matrix: it is multiplied into the kernels
once (`denoisers.fold`), and only the transform along the sequence remains.  Their rows are in `paired_order`.

On a mesh that splits tokens, per-token operations keep that split.  A transform along the sequence needs whole sequences, so
channels are split there instead, and heads in attention, with all-to-all exchanges in between.
"""

from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motionaura_jax.models.layers import lora
from motionaura_jax.models.layers.config import LoraConfig
from motionaura_jax.ops import fft
from motionaura_jax.ops.products import dense
from motionaura_jax.parallel import constraints

Grid = tuple[int, int, int]
Sequence = Float[Array, "b s d"]

_NO_ADAPTERS = LoraConfig()

FOLDED_KINDS = ("re_fft2", "hartley", "filter")
"""Kinds whose transform along the embedding folds into kernels; the others have none or need the (t, h, w) grid."""

_TILE = 8  # matrix products are fast at multiples of this width


def transform(x: Sequence, kind: str, grid: Grid) -> Sequence:
    """Apply the fixed transform T of `kind`; the orthogonal (Hartley) kinds are their own inverses.

    For `filter` this is the transform without the learned weight, Re(fft2).  Applied twice, Re(fft2) gives the point-even
    half (x[s, d] + x[-s, -d]) / 2.
    """
    if kind == "none":
        return x
    if kind in ("re_fft2", "filter"):
        return fft.re_fft2(x)
    if kind == "seq_hartley":
        real, imaginary = _seq_parts(x)
        return real - imaginary
    shape, axes = _domain(x, kind, grid)
    return fft.hartley_nd(x.reshape(shape), axes).reshape(x.shape)


def weighted_transform(x: Sequence, weight: Float[Array, "2 d"], kind: str, grid: Grid) -> Sequence:
    """Apply Re(w * F x), with w = weight[0] + i weight[1] per embedding frequency (per channel for `seq_hartley`)."""
    if kind == "seq_hartley":
        real, imaginary = _seq_parts(x)
    else:
        shape, axes = _domain(x, kind, grid)
        real, imaginary = fft.fft_parts(x.reshape(shape), axes)
    return (weight[0] * real - weight[1] * imaginary).reshape(x.shape).astype(x.dtype)


def initial_weight(kind: str) -> nn.initializers.Initializer:
    """Return an initializer: the fixed weight of `kind` plus noise of standard deviation 0.02 on the imaginary part."""
    imaginary = 1.0 if "hartley" in kind else 0.0

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        noise = 0.02 * jax.random.normal(key, shape[1:], dtype)
        return jnp.stack([jnp.ones(shape[1:], dtype), imaginary + noise])

    return init


def paired_order(length: int) -> np.ndarray:
    """Return the bins ordered 0, 1, ..., length // 2, -1, -2, ..., which puts n and -n in separate halves."""
    return np.concatenate([np.arange(length // 2 + 1), np.arange(length - 1, length // 2, -1)])


def folded_width(width: int) -> int:
    """Return the number of columns 0..width/2 that the folded `re_fft2` keeps, rounded up to whole tiles."""
    return -(-(width // 2 + 1) // _TILE) * _TILE


class SpectralInput(nn.Module):
    """Linear maps of T(x) to `features` channels, one for each of `names` (query, key, value), without biases.

    With `learned`, the weight of the transform is the parameter `filter`.  Adapters read T(x), like the kernels.
    """

    names: tuple[str, ...]
    features: int
    kind: str
    grid: Grid
    learned: bool
    dtype: jnp.dtype
    heads: int = 1
    lora: LoraConfig = _NO_ADAPTERS

    @nn.compact
    def __call__(self, x: Sequence) -> tuple[Float[Array, "b s n"], ...]:
        width = x.shape[-1]
        if self.learned:
            weight = self.param("filter", initial_weight(self.kind), (2, width))
            x = weighted_transform(x, weight, self.kind, self.grid)
        else:
            x = transform(x, self.kind, self.grid)
        return tuple(_together(_tokens_to_heads, [self._project(name, x) for name in self.names], self.heads))

    def _project(self, name: str, x: Sequence) -> Float[Array, "b s n"]:
        kernel = self.param(name, nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        projected = _dot(x, kernel, self.dtype)
        if self.lora.adapts(name):
            projected += lora.low_rank(self, f"{name}_", self.lora, x.astype(self.dtype), kernel)
        return projected


class SpectralOutput(nn.Module):
    """Projection of the attention output to `features` channels, and the transform back from the spectral domain."""

    features: int
    kind: str
    grid: Grid
    dtype: jnp.dtype
    heads: int = 1
    lora: LoraConfig = _NO_ADAPTERS

    @nn.compact
    def __call__(self, x: Float[Array, "b s n"]) -> Sequence:
        kernel = self.param("o", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        x = _heads_to_tokens(x, self.heads)
        projected = _dot(x, kernel, self.dtype)
        if self.lora.adapts("o"):
            projected += lora.low_rank(self, "o_", self.lora, x.astype(self.dtype), kernel)
        return transform(projected, self.kind, self.grid)


class FoldedInput(nn.Module):
    """`SpectralInput` with folded kernels: bins u and -u of a projection are re(u) E +- im(u) O.

    re and im are the parts of the transform of x along the sequence, shared by all `names`.  The transform is
    conjugate-symmetric, so bins 0..s/2 suffice.  The kernels E and O are the parameters NAME_even and NAME_odd.  With `half`
    (a transform of weight 1), columns 0..d/2 of the point-even half of x suffice, and E and O have half the rows.  The first
    map of an adapter is folded like the kernels.
    """

    names: tuple[str, ...]
    features: int
    half: bool
    dtype: jnp.dtype
    heads: int = 1
    lora: LoraConfig = _NO_ADAPTERS

    @nn.compact
    def __call__(self, x: Sequence) -> tuple[Float[Array, "b s n"], ...]:
        length, width = x.shape[1:]
        if self.half:
            # Keep the point-even half, (x[s, d] + x[-s, -d]) / 2; Re drops the other half.  `seq_mirror` needs whole sequences.
            width = folded_width(width)
            pairs = fft.column_pairs(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
            columns, opposite = _together(_tokens_to_channels, pairs, width)
            x = _fill(0.5 * (columns + fft.seq_mirror(opposite)), -1, width)
        else:
            x = _tokens_to_channels(x, width)
        parts = [part.astype(self.dtype) for part in fft.seq_rfft(x)]
        real, imaginary = _together(_channels_to_tokens, parts, width)
        bins = [part for name in self.names for part in self._adapted_pair(name, real, imaginary)]
        bins = _together(_tokens_to_heads, bins, self.heads)
        return tuple(self._in_order(*pair, length) for pair in zip(bins[::2], bins[1::2], strict=True))

    def _in_order(self, positive: Array, negative: Array, length: int) -> Float[Array, "b s n"]:
        """Join bins u and -u; bins 0 and s/2 are their own mirror images and appear once, among the positive ones."""
        return jnp.concatenate([positive[:, : length // 2 + 1], negative[:, 1 : (length + 1) // 2]], axis=1)

    def _adapted_pair(self, name: str, real: Array, imaginary: Array) -> list[Float[Array, "b u n"]]:
        pair = self._pair(name, real, imaginary, self.features)
        if self.lora.adapts(name):
            up = self.param(f"{name}_lora_up", nn.initializers.zeros, (self.lora.rank, self.features))
            products = self._pair(f"{name}_lora_down", real, imaginary, self.lora.rank)
            pair = [bins + lora.up_project(self.lora, part, up) for bins, part in zip(pair, products, strict=True)]
        return pair

    def _pair(self, name: str, real: Array, imaginary: Array, features: int) -> list[Float[Array, "b u n"]]:
        """Return bins u and -u of a projection."""
        init, shape = nn.initializers.lecun_normal(), (real.shape[-1], features)
        even, odd = (self.param(f"{name}_{part}", init, shape) for part in ("even", "odd"))
        a, b = _dot(real, even, self.dtype), _dot(imaginary, odd, self.dtype)
        return [a + b, a - b]


class FoldedOutput(nn.Module):
    """`SpectralOutput` with a folded kernel, from rows in `paired_order`.

    The real part of bin n depends on the sum of rows n and -n, the imaginary part on their difference.  With `half` the
    result is point-symmetric: columns 0..d/2 are computed and the others mirrored.  The second map of an adapter is folded
    like the kernel.
    """

    features: int
    half: bool
    dtype: jnp.dtype
    heads: int = 1
    lora: LoraConfig = _NO_ADAPTERS

    @nn.compact
    def __call__(self, x: Float[Array, "b s n"]) -> Sequence:
        length, width = x.shape[1], folded_width(self.features) if self.half else self.features
        products = self._products("o", x, width, self.heads)
        if self.lora.adapts("o"):
            down = self.param("o_lora_down", nn.initializers.lecun_normal(), (x.shape[-1], self.lora.rank))
            hidden = lora.activate(self.lora, _dot(x, down, self.dtype))
            adapters = self._products("o_lora_up", hidden, width, heads=1)
            products = [part + adapter for part, adapter in zip(products, adapters, strict=True)]
        real, imaginary = (part[:, : length // 2 + 1] for part in _together(_tokens_to_channels, products, width))
        columns, mirrored = _together(_channels_to_tokens, fft.seq_irfft(real, imaginary, length), width)
        return fft.join_columns(columns, mirrored, self.features) if self.half else columns

    def _products(self, name: str, x: Array, width: int, heads: int) -> list[Float[Array, "b u w"]]:
        """Return real and imaginary part of bins 0..s/2."""
        length, kept = x.shape[1], x.shape[1] // 2 + 1
        init, shape = nn.initializers.lecun_normal(), (x.shape[-1], width)
        even, odd = (self.param(f"{name}_{part}", init, shape) for part in ("even", "odd"))
        # Bins 0 and s/2 are their own mirror images: their sum is twice themselves, and `seq_irfft` ignores their difference.
        first, paired, middle = x[:, :1], x[:, 1 : (length + 1) // 2], x[:, (length + 1) // 2 : kept]
        sums = jnp.concatenate([2 * first, paired + x[:, kept:], 2 * middle], axis=1)
        differences = jnp.concatenate([first, paired - x[:, kept:], middle], axis=1)
        parts = _together(_heads_to_tokens, (sums, differences), heads)
        return [_dot(part, kernel, self.dtype) for part, kernel in zip(parts, (even, odd), strict=True)]


def _dot(x: Array, kernel: Array, dtype: jnp.dtype) -> Array:
    return dense(x.astype(dtype), kernel.astype(dtype))


def _seq_parts(x: Sequence) -> tuple[Sequence, Sequence]:
    """Return real and imaginary part of the transform along the sequence alone."""
    width = x.shape[-1]
    real, imaginary = _together(_channels_to_tokens, fft.fft_parts(_tokens_to_channels(x, width), (1,)), width)
    return real, imaginary


def _together(exchange: Callable[..., Array], parts: Iterable[Array], *arguments: int) -> list[Array]:
    """Exchange arrays of one shape; devices that split tokens do it in one all-to-all, because each has its latency."""
    parts = list(parts)
    if constraints.axis_size("sequence") == 1 or len(parts) == 1:
        return [exchange(part, *arguments) for part in parts]
    exchanged = jax.vmap(lambda part: exchange(part, *arguments))(jnp.stack(parts))
    # A split, unlike slices, has one concatenation as its gradient.
    return [part[0] for part in jax.lax.split(exchanged, [1] * len(parts))]


def _tokens_to_channels(x: Sequence, width: int) -> Sequence:
    """Split channels instead of tokens, after padding `width` channels or more with zeros until the devices divide them.

    These four exchanges also constrain their argument to its current split.  Otherwise the compiler moves the exchange to
    a place where it costs more.
    """
    devices = constraints.axis_size("sequence")
    return x if devices == 1 else constraints.channels(_fill(constraints.tokens(x), -1, -(-width // devices) * devices))


def _channels_to_tokens(x: Sequence, width: int) -> Sequence:
    """Split tokens or frequencies instead of channels, padded likewise; keep `width` channels."""
    devices = constraints.axis_size("sequence")
    return x if devices == 1 else constraints.tokens(_fill_rows(constraints.channels(x), devices))[..., :width]


def _tokens_to_heads(x: Sequence, heads: int) -> Sequence:
    """Split heads instead of tokens."""
    return constraints.heads(constraints.tokens(x, "tensor"), heads)


def _heads_to_tokens(x: Sequence, heads: int) -> Sequence:
    """Split tokens or frequencies instead of heads, padded likewise."""
    devices = constraints.axis_size("sequence")
    return constraints.tokens(_fill_rows(constraints.heads(x, heads), devices), "tensor")


def _fill_rows(x: Sequence, devices: int) -> Sequence:
    return _fill(x, 1, -(-x.shape[1] // devices) * devices)


def _fill(x: Sequence, axis: int, size: int) -> Sequence:
    """Append zeros along `axis` up to `size`."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, max(size - x.shape[axis], 0))
    return jnp.pad(x, padding)


def _domain(x: Sequence, kind: str, grid: Grid) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of x and the axes for the transform of `kind`; not for `seq_hartley`."""
    return ((x.shape[0], *grid, x.shape[-1]), (1, 2, 3, 4)) if kind == "hartley3d" else (x.shape, (1, 2))
