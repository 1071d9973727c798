"""Weights of a whole network from one random draw.

XLA compiles a generator of its own for every call of `jax.random`; with one call per weight the start of the tiny
tokenizer compiled for 22 CPU seconds, with one call for all of them for 1.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Key

Result = TypeVar("Result")
Shape = tuple[int, ...]

_source: contextvars.ContextVar[Callable[[Shape], Array] | None] = contextvars.ContextVar("noise", default=None)


def fan_in_normal(key: Key[Array, ""], shape: Shape, dtype: DTypeLike = "float32") -> Array:
    """N(0, 1 / fan_in) with fan_in the product of all axes but the last, for dense and depthwise kernels alike."""
    draw = _source.get()
    noise = draw(shape) if draw else jax.random.normal(key, shape)
    return (noise * math.prod(shape[:-1]) ** -0.5).astype(dtype)


def centered_orthogonal(
    key: Key[Array, ""], shape: Shape, dtype: DTypeLike = "float32", *, causal: bool = False
) -> Array:
    """Orthogonal between channels at the tap of the present (causal: the last one in time), zero elsewhere.

    Keeps the variance (Xiao et al. 2018).

    For linear layers next to the latent: a random spatial kernel there is a blur that nothing afterwards renormalizes, and
    that the decoder first has to learn to undo.
    """
    rows, columns = shape[-2:]
    noise = fan_in_normal(key, (max(rows, columns), min(rows, columns)))
    basis = jnp.linalg.qr(noise)[0]
    matrix = basis if rows >= columns else basis.T * (columns / rows) ** 0.5
    time, *space = shape[:-2]
    tap = (time - 1 if causal else time // 2, *(size // 2 for size in space))
    return jnp.zeros(shape, dtype).at[tap].set(matrix.astype(dtype))


def from_one_draw(init: Callable[[Key[Array, ""]], Result], key: Key[Array, ""]) -> Result:
    """Returns `init(key)` where every `fan_in_normal` inside takes its part of one draw instead of its own.

    `init` is traced twice, first only to add up the sizes: it must ask for the same shapes in the same order, and not
    from inside a `jax.jit` of its own, whose trace would be reused.
    """
    sizes: list[int] = []

    def measure(shape: Shape) -> Array:
        sizes.append(math.prod(shape))
        return jnp.zeros(shape)

    with _drawing_from(measure):
        # A function of its own each time: `eval_shape` would not trace one that it has seen.
        jax.eval_shape(lambda key: init(key), key)
    pieces = iter(jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1]))
    with _drawing_from(lambda shape: next(pieces).reshape(shape)):
        return init(key)


@contextlib.contextmanager
def _drawing_from(source: Callable[[Shape], Array]) -> Iterator[None]:
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
