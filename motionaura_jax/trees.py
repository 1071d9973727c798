"""Leaves of a pytree by name: the names under which optimizers, checkpoints and release folders know them."""

import jax
import numpy as np

from motionaura_jax.types import PyTree


def path_name(path: tuple) -> str:
    """Writes the path of a leaf as "encoder/stem/kernel"."""
    parts = (next(getattr(entry, a) for a in ("key", "name", "idx") if hasattr(entry, a)) for entry in path)
    return "/".join(map(str, parts))


def leaf_types(tree: PyTree) -> dict[str, str]:
    """Maps the name of every leaf, which may be abstract, to its dtype and shape: "float32[3, 4]"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in leaves}
