"""The contract between the one training loop and everything that it can train.

A system is a set of pure functions over plain pytrees, so that shapes, parameter counts and memory are known through
`jax.eval_shape` before anything is allocated.  Training knows systems only through this file.
"""

import abc
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.core import config
from motionaura_jax.core import recipe as recipes
from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.types import PyTree
from motionaura_jax.data.fields import Field

Batch = Mapping[str, Any]
"""Arrays with the global batch leading: `video` (b t h w 3) in [-1, 1], `fps` (b,), `sample` (b,) row in the step."""

SYSTEMS = {
    "mbq_vae": "motionaura_jax.systems.mbq_vae:MBQVAESystem",
    "text_to_video": "motionaura_jax.systems.text_to_video.system:TextToVideoSystem",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out metrics and what to look at: `videos` maps a name to uint8 `(t, h, w, 3)` rows of one contact sheet."""

    metrics: Mapping[str, float]
    videos: Mapping[str, np.ndarray] = field(default_factory=dict)
    fps: float = 8.0


class System(abc.ABC):
    """A trainable system; what most have no use for does nothing here.

    `params` get gradients; `extra` is checkpointed state without a gradient (EMA codebook, usage counters); `frozen`
    holds pretrained parts, which are loaded once and neither optimized nor checkpointed.
    """

    Recipe: ClassVar[type[recipes.Recipe]]
    recipe: Any  # an instance of Recipe; systems narrow it to their own

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe

    @property
    def fields(self) -> tuple[str | Field, ...]:
        """Fields of a clip that training batches hold, by name or declared (see `data.fields`); nothing else is read."""
        return ("video", "fps", "caption")

    @classmethod
    def planned(cls, values: Mapping[str, Any]) -> Self:
        """The system of config values before its data and its pretrained parts are there: those are shapes alone."""
        return cls(config.build(cls.Recipe, values))

    def uncounted(self) -> str:
        """What memory a plan of this system leaves out, in words; empty where that is none."""
        return ""

    @abc.abstractmethod
    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the first bucket's batch."""

    @abc.abstractmethod
    def to_arrays(self, batch: Mapping[str, Any]) -> Batch:
        """Turns a batch of the loader, captions included, into arrays of `batch_spec`."""

    def check_data(self) -> None:  # noqa: B027 # clips of any kind serve
        """Refuses training data that this system cannot learn from, and warns of what it will not use.

        Called at every start of a training, before the workdir takes its config; never for inference.
        """

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """Returns fresh `(params, extra)`; abstract-evaluable."""

    def extended(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        """Adds fresh parameters that `recipe.trained` names to those of `init_from`, which lack them.

        Called only where `recipe.trained` names any.
        """
        return params

    def frozen(self) -> PyTree:
        """Loads the pretrained parts."""
        return {}

    def prepare(self, params: PyTree, extra: PyTree, batches: Iterable[Batch]) -> tuple[PyTree, PyTree]:
        """Data-dependent start (k-means of a codebook), called once before step 0 of a run without `init_from`."""
        return params, extra

    @abc.abstractmethod
    def loss(
        self, params: PyTree, extra: PyTree, frozen: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[PyTree, Mapping[str, Array]]]:
        """Returns the mean loss over `batch` and `(stats, metrics)`.

        Sample i draws from `fold_in(key, batch["sample"][i])` alone, so the result depends neither on accumulation nor
        on the number of devices.  `stats` is what `advance` needs to move `extra`; `metrics` are batch means.
        """

    def advance(
        self, params: PyTree, extra: PyTree, stats: PyTree, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PyTree, PyTree, Mapping[str, Array]]:
        """Moves `extra` (and replaces parameters by rule, e.g. dead codes) once per optimizer step.

        `stats` carries the stats of all microbatches along a new leading axis.  Returns `(params, extra, metrics)`.
        """
        return params, extra, {}

    @abc.abstractmethod
    def evaluate(self, params: PyTree, extra: PyTree, frozen: PyTree, batches: Iterable[Batch]) -> Evaluation:
        """Measures on held-out batches, without randomness."""


def system_class(name: str) -> type[System]:
    """Imports the system called `name`.

    Raises:
      UserError: no such system (with the nearest name).
    """
    if not isinstance(name, str) or name not in SYSTEMS:
        raise UserError(f"config.system={name}: no such system{nearest(str(name), SYSTEMS)}")
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
