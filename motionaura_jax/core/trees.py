"""Leaves of a pytree by name: the names under which optimizers, checkpoints and release folders know them."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from motionaura_jax.core.types import PyTree


def path_name(path: tuple) -> str:
    """Writes the path of a leaf as "encoder/stem/kernel"."""
    parts = (next(getattr(entry, a) for a in ("key", "name", "idx") if hasattr(entry, a)) for entry in path)
    return "/".join(map(str, parts))


def parted(tree: PyTree, pattern: str) -> tuple[PyTree, PyTree]:
    """Splits nested dicts into leaves whose name holds the regular expression `pattern` and all others.

    Dicts that end up empty are left out; an empty pattern leaves the tree whole.
    """
    if not pattern:
        return tree, {}
    return _with(tree, pattern, True, ""), _with(tree, pattern, False, "")


def joined(tree: PyTree, other: PyTree) -> PyTree:
    """Nested dicts with the leaves of both; where both have one, that of `other` counts."""
    if not (isinstance(tree, Mapping) and isinstance(other, Mapping)):
        return other
    return {**tree, **{key: joined(tree.get(key, {}), value) for key, value in other.items()}}


def _with(tree: Mapping, pattern: str, wanted: bool, prefix: str) -> dict:
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            inside = _with(value, pattern, wanted, f"{name}/")
            if inside or not (value or wanted):
                found[key] = inside
        elif bool(re.search(pattern, name)) == wanted:
            found[key] = value
    return found


def leaf_types(tree: PyTree) -> dict[str, str]:
    """Maps the name of every leaf, which may be abstract, to its dtype and shape: "float32[3, 4]"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in leaves}
