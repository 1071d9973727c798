"""Muon with a cheaper orthogonalization on CPUs (Jordan et al. 2024).

Newton-Schulz multiplies X from the left by a polynomial of its Gram matrix A = X X^T, and the next Gram matrix is the same
polynomial applied to A twice: X <- P X, A <- P A P with P = a + b A + c A^2.  So all iterations can run on the small square
matrix, and X is read twice instead of ten times.  In exact arithmetic both forms are equal.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float

from motionaura_jax.core.types import PyTree
from motionaura_jax.ops.dispatch import on_cpu

STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPSILON = 1e-8
_LONG = 2  # aspect ratio from which the Gram form needs less arithmetic

_MOMENTUM, _RMS = 0.95, 0.2  # Jordan et al. 2024; Liu et al. 2025 ("Muon is scalable"), equation 4

Numbers = Callable[[PyTree], PyTree]
"""Parameters to the axes of their matrices: input axes, then output axes, last; None for those that AdamW trains."""


def gram_newton_schulz(
    x: Float[Array, "m n"], coefficients: Float[Array, "3"], steps: int = STEPS
) -> Float[Array, "m n"]:
    """Orthogonalize a matrix of Frobenius norm <= 1 with m <= n by iterating on its Gram matrix; fp32."""
    a, b, c = coefficients
    identity = jnp.eye(x.shape[0], dtype=x.dtype)
    gram, product = x @ x.T, identity
    for step in range(steps):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    return product @ x


def newton_schulz(x: Float[Array, "m n"], coefficients: Float[Array, "3"], steps: int = STEPS) -> Float[Array, "m n"]:
    """Orthogonalize a matrix of Frobenius norm <= 1 by the iteration as published."""
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def orthogonalize(x: Array, coefficients: Float[Array, "3"], inputs: int, outputs: int = 1) -> Float[Array, "..."]:
    """Orthogonalize the matrices in an array whose leading axes stack them.

    Args:
      inputs, outputs: number of axes that form the rows of a matrix, and of those after them that form its columns.

    Long float32 matrices on CPU take the Gram form.  Tensor cores round to fewer bits, and errors of the Gram matrix, unlike
    those of X, are not corrected by later iterations.
    """
    columns = math.prod(x.shape[x.ndim - outputs :])
    rows = math.prod(x.shape[x.ndim - outputs - inputs : x.ndim - outputs])
    long = max(rows, columns) >= _LONG * min(rows, columns)
    iterate = gram_newton_schulz if on_cpu() and long and x.dtype == jnp.float32 else newton_schulz

    def one(matrix: Array) -> Array:
        matrix = matrix / (jnp.linalg.norm(matrix) + _EPSILON)
        coefficient = coefficients.astype(x.dtype)
        return iterate(matrix, coefficient) if rows <= columns else iterate(matrix.T, coefficient).T

    return jax.vmap(one)(x.reshape(-1, rows, columns)).reshape(x.shape)


def muon(
    rate: optax.Schedule, numbers: Numbers, *, weight_decay: float, b1: float, b2: float, mu_dtype: Any = None
) -> optax.GradientTransformation:
    """Return `optax.contrib.muon`, with the same state, around `orthogonalize`.

    Updates are scaled to the root mean square of Adam's, so that both halves share one learning rate.
    """

    def labels(params: PyTree) -> PyTree:
        """Name the half that trains each parameter."""
        return jax.tree.map(lambda leaf, axes: "adam" if axes is None else "muon", params, numbers(params))

    decay = optax.add_decayed_weights(weight_decay)
    matrices = (_scale_by_muon(numbers, mu_dtype), _to_rms(numbers), decay, optax.scale_by_learning_rate(rate))
    rest = optax.adamw(rate, b1, b2, weight_decay=0.0, mu_dtype=mu_dtype, nesterov=True)
    return optax.partition({"muon": optax.chain(*matrices), "adam": rest}, labels)


def _scale_by_muon(numbers: Numbers, mu_dtype: Any) -> optax.GradientTransformation:
    """Take the momentum from optax, which without steps only divides it by its norm, and orthogonalize it."""
    momentum = optax.contrib.scale_by_muon(
        _COEFFICIENTS, ns_steps=0, beta=_MOMENTUM, mu_dtype=mu_dtype, weight_dimension_numbers=numbers
    )

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        axes = numbers(updates)
        updates, state = momentum.update(updates, state, params)

        def one(x: Array, axes: optax.contrib.MuonDimensionNumbers) -> Array:
            return orthogonalize(x, state.ns_coeffs, len(_tuple(axes.reduction_axis)), len(_tuple(axes.output_axis)))

        return jax.tree.map(one, updates, axes), state

    return optax.GradientTransformation(momentum.init, update)


def _to_rms(numbers: Numbers) -> optax.GradientTransformation:
    def scale(x: Array, axes: optax.contrib.MuonDimensionNumbers) -> Array:
        sides = (math.prod(x.shape[axis] for axis in _tuple(one)) for one in (axes.reduction_axis, axes.output_axis))
        return _RMS * max(sides) ** 0.5 * x

    return optax.stateless(lambda updates, params=None: jax.tree.map(scale, updates, numbers(updates)))


def _tuple(axes: Sequence[int] | int) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)
