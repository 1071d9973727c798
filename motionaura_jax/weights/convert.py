"""Conversion between published tensors and our pytrees, by the tensor maps of `core.tensor_map`."""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.core.errors import UserError, listed
from motionaura_jax.core.tensor_map import TensorMap, View
from motionaura_jax.core.trees import path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.weights.tensors import TensorFiles

_FLOATS = ("F32", "BF16", "F16")
_INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Destination of a tensor: a leaf, or the slice `index` of it."""

    leaf: str
    index: int | None
    view: View

    def of(self, leaf: Any) -> Any:
        """Return the part of a whole leaf that belongs to this slot."""
        return leaf if self.index is None else leaf[self.index, ...]


def slots(tensor_map: TensorMap, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Map the name of every tensor that fills leaves of these shapes to its slot.

    Raises:
      ValueError: the map is faulty: its rules leave a leaf empty, or name a leaf or tensor twice.
    """
    found: dict[str, Slot] = {}
    for leaf, shape in shapes.items():
        if matches(leaf, tensor_map.new):
            continue
        found_rules = [(rule, match) for rule in tensor_map.rules if (match := rule.pattern.fullmatch(leaf))]
        if len(found_rules) != 1:
            raise ValueError(f"{len(found_rules)} rules for the leaf {leaf}")
        ((rule, match),) = found_rules
        for index in range(shape[0]) if rule.stacked else (None,):
            source = rule.source.format(**match.groupdict(), **dict.fromkeys(rule.stacked, index))
            if source in found:
                raise ValueError(f"{source} is both {found[source].leaf} and {leaf}")
            found[source] = Slot(leaf, index, rule.view)
    return found


def import_tensors(files: TensorFiles, tensor_map: TensorMap, target: PyTree, *, on_host: bool = False) -> PyTree:
    """Read published tensors into leaves like those of `target`, one tensor at a time.

    Args:
      target: abstract leaves. Each gives the dtype to cast to and, if it has a sharding (one device or a
        `NamedSharding`), the placement. Leaves that the map lists as new are returned unchanged.
      on_host: return NumPy arrays, and put nothing on a device.

    Raises:
      UserError: tensors and leaves do not match one to one, or a tensor has the wrong shape or kind. Nothing is placed in
        this case.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    for name, leaf in leaves.items():
        stacked = any(rule.stacked and rule.pattern.fullmatch(name) for rule in tensor_map.rules)
        if stacked and leaf.shape[0] > len(files):  # before all of them get a name
            raise UserError(
                f"{files.path}: tensors do not match the config: {leaf.shape[0]} layers, but {len(files)} tensors; use "
                f"config.json and weights of the same model"
            )
    places = slots(tensor_map, {name: leaf.shape for name, leaf in leaves.items()})
    sources = _match(files, tensor_map, places, leaves)
    placed: dict[str, Any] = {}
    # Place the largest tensor first: placement takes two or three copies of it, and less memory is free later.
    for name in sorted(sources, key=lambda name: -math.prod(files[name].shape)):
        slot = places[sources[name]]
        leaf = leaves[slot.leaf]
        if on_host:
            if slot.leaf not in placed:
                placed[slot.leaf] = np.empty(leaf.shape, leaf.dtype)
            files.read(name, slot.view(slot.of(placed[slot.leaf])))
            continue
        buffer = np.empty(leaf.shape if slot.index is None else leaf.shape[1:], leaf.dtype)
        files.read(name, slot.view(buffer))
        if slot.index is None:
            placed[slot.leaf] = _place(buffer, leaf.sharding)
        else:
            whole = placed.pop(slot.leaf, None)
            whole = _zeros(leaf) if whole is None else whole
            placed[slot.leaf] = _setter(leaf.sharding)(whole, _place(buffer, _below(leaf.sharding)), slot.index)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: placed.get(path_name(path), leaf), target)


def export_tensors(tensor_map: TensorMap, params: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor, contiguous, under its torch name and in torch's layout.

    Raises:
      ValueError: see `slots`.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, slot in slots(tensor_map, {name: leaf.shape for name, leaf in leaves.items()}).items():
        yield name, np.asarray(slot.view(np.asarray(slot.of(leaves[slot.leaf]))), order="C")


def without_ignored(tensor_map: TensorMap, names: Iterable[str]) -> list[str]:
    """Return the `names` that the map does not ignore."""
    return [name for name in names if not matches(name, tensor_map.ignored)]


def _match(
    files: TensorFiles, tensor_map: TensorMap, places: Mapping[str, Slot], leaves: Mapping[str, Any]
) -> dict[str, str]:
    """Map the names of the tensors in the files to the names in the rules."""
    held = without_ignored(tensor_map, files)
    named = {
        name: [prefix + name for prefix in ("", *tensor_map.prefixes) if prefix + name in files] for name in places
    }
    sources = {(found or [name])[0]: name for name, found in named.items()}
    missing, unused = sorted(sources.keys() - set(held)), sorted(set(held) - sources.keys())
    if missing or unused:
        raise UserError(
            f"{files.path}: tensors do not match the config: missing {listed(missing)}; not used {listed(unused)}; "
            f"give the unchanged folder of a published model of this kind"
        )
    odd = [_misfit(files, name, places[source], leaves) for name, source in sources.items()]
    if any(odd):
        raise UserError(
            f"{files.path}: {listed([line for line in odd if line])}; use config.json and weights of the same model"
        )
    return sources


def _misfit(files: TensorFiles, name: str, slot: Slot, leaves: Mapping[str, Any]) -> str:
    """Return why a tensor does not fit its slot; empty if it fits."""
    leaf, tensor = leaves[slot.leaf], files[name]
    shape = slot.view(np.broadcast_to(np.zeros((), bool), leaf.shape[slot.index is not None :])).shape
    if shape != tensor.shape:
        return f"{name} has the shape {list(tensor.shape)} instead of {list(shape)}"
    fits = tensor.dtype in _FLOATS
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        fits = _INTEGERS.get(tensor.dtype) == np.dtype(leaf.dtype).name
    return "" if fits else f"{name} has the dtype {tensor.dtype}, which is not {np.dtype(leaf.dtype).name}"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether `name` matches any of the patterns, as in `fnmatch`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _place(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _below(sharding: jax.sharding.Sharding | None) -> jax.sharding.Sharding | None:
    """Return the sharding of one slice along axis 0."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    return sharding


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()


@functools.cache
def _setter(sharding: jax.sharding.Sharding | None) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Return an in-place `(whole, slice, index) -> whole`; `.at[index].set` copies if a CPU computes bf16 as fp32."""
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(put, donate_argnums=0, out_shardings=sharding)
