"""The optimizer of a recipe: optax behind clipping by group, with a schedule, a weight-decay mask and learning-rate scales."""

import dataclasses
import re
import types
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array

from motionaura_jax.core.recipe import OptimizerConfig, ParamGroup
from motionaura_jax.core.trees import path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.systems.base import System
from motionaura_jax.training.groups import Groups
from motionaura_jax.training.muon import muon

# The number of dimensions does not tell a vector from a matrix: layers stacked by a scan have one more leading axis.
_VECTORS = frozenset({"bias", "scale"})
_DEPTHWISE, _DENSE_CONVOLUTION = 4, 5  # axes of a kernel: time, height, width, then channels once or twice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Roles of weights in an optimizer; see `build`."""

    not_decayed: frozenset[str]
    matrices: Mapping[str, tuple[int, int]]

    def decayed(self, params: PyTree) -> PyTree:
        """Return True for each leaf to which weight decay applies."""

        def decays(path: tuple, leaf: jax.Array) -> bool:
            return leaf.ndim >= 2 and path_name(path).rsplit("/", 1)[-1] not in _VECTORS | self.not_decayed

        return jax.tree_util.tree_map_with_path(decays, params)

    def as_matrices(self, params: PyTree) -> PyTree:
        """Tell Muon which axes of each weight form a matrix: kernels of convolutions flattened, stacked layers one by one.

        Embeddings, vectors and depthwise kernels are not linear maps between features: None leaves them to AdamW.
        """

        def matrix(path: tuple, decays: bool, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            declared = next((axes for name, axes in self.matrices.items() if re.search(name, path_name(path))), None)
            if declared:
                inputs, outputs = declared
                axes = tuple(range(leaf.ndim - inputs - outputs, leaf.ndim))
                return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])
            if not decays or leaf.ndim == _DEPTHWISE:
                return None
            reduced = tuple(range(leaf.ndim - 1)) if leaf.ndim == _DENSE_CONVOLUTION else leaf.ndim - 2
            return optax.contrib.MuonDimensionNumbers(reduced, leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(matrix, self.decayed(params), params)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate over the steps of a run: linear warm-up, then the decay that the recipe names."""
    peak, end = config.learning_rate, config.learning_rate * config.final_scale
    after = max(1, steps - config.warmup_steps)
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, alpha=config.final_scale),
        "linear": lambda: optax.linear_schedule(peak, end, after),
        "constant": lambda: optax.constant_schedule(peak),
    }
    decay = decays[config.decay]()
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def of(system: System) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of a system's trained parameters, by its recipe and its own declarations."""
    recipe = system.recipe
    return build(recipe.optimizer, recipe.train.steps, system.param_groups(), system.not_decayed, system.matrices)


def build(
    config: OptimizerConfig,
    steps: int,
    declared: tuple[ParamGroup, ...] = (),
    not_decayed: frozenset[str] = frozenset(),
    matrices: Mapping[str, tuple[int, int]] = types.MappingProxyType({}),
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of the trained parameters; frozen ones are not shown to it.

    Args:
      steps: optimizer steps of the whole run.
      declared: groups of the system (`System.param_groups`), which follow those in `config`.
      not_decayed: names of matrix-shaped leaves without weight decay (`System.not_decayed`), besides vectors.
      matrices: axes of kernels with several input or output axes (`System.matrices`).
    """
    groups = Groups((*config.groups, *declared))
    parts = [_clip(config.clip_norm, groups)] if config.clip_norm else []
    weights = Weights(not_decayed=not_decayed, matrices=matrices)
    parts.append(_OPTIMIZERS[config.name](config, schedule(config, steps), weights))
    if any(group.scale not in (0, 1) for group in groups.groups):
        parts.append(_scale(groups))
    return optax.chain(*parts)


def _adam(config: OptimizerConfig, rate: optax.Schedule, weights: Weights) -> optax.GradientTransformation:
    return optax.adam(rate, b1=config.b1, b2=config.b2, mu_dtype=config.mu_dtype)


def _adamw(config: OptimizerConfig, rate: optax.Schedule, weights: Weights) -> optax.GradientTransformation:
    decay = config.weight_decay
    return optax.adamw(rate, config.b1, config.b2, weight_decay=decay, mask=weights.decayed, mu_dtype=config.mu_dtype)


def _adafactor(config: OptimizerConfig, rate: optax.Schedule, weights: Weights) -> optax.GradientTransformation:
    """Scale the updates to the size of Adam's, so that Adam's learning rates apply (Zhai et al. 2021, section 3.4)."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        *([optax.ema(config.b1, accumulator_dtype=config.mu_dtype)] if config.b1 else []),
        optax.add_decayed_weights(config.weight_decay, weights.decayed),
        optax.scale_by_learning_rate(rate),
    )


def _muon(config: OptimizerConfig, rate: optax.Schedule, weights: Weights) -> optax.GradientTransformation:
    return muon(
        rate,
        weights.as_matrices,
        weight_decay=config.weight_decay,
        b1=config.b1,
        b2=config.b2,
        mu_dtype=config.mu_dtype,
    )


_OPTIMIZERS: Mapping[str, Callable[[OptimizerConfig, optax.Schedule, Weights], optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adafactor": _adafactor,
    "muon": _muon,
}


def _clip(max_norm: float, groups: Groups) -> optax.GradientTransformation:
    """Clip each clipping group by its own global norm."""

    def clip(updates: PyTree, params: PyTree = None) -> PyTree:
        """Scale down each leaf whose clipping group exceeds `max_norm`."""
        norms = groups.norms(updates)

        def one(path: tuple, leaf: Array) -> Array:
            norm = norms[groups.find(path_name(path)).clip]
            # The order of operations is that of `optax.clip_by_global_norm`.
            return jnp.where(norm < max_norm, leaf, (leaf / norm.astype(leaf.dtype)) * max_norm)

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(clip)


def _scale(groups: Groups) -> optax.GradientTransformation:
    """Multiply updates, weight decay included, by the scale of their group."""

    def scale(updates: PyTree, params: PyTree = None) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, u: u * groups.find(path_name(path)).scale, updates)

    return optax.stateless(scale)
