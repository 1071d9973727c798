"""Torch names and layouts <-> ours: rules that say it once, for import and for export.

A rule ties a tensor name to a leaf path; `{x}` stands for a number.  One that only the tensor name has counts the slices of
a leaf that is stacked along axis 0, as scanned layers are:

    Rule("encoder.block.{i}.layer.0.SelfAttention.q.weight", "blocks/query/kernel", linear())
    Rule("encoder.down.{i}.conv.{j}.weight", "down_{i}/conv_{j}/kernel", conv)

Its view shows our leaf as the torch tensor that it is, without a copy: reading through it exports, writing into it imports.
"""

import dataclasses
import fnmatch
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.weights.tensors import TensorFiles, listed

View = Callable[[np.ndarray], np.ndarray]

_FLOATS = ("F32", "BF16", "F16")
_INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_FIELD = re.compile(r"\{(\w+)\}")


def same(leaf: np.ndarray) -> np.ndarray:
    """The leaf as it is."""
    return leaf


def flat(leaf: np.ndarray) -> np.ndarray:
    """`(heads, channel)` -> `(heads channel)`: the bias of a projection to heads."""
    return leaf.reshape(-1)


def linear(inputs: int = 1) -> View:
    """`(*in, *out)` -> `(out, in)`, where the first `inputs` axes are the input: kernels of Dense and DenseGeneral."""
    return lambda leaf: leaf.reshape(int(np.prod(leaf.shape[:inputs])), -1).T


def conv(leaf: np.ndarray) -> np.ndarray:
    """`(*window, in, out)` -> `(out, in, *window)`, in any number of dimensions; 1x1 kernels included."""
    return leaf.transpose(leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))


def depthwise(leaf: np.ndarray) -> np.ndarray:
    """`(*window, channel)` -> `(channel, 1, *window)`."""
    return conv(leaf[..., None, :])


def conv_transpose(leaf: np.ndarray) -> np.ndarray:
    """`(*window, in, out)` -> `(in, out, *window)`; not mirrored, as in `ops.upsample`."""
    window = leaf.ndim - 2
    return leaf.transpose(window, window + 1, *range(window))


