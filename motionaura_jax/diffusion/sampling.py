"""Sampling from any diffusion process: one compiled scan, with guidance and clamping as wrappers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import PyTree
from motionaura_jax.diffusion.process import Latents

Scalar = float | Float[Array, ""]
_ROUNDING = 1e-6  # of the progress, a quotient of small numbers
Model = Callable[[Latents, Float[Array, " n"]], Float[Array, "n t h w c"]]
"""`(x_t, level) -> dense prediction`."""
Denoise = Callable[[Latents, Float[Array, " b"], Float[Array, ""]], Float[Array, "b t h w c"]]
"""`(x_t, level, progress) -> dense prediction`.

`level` is the noise level, as in training (`Process.level`).  `progress` rises from 0 at the first step to 1 at the last; it is
1 if there is only one step.
"""


class State(Protocol):
    """Pytree that a sampler carries from step to step: latents and any other state."""

    @property
    def x(self) -> Latents:
        """Return the latents so far."""

    def _replace(self, **changes: Any) -> Any:
        """Return the state with fields replaced, as named tuples do."""


class Sampler(Protocol):
    """Rule that takes latents from the prior to clean ones, step by step.

    Samplers are pytrees: values that may change without recompilation are leaves, everything else is static.
    """

    def timesteps(self, steps: int) -> Float[Array, " steps+1"]:
        """Return the times from 1 down to 0."""

    def init(self, keys: Key[Array, " b"], x: Latents) -> Any:
        """Return the state before the first step; `x` holds the prior at the positions to sample."""

    def step(self, denoise: Denoise, state: Any, index: Int[Array, ""], times: Float[Array, " steps+1"]) -> Any:
        """Step from times[index] to times[index + 1]."""

    def trace(self, state: Any) -> PyTree:
        """Return a small record of a state, for logging."""


class Samples(NamedTuple):
    """Result of `sample`: clean latents `x`, and the sampler's `trace` after each step, along a new leading axis."""

    x: Latents
    trace: PyTree


def sample(denoise: Denoise, sampler: Sampler, keys: Key[Array, " b"], x_init: Latents, *, steps: int) -> Samples:
    """Sample latents in `steps` steps.  Pure; jit it with `sampler` as an argument and `steps` static.

    Args:
      denoise: see `Denoise`; it closes over conditions and guidance (`guided`).
      keys: one key per sample; sample i depends on keys[i] and x_init[i] alone, not on the batch around it.
      x_init: `Process.prior`, or latents that hold it at the positions to sample.
      steps: number of steps, at least 1.

    Raises:
      UserError: `steps` below 1.
    """
    times = sampler.timesteps(steps)

    def body(state: Any, index: Array) -> tuple[Any, PyTree]:
        state = sampler.step(denoise, state, index, times)
        return state, sampler.trace(state)

    state, trace = jax.lax.scan(body, sampler.init(keys, x_init), jnp.arange(steps))
    return Samples(state.x, trace)


def uniform_times(steps: int) -> Float[Array, " steps+1"]:
    """Return evenly spaced times from 1 to 0.

    Raises:
      UserError: `steps` below 1.
    """
    if steps < 1:
        raise UserError(f"num_inference_steps={steps}: at least 1 step is needed")
    return 1.0 - jnp.arange(steps + 1) / steps


