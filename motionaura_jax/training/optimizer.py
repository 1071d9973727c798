"""The optimizer of a recipe: schedule, clipping, weight-decay mask and parameter groups around those of optax."""

import re
from collections.abc import Callable, Mapping

import jax
import optax
import optax.contrib

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import OptimizerConfig, ParamGroup
from motionaura_jax.core.trees import path_name
from motionaura_jax.core.types import PyTree

# Layers stacked by a scan carry a leading axis, so that dimensions alone do not tell a gain from a matrix.
_NOT_DECAYED = frozenset({"bias", "scale", "gain", "table", "filter", "null", "codebook", "embedding", "relative_bias"})
_DEPTHWISE, _DENSE_CONVOLUTION = 4, 5  # axes of a kernel: time, height, width, and channels once or twice
_MUON_MOMENTUM, _MUON_RMS = 0.95, 0.2  # of the authors, and Liu et al. 2025 ("Muon is scalable"), equation 4


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate over the steps of a run: linear warm-up, then the decay named in the recipe."""
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


def build(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Optimizer over the parameters of a system.

    Raises:
      UserError: while tracing, when a group's pattern is no regular expression or matches nothing.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(_OPTIMIZERS[config.name](config, schedule(config, steps)))
    if config.groups:
        parts.append(_scale_groups(config.groups))
    return optax.chain(*parts)


def _adam(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(rate, b1=config.b1, b2=config.b2, mu_dtype=config.mu_dtype)


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    decay = config.weight_decay
    return optax.adamw(rate, config.b1, config.b2, weight_decay=decay, mask=_decayed, mu_dtype=config.mu_dtype)


def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """With updates as large as those of Adam, so that its learning rates serve (Zhai et al. 2021, section 3.4)."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        *([optax.ema(config.b1, accumulator_dtype=config.mu_dtype)] if config.b1 else []),
        optax.add_decayed_weights(config.weight_decay, _decayed),
        optax.scale_by_learning_rate(rate),
    )


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """With updates scaled to the root mean square of Adam's, so that one learning rate serves both of its halves."""
    return optax.contrib.muon(
        rate,
        beta=_MUON_MOMENTUM,
        weight_decay=config.weight_decay,
        mu_dtype=config.mu_dtype,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=_MUON_RMS,
    )


_OPTIMIZERS: Mapping[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adafactor": _adafactor,
    "muon": _muon,
}


def _decays(path: tuple, leaf: jax.Array) -> bool:
    return leaf.ndim >= 2 and path_name(path).rsplit("/", 1)[-1] not in _NOT_DECAYED


def _decayed(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(_decays, params)


def _matrices(params: PyTree) -> PyTree:
    """How Muon reads each weight as matrices: kernels of convolutions flat, stacked layers apart, all others not at all.

    Embeddings, vectors and depthwise kernels are no linear maps between features; they are left to AdamW.
    """

    def matrix(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if not _decays(path, leaf) or leaf.ndim == _DEPTHWISE:
            return None
        reduced = tuple(range(leaf.ndim - 1)) if leaf.ndim == _DENSE_CONVOLUTION else leaf.ndim - 2
        return optax.contrib.MuonDimensionNumbers(reduced, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)


def _scale_groups(groups: tuple[ParamGroup, ...]) -> optax.GradientTransformation:
    """Multiplies the updates of matching parameters; the first matching group counts."""

    def scales(tree: PyTree) -> PyTree:
        for group in groups:
            names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
            try:
                matched = any(re.search(group.pattern, name) for name in names)
            except re.error as error:
                raise UserError(
                    f"config.optimizer.groups: {group.pattern!r} is no regular expression: {error}"
                ) from None
            if not matched:
                raise UserError(f"config.optimizer.groups: {group.pattern!r} matches no parameter, e.g. {names[0]}")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: next((g.scale for g in groups if re.search(g.pattern, path_name(path))), 1.0), tree
        )

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        return jax.tree.map(lambda u, scale: u * scale, updates, scales(updates)), state

    def init(params: PyTree) -> optax.EmptyState:
        scales(params)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)
