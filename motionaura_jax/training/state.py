"""The state of a run: everything that changes from step to step, in one pytree."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from motionaura_jax.core.trees import parted
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import rules
from motionaura_jax.parallel.config import shown
from motionaura_jax.systems.base import System

logger = logging.getLogger(__name__)


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
    opt_state = optimizer.init(parted(params, system.recipe.trained)[0])
    return TrainState(step=step, params=params, extra=extra, opt_state=opt_state, ema=ema, skipped=skipped)


def shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where an (abstract) state lies: parameters by `parallel.rules`, optimizer state and average beside them."""
    leaders = rules.place(state.params, mesh.shape)

    def follow(tree: PyTree) -> PyTree:
        return rules.shardings(tree, mesh, rules.follow(tree, leaders))

    everywhere: Any = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        step=everywhere,
        params=rules.shardings(state.params, mesh, leaders),
        extra=rules.shardings(state.extra, mesh),
        opt_state=follow(state.opt_state),
        ema=follow(state.ema),
        skipped=everywhere,
    )


def frozen_shardings(frozen: PyTree, mesh: Mesh) -> PyTree:
    """Where pretrained parts lie: by the same rules as parameters."""
    return rules.shardings(frozen, mesh)


def describe(name: str, state: TrainState, mesh: Mesh) -> None:
    """Logs the size of the state of system `name`, on what it lies, and what the mesh does not divide."""
    millions, device = parameter_count(state.params) / 1e6, mesh.devices.flat[0].device_kind
    logger.info("%s: %.2f M parameters on %d x %s (%s)", name, millions, mesh.size, device, shown(mesh.shape))
    for line in rules.report(rules.place(state.params, mesh.shape), mesh.shape):
        logger.warning("%s", line)


def abstract(system: System, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state of a run as shapes, dtypes and shardings; nothing is allocated."""
    shapes = jax.eval_shape(lambda: create(system, optimizer, system.recipe.seed))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings(shapes, mesh),
    )


def outline(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state, without its arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def restart(state: TrainState, params: PyTree, extra: PyTree) -> TrainState:
    """The same state with other parameters, from `System.prepare` or `init_from`, before step 0."""
    params, extra = jax.device_put(
        (params, extra), jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.extra))
    )
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, extra=extra, ema=ema)


def parameter_count(params: PyTree) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
