"""Weight initializers, and initialization of a whole network from one call of the random generator.

XLA compiles a separate generator for every call of `jax.random`.  With one call per weight, `init` of the tiny tokenizer took
22 CPU seconds to compile; with a single call it takes 1.
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
    """Sample N(0, 1 / fan_in); fan_in is the product of all axes but the last, for dense and depthwise kernels alike."""
    draw = _source.get()
    noise = draw(shape) if draw else jax.random.normal(key, shape)
    return (noise * math.prod(shape[:-1]) ** -0.5).astype(dtype)


def centered_orthogonal(
    key: Key[Array, ""], shape: Shape, dtype: DTypeLike = "float32", *, causal: bool = False
) -> Array:
    """Return a kernel that is orthogonal between channels at its center tap, and zero at the others (Xiao et al. 2018).

    A causal kernel has its center at the last tap in time.  The kernel preserves the variance of activations.  Linear layers
    next to the latent need it: a random spatial kernel blurs, no norm follows, and the decoder would have to undo the blur.
    """
    rows, columns = shape[-2:]
    noise = fan_in_normal(key, (max(rows, columns), min(rows, columns)))
    basis = jnp.linalg.qr(noise)[0]
    matrix = basis if rows >= columns else basis.T * (columns / rows) ** 0.5
    time, *space = shape[:-2]
    tap = (time - 1 if causal else time // 2, *(size // 2 for size in space))
    return jnp.zeros(shape, dtype).at[tap].set(matrix.astype(dtype))


def from_one_draw(init: Callable[[Key[Array, ""]], Result], key: Key[Array, ""]) -> Result:
    """Run `init(key)` so that every `fan_in_normal` in it takes a slice of one noise array.

    `init` is traced twice, the first time to add up the sizes.  It must request the same shapes in the same order both
    times, and not inside its own `jax.jit`, which would reuse the first trace.  Inside `shapes_only`, one trace is enough.
    """
    if _source.get() is jnp.zeros:
        return init(key)
    sizes: list[int] = []

    def measure(shape: Shape) -> Array:
        sizes.append(math.prod(shape))
        return jnp.zeros(shape)

    with _drawing_from(measure):
        # Use a new lambda each time: `eval_shape` caches traces by function.
        jax.eval_shape(lambda key: init(key), key)
    pieces = iter(jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1]))
    with _drawing_from(lambda shape: next(pieces).reshape(shape)):
        return init(key)


def shapes_only() -> contextlib.AbstractContextManager[None]:
    """Return a context in which weights are zeros, for `jax.eval_shape` of an `init`: tracing the noise takes seconds."""
    return _drawing_from(jnp.zeros)


@contextlib.contextmanager
def _drawing_from(source: Callable[[Shape], Array]) -> Iterator[None]:
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