def reshaped(*shape: int) -> View:
    """The same numbers in another shape; one entry may be -1."""
    return lambda leaf: leaf.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The tensor called `source` is the leaf at `target`, seen through `view`."""

    source: str
    target: str
    view: View = same

    def __post_init__(self) -> None:
        ours, stacked = set(_FIELD.findall(self.target)), self.stacked
        if not ours <= set(_FIELD.findall(self.source)) or len(stacked) > 1:
            raise ValueError(f"{self}: the target has a number of its own, or the source more than one that stacks")

    @functools.cached_property
    def stacked(self) -> list[str]:
        """The number that only the source has, if any."""
        return [name for name in _FIELD.findall(self.source) if name not in _FIELD.findall(self.target)]

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the paths of the leaves of this rule."""
        parts = _FIELD.split(self.target)  # text and names of fields take turns
        return re.compile("".join(f"(?P<{p}>\\d+)" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The rules of a network.

    Attributes:
      prefixes: a published tensor may carry one of them before the name in the rule.
      ignored: tensors that files may hold and the network does not need, e.g. "decoder.*".
      new: leaves that no file fills, e.g. "adapter/*"; both as in `fnmatch`.
    """

    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a tensor goes: a leaf, or the slice `index` of it."""

    leaf: str
    index: int | None
    view: View

    def of(self, leaf: Any) -> Any:
        """The part of a whole leaf that is meant."""
        return leaf if self.index is None else leaf[self.index, ...]


def slots(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Maps the name of every tensor that fills leaves of these shapes to its place.

    Raises:
      ValueError: the rules leave a leaf empty, or give one leaf or tensor twice: a defect of the map.
    """
    found: dict[str, Slot] = {}
    for leaf, shape in shapes.items():
        if _matches(leaf, layout.new):
            continue
        matches = [(rule, match) for rule in layout.rules if (match := rule.pattern.fullmatch(leaf))]
        if len(matches) != 1:
            raise ValueError(f"{len(matches)} rules for the leaf {leaf}")
        ((rule, match),) = matches
        for index in range(shape[0]) if rule.stacked else (None,):
            source = rule.source.format(**match.groupdict(), **dict.fromkeys(rule.stacked, index))
            if source in found:
                raise ValueError(f"{source} is both {found[source].leaf} and {leaf}")
            found[source] = Slot(leaf, index, rule.view)
    return found


def import_tensors(files: TensorFiles, layout: Layout, target: PyTree, *, on_host: bool = False) -> PyTree:
    """Reads published tensors into leaves like those of `target`, one tensor at a time.

    Args:
      target: abstract leaves; each says the dtype to cast to, and where to put it if it has a sharding (one device, or
        a `NamedSharding`).  A leaf that the layout calls new comes back as it is.
      on_host: return NumPy arrays, and put nothing on a device.

    Raises:
      UserError: not every tensor has exactly one place and every leaf its tensors, or one has another shape or kind.
        Nothing is placed then.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    places = slots(layout, {name: leaf.shape for name, leaf in leaves.items()})
    sources = _match(files, layout, places, leaves)
    placed: dict[str, Any] = {}
    # The largest first: a tensor lies in memory twice or three times while it is placed, and later there is less room.
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


def export_tensors(layout: Layout, params: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor under its torch name and in the layout of torch, contiguous.

    Raises:
      ValueError: see `slots`.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, slot in slots(layout, {name: leaf.shape for name, leaf in leaves.items()}).items():
        yield name, np.asarray(slot.view(np.asarray(slot.of(leaves[slot.leaf]))), order="C")


def without_ignored(layout: Layout, names: Iterable[str]) -> list[str]:
    """Those of `names` that the layout does not ignore."""
    return [name for name in names if not _matches(name, layout.ignored)]


def _match(files: TensorFiles, layout: Layout, places: Mapping[str, Slot], leaves: Mapping[str, Any]) -> dict[str, str]:
    """Maps the names in the files that are used to those in the rules."""
    held = without_ignored(layout, files)
    named = {name: [prefix + name for prefix in ("", *layout.prefixes) if prefix + name in files] for name in places}
    sources = {(found or [name])[0]: name for name, found in named.items()}
    missing, unused = sorted(sources.keys() - set(held)), sorted(set(held) - sources.keys())
    if missing or unused:
        raise UserError(
            f"{files.path}: other tensors than its config says: missing {listed(missing)}; not used {listed(unused)}; "
            f"give the folder of a model of this kind as it was published"
        )
    odd = [_misfit(files, name, places[source], leaves) for name, source in sources.items()]
    if any(odd):
        raise UserError(
            f"{files.path}: {listed([line for line in odd if line])}; take config.json and weights of one model"
        )
    return sources


def _misfit(files: TensorFiles, name: str, slot: Slot, leaves: Mapping[str, Any]) -> str:
    """What is wrong with a tensor for its place; empty where nothing is."""
    leaf, tensor = leaves[slot.leaf], files[name]
    shape = slot.view(np.broadcast_to(np.zeros((), bool), leaf.shape[slot.index is not None :])).shape
    if shape != tensor.shape:
        return f"{name} has the shape {list(tensor.shape)} instead of {list(shape)}"
    fits = tensor.dtype in _FLOATS
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        fits = _INTEGERS.get(tensor.dtype) == np.dtype(leaf.dtype).name
    return "" if fits else f"{name} has the dtype {tensor.dtype}, which is no {np.dtype(leaf.dtype).name}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _place(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _below(sharding: jax.sharding.Sharding | None) -> jax.sharding.Sharding | None:
    """The sharding of one slice along axis 0."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    return sharding


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()


@functools.cache
def _setter(sharding: jax.sharding.Sharding | None) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """`(whole, slice, index) -> whole` in place, also where a CPU computes bf16 as fp32 (`.at[index].set` copies there)."""
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(put, donate_argnums=0, out_shardings=sharding)
