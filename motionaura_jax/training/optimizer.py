"""The optimizer of a recipe: schedule, clipping, weight-decay mask and parameter groups around optax."""

import re

import jax
import optax

from motionaura_jax.errors import UserError
from motionaura_jax.recipe import OptimizerConfig, ParamGroup
from motionaura_jax.trees import path_name
from motionaura_jax.types import PyTree

# Layers stacked by a scan carry a leading axis, so that dimensions alone do not tell a gain from a matrix.
_NOT_DECAYED = frozenset({"bias", "scale", "gain", "table", "filter", "null", "codebook"})


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
    rate = schedule(config, steps)
    decayed = config.weight_decay if config.name == "adamw" else 0.0
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=decayed, mask=_decayed))
    if config.groups:
        parts.append(_scale_groups(config.groups))
    return optax.chain(*parts)


def _decayed(params: PyTree) -> PyTree:
    def decays(path: tuple, leaf: jax.Array) -> bool:
        return leaf.ndim >= 2 and path_name(path).rsplit("/", 1)[-1] not in _NOT_DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


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
