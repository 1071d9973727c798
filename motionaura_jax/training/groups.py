"""Parameter groups of a run: which parameters are frozen, trained at a scaled rate, clipped together, or not averaged."""

import collections
import dataclasses
import itertools
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import ParamGroup
from motionaura_jax.core.trees import leaf_types, partition, path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.ops.dispatch import on_gpu
from motionaura_jax.parallel import rules
from motionaura_jax.systems.base import System

logger = logging.getLogger(__name__)

_REST = ParamGroup(pattern="")
_SMALL = 2**18  # numbers, 1 MB; copying them once more takes less time than a launch


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups in order of precedence: the first one whose pattern occurs in the name of a parameter applies to it.

    Parameters in no group train at the full rate, belong to the clipping group "" and enter the average of the weights.
    """

    groups: tuple[ParamGroup, ...] = ()

    @classmethod
    def of(cls, system: System) -> "Groups":
        """Return the groups of a run: those of the user first, then those that the system declares."""
        return cls((*system.recipe.optimizer.groups, *system.param_groups()))

    def find(self, name: str) -> ParamGroup:
        """Return the group of the parameter `name`."""
        return next((group for group in self.groups if re.search(group.pattern, name)), _REST)

    def is_trained(self, name: str) -> bool:
        """Return whether the parameter `name` is not frozen."""
        return self.find(name).scale > 0

    def partition(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Split parameters, or a tree like them, into those that train and those that are frozen; `trees.merge` undoes it."""
        if all(group.scale for group in self.groups):
            return params, {}
        return partition(params, self.is_trained)

    def averaged(self, params: PyTree) -> PyTree:
        """Return the parameters that enter the average of the weights: those that train, without excluded groups."""
        if all(group.scale and group.averaged for group in self.groups):
            return params
        return partition(params, lambda name: self.is_trained(name) and self.find(name).averaged)[0]

    def norms(self, gradients: PyTree) -> dict[str, Float[Array, ""]]:
        """Compute the global norm of each clipping group in a tree of gradients."""
        members: dict[str, dict[str, Array]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
            members.setdefault(self.find(path_name(path)).clip, {})[path_name(path)] = leaf
        return {name: global_norm(leaves) for name, leaves in members.items()}

    def check(self, params: PyTree, chosen: tuple[ParamGroup, ...]) -> None:
        """Refuse groups that cannot be meant.

        Args:
          params: all parameters of the system; may be abstract.
          chosen: groups that the user wrote. Those of a system may match nothing, e.g. a discriminator that is off.

        Raises:
          UserError: a pattern of the user matches no parameter, or nothing is left to train.
        """
        names = list(leaf_types(params))
        for group in chosen:
            if not any(re.search(group.pattern, name) for name in names):
                raise UserError(f"config.optimizer.groups: {group.pattern!r} matches no parameter, e.g. {names[0]}")
        if not any(map(self.is_trained, names)):
            raise UserError(
                f"config.optimizer.groups: all {len(names)} parameters are frozen, e.g. {names[0]}; "
                f"give at least one a scale above 0"
            )


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm of all leaves of a tree like the parameters.

    On a GPU every launch counts: small leaves are summed as one vector, and devices exchange one number in place of one for
    each leaf. Elsewhere leaves are summed one by one, as in optax.
    """
    if not on_gpu():
        return optax.tree.norm(tree)
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.axis_sizes) == 1:
        return jnp.sqrt(_squares(jax.tree.leaves(tree)))
    places = rules.place(tree, mesh.shape)

    def local(leaves: list[Array]) -> Array:
        """Sum over the parts of this device; several devices may hold copies of a part."""
        alike = collections.defaultdict[int, list[Array]](list)
        for leaf, place in zip(leaves, places, strict=True):
            alike[place.copies(mesh.shape)].append(leaf)
        total = sum((_squares(parts) / copies for copies, parts in alike.items()), jnp.zeros(()))
        return jax.lax.psum(total, tuple(mesh.axis_names))

    specs = [place.spec for place in places]
    summed = jax.shard_map(local, in_specs=(specs,), out_specs=PartitionSpec(), check_vma=False)
    return jnp.sqrt(summed(jax.tree.leaves(tree)))


def _squares(leaves: list[Array]) -> Float[Array, ""]:
    """Sum the squares of arrays, of all small ones at once."""
    small = [leaf for leaf in leaves if leaf.size <= _SMALL]
    large = [leaf for leaf in leaves if leaf.size > _SMALL]
    vectors = [jnp.concatenate([leaf.ravel() for leaf in small])] if small else []
    return jnp.stack([jnp.square(part).sum() for part in (*vectors, *large)]).sum()


def metrics(norms: Mapping[str, Float[Array, ""]]) -> dict[str, Float[Array, ""]]:
    """Name the gradient norms of clipping groups for the log; a single group is what `gradient_norm` reports already."""
    if len(norms) < 2:
        return {}
    return {f"gradient_norm_{name or 'other'}": norm for name, norm in norms.items()}


def readable(stored: PyTree, wanted: PyTree, params: PyTree) -> PyTree:
    """Describe how to read an item of a checkpoint that was written under other groups; `fit` then converts it.

    The checkpoint has no optimizer state and no average of parameters that were frozen, and more than this run needs of
    those that are frozen now. Scales add a stage to the optimizer, which keeps no arrays.

    Args:
      stored: optimizer state or average as the checkpoint describes it.
      wanted: the same for this run, abstract and with shardings.
      params: all parameters of this run, abstract and with shardings.

    Returns:
      The tree to read, with shardings. It is `wanted` if the checkpoint has that form, or if groups do not explain why it
      has another one.
    """
    owner = _owners(params)
    found, own = (collections.defaultdict[str, set[str]](set) for _ in range(2))
    for tree, names in ((stored, found), (wanted, own)):
        for name in leaf_types(tree):
            names[owner(name)].add(name.removesuffix(owner(name)))
    differing = {name for name in found.keys() | own.keys() if found[name] != own[name]}
    same_stages = len(stored.get("opt_state", ())) == len(wanted.get("opt_state", ()))
    if (same_stages and not differing) or "" in differing or any(found[name] and own[name] for name in differing):
        return wanted
    known, parameters = _by_name(wanted), _by_name(params)

    def describe(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        """Return the abstract array as which to read one stored leaf."""
        name = path_name(path)
        if name in known:
            return known[name]
        parameter = parameters[owner(name)]
        # A statistic of another shape, such as a sum over rows, is small: replicate it like the step. An item without a step
        # is the average: there, another shape means another architecture, which reading the parameters reports.
        alike = parameter if parameter.shape == tuple(leaf.shape) else wanted.get("step", parameter)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=alike.sharding)

    return jax.tree_util.tree_map_with_path(describe, _in_order(stored, wanted))


def fit(read: PyTree, wanted: PyTree, params: PyTree | None = None) -> PyTree:
    """Convert an item that was read as `readable` says to the form `wanted`.

    Args:
      params: values at which missing leaves of an average start; without it they start at 0, as optimizer state does.
    """
    known, values = _by_name(read), {} if params is None else _by_name(params)
    needed = leaf_types(wanted).keys()
    dropped, fresh = len(known.keys() - needed), len(needed - known.keys())
    if read and (dropped or fresh):
        logger.warning(
            "the checkpoint was written with other parameter groups: dropped %d arrays of %s of frozen parameters, "
            "initialized %d of parameters that train now",
            *(dropped, "optimizer state" if params is None else "averages", fresh),
        )

    def leaf(path: tuple, kind: Any) -> Array:
        name = path_name(path)
        if name in known:
            return known[name]
        return jnp.copy(values[name]) if name in values else jnp.zeros(kind.shape, kind.dtype, device=kind.sharding)

    return jax.tree_util.tree_map_with_path(leaf, wanted)


def _in_order(stored: PyTree, wanted: PyTree) -> PyTree:
    """Turn dicts of a stored tree into the named tuples of `wanted`: checksums depend on the order of their fields."""
    if isinstance(stored, Mapping):
        fields = getattr(wanted, "_fields", None)
        if fields and set(fields) == stored.keys():
            return type(wanted)(*(_in_order(stored[name], getattr(wanted, name)) for name in fields))
        inner = wanted if isinstance(wanted, Mapping) else {}
        return {key: _in_order(value, inner.get(key)) for key, value in stored.items()}
    if isinstance(stored, list):
        return [_in_order(*pair) for pair in itertools.zip_longest(stored, list(wanted or ())[: len(stored)])]
    return stored


def _by_name(tree: PyTree) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _owners(params: PyTree) -> Callable[[str], str]:
    """Return a function from the name of a leaf of optimizer state to that of its parameter, "" if it has none."""
    names = leaf_types(params).keys()

    def owner(name: str) -> str:
        parts = name.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((end for end in ends if end in names), "")

    return owner
