"""The contract between the training loop and the systems that it trains.

A system is a set of pure functions over plain pytrees, so `jax.eval_shape` tells shapes, parameter counts and memory
before anything is allocated.  Training knows systems only through this file.
"""

import abc
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.core import config
from motionaura_jax.core import recipe as recipes
from motionaura_jax.core.parts import Component, Part
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.fields import Field

Batch = Mapping[str, Any]
"""Arrays by name, each with the global batch leading.  `sample` (b,), the row in the step, is always there; the rest is
what the system makes of its `fields`, such as `video` (b t h w 3) in [-1, 1] and `fps` (b,)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out metrics, and videos by name: uint8 `(t, h, w, 3)`, each one row of the contact sheet."""

    metrics: Mapping[str, float]
    videos: Mapping[str, np.ndarray] = field(default_factory=dict)
    fps: float = 8.0


class System(abc.ABC):
    """Base class of systems; methods that most systems do not need do nothing here.

    `params` get gradients; `extra` is checkpointed state without a gradient (EMA codebook, usage counters); `frozen`
    holds pretrained parts, which are loaded once and neither optimized nor checkpointed.

    Attributes:
      recipe: an instance of `Recipe`; systems narrow it to their own class.
      parts: trained parts that the recipe takes from elsewhere, by role.
      components: networks of the system in a PyTorch export.
      exports: export format -> "module:function" that writes it, next to "release", which every system has.
      not_decayed: names of leaves without weight decay, next to vectors, which never decay.
      matrices: pattern of paths -> (input axes, output axes) of kernels whose inputs or outputs have several axes, such as
        heads and channels; earlier axes are stacked layers.  Optimizers that treat weights as matrices ask for it.
    """

    Recipe: ClassVar[type[recipes.Recipe]]
    recipe: Any
    parts: ClassVar[tuple[Part, ...]] = ()
    components: ClassVar[tuple[Component, ...]] = ()
    exports: ClassVar[Mapping[str, str]] = {}
    not_decayed: ClassVar[frozenset[str]] = frozenset()
    matrices: ClassVar[Mapping[str, tuple[int, int]]] = {}

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe

    @property
    def fields(self) -> tuple[str | Field, ...]:
        """Return the clip fields of training batches, by name or declared (see `data.fields`); nothing else is read."""
        return ("video", "fps", "caption")

    @classmethod
    def planned(cls, values: Mapping[str, Any]) -> Self:
        """Build the system of config values for planning: data and pretrained parts are shapes alone."""
        return cls(config.build(cls.Recipe, values))

    def uncounted(self) -> str:
        """Name in words the memory that a plan of this system leaves out, or return an empty string."""
        return ""

    @abc.abstractmethod
    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Return shapes and dtypes of the first bucket's batch."""

    @abc.abstractmethod
    def to_arrays(self, batch: Mapping[str, Any]) -> Batch:
        """Turn a batch of the loader into the arrays of `batch_spec`, on the host."""

    def check_data(self) -> None:  # noqa: B027 # clips of any kind serve
        """Refuse training data that this system cannot learn from, and warn about data that it will not use.

        Called at every start of a training, before the workdir takes its config; never for inference.
        """

    def param_groups(self) -> tuple[recipes.ParamGroup, ...]:
        """Return groups of parameters that this system freezes, slows down, clips apart or does not average.

        `optimizer.groups`, which the user sets, takes precedence. A pattern may match nothing.
        """
        return ()

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Return fresh `(params, extra)`; abstract-evaluable."""

    def extended(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        """Add fresh parameters that `recipe.added` names to those of `init_from`, which lack them.

        Called only if `recipe.added` names any.
        """
        return params

    def frozen(self) -> PyTree:
        """Load the pretrained parts.

        Raises:
          UserError: a part that is missing, damaged, or not the one that the recipe was trained with.
        """
        return {}

    def prepare(self, params: PyTree, extra: PyTree, batches: Iterable[Batch]) -> tuple[PyTree, PyTree]:
        """Start from data (k-means of a codebook); called once, before step 0 of a run without `init_from`."""
        return params, extra

    @abc.abstractmethod
    def loss(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[PyTree, Mapping[str, Array]]]:
        """Return the mean loss over `batch` and `(stats, metrics)`.

        Sample i draws from `fold_in(key, batch["sample"][i])` alone, so the result depends neither on accumulation nor
        on the number of devices.  `stats` is what `advance` needs to move `extra`; `metrics` are batch means.
        """

    def advance(
        self, params: PyTree, extra: PyTree, stats: PyTree, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, Mapping[str, Array]]:
        """Move `extra` once per optimizer step, and replace parameters by rule, such as dead codes.

        `stats` carries the stats of all microbatches along a new leading axis.  Returns `(params, extra, metrics)`.
        """
        return params, extra, {}

    @classmethod
    def with_part(cls, recipe: Any, role: str, place: str) -> Any:
        """Return a recipe of this system whose part `role` is at `place` now.

        Raises:
          UserError: the recipe has no such part.
        """
        (part,) = (part for part in cls.parts if part.role == role)
        return recipe.with_value(part.key, place)

    @classmethod
    def standalone(cls, recipe: Any) -> Any:
        """Return a recipe of this system for an export: without caches, published parts pinned to a revision.

        Raises:
          UserError: a part that an export needs is not known.
        """
        return recipe

    def copy_part(self, role: str, folder: pathlib.Path, shard_bytes: int) -> None:
        """Copy a published part of this system, as it was published, into an existing folder."""
        raise TypeError(f"{type(self).__name__} declares no published part {role!r}")

    @abc.abstractmethod
    def evaluate(self, params: PyTree, extra: PyTree, frozen: PyTree, batches: Iterable[Batch]) -> Evaluation:
        """Measure on held-out batches, without randomness."""
