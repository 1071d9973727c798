"""Where every parameter lies: rules from paths to mesh axes, and the table of what they make of a tree.

`fsdp` splits storage, and a layer is gathered while it computes.  `tensor` splits the computation, in pairs as in
Megatron-LM (Shoeybi et al. 2019): the first matrix of a pair by columns, so that each device works on its part of the
hidden features, the second by rows, after which one sum over devices restores the whole.  A convolution is a matrix at
every tap: two with nothing but work on single channels between them are a pair, too.  A layer without a partner is whole
along `tensor`: split either way, it would gather channels of activations or of their gradients.  The leading axis of
layers stacked by a scan is never split.
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

_COLUMNS: tuple[Axes, ...] = ("fsdp", "tensor")
_ROWS: tuple[Axes, ...] = ("tensor", "fsdp")
_ALONE: tuple[Axes, ...] = (None, "fsdp")
_VECTOR: tuple[Axes, ...] = ("fsdp",)
_STORED: tuple[Axes, ...] = ("fsdp", None)

RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    # Small, and read by every device in every step.
    (r"(codebook|sum|count|usage|idle|mask_fill|gain|relative_bias)$", ()),
    # Attention: heads over `tensor`.
    (r"(into|[kv]_input)/[qkv](_even|_odd)?$", _COLUMNS),
    (r"out/o(_even|_odd)?$", _ROWS),
    (r"attention(_\d+)?/(query|key|value)/kernel$", ("fsdp", "tensor", None)),
    (r"attention(_\d+)?/output/kernel$", ("tensor", None, "fsdp")),
    (r"blocks/(query|key|value)/kernel$", _COLUMNS),
    (r"blocks/output/kernel$", _ROWS),
    # Multilayer perceptrons, embeddings of scalars, the masked-frame head.
    (r"(mlp|fps|time)/in/kernel$", _COLUMNS),
    (r"(mlp_\d+|mlp|blocks)/(gate|up)/kernel$", _COLUMNS),
    (r"mfi_head/hidden/kernel$", _COLUMNS),
    (r"(mlp_\d+|mlp|fps|time)/out/kernel$", _ROWS),
    (r"(mlp|blocks)/down/kernel$", _ROWS),
    (r"mfi_head/logits/kernel$", _ROWS),
    # The inverted bottleneck: its hidden channels over `tensor`, through the depthwise convolution.
    (r"bottleneck[^/]*/(excite/)?expand/kernel$", _COLUMNS),
    (r"depthwise/kernel$", (("tensor", "fsdp"),)),
    (r"bottleneck[^/]*/(excite/reduce|project)/kernel$", _ROWS),
    # Other convolutions that follow each other: factors, around the latent, the first two of the discriminator.
    (r"(lead_space|encoder/tail|decoder/project|conv_0)/kernel$", _COLUMNS),
    (r"(lead_time|encoder/project|decoder/head|conv_1)/kernel$", _ROWS),
    # Without a partner, but for one vector a clip: what is gathered is small beside them.
    (r"(condition/project|modulation/(down|up))/kernel$", _ROWS),
    # Adapters: small beside what they adapt, so that each device computes them whole.
    (r"([qkvo]_)?lora_(down|up)(_even|_odd)?$", _STORED),
    # Along `tensor` whole: split by rows, the head would gather gradients of all tokens; a split table would gather logits.
    (r"(embedding/table|head/dense/kernel)$", _STORED),
    # By features, as no axis need divide a number of words.
    (r"text/embedding$", (None, "fsdp")),
    # Vectors, and stacks of vectors.
    (r"(filter|null|position/kernel)$", _VECTOR),
    (r"(bias|scale|embedding/mask|modulation/table)$", _VECTOR),
    # Every other matrix or convolution has no partner.
    (r"kernel$", _ALONE),
)
"""(pattern, axes of the trailing dimensions); the first pattern found in a path decides."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one array lies.

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
        """Whether these are the parameters of all layers of a scan."""
        return "blocks/" in self.path

    def device_bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes on each device of a mesh with axes of `sizes`."""
        parts = math.prod(sizes[axis] for entry in self.spec for axis in _names(entry))
        return math.prod(self.shape) * self.dtype.itemsize // parts


def place(tree: PyTree, sizes: Mapping[str, int]) -> list[Placement]:
    """Applies `RULES` to the leaves of a tree of (abstract) arrays, in their order."""
    return [_place(path_name(path), leaf, sizes) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def follow(tree: PyTree, leaders: Iterable[Placement]) -> list[Placement]:
    """Places each leaf like the parameter among `leaders` that its path ends with: optimizer state, averages.

    A statistic that lacks an axis of its parameter, like those of Adafactor, lies like the axes that it has; what
    belongs to no parameter is copied to every device.
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
    """Returns a tree like `tree` with the sharding of each leaf, by `RULES` unless other placements are given."""
    placements = place(tree, mesh.shape) if placements is None else placements
    return jax.tree.unflatten(jax.tree.structure(tree), [NamedSharding(mesh, one.spec) for one in placements])


def spread(spec: PartitionSpec, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Splits what `spec` leaves in copies: each axis that it does not name goes to the first dimension that it divides."""
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
    """Gives abstract arrays the shardings of `RULES` on the mesh that is set; where there is none, leaves them as they are."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    give = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(give, tree, shardings(tree, mesh))


def table(placements: Iterable[Placement], sizes: Mapping[str, int]) -> str:
    """Writes one line per array: path, dtype and shape, axes of each dimension, bytes per device."""
    rows = [("array", "type", "split over", "bytes/device")]
    for one in placements:
        axes = ", ".join("+".join(_names(entry)) or "-" for entry in one.spec) or "-"
        note = f" (not {'+'.join(one.whole)})" if one.whole else "" if one.known else " (no rule)"
        rows.append((one.path, f"{one.dtype}{list(one.shape)}", axes + note, f"{one.device_bytes(sizes):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def report(placements: Iterable[Placement], sizes: Mapping[str, int]) -> list[str]:
    """One line for each axis that leaves parameters whole because it does not divide them, with their share."""
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
                f"which every device of it holds whole, e.g. {example.path} {list(example.shape)}"
            )
    return lines


def _place(path: str, leaf: jax.Array, sizes: Mapping[str, int]) -> Placement:
    dtype, shape = np.dtype(leaf.dtype), tuple(leaf.shape)
    template = next((axes for pattern, axes in RULES if re.search(rf"(^|/){pattern}", path)), None)
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
    """The axes of the dimensions of `leader` that `shape` has, in their order."""
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
    """Writes entries in one way only: a single axis bare, nothing after the last split dimension."""
    plain = [entry[0] if len(entry) == 1 else entry or None for entry in entries]
    while plain and plain[-1] is None:
        plain.pop()
    return PartitionSpec(*plain)


def _names(entry: Axes) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _ends(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
