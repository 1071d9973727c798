"""One optimizer step: accumulated gradients, a guard against non-finite values, the running average of the weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from motionaura_jax.core.trees import merge
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import constraints
from motionaura_jax.parallel.mesh import batch_shards
from motionaura_jax.systems.base import Batch, System
from motionaura_jax.training.groups import Groups, global_norm
from motionaura_jax.training.groups import metrics as group_metrics
from motionaura_jax.training.state import TrainState

_NO_SAMPLE = 2**32 - 1  # folded into the key for randomness of the whole step instead of one sample

StepFunction = Callable[[TrainState, PyTree, Batch], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    system: System, optimizer: optax.GradientTransformation, shardings: TrainState | None = None
) -> StepFunction:
    """Return the jitted step `(state, frozen, batch) -> (state, metrics)`; it donates the state.

    The key of a step is `fold_in(seed, step)`, so that a resumed run repeats it exactly.

    Args:
      shardings: of the state (see `state.shardings`), before and after the step. Gradients follow the parameters, metrics
        are replicated. Trace the step under `jax.set_mesh`.
    """
    train, seed, groups = system.recipe.train, system.recipe.seed, Groups.of(system)
    gradient = _gradient(system, groups, None if shardings is None else shardings.params)

    def train_step(state: TrainState, frozen: PyTree, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Take one optimizer step, or keep the old state if the loss or a gradient is not finite."""
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        count = train.microbatches(len(batch["sample"]) // batch_shards(jax.sharding.get_abstract_mesh()))
        gradients, loss, stats, metrics = _accumulate(gradient, state, frozen, batch, key, count)
        norm, norms = global_norm(gradients), groups.norms(gradients)
        moving, fixed = groups.partition(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, moving)
        stepped = merge(fixed, optax.apply_updates(moving, updates))
        params, extra, ema, advanced = _advance(system, groups, state, stepped, stats, key)
        fresh = dataclasses.replace(state, params=params, extra=extra, opt_state=opt_state, ema=ema)
        # Keep the old state if anything is not finite; the norm covers every clipping group.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), fresh, state)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = {"loss": loss, "gradient_norm": norm, **group_metrics(norms), "skipped": skipped, **metrics}
        return dataclasses.replace(kept, step=state.step + 1, skipped=skipped), {**metrics, **advanced}

    if shardings is None:
        return jax.jit(train_step, donate_argnums=0)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, None, None),
        out_shardings=(shardings, shardings.step),  # metrics are replicated, like the step
    )


def _gradient(system: System, groups: Groups, places: PyTree | None) -> Callable[..., tuple[Any, PyTree]]:
    """Return a function from the arguments of `system.loss` to `((loss, (stats, metrics)), gradients)`.

    Frozen parameters are constants of the differentiated function: no part of the backward pass is spent on them alone.
    """

    def loss(moving: PyTree, fixed: PyTree, *arguments: Any) -> tuple[Any, PyTree]:
        return system.loss(merge(fixed, moving), *arguments)

    def gradient(params: PyTree, *arguments: Any) -> tuple[Any, PyTree]:
        value, gradients = jax.value_and_grad(loss, has_aux=True)(*groups.partition(params), *arguments)
        if places is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, groups.partition(places)[0])
        return value, gradients

    return gradient


def _accumulate(
    gradient: Callable[..., tuple[Any, PyTree]],
    state: TrainState,
    frozen: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    count: int,
) -> tuple[PyTree, Float[Array, ""], PyTree, Mapping[str, Any]]:
    """Average gradients, loss and metrics over `count` microbatches; stack their stats along a new leading axis."""
    micro = constraints.microbatches(dict(batch), count)

    def one(total: PyTree, part: Batch) -> tuple[PyTree, PyTree]:
        (loss, (stats, metrics)), grads = gradient(state.params, state.extra, frozen, part, key, state.step)
        return jax.tree.map(jnp.add, total, (grads, loss, metrics)), stats

    first = jax.tree.map(lambda leaf: leaf[0], micro)
    if count == 1:
        (loss, (stats, metrics)), grads = gradient(state.params, state.extra, frozen, first, key, state.step)
        return grads, loss, jax.tree.map(lambda leaf: leaf[None], stats), metrics
    (loss, (_, metrics)), grads = jax.eval_shape(gradient, state.params, state.extra, frozen, first, key, state.step)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (grads, loss, metrics))
    total, stats = jax.lax.scan(one, zero, micro)
    grads, loss, metrics = jax.tree.map(lambda leaf: leaf / count, total)
    return grads, loss, stats, metrics


def _advance(
    system: System, groups: Groups, state: TrainState, stepped: PyTree, stats: PyTree, key: Key[Array, ""]
) -> tuple[PyTree, PyTree, PyTree, Mapping[str, Array]]:
    """Apply the rules of the system to the parameters after the gradient step, then update the average.

    Returns:
      `params`, `extra`, `ema` and metrics.
    """
    advanced, extra, metrics = system.advance(
        stepped, state.extra, stats, jax.random.fold_in(key, _NO_SAMPLE), state.step
    )
    # Rules may replace parameters (a dead code), but not frozen ones.
    params = merge(groups.partition(stepped)[1], groups.partition(advanced)[0])
    if state.ema is None:
        return params, extra, None, metrics
    # Keep a short memory at first, so that early evaluations do not show the initial weights.
    decay = jnp.minimum(system.recipe.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))

    def average(old: Array, before: Array, new: Array) -> Array:
        # A value that a rule replaced has no past worth averaging and enters at once. Elsewhere `new == before` exactly.
        return jnp.where(new == before, old + (1.0 - decay) * (new - old), new)

    ema = jax.tree.map(average, state.ema, groups.averaged(stepped), groups.averaged(params))
    return params, extra, ema, metrics
