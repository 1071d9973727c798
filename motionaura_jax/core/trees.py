"""Leaves of a pytree by name. Optimizers, checkpoints and release folders use the same names."""

import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

from motionaura_jax.core.types import PyTree


def path_name(path: tuple) -> str:
    """Write the path of a leaf as "encoder/stem/kernel"."""
    parts = (next(getattr(entry, a) for a in ("key", "name", "idx") if hasattr(entry, a)) for entry in path)
    return "/".join(map(str, parts))


def partition(tree: PyTree, chosen: str | Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Split nested dicts into the leaves that `chosen` selects and all others; `merge` undoes it.

    Args:
      tree: nested dicts of leaves.
      chosen: a regular expression searched in the name of each leaf, or a predicate on that name.

    Returns:
      Two trees of nested dicts. Dicts that become empty are dropped; dicts that were empty stay in the second tree.
    """
    selects = re.compile(chosen).search if isinstance(chosen, str) else chosen

    def part(tree: Mapping, wanted: bool, prefix: str) -> dict:
        """Return the leaves below `prefix` whose selection equals `wanted`."""
        kept = {}
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                inside = part(value, wanted, f"{name}/")
                if inside or not (value or wanted):
                    kept[key] = inside
            elif bool(selects(name)) == wanted:
                kept[key] = value
        return kept

    return part(tree, True, ""), part(tree, False, "")


def merge(tree: PyTree, other: PyTree) -> PyTree:
    """Combine the leaves of two trees of nested dicts; a leaf of `other` replaces that of `tree`."""
    if not (isinstance(tree, Mapping) and isinstance(other, Mapping)):
        return other
    return {**tree, **{key: merge(tree.get(key, {}), value) for key, value in other.items()}}


def leaf_types(tree: PyTree) -> dict[str, str]:
    """Map the name of every (abstract) leaf to its dtype and shape: "float32[3, 4]"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in leaves}
