"""Samplers of absorbing-state diffusion: one compiled scan from MASK to tokens.  MaskGIT (2202.04200).

Samplers are pytrees: temperatures, `top_k` and `top_p` are leaves, so a new value does not recompile (None, which
leaves a filter out of the program, is structure), everything else is static.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.categorical import Scalar, draw, gumbel, log_prob
from motionaura_jax.diffusion.orders import halton_order, random_order
from motionaura_jax.diffusion.schedules import Cosine, Schedule

Denoise = Callable[[Int[Array, "b t h w"], Float[Array, " b"], Float[Array, ""]], Float[Array, "b t h w k"]]
"""`(x_t, m, progress) -> logits` over the codes without MASK.

m is the share of all tokens that is masked at this level, as in training: that of the schedule times the share of the
tokens that are sampled.  progress rises from 0 at the first step to 1 at the last one; a single step has 1.
"""

_ROUNDING = 1e-3  # tokens; float32 rounding of a whole number of tokens must not leave one more masked


class State(NamedTuple):
    """What a sampler carries from step to step.

    Attributes:
      x: tokens, MASK where not revealed.
      free: positions that are sampled; the others are never touched.
      keys: one per sample.
      order: rank of each position (small first) where the order does not depend on the logits, else None.
      evaluations: calls of the denoiser so far.
    """

    x: Int[Array, "b t h w"]
    free: Bool[Array, "b t h w"]
    keys: Key[Array, " b"]
    order: Float[Array, "b t h w"] | None
    evaluations: Int[Array, ""]


class Samples(NamedTuple):
    """Result of `sample`.

    Attributes:
      tokens: all revealed, in [0, vocab_size).
      masked: tokens still masked after each step.
      evaluations: calls of the denoiser; steps in which no sample of the batch reveals a token take none.
    """

    tokens: Int[Array, "b t h w"]
    masked: Int[Array, "steps b"]
    evaluations: Int[Array, ""]


class Sampler(Protocol):
    """Reveals masked tokens step by step."""

    @property
    def vocab_size(self) -> int:
        """Number of codes, and the id of MASK."""

    def timesteps(self, steps: int) -> Float[Array, " steps+1"]:
        """Returns the times from 1 down to 0."""

    def init(self, keys: Key[Array, " b"], x: Int[Array, "b t h w"], free: Bool[Array, "b t h w"]) -> State:
        """Prepares the first step; x is MASK wherever `free` is True."""

    def step(self, denoise: Denoise, state: State, index: Int[Array, ""], times: Float[Array, " steps+1"]) -> State:
        """Goes from times[index] to times[index + 1]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Draws every masked token, keeps the best ones and masks the rest again, on a fixed schedule of counts.

    After step k of n, ceil(N m(1 - k/n)) of N sampled positions stay masked, and at least one fewer than before.

    Pure confidence reveals what is easy first.  Easy is the background: once enough of it stands, no object fits any
    more, and the object is left out (the same effect shows as monochrome or static samples).  `reveal="halton"`
    chooses positions without looking at the logits, spread evenly over space and time, so that every part of the
    video gets its tokens while the rest is still open, and tokens drawn together are far apart and thus nearly
    independent.  It needs no retraining and no choice temperature (2503.17076).

    Attributes:
      vocab_size: number of codes; MASK is the id `vocab_size`.
      schedule: m(u).
      reveal: "confidence" keeps the highest log p(x) + choice temperature * Gumbel noise; "halton" keeps the next ones
        of a low-discrepancy order, shifted at random per sample; "random" those of a random order, the unbiased
        reference with fixed counts.
      remask: during this many steps before the final one, revealed tokens compete with new ones by log p(x) under the
        current logits and may be masked again; only with reveal="confidence", and only sensible for a denoiser trained
        with `corrupt_visible`.
      temperature, top_k, top_p: of the drawn tokens, see `categorical.draw`.  Confidence is measured before top_k and
        top_p, at the same temperature.
      choice_temperature: of the choice of positions, at the start; falls linearly to 0 at the end.  If samples are
        monochrome or static, check this first.

    Raises:
      UserError: unknown `reveal`, or `remask` with an order that ignores confidence.
    """

    vocab_size: int = field(metadata={"static": True})
    schedule: Schedule = field(metadata={"static": True}, default_factory=Cosine)
    reveal: Literal["confidence", "halton", "random"] = field(metadata={"static": True}, default="confidence")
    remask: int = field(metadata={"static": True}, default=0)
    temperature: Scalar = 1.0
    top_k: Int[Array, ""] | int | None = None
    top_p: Scalar | None = None
    choice_temperature: Scalar = 4.5

    def __post_init__(self) -> None:
        if self.reveal not in ("confidence", "halton", "random"):
            raise UserError(f"sampler: reveal={self.reveal!r} is none of 'confidence', 'halton', 'random'")
        if self.remask < 0 or (self.remask and self.reveal != "confidence"):
            raise UserError(f"sampler: remask={self.remask} must not be negative and needs reveal='confidence'")

    def timesteps(self, steps: int) -> Float[Array, " steps+1"]:
        """Returns evenly spaced times from 1 to 0."""
        return _uniform_times(steps)

    def init(self, keys: Key[Array, " b"], x: Int[Array, "b t h w"], free: Bool[Array, "b t h w"]) -> State:
        """Fixes the order in which positions are revealed, unless confidence decides it."""
        orders = {"halton": halton_order, "random": random_order}
        keys, order_keys = _split(keys)
        order = orders[self.reveal](order_keys, x.shape[1:]) if self.reveal in orders else None
        return State(x, free, keys, order, jnp.int32(0))

    def step(self, denoise: Denoise, state: State, index: Int[Array, ""], times: Float[Array, " steps+1"]) -> State:
        """Draws all masked tokens and keeps the best; does nothing once the whole batch is revealed."""
        done = ~(state.x == self.vocab_size).any()
        return jax.lax.cond(done, lambda s: s, lambda s: self._reveal(denoise, s, index, times), state)

    def _reveal(self, denoise: Denoise, state: State, index: Array, times: Array) -> State:
        x, free, steps = state.x, state.free, times.shape[0] - 1
        masked = x == self.vocab_size
        logits = _logits(denoise, state, index, self.schedule.masked(times[index]), steps, self.vocab_size)
        draw_keys, choice_keys = _split(_fold(state.keys, index))
        drawn = draw(draw_keys, logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        proposal = jnp.where(masked, drawn, x)
        candidates = masked
        if self.remask:
            candidates = masked | (free & (index >= steps - 1 - self.remask))
        if state.order is None:
            heat = self.choice_temperature * (1.0 - (index + 1) / steps)
            score = log_prob(logits, proposal, temperature=self.temperature) + heat * gumbel(choice_keys, x.shape[1:])
        else:
            score = -state.order
        left = self._remaining(free, masked, self.schedule.masked(times[index + 1]))
        kept = _best(score, candidates, _count(candidates) - left)
        x = jnp.where(candidates, jnp.where(kept, proposal, self.vocab_size), x)
        return state._replace(x=x, evaluations=state.evaluations + 1)

    def _remaining(self, free: Array, masked: Array, level: Array) -> Int[Array, " b"]:
        """Tokens that stay masked after a step that ends at `level`."""
        wanted = jnp.ceil(_count(free) * level - _ROUNDING).astype(jnp.int32)
        return jnp.clip(jnp.minimum(wanted, _count(masked) - 1), 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Reverses the process itself: from u to s each masked token is revealed with probability (m_u - m_s) / m_u.

    Unbiased as the number of steps grows (64 to 256 are usual).  Which tokens are revealed does not depend on the
    logits, so a step that reveals none in the whole batch skips the denoiser; no logits are kept for that, and it is
    exact for time-conditioned denoisers too.

    Attributes:
      vocab_size: number of codes; MASK is the id `vocab_size`.
      schedule: m(u).
      temperature, top_k, top_p: of the drawn tokens, see `categorical.draw`.
    """

    vocab_size: int = field(metadata={"static": True})
    schedule: Schedule = field(metadata={"static": True}, default_factory=Cosine)
    temperature: Scalar = 1.0
    top_k: Int[Array, ""] | int | None = None
    top_p: Scalar | None = None

    def timesteps(self, steps: int) -> Float[Array, " steps+1"]:
        """Returns evenly spaced times from 1 to 0."""
        return _uniform_times(steps)

    def init(self, keys: Key[Array, " b"], x: Int[Array, "b t h w"], free: Bool[Array, "b t h w"]) -> State:
        """Starts with everything in `free` masked."""
        return State(x, free, keys, None, jnp.int32(0))

    def step(self, denoise: Denoise, state: State, index: Int[Array, ""], times: Float[Array, " steps+1"]) -> State:
        """Draws z_s ~ p(z_s | z_u)."""
        now, after = self.schedule.masked(times[index]), self.schedule.masked(times[index + 1])
        draw_keys, reveal_keys = _split(_fold(state.keys, index))
        revealed = (state.x == self.vocab_size) & (random_order(reveal_keys, state.x.shape[1:]) < (now - after) / now)

        def run(state: State) -> State:
            logits = _logits(denoise, state, index, now, times.shape[0] - 1, self.vocab_size)
            drawn = draw(draw_keys, logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
            return state._replace(x=jnp.where(revealed, drawn, state.x), evaluations=state.evaluations + 1)

        return jax.lax.cond(revealed.any(), run, lambda s: s, state)


def sample(
    denoise: Denoise,
    sampler: Sampler,
    keys: Key[Array, " b"],
    x_init: Int[Array, "b t h w"],
    *,
    steps: int,
    known: Bool[Array, "b t h w"] | None = None,
) -> Samples:
    """Reveals every masked token in `steps` steps.  Pure; jit it with `sampler` as an argument and `steps` static.

    Args:
      denoise: see `Denoise`; conditions and guidance are closed over (`guidance.guided`).
      keys: one key per sample; sample i depends on keys[i] and x_init[i] alone, not on the batch around it.
      x_init: tokens with MASK (id `vocab_size`) where they are to be sampled; `Absorbing.prior` samples all of them.
      steps: number of steps, at least 1.
      known: positions of `x_init` to keep (inpainting, infilling): all others are sampled.  Known tokens are never
        touched.  None keeps whatever is not MASK.

    Raises:
      UserError: `steps` below 1.
      ValueError: the denoiser does not predict `vocab_size` codes.
    """
    x = jnp.asarray(x_init, jnp.int32)
    if known is not None:
        x = jnp.where(known, x, sampler.vocab_size)
    times = sampler.timesteps(steps)

    def body(state: State, index: Array) -> tuple[State, Array]:
        state = sampler.step(denoise, state, index, times)
        return state, _count(state.x == sampler.vocab_size)

    state = sampler.init(keys, x, x == sampler.vocab_size)
    state, masked = jax.lax.scan(body, state, jnp.arange(steps))
    return Samples(state.x, masked, state.evaluations)


def _uniform_times(steps: int) -> Float[Array, " steps+1"]:
    if steps < 1:
        raise UserError(f"num_inference_steps={steps}: at least 1 step is needed")
    return 1.0 - jnp.arange(steps + 1) / steps


def _logits(
    denoise: Denoise, state: State, index: Array, level: Array, steps: int, vocab_size: int
) -> Float[Array, "b t h w k"]:
    progress = index / (steps - 1) if steps > 1 else jnp.ones(())
    logits = denoise(state.x, level * state.free.mean((1, 2, 3)), progress)
    if logits.shape != (*state.x.shape, vocab_size):
        raise ValueError(f"denoiser: logits {logits.shape} for tokens {state.x.shape} of {vocab_size} codes")
    return logits.astype(jnp.float32)


def _best(score: Array, candidates: Bool[Array, "b t h w"], count: Int[Array, " b"]) -> Bool[Array, "b t h w"]:
    """Marks the `count` candidates with the highest scores in each sample; equal scores go by position."""
    # Finite, so that a token without probability still ranks before what is no candidate.
    cost = jnp.where(candidates, -jnp.maximum(score, jnp.finfo(jnp.float32).min), jnp.inf)
    cost = cost.reshape(-1, math.prod(score.shape[1:]))
    rank = jnp.argsort(jnp.argsort(cost, -1), -1)
    return (rank < count[:, None]).reshape(score.shape) & candidates


def _count(where: Bool[Array, "b t h w"]) -> Int[Array, " b"]:
    return where.sum((1, 2, 3), dtype=jnp.int32)


def _fold(keys: Key[Array, " b"], data: Array) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def _split(keys: Key[Array, " b"]) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    both = jax.vmap(jax.random.split)(keys)
    return both[:, 0], both[:, 1]
