"""Placement of parameters: rules from paths to mesh axes, and the table of their effect on a tree.

Each network declares its rules next to its code with `declare`; this module holds the mechanism and the general rules.

`fsdp` splits storage: each layer is gathered while it computes. `tensor` splits the computation, in pairs as in
Megatron-LM (Shoeybi et al. 2019): the first matrix of a pair by columns, so that each device works on its part of the
hidden features, and the second by rows, after which one sum over devices restores the whole. A convolution is a matrix at
every tap, so two convolutions with only channelwise work between them are also a pair. A layer without a partner stays
whole along `tensor`: split either way, it would gather channels of activations or of their gradients. The leading axis
of layers stacked by a scan is never split.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from motionaura_jax.core.trees import path_name
from motionaura_jax.core.types import PyTree

Axes = str | tuple[str, ...] | None

COLUMNS: tuple[Axes, ...] = ("fsdp", "tensor")
"""The first matrix of a pair."""
ROWS: tuple[Axes, ...] = ("tensor", "fsdp")
"""The second matrix of a pair."""
STORED: tuple[Axes, ...] = ("fsdp", None)
"""Split in storage alone: small, or computed whole on every device."""
VECTOR: tuple[Axes, ...] = ("fsdp",)
WHOLE: tuple[Axes, ...] = ()
"""Copied to every device: small, and read by each of them in every step."""

Rule = tuple[str, tuple[Axes, ...]]

_GENERAL: tuple[Rule, ...] = (
    (r"(bias|scale)$", VECTOR),
    # A matrix or convolution without a partner.
    (r"kernel$", (None, "fsdp")),
)
_declared: dict[str, tuple[Axes, ...]] = {}


def declare(*rules: Rule) -> None:
    """Add the rules of a network; its module calls this next to the network.

    A rule is (pattern, axes of the trailing dimensions). The pattern must match from the start of a component of a path.
    Declared rules come before the general ones for biases, scales and kernels; the first match decides.

    Raises:
      ValueError: two networks declare one pattern with different axes.
    """
    for pattern, axes in rules:
        if _declared.setdefault(pattern, axes) != axes:
            raise ValueError(f"{pattern} is declared as {_declared[pattern]} and as {axes}")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Placement of one array.

    Attributes:
      whole: axes that its rule names but that do not divide it, so that their devices hold copies.
      known: whether a rule names it; arrays without one are copied to every device.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    spec: PartitionSpec
    whole: tuple[str, ...] = ()
    known: bool = True

    @property
    def stacked(self) -> bool:
        """Return whether these are the parameters of all layers of a scan."""
        return "blocks/" in self.path

    def device_bytes(self, sizes: Mapping[str, int]) -> int:
        """Return the bytes on each device of a mesh with axes of `sizes`."""
        return math.prod(self.shape) * self.dtype.itemsize // self.parts(sizes)

    def parts(self, sizes: Mapping[str, int]) -> int:
        """Return into how many parts a mesh with axes of `sizes` splits it."""
        return math.prod(sizes[axis] for entry in self.spec for axis in _names(entry))

    def copies(self, sizes: Mapping[str, int]) -> int:
        """Return how many devices of that mesh hold each part."""
        return math.prod(sizes.values()) // self.parts(sizes)


def place(tree: PyTree, sizes: Mapping[str, int]) -> list[Placement]:
    """Apply the declared rules to the leaves of a tree of (abstract) arrays, in their order."""
    return [_place(path_name(path), leaf, sizes) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def follow(tree: PyTree, leaders: Iterable[Placement]) -> list[Placement]:
    """Place each leaf like the parameter among `leaders` that its path ends with: optimizer state, averages.

    A statistic that lacks an axis of its parameter, as in Adafactor, is placed like the axes that it has. Leaves that
    belong to no parameter are copied to every device.
    """
    known = {leader.path: leader for leader in leaders}
    placements = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        leader = next((known[end] for end in _ends(name) if end in known), None)
        spec = PartitionSpec() if leader is None else _aligned(leaf.shape, leader)
        placements.append(Placement(name, leaf.shape, np.dtype(leaf.dtype), spec, known=leader is None or leader.known))
    return placements


def shardings(tree: PyTree, mesh: Mesh, placements: Iterable[Placement] | None = None) -> PyTree:
    """Return a tree like `tree` with the sharding of each leaf, by the declared rules unless other placements are given."""
    placements = place(tree, mesh.shape) if placements is None else placements
    return jax.tree.unflatten(jax.tree.structure(tree), [NamedSharding(mesh, one.spec) for one in placements])


def spread(spec: PartitionSpec, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Split the copies that `spec` leaves: each axis that it does not name splits the first dimension that it divides."""
    entries = [_names(entry) for entry in (*spec, *(None for _ in range(len(shape) - len(spec))))]
    for axis, size in sizes.items():
        if size == 1 or any(axis in entry for entry in entries):
            continue
        for place, (length, entry) in enumerate(zip(shape, entries, strict=True)):
            if length % math.prod(sizes[name] for name in (*entry, axis)) == 0:
                entries[place] = (*entry, axis)
                break
    return _spec(entries)


