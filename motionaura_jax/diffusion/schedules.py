"""Mask schedules: the masked fraction m(u) at time u in (0, 1].  Sahoo et al. 2024 (MDLM), section 3.4."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from motionaura_jax.core.errors import UserError, nearest, shown

_ROUNDING = 1.0 - 2.0**-20  # in float32, (k / T) * T may exceed k, but must still be step k
_DIGITS = 6  # of the number of discrete steps; float32 tells no more of them apart


class Schedule(Protocol):
    """Increasing map from time u in [0, 1] to the masked fraction, with m(0) = 0 and m(1) = 1.  Hashable."""

    def masked(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return m(u), the probability that a token is MASK at time u."""

    def weight(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return m'(u) / m(u) for u in (0, 1], the weight of the masked cross entropy in the likelihood bound."""


@dataclass(frozen=True)
class Linear:
    """Schedule m(u) = u, the limit of D3PM's absorbing schedule beta_t = 1 / (T - t + 1) for many steps."""

    def masked(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return u."""
        return jnp.asarray(u, jnp.float32)

    def weight(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return 1 / u."""
        return 1.0 / jnp.asarray(u, jnp.float32)


@dataclass(frozen=True)
class Cosine:
    """Schedule m(u) = sin(pi u / 2), MaskGIT's cos(pi r / 2) with r = 1 - u; tokens are heavily masked most of the time."""

    def masked(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return sin(pi u / 2)."""
        return jnp.sin(0.5 * math.pi * jnp.asarray(u, jnp.float32))

    def weight(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return (pi / 2) cot(pi u / 2)."""
        angle = 0.5 * math.pi * jnp.asarray(u, jnp.float32)
        # The float32 nearest to pi / 2 is above it, where the cosine is negative.
        return 0.5 * math.pi * jnp.maximum(jnp.cos(angle), 0.0) / jnp.sin(angle)


@dataclass(frozen=True, kw_only=True)
class Discrete:
    """Schedule `base` in T discrete steps: u in ((t - 1) / T, t / T] is step t.

    `weight` makes the mean over u the exact discrete-time bound: the sum over t of (m_t - m_{t-1}) / m_t times the
    masked cross entropy (Austin et al. 2021, equation 1, for the absorbing state).
    """

    base: Schedule = field(default_factory=Linear)
    T: int = 1000

    def __post_init__(self) -> None:
        if self.T < 1:
            raise UserError(f"schedule: {self.T} discrete steps; at least 1 is needed")

    def masked(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return m_t of `base`."""
        return self.base.masked(self._step(u) / self.T)

    def weight(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return T (m_t - m_{t-1}) / m_t."""
        step = self._step(u)
        now, before = self.base.masked(step / self.T), self.base.masked((step - 1.0) / self.T)
        return self.T * (now - before) / now

    def _step(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.ceil(jnp.asarray(u, jnp.float32) * (self.T * _ROUNDING))


SCHEDULES: dict[str, Schedule] = {"linear": Linear(), "cosine": Cosine()}


def schedule(name: str) -> Schedule:
    """Return the schedule called "linear" or "cosine"; "linear:1000" is its discrete form with T = 1000.

    Raises:
      UserError: the schedule is unknown (the error suggests the nearest name), or T is not a positive integer.
    """
    base, separator, steps = name.partition(":")
    if base not in SCHEDULES:
        raise UserError(f"schedule {shown(name)!r}: no such schedule{nearest(base, SCHEDULES)}")
    if not separator:
        return SCHEDULES[base]
    if not steps.isdecimal() or len(steps) > _DIGITS:
        raise UserError(f"schedule {shown(name)!r}: write the number of discrete steps as {base}:1000")
    return Discrete(base=SCHEDULES[base], T=int(steps))
