"""Arithmetic of a training step, counted on its trace, and the share of the hardware's peak that it reaches (MFU).

Model FLOPs are those that the mathematics needs: two per multiply-add of matrix products, convolutions and attention, and
5 n log2 n per Fourier transform or half of that per real one, times three if a gradient flows (Chowdhery et al. 2022,
appendix B).  Recomputation by remat and elementwise work do not count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from motionaura_jax.core.trees import leaf_types
from motionaura_jax.core.types import PyTree
from motionaura_jax.systems.base import Batch, System
from motionaura_jax.training.groups import Groups
from motionaura_jax.training.state import TrainState

# Dense bfloat16 (float16 before Ampere) FLOPs per second of one device, by prefix of its kind; from data sheets.
PEAK = {
    "NVIDIA V100": 125e12,
    "Tesla V100": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_BACKWARD = 2  # products of the backward pass per product of the forward pass


def peak(kind: str) -> float | None:
    """Return bfloat16 FLOPs per second of one device of this kind; None if unknown, e.g. a CPU."""
    names = [name for name in PEAK if kind.startswith(name)]
    return PEAK[max(names, key=len)] if names else None


class ModelFlops:
    """Counter of the model FLOPs of steps; each set of batch shapes is traced once.

    Args:
      state, frozen: arguments of the training step, or their shapes.
    """

    def __init__(self, system: System, state: TrainState, frozen: PyTree):
        self._system, self._counted = system, dict[tuple[Any, ...], float]()
        self._state, self._frozen = _shapes((state, frozen))  # keeps no array alive
        self._total, self._steps = 0.0, 0

    def add(self, batch: Batch) -> float:
        """Count a step on `batch` and return its FLOPs over all devices."""
        leaves, structure = jax.tree.flatten(dict(batch))
        shapes = (structure, *(leaf.shape for leaf in leaves))
        if shapes not in self._counted:
            self._counted[shapes] = model_flops(self._system, self._state, self._frozen, _shapes(dict(batch)))
        self._total, self._steps = self._total + self._counted[shapes], self._steps + 1
        return self._counted[shapes]

    def rates(self, steps_per_second: float) -> dict[str, float]:
        """Return mean `model_tflops` per step since the last call, `model_tflops_per_second` per device, and `mfu`.

        `mfu` is absent if the peak of the device is unknown.
        """
        step, (self._total, self._steps) = self._total / max(self._steps, 1), (0.0, 0)
        each = step * steps_per_second / jax.device_count()
        best = peak(jax.devices()[0].device_kind)
        rates = {"model_tflops": step / 1e12, "model_tflops_per_second": each / 1e12}
        return {**rates, "mfu": each / best} if best else rates


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def model_flops(system: System, state: TrainState, frozen: PyTree, batch: Batch) -> float:
    """Return the FLOPs of one step of `system` over all devices; the arguments may be abstract."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(system.loss)(state.params, state.extra, frozen, batch, key, state.step)
    learned = [Groups.of(system).is_trained(name) for name in leaf_types(state.params)]
    return step_flops(traced.jaxpr, [*learned, *[False] * (len(traced.in_avals) - len(learned))])


def step_flops(jaxpr: Any, learned: Sequence[bool]) -> float:
    """Return the FLOPs of a loss and of its gradient with respect to the inputs marked in `learned`."""
    return _walk(jaxpr, learned)[0]


def _walk(jaxpr: Any, learned: Sequence[bool]) -> tuple[float, list[bool]]:
    """Return the FLOPs, and for each output True if it depends on a learned input."""
    known = dict(zip(jaxpr.invars, learned, strict=True))

    def depends(atom: Any) -> bool:
        return not hasattr(atom, "val") and known.get(atom, False)

    total = 0.0
    for eqn in jaxpr.eqns:
        inputs = [depends(atom) for atom in eqn.invars]
        inner: Any = next((eqn.params[name] for name in _CALLS if name in eqn.params), None)
        inner = getattr(inner, "jaxpr", inner)
        plain_call = inner is not None and eqn.primitive.name not in ("scan", "shard_map")
        if plain_call and len(inner.invars) == len(inputs):
            count, outputs = _walk(inner, inputs)
        else:
            count = _forward(eqn) * (1 + _BACKWARD * any(inputs))
            outputs = [any(inputs) and eqn.primitive.name != "stop_gradient"] * len(eqn.outvars)
        total += count
        known.update(zip(eqn.outvars, outputs, strict=True))
    return total, [depends(atom) for atom in jaxpr.outvars]


def _forward(eqn: Any) -> float:
    """Return the FLOPs of one equation without any gradient."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (left, _), _ = params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in left)
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * depth
    if name == "conv_general_dilated":
        kernel, axes = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        # Each output uses the kernel once, without its axis of output channels; zeros between dilated inputs are free.
        taps = math.prod(kernel) / kernel[axes[0]] / math.prod(params["lhs_dilation"])
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * taps
    if name == "fft":
        numbers = max(math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars))
        real = "RFFT" in params["fft_type"].name
        return (2.5 if real else 5.0) * numbers * math.log2(max(math.prod(params["fft_lengths"]), 2))
    if name.startswith("dot_product_attention_fwd"):  # cuDNN's kernel, which has no program inside
        query, key = (variable.aval.shape for variable in eqn.invars[:2])
        keys = key[2 if params["layout"] else 1]  # batch, length, heads, width; or heads before length
        return 2 * 2.0 * math.prod(query) * keys
    times = {"scan": params.get("length", 1), "shard_map": getattr(params.get("mesh"), "size", 1)}.get(name, 1)
    branches = [sum(map(_forward, inner.eqns)) for inner in _inside(params)]
    return times * (max(branches, default=0.0) if name == "cond" else sum(branches))


def _inside(params: Mapping[str, Any]) -> list[Any]:
    """Return the programs inside an equation, except the rules of its gradient."""
    values = [value for name, value in params.items() if name in (*_CALLS, "branches", "body_jaxpr")]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [getattr(item, "jaxpr", item) for item in flat]
