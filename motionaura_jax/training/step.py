"""One optimizer step: accumulated gradients, a guard against non-finite values, the average of the weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from motionaura_jax.core.trees import joined, parted
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import constraints
from motionaura_jax.systems.base import Batch, System
from motionaura_jax.training.state import TrainState

_NO_SAMPLE = 2**32 - 1  # the key of what belongs to the step, not to one of its samples

StepFunction = Callable[[TrainState, PyTree, Batch], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    system: System, optimizer: optax.GradientTransformation, shardings: TrainState | None = None
) -> StepFunction:
    """Returns the jitted step `(state, frozen, batch) -> (state, metrics)`; the state is donated.

    With `shardings` (see `state.shardings`) the state comes and goes as they say, gradients lie like the parameters and
    metrics on every device; trace it under `jax.set_mesh`.  The key of a step is `fold_in(seed, step)`, so a resumed run
    repeats it exactly.
    """
    train, seed, trained = system.recipe.train, system.recipe.seed, system.recipe.trained
    gradient = _gradient(system, None if shardings is None else shardings.params)

    def train_step(state: TrainState, frozen: PyTree, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, loss, stats, metrics = _accumulate(gradient, state, frozen, batch, key, train.accumulation)
        norm = optax.tree.norm(gradients)
        moving, _ = parted(state.params, trained)
        updates, opt_state = optimizer.update(gradients, state.opt_state, moving)
        params = joined(state.params, optax.apply_updates(moving, updates))
        params, extra, ema, advanced = _advance(system, state, params, stats, key)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        fresh = dataclasses.replace(state, params=params, extra=extra, opt_state=opt_state, ema=ema)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), fresh, state)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = {"loss": loss, "gradient_norm": norm, "skipped": skipped, **metrics, **advanced}
        return dataclasses.replace(kept, step=state.step + 1, skipped=skipped), metrics

    if shardings is None:
        return jax.jit(train_step, donate_argnums=0)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, None, None),
        out_shardings=(shardings, shardings.step),  # metrics, like the step, on every device
    )


def _gradient(system: System, places: PyTree | None) -> Callable[..., tuple[Any, PyTree]]:
    """`((loss, (stats, metrics)), gradients)` of the arguments of `system.loss`: of what trains, lying like `places`."""
    trained = system.recipe.trained

    def loss(moving: PyTree, fixed: PyTree, *arguments: Any) -> tuple[Any, PyTree]:
        return system.loss(joined(fixed, moving), *arguments)

    def gradient(params: PyTree, *arguments: Any) -> tuple[Any, PyTree]:
        value, gradients = jax.value_and_grad(loss, has_aux=True)(*parted(params, trained), *arguments)
        if places is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, parted(places, trained)[0])
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
    """Means of gradients, loss and metrics over `count` microbatches, and the stacked stats."""
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
    system: System, state: TrainState, params: PyTree, stats: PyTree, key: Key[Array, ""]
) -> tuple[PyTree, PyTree, PyTree, Mapping[str, Array]]:
    """Applies the system's own rules after the gradient step and follows with the average."""
    advanced, extra, metrics = system.advance(
        params, state.extra, stats, jax.random.fold_in(key, _NO_SAMPLE), state.step
    )
    if state.ema is None:
        return advanced, extra, None, metrics
    # A short memory at first, so that early evaluations do not show the initial weights.
    decay = jnp.minimum(system.recipe.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))

    def average(old: Array, stepped: Array, new: Array) -> Array:
        # What a rule replaced (a dead code) has no past worth averaging; what stays is the same to the bit.
        return jnp.where(new == stepped, old + (1.0 - decay) * (new - old), new)

    return advanced, extra, jax.tree.map(average, state.ema, params, advanced), metrics