def progress_of(index: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Return the progress at step `index` of `steps`; see `Denoise`."""
    return index / (steps - 1) if steps > 1 else jnp.ones(())


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Clamped:
    """Sampler that restores known positions after every step of an inner sampler.

    Token samplers do not need it: they never change a token that is not MASK.

    Attributes:
      sampler: inner sampler.
      clean: latents with the known values.
      known: True at known positions, `(batch, t, h, w)`.
    """

    sampler: Any
    clean: Latents
    known: Bool[Array, "b t h w"]

    def timesteps(self, steps: int) -> Float[Array, " steps+1"]:
        """Return the times of the inner sampler."""
        return self.sampler.timesteps(steps)

    def init(self, keys: Key[Array, " b"], x: Latents) -> Any:
        """Start from the clean latents at known positions."""
        return self.sampler.init(keys, self._restored(x))

    def step(self, denoise: Denoise, state: Any, index: Int[Array, ""], times: Float[Array, " steps+1"]) -> Any:
        """Step, then restore known positions."""
        state = self.sampler.step(denoise, state, index, times)
        return state._replace(x=self._restored(state.x))

    def trace(self, state: Any) -> PyTree:
        """Return the record of the inner sampler."""
        return self.sampler.trace(state)

    def _restored(self, x: Latents) -> Latents:
        return restore(x, self.clean, self.known)


def restore(x: Latents, clean: Latents, known: Bool[Array, "b t h w"]) -> Latents:
    """Return `x` with clean latents at known positions; latents may have a channel axis that `known` lacks."""
    return jnp.where(known.reshape(*known.shape, *[1] * (x.ndim - known.ndim)), clean, x)


class Weights(Protocol):
    """Weights of the branches of a guided prediction."""

    def weights(self, progress: Float[Array, ""]) -> Sequence[Float[Array, ""]]:
        """Return one weight per branch, in the order of `stacked`."""

    def active(self, progress: Float[Array, ""]) -> Bool[Array, ""] | bool:
        """Tell whether other branches than the first count; a Python bool decides it for all steps."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): (1 + w) p_cond - w p_uncond.  A pytree: `scale` is a leaf.

    Attributes:
      scale: largest w, at least 0; diffusers' `guidance_scale` is 1 + w.
      ramp: "linear" raises w from 0 at the first step to `scale` at the last, which keeps samples diverse early and
        faithful late (Muse, section 2.7); "constant" uses `scale` throughout.
      start, end: progress between which guidance applies, both included (Kynkäänniemi et al. 2024).  Other steps
        run the conditional branch alone, at half the cost.

    Raises:
      UserError: unknown `ramp`, or an interval outside [0, 1].
    """

    scale: Scalar = 3.0
    ramp: Literal["linear", "constant"] = field(metadata={"static": True}, default="linear")
    start: float = field(metadata={"static": True}, default=0.0)
    end: float = field(metadata={"static": True}, default=1.0)

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise UserError(f"guidance: from {self.start} to {self.end} is no interval within 0 to 1")
        if self.ramp not in ("linear", "constant"):
            raise UserError(f"guidance: ramp={self.ramp!r} is neither 'linear' nor 'constant'")

    def weight(self, progress: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return w at `progress`, which is 0 at the first step and 1 at the last."""
        return self.scale * (progress if self.ramp == "linear" else jnp.ones_like(progress))

    def weights(self, progress: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the weights of the conditional and of the unconditional branch."""
        w = self.weight(progress)
        return 1.0 + w, -w

    def active(self, progress: Float[Array, ""]) -> Bool[Array, ""] | bool:
        """Tell whether `progress` is in the interval."""
        if self.start == 0.0 and self.end == 1.0:
            return True
        return (progress >= self.start - _ROUNDING) & (progress <= self.end + _ROUNDING)


def stacked(*branches: PyTree) -> PyTree:
    """Concatenate the conditions of all branches along the batch, the conditional one first.

    Args:
      branches: pytrees of the same structure with batched leaves, e.g. `Cond`: the condition, then the learned null
        condition or that of a negative prompt.  After the first branch, leaves may have batch size 1.
    """
    return jax.tree.map(
        lambda first, *rest: jnp.concatenate([first, *(jnp.broadcast_to(leaf, first.shape) for leaf in rest)]),
        *branches,
    )


def guided(model: Model, guidance: Weights | None = None, alone: Model | None = None) -> Denoise:
    """Return the `denoise` of a sampler: the weighted sum of the predictions of all branches, from one call of `model`.

    Args:
      model: called once per step, on the latents of all branches; it closes over their conditions (`stacked`).
      guidance: None runs a single branch, at half the cost of two, and predicts the same as w = 0.
      alone: the first branch alone, for steps in which guidance is not active.

    Raises:
      ValueError: `guidance` has inactive steps, but there is no `alone`.
    """
    if guidance is None:
        return lambda x, level, _: model(x, level)

    def denoise(x: Latents, level: Float[Array, " b"], progress: Float[Array, ""]) -> Float[Array, "b t h w c"]:
        active = guidance.active(progress)
        if active is True:
            return combined(x, level, progress)
        if alone is None:
            raise ValueError("guidance with inactive steps needs the model of the first branch alone")
        one = alone
        return jax.lax.cond(active, combined, lambda x, level, _: one(x, level).astype(jnp.float32), x, level, progress)

    def combined(x: Latents, level: Float[Array, " b"], progress: Float[Array, ""]) -> Float[Array, "b t h w c"]:
        weights = guidance.weights(progress)
        count = len(weights)
        predictions = model(jnp.concatenate([x] * count), jnp.concatenate([level] * count)).astype(jnp.float32)
        first, *rest = (w * part for w, part in zip(weights, jnp.split(predictions, count), strict=True))
        return sum(rest, first)

    return denoise
