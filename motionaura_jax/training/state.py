"""The state of a run: everything that changes from step to step, in one pytree."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from motionaura_jax.systems.base import System
from motionaura_jax.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Parameters and everything that travels with them.

    Attributes:
      step: finished optimizer steps; also the position in the data.
      extra: state without a gradient (see `systems.base.System`).
      ema: running average of `params`, the weights used for inference; None when it is off.
      skipped: consecutive steps whose loss or gradient was not finite.
    """

    step: Int[Array, ""]
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    ema: PyTree
    skipped: Int[Array, ""]

    @property
    def inference_params(self) -> PyTree:
        """The averaged parameters where there are any."""
        return self.params if self.ema is None else self.ema


def create(system: System, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Initial state of a run; abstract-evaluable."""
    params, extra = system.init(jax.random.key(seed))
    ema = jax.tree.map(jnp.copy, params) if system.recipe.train.ema_decay else None
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # two buffers: a step donates both
    return TrainState(step=step, params=params, extra=extra, opt_state=optimizer.init(params), ema=ema, skipped=skipped)


def restart(state: TrainState, params: PyTree, extra: PyTree) -> TrainState:
    """The same state with other parameters, from `System.prepare` or `init_from`, before step 0."""
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, extra=extra, ema=ema)


def parameter_count(params: PyTree) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
