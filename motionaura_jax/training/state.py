"""The state of a run: everything that changes from step to step, in one pytree."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from motionaura_jax.core import memory
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import merge, path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import rules
from motionaura_jax.parallel.config import shown
from motionaura_jax.systems.base import System
from motionaura_jax.training.groups import Groups

logger = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Parameters and everything that is updated together with them.

    Attributes:
      step: finished optimizer steps; also the position in the data.
      params: all parameters of the system, frozen ones included.
      extra: state without a gradient (see `systems.base.System`).
      opt_state: optimizer state of the trained parameters.
      ema: running average of the parameters that `Groups.averaged` selects; None if it is off.
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
        """Return the averaged parameters; parameters without an average keep their trained or frozen values."""
        return self.params if self.ema is None else merge(self.params, self.ema)


def create(system: System, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Create the initial state of a run; abstract-evaluable.

    Raises:
      UserError: `optimizer.groups` names no parameter, or freezes all of them.
    """
    params, extra = system.init(jax.random.key(seed))
    groups = Groups.of(system)
    groups.check(params, system.recipe.optimizer.groups)
    averaged = groups.averaged(params) if system.recipe.train.ema_decay else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=extra,
        opt_state=optimizer.init(groups.partition(params)[0]),
        ema=jax.tree.map(jnp.copy, averaged) or None,
        skipped=jnp.zeros((), jnp.int32),  # a second buffer: the step donates both
    )


def shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Return the sharding of each array of an (abstract) state.

    Parameters follow `parallel.rules`; optimizer state and average follow their parameters.
    """
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
    """Return the shardings of pretrained parts, by the same rules as those of parameters."""
    return rules.shardings(frozen, mesh)


def describe(system: System, state: TrainState, mesh: Mesh) -> None:
    """Log the number of parameters, the devices, and a warning for each mesh axis that does not divide them."""
    device = mesh.devices.flat[0].device_kind
    logger.info(
        "%s: %s on %d x %s (%s)",
        *(system.recipe.system, parameter_counts(system, state.params), mesh.size, device, shown(mesh.shape)),
    )
    for line in rules.report(rules.place(state.params, mesh.shape), mesh.shape):
        logger.warning("%s", line)


def abstract(system: System, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the shapes, dtypes and shardings of the state of a run; nothing is allocated."""
    shapes = jax.eval_shape(lambda: create(system, optimizer, system.recipe.seed))
    return placed(shapes, shardings(shapes, mesh))


def placed(tree: PyTree, places: PyTree) -> PyTree:
    """Return the shapes and dtypes of arrays with the shardings `places`."""
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)


def device_bytes(tree: PyTree) -> int:
    """Return the bytes of arrays on each device that shares them."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_memory(system: System, state: TrainState, mesh: Mesh, limit: int | None = None) -> None:
    """Refuse a run whose state alone is too large for its devices, before anything is allocated.

    This is a lower bound: state and gradients, without activations.  `motionaura estimate` compiles the whole step.

    Args:
      limit: bytes of each device; by default what the devices of this process report.

    Raises:
      UserError: says how many devices would hold the state.
    """
    limit = _device_memory() if limit is None else limit
    if limit is None or (needed := _bytes_per_device(system, state, mesh.shape)) <= limit:
        return
    splits = [2**power for power in range(1, 13)]
    sizes = ({**mesh.shape, "data": 1, "fsdp": split} for split in splits)
    fits = next((size for size in sizes if _bytes_per_device(system, state, size) <= limit), None)
    count = math.prod(fits.values()) if fits else 0
    where = "these devices" if count <= mesh.size else f"{count} devices"
    remedy = f"{where} hold it with --config.mesh.fsdp={fits['fsdp']}; or take" if fits else "take"
    raise UserError(
        f"config.mesh={shown(mesh.shape)}: parameters, their average, optimizer state and gradients need "
        f"{needed / memory.GIB:.3g} GiB on each device of {limit / memory.GIB:.3g} GiB, without any activation; {remedy} a "
        f"smaller preset, optimizer.name=adafactor or train.ema_decay=0 (see motionaura estimate)"
    )


def _device_memory() -> int | None:
    """Return the bytes of a device of this process, None if unknown; devices of a CPU share its memory."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        total = memory.total()
        return None if total is None else total // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def _bytes_per_device(system: System, state: TrainState, sizes: Mapping[str, int]) -> int:
    """Return the bytes of an abstract state and its gradients on one device of a mesh with axes of `sizes`."""
    mesh: Any = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    there = placed(state, shardings(state, mesh))
    return device_bytes((there, Groups.of(system).partition(there.params)[0]))


def outline(state: TrainState) -> TrainState:
    """Return the shapes, dtypes and shardings of a state, without its arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def restart(state: TrainState, params: PyTree, extra: PyTree) -> TrainState:
    """Replace the parameters and `extra` of a fresh state by those of `System.prepare` or `init_from`."""
    params, extra = jax.device_put(
        (params, extra), jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.extra))
    )
    ema = state.ema
    if ema is not None:
        known = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        ema = jax.tree_util.tree_map_with_path(lambda path, _: jnp.copy(known[path_name(path)]), ema)
    return dataclasses.replace(state, params=params, extra=extra, ema=ema)


def parameter_count(params: PyTree) -> int:
    """Count the scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parameter_counts(system: System, params: PyTree) -> str:
    """Write the number of all parameters and of those that train: "12.30 M parameters, 0.40 M of them trained"."""
    total, trained = (parameter_count(tree) for tree in (params, Groups.of(system).partition(params)[0]))
    note = "" if trained == total else f", {trained / 1e6:.2f} M of them trained"
    return f"{total / 1e6:.2f} M parameters{note}"
