"""Parameter groups of a run: which parameters are frozen, trained at a scaled rate, clipped together, or not averaged."""

import dataclasses
import re
from collections.abc import Mapping

import jax
import optax
from jaxtyping import Array, Float

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import ParamGroup
from motionaura_jax.core.trees import leaf_types, partition, path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.systems.base import System

_REST = ParamGroup(pattern="")


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
        members: dict[str, list[Array]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
            members.setdefault(self.find(path_name(path)).clip, []).append(leaf)
        return {name: optax.tree.norm(leaves) for name, leaves in members.items()}

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


def metrics(norms: Mapping[str, Float[Array, ""]]) -> dict[str, Float[Array, ""]]:
    """Name the gradient norms of clipping groups for the log; a single group is what `gradient_norm` reports already."""
    if len(norms) < 2:
        return {}
    return {f"gradient_norm_{name or 'other'}": norm for name, norm in norms.items()}
