"""Weights in folders exported to PyTorch, which our commands read back as checkpoints.

Each network has a folder with safetensors under torch's names; its tensor map converts them back. Two files hold the
rest: `training.json` is the `config.json` of a release, and `training.safetensors` has the leaves that only training reads.
"""

import functools
import operator
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.parts import Component
from motionaura_jax.core.trees import leaf_types, path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.weights import release
from motionaura_jax.weights.convert import export_tensors, import_tensors, matches
from motionaura_jax.weights.shards import save_tensors, write_shards
from motionaura_jax.weights.tensors import NUMPY, TensorFiles

META, REST = "training.json", "training.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def is_export(path: pathlib.Path) -> bool:
    """Return whether `path` is an exported folder, even a damaged one."""
    return (path / META).is_file()


def read_meta(folder: pathlib.Path) -> dict[str, Any]:
    """Read `training.json`; see `release.read_meta`."""
    return release.read_meta(folder, META)


def shapes(folder: pathlib.Path) -> list[tuple[int, ...]]:
    """Return the shapes of all tensors, from the headers alone."""
    found = (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors"))
    return [tensor.shape for path in found for tensor in TensorFiles(path).values()]


def read_weights(
    folder: pathlib.Path, components: Iterable[Component], params: PyTree, extra: PyTree
) -> tuple[PyTree, PyTree]:
    """Read the networks into the structure of the abstract trees: every tensor once, every leaf once.

    Raises:
      UserError: a file is damaged, or the tensors do not exactly match the config.
    """
    tree = {"params": params, "extra": extra}
    for component in components:
        part = functools.reduce(operator.getitem, component.place, tree)
        if not jax.tree.leaves(part):
            continue
        filled = import_tensors(TensorFiles(folder / component.folder), component.tensors, part, on_host=True)
        tree = _replaced(tree, component.place, filled)
    tree = _with_rest(folder / REST, tree)
    return tree["params"], tree["extra"]


def write_weights(
    folder: pathlib.Path,
    components: Iterable[Component],
    params: PyTree,
    extra: PyTree,
    *,
    dtype: str,
    shard_bytes: int,
) -> None:
    """Write networks into existing component folders, and the remaining leaves to `training.safetensors`.

    Args:
      dtype: dtype of float32 leaves in the files, one of `release.DTYPES`.
      shard_bytes: largest size of one file; larger networks are written as shards with an index.

    Raises:
      UserError: the disk is full or not writable.
    """
    tree = {"params": params, "extra": extra}
    kept: list[str] = []
    for component in components:
        part = functools.reduce(operator.getitem, component.place, tree)
        if not jax.tree.leaves(part):
            continue
        tensors = (
            (name, release.narrow(array, dtype, name)) for name, array in export_tensors(component.tensors, part)
        )
        kept += component.tensors.new
        write_shards(folder / component.folder, WEIGHTS, tensors, shard_bytes)
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    rest = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items() if matches(name, kept)}
    if rest:
        save_tensors(rest, folder / REST)


def _with_rest(path: pathlib.Path, tree: PyTree) -> PyTree:
    """Fill the leaves that are still abstract from `training.safetensors`, exactly."""
    missing = {
        path_name(place): leaf
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    }
    if missing and not path.exists():
        raise UserError(f"{path}: cannot be read (it is missing); copy or export the folder again")
    held = TensorFiles(path) if path.exists() else {}
    wanted = {name: leaf_types(leaf)[""] for name, leaf in missing.items()}
    found = {name: f"{NUMPY.get(one.dtype, one.dtype)}{list(one.shape)}" for name, one in held.items()}
    if found != wanted:
        odd = sorted(dict(found.items() ^ wanted.items()))
        raise UserError(f"{path}: does not fit training.json, e.g. in {odd[0]}; copy or export the folder again")
    stored = {name: held.whole(name) for name in held} if isinstance(held, TensorFiles) else {}
    return jax.tree_util.tree_map_with_path(lambda place, leaf: stored.get(path_name(place), leaf), tree)


def _replaced(tree: PyTree, place: tuple[str, ...], part: PyTree) -> PyTree:
    if not place:
        return part
    return {**tree, place[0]: _replaced(tree[place[0]], place[1:], part)}
