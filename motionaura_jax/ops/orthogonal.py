"""Orthogonalization of matrices by Newton-Schulz iterations, for the updates of Muon (Jordan et al. 2024).

Newton-Schulz multiplies X from the left by a polynomial of its Gram matrix A = X X^T, and the next Gram matrix is the same
polynomial applied to A twice: X <- P X, A <- P A P with P = a + b A + c A^2.  So all iterations can run on the small square
matrix, and X is read twice instead of ten times.  In exact arithmetic both forms are equal.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from motionaura_jax.ops.dispatch import on_cpu

STEPS = 5
_EPSILON = 1e-8
_LONG = 2  # aspect ratio from which the Gram form needs less arithmetic


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
