"""Products of many rows with one matrix, as every dense layer computes them."""

from typing import Any

import jax
from jaxtyping import Array

from motionaura_jax.ops.dispatch import on_cpu


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: Any = None,
) -> Array:
    """Compute `lax.dot_general`; on a CPU, the product of a batch of rows with a matrix has all rows in one axis.

    The values are the same.  The gradient of the matrix contracts the rows: over several axes at once XLA for CPUs would
    transpose one operand in memory and then multiply along its slow axis, which takes more than twice as long.  Rows that
    devices share along `sequence` stay as they are, because the joint axis could not be split.
    """
    ((left, right), batch), rows = dimension_numbers, lhs.shape[:-1]
    one_matrix = rhs.ndim == 2 and tuple(left) == (lhs.ndim - 1,) and tuple(right) == (0,) and not any(batch)
    tokens_are_whole = jax.sharding.get_abstract_mesh().shape.get("sequence", 1) == 1
    if not (one_matrix and len(rows) > 1 and on_cpu() and tokens_are_whole):
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type)
    flat = lhs.reshape(-1, lhs.shape[-1])
    product = jax.lax.dot_general(flat, rhs, (((1,), (0,)), ((), ())), precision, preferred_element_type)
    return product.reshape(*rows, rhs.shape[1])


def dense(x: Array, kernel: Array) -> Array:
    """Return x @ kernel for the last axis of `x`."""
    return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
