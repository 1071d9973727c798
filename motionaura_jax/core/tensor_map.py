"""Tensor maps: the names and layouts of a network's leaves in torch, declared once for import and export.

A rule ties a tensor name to a leaf path; `{x}` stands for a number. A number that only the tensor name has indexes the
slices of a leaf stacked along axis 0, as in scanned layers:

    Rule("encoder.block.{i}.layer.0.SelfAttention.q.weight", "blocks/attention/query/kernel", linear())
    Rule("encoder.down.{i}.conv.{j}.weight", "down_{i}/conv_{j}/kernel", conv)

The view of a rule shows our leaf as the torch tensor, without a copy: reading from it exports, writing to it imports.
Each network declares its map next to its code; `weights.convert` reads and writes files with it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

View = Callable[[np.ndarray], np.ndarray]

_FIELD = re.compile(r"\{(\w+)\}")


def same(leaf: np.ndarray) -> np.ndarray:
    """Return the leaf unchanged."""
    return leaf


def flat(leaf: np.ndarray) -> np.ndarray:
    """Flatten `(heads, channel)` to `(heads channel)`: the bias of a projection to heads."""
    return leaf.reshape(-1)


def linear(inputs: int = 1) -> View:
    """Return the view `(*in, *out)` -> `(out, in)` of Dense and DenseGeneral kernels; the first `inputs` axes are the input."""
    return lambda leaf: leaf.reshape(int(np.prod(leaf.shape[:inputs])), -1).T


def conv(leaf: np.ndarray) -> np.ndarray:
    """View `(*window, in, out)` as `(out, in, *window)`, in any number of dimensions."""
    return leaf.transpose(leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))


def depthwise(leaf: np.ndarray) -> np.ndarray:
    """View `(*window, channel)` as `(channel, 1, *window)`."""
    return conv(leaf[..., None, :])


def conv_transpose(leaf: np.ndarray) -> np.ndarray:
    """View `(*window, in, out)` as `(in, out, *window)`; the window is not mirrored, see `ops.upsample`."""
    window = leaf.ndim - 2
    return leaf.transpose(window, window + 1, *range(window))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Mapping between the tensor named `source` and the leaf at `target`, seen through `view`."""

    source: str
    target: str
    view: View = same

    def __post_init__(self) -> None:
        ours, stacked = set(_FIELD.findall(self.target)), self.stacked
        if not ours <= set(_FIELD.findall(self.source)) or len(stacked) > 1:
            raise ValueError(f"{self}: the target has a number that the source lacks, or the source has two that stack")

    @functools.cached_property
    def stacked(self) -> list[str]:
        """Return the names of the numbers that only the source has: one or none."""
        return [name for name in _FIELD.findall(self.source) if name not in _FIELD.findall(self.target)]

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Compile the expression that matches the leaf paths of this rule."""
        parts = _FIELD.split(self.target)  # text and field names alternate
        return re.compile("".join(f"(?P<{p}>\\d+)" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def layer(source: str, target: str, view: View | None = None) -> tuple[Rule, Rule]:
    """Return the rules of a layer with a bias; `view` shows its kernel, by default that of a Dense layer."""
    return Rule(f"{source}.weight", f"{target}/kernel", view or linear()), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Return the rules of a norm with scale and bias."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorMap:
    """Rules of one network. The patterns in `ignored` and `new` are those of `fnmatch`.

    Attributes:
      prefixes: prefixes that published names may have in front of the name in a rule.
      ignored: tensors that files may hold but the network does not need, e.g. "decoder.*".
      new: leaves that no file fills, e.g. "adapter/*".
    """

    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
