"""Samplers for absorbing-state diffusion, from MASK to tokens.  MaskGIT (2202.04200).

Tokens of `x_init` that are not MASK are context and never change.  The denoiser returns logits over the codes, without MASK.
As in training, its level is the masked share of all tokens: the schedule's masked fraction times the share of tokens to
sample.

Samplers are pytrees.  Temperatures, `top_k` and `top_p` are leaves, so a new value needs no recompilation, unless it switches
to or from None, which removes the filter from the program.  Everything else is static.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.categorical import gumbel, log_prob, sample_codes
from motionaura_jax.diffusion.orders import halton_order, random_order
from motionaura_jax.diffusion.sampling import Denoise, Scalar, progress_of, uniform_times
from motionaura_jax.diffusion.schedules import Cosine, Schedule

_ROUNDING = 1e-3  # tokens; keeps float32 error from raising the ceil of a whole number of tokens by one


class State(NamedTuple):
    """State of a sampler.

    Attributes:
      x: tokens; MASK where not yet revealed.
      free: positions to sample; the others never change.
      keys: one per sample.
      order: rank of each position (small first), or None if the order depends on the logits.
      evaluations: number of denoiser calls so far.
    """

    x: Int[Array, "b t h w"]
    free: Bool[Array, "b t h w"]
    keys: Key[Array, " b"]
    order: Float[Array, "b t h w"] | None
    evaluations: Int[Array, ""]


class Trace(NamedTuple):
    """Record of one step: tokens still masked in each sample, and denoiser calls so far.

    A step in which no sample of the batch reveals a token does not call the denoiser.
    """

    masked: Int[Array, " b"]
    evaluations: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Sampler that fills every masked token, keeps the best ones and masks the rest again, on a fixed schedule of counts.

    After step k of n, ceil(N m(1 - k/n)) of N sampled positions stay masked, and at least one fewer than before.

    Pure confidence reveals easy tokens first, and the background is easy.  Once enough of it is fixed, an object no longer
    fits and is left out; monochrome and static samples have the same cause.  `reveal="halton"` chooses positions
    independently of the logits, spread evenly over space and time.  Every part of the video then gets tokens while the rest
    is still open, and tokens sampled together are far apart and thus nearly independent.  It needs no retraining and no
    choice temperature (2503.17076).

    Attributes:
      vocab_size: number of codes; MASK is the id `vocab_size`.
      schedule: m(u).
      reveal: "confidence" keeps the tokens with the highest log p(x) + choice temperature * Gumbel noise; "halton" the
        next ones in a low-discrepancy order, shifted at random per sample; "random" the next ones in a random order, the
        unbiased reference with fixed counts.
      remask: number of steps before the final one in which revealed tokens compete with new ones by log p(x) under the
        current logits and may be masked again.  Requires reveal="confidence", and helps only a denoiser trained with
        `corrupt_visible`.
      temperature, top_k, top_p: control token sampling; see `categorical.sample_codes`.  Confidence is measured at the same
        temperature, before top_k and top_p.
      choice_temperature: initial temperature for choosing positions; falls linearly to 0.  If samples are monochrome or
        static, check this first.

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
        """Return evenly spaced times from 1 to 0."""
        return uniform_times(steps)

    def init(self, keys: Key[Array, " b"], x: Int[Array, "b t h w"]) -> State:
        """Choose the order in which positions are revealed, unless confidence decides it."""
        x, free = _start(x, self.vocab_size)
        orders = {"halton": halton_order, "random": random_order}
        keys, order_keys = _split(keys)
        order = orders[self.reveal](order_keys, x.shape[1:]) if self.reveal in orders else None
        return State(x, free, keys, order, jnp.int32(0))

    def step(self, denoise: Denoise, state: State, index: Int[Array, ""], times: Float[Array, " steps+1"]) -> State:
        """Sample all masked tokens and keep the best; do nothing once the whole batch is revealed."""
        done = ~(state.x == self.vocab_size).any()
        return jax.lax.cond(done, lambda s: s, lambda s: self._reveal(denoise, s, index, times), state)

    def trace(self, state: State) -> Trace:
        """Return how many tokens are still masked, and the number of denoiser calls."""
        return _trace(state, self.vocab_size)

    def _reveal(self, denoise: Denoise, state: State, index: Array, times: Array) -> State:
        x, free, steps = state.x, state.free, times.shape[0] - 1
        masked = x == self.vocab_size
        logits = _logits(denoise, state, index, self.schedule.masked(times[index]), steps, self.vocab_size)
        code_keys, choice_keys = _split(_fold(state.keys, index))
        sampled = sample_codes(code_keys, logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        proposal = jnp.where(masked, sampled, x)
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
        """Return how many tokens stay masked after a step that ends at `level`."""
        wanted = jnp.ceil(_count(free) * level - _ROUNDING).astype(jnp.int32)
        return jnp.clip(jnp.minimum(wanted, _count(masked) - 1), 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Sampler that simulates the reverse process: from u to s it reveals each masked token with probability (m_u - m_s) / m_u.

    It is unbiased in the limit of many steps (64 to 256 are usual).  The choice of tokens does not depend on the logits, so
    a step that reveals none in the whole batch skips the denoiser.  This needs no cached logits and is exact for
    time-conditioned denoisers too.

    With `remask_rate`, each step also masks revealed tokens again with a probability sigma, and reveals as many more, so
    that the law of the masked positions at every time stays that of the process.  The model can thus replace tokens that
    turned out wrong, and needs no other training (ReMDM; Wang et al. 2025, 2503.00307).

    Attributes:
      vocab_size: number of codes; MASK is the id `vocab_size`.
      schedule: m(u).
      temperature, top_k, top_p: control token sampling; see `categorical.sample_codes`.
      remask: rule for sigma, whose largest possible value is min(1, m_s / (1 - m_u)): "cap" takes `remask_rate` up to that
        value, "rescale" takes the share `remask_rate` of it, "none" masks nothing again.
      remask_rate: in [0, 1].

    Raises:
      UserError: unknown `remask`.
    """

    vocab_size: int = field(metadata={"static": True})
    schedule: Schedule = field(metadata={"static": True}, default_factory=Cosine)
    remask: Literal["none", "cap", "rescale"] = field(metadata={"static": True}, default="none")
    temperature: Scalar = 1.0
    top_k: Int[Array, ""] | int | None = None
    top_p: Scalar | None = None
    remask_rate: Scalar = 0.0

    def __post_init__(self) -> None:
        if self.remask not in ("none", "cap", "rescale"):
            raise UserError(f"sampler: remask={self.remask!r} is none of 'none', 'cap', 'rescale'")

    def timesteps(self, steps: int) -> Float[Array, " steps+1"]:
        """Return evenly spaced times from 1 to 0."""
        return uniform_times(steps)

    def rates(self, now: Float[Array, ""], after: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the probabilities to reveal a masked token and to mask a revealed one, between two masked fractions."""
        if self.remask == "none":
            return (now - after) / now, jnp.zeros(())
        shown = 1.0 - now
        most = jnp.where(after < shown, after / jnp.where(shown > 0, shown, 1.0), 1.0)
        sigma = jnp.minimum(self.remask_rate, most) if self.remask == "cap" else self.remask_rate * most
        return (now - after + sigma * shown) / now, sigma

    def init(self, keys: Key[Array, " b"], x: Int[Array, "b t h w"]) -> State:
        """Start from the masked tokens."""
        return State(*_start(x, self.vocab_size), keys, None, jnp.int32(0))

    def step(self, denoise: Denoise, state: State, index: Int[Array, ""], times: Float[Array, " steps+1"]) -> State:
        """Sample z_s ~ p(z_s | z_u)."""
        now, after = self.schedule.masked(times[index]), self.schedule.masked(times[index + 1])
        code_keys, reveal_keys = _split(_fold(state.keys, index))
        masked, noise = state.x == self.vocab_size, random_order(reveal_keys, state.x.shape[1:])
        reveal, remask = self.rates(now, after)
        revealed = masked & (noise < reveal)

        def run(state: State) -> State:
            logits = _logits(denoise, state, index, now, times.shape[0] - 1, self.vocab_size)
            sampled = sample_codes(code_keys, logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
            return state._replace(x=jnp.where(revealed, sampled, state.x), evaluations=state.evaluations + 1)

        state = jax.lax.cond(revealed.any(), run, lambda s: s, state)
        if self.remask == "none":
            return state
        again = state.free & ~masked & (noise < remask)
        return state._replace(x=jnp.where(again, self.vocab_size, state.x))

    def trace(self, state: State) -> Trace:
        """Return how many tokens are still masked, and the number of denoiser calls."""
        return _trace(state, self.vocab_size)


def _start(x: Int[Array, "b t h w"], vocab_size: int) -> tuple[Array, Array]:
    """Return the tokens as int32 and a mask of the MASK positions, which are sampled; the others are context."""
    x = jnp.asarray(x, jnp.int32)
    return x, x == vocab_size


def _trace(state: State, vocab_size: int) -> Trace:
    return Trace(_count(state.x == vocab_size), state.evaluations)


def _logits(
    denoise: Denoise, state: State, index: Array, level: Array, steps: int, vocab_size: int
) -> Float[Array, "b t h w k"]:
    logits = denoise(state.x, level * state.free.mean((1, 2, 3)), progress_of(index, steps))
    if logits.shape != (*state.x.shape, vocab_size):
        raise ValueError(f"denoiser: logits {logits.shape} for tokens {state.x.shape} of {vocab_size} codes")
    return logits.astype(jnp.float32)


def _best(score: Array, candidates: Bool[Array, "b t h w"], count: Int[Array, " b"]) -> Bool[Array, "b t h w"]:
    """Mark the `count` candidates with the highest scores in each sample; position breaks ties."""
    # Clamp to finite values, so that a candidate of zero probability still ranks before non-candidates.
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