def over_mesh(tree: PyTree) -> PyTree:
    """Give abstract arrays the shardings of the declared rules on the current mesh; without a mesh, change nothing."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    give = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(give, tree, shardings(tree, mesh))


def table(placements: Iterable[Placement], sizes: Mapping[str, int]) -> str:
    """Write one line per array: path, dtype and shape, axes of each dimension, bytes per device."""
    rows = [("array", "type", "split over", "bytes/device")]
    for one in placements:
        axes = ", ".join("+".join(_names(entry)) or "-" for entry in one.spec) or "-"
        note = f" (not {'+'.join(one.whole)})" if one.whole else "" if one.known else " (no rule)"
        rows.append((one.path, f"{one.dtype}{list(one.shape)}", axes + note, f"{one.device_bytes(sizes):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def report(placements: Iterable[Placement], sizes: Mapping[str, int]) -> list[str]:
    """List the axes that leave parameters whole because they do not divide them, with their share."""
    placements = list(placements)
    total = sum(math.prod(one.shape) for one in placements)
    lines = []
    for axis, size in sizes.items():
        whole = [one for one in placements if axis in one.whole]
        if whole:
            share = sum(math.prod(one.shape) for one in whole) / total
            example = max(whole, key=lambda one: math.prod(one.shape))
            lines.append(
                f"{axis}={size} does not divide {len(whole)} of {len(placements)} arrays ({share:.2%} of the parameters), "
                f"which every device along it holds whole, e.g. {example.path} {list(example.shape)}"
            )
    return lines


def _place(path: str, leaf: jax.Array, sizes: Mapping[str, int]) -> Placement:
    dtype, shape = np.dtype(leaf.dtype), tuple(leaf.shape)
    rules = (*_declared.items(), *_GENERAL)
    template = next((axes for pattern, axes in rules if re.search(rf"(^|/){pattern}", path)), None)
    if template is None:
        return Placement(path, shape, dtype, PartitionSpec(), known=False)
    template = template[-len(shape) :] if shape else ()
    entries: list[tuple[str, ...]] = []
    whole: list[str] = []
    for length, entry in zip(shape[len(shape) - len(template) :], template, strict=True):
        kept: list[str] = []
        for axis in _names(entry):
            divides = length % math.prod(sizes[name] for name in (*kept, axis)) == 0
            if sizes[axis] > 1:
                (kept if divides else whole).append(axis)
        entries.append(tuple(kept))
    return Placement(path, shape, dtype, _spec([()] * (len(shape) - len(entries)) + entries), tuple(whole))


def _aligned(shape: tuple[int, ...], leader: Placement) -> PartitionSpec:
    """Return the axes of the dimensions of `leader` that `shape` has, in order."""
    if shape == leader.shape:
        return leader.spec
    entries, remaining = [], list(zip(leader.shape, _padded(leader), strict=True))
    for length in shape:
        while remaining and remaining[0][0] != length:
            remaining.pop(0)
        if not remaining:
            return PartitionSpec()
        entries.append(_names(remaining.pop(0)[1]))
    return _spec(entries)


def _padded(one: Placement) -> tuple[Axes, ...]:
    return (*one.spec, *(None for _ in range(len(one.shape) - len(one.spec))))


def _spec(entries: Iterable[tuple[str, ...]]) -> PartitionSpec:
    """Write entries in one way only: a single axis bare, nothing after the last split dimension."""
    plain = [entry[0] if len(entry) == 1 else entry or None for entry in entries]
    while plain and plain[-1] is None:
        plain.pop()
    return PartitionSpec(*plain)


def _names(entry: Axes) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _ends(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
