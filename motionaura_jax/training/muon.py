"""Muon with a cheaper orthogonalization on CPUs (Jordan et al. 2024)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
import optax.contrib
from jaxtyping import Array

from motionaura_jax.core.types import PyTree
from motionaura_jax.ops.orthogonal import orthogonalize

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MOMENTUM, _RMS = 0.95, 0.2  # Jordan et al. 2024; Liu et al. 2025 ("Muon is scalable"), equation 4

Numbers = Callable[[PyTree], PyTree]
"""Parameters to the axes of their matrices: input axes, then output axes, last; None for those that AdamW trains."""


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
