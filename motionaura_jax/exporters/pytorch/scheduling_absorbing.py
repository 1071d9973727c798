"""Samplers for absorbing-state diffusion, from MASK to tokens.  MotionAura section 3.2; MaskGIT (2202.04200).

    scheduler = AbsorbingScheduler.from_pretrained("FOLDER/scheduler")
    tokens = scheduler.sample(denoise, scheduler.prior((1, 4, 8, 8)), SeededNoise([0]), steps=32)

`denoise(tokens, masked_fraction, progress)` returns logits; apply guidance inside it with `guide`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from motionaura_jax.exporters.pytorch.modeling_utils import read_settings

Denoise = Callable[[Tensor, Tensor, float], Tensor]
"""`(x_t (b t h w), m (b,), progress) -> logits (b t h w k)`; progress rises from 0 at the first step to 1 at the last."""

_PRIMES = (2, 3, 5, 7)
_ROUNDING = 1e-3  # tokens; keeps float error from raising the ceil of a whole number of tokens by one
_PROGRESS_ROUNDING = 1e-6
_DISCRETE_ROUNDING = 1.0 - 2.0**-20


class Noise(Protocol):
    """Source of random numbers, by purpose and step.  The batch axis leads; each sample has its own stream."""

    def uniform(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Sample uniform numbers in [0, 1), `(b, *shape)`, float32."""

    def gumbel(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Sample standard Gumbel noise, `(b, *shape)`, float32."""

    def integers(self, name: str, sizes: Sequence[int]) -> Tensor:
        """Sample uniform integers below each of `sizes`, `(b, len(sizes))`."""


class SeededNoise:
    """Noise from one generator per sample, so that a sample does not depend on the rest of its batch.

    Args:
      seeds: a seed or a CPU generator for each sample.
    """

    def __init__(self, seeds: Sequence[int | torch.Generator]):
        self._generators = [
            seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed) for seed in seeds
        ]

    def uniform(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Sample uniform numbers; see `Noise`."""
        return torch.stack([torch.rand(*shape, generator=generator) for generator in self._generators])

    def gumbel(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Sample Gumbel noise from float64 uniforms: float32 ones would cut off the upper tail."""
        rows = [torch.rand(*shape, generator=generator, dtype=torch.float64) for generator in self._generators]
        return -torch.log(-torch.log(torch.stack(rows).clamp(min=1e-300))).float()

    def integers(self, name: str, sizes: Sequence[int]) -> Tensor:
        """Sample uniform integers; see `Noise`."""
        rows = [[int(torch.randint(size, (), generator=one)) for size in sizes] for one in self._generators]
        return torch.tensor(rows)


def masked_fraction(schedule: str, u: float) -> float:
    """Return the masked fraction m(u) at time u in [0, 1].

    `schedule` is "linear", "cosine", or either in T discrete steps, e.g. "linear:1000".

    Raises:
      ValueError: unknown schedule.
    """
    base, _, steps = schedule.partition(":")
    if base not in ("linear", "cosine"):
        raise ValueError(f"schedule {schedule!r} is neither 'linear' nor 'cosine'")
    if steps:
        u = math.ceil(u * (int(steps) * _DISCRETE_ROUNDING)) / int(steps)
    return u if base == "linear" else math.sin(0.5 * math.pi * u)


def draw(
    logits: Tensor,
    noise: Callable[[Sequence[int]], Tensor],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Sample one code per token from softmax(logits / temperature), restricted to `top_k` codes, then to mass `top_p`.

    Gumbel-max in two stages: first a block of about sqrt(k) codes by its total mass, then a code within the block.  The
    distribution is that of plain Gumbel-max, with far fewer random numbers.

    Args:
      logits: `(b, t, h, w, k)`, float32.
      noise: function from the shape of one sample to batched Gumbel noise.
      temperature: 0 picks the most likely code.
      top_k, top_p: None disables the filter; codes tied with the last one kept are kept too.
    """
    scaled = logits / (temperature or 1.0)
    if top_k is not None and top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k, dim=-1).values[..., -1:], -torch.inf)
    if top_p is not None:
        ordered = scaled.sort(dim=-1, descending=True).values
        mass = ordered.softmax(-1).double().cumsum(-1)
        last = (mass < top_p).sum(-1, keepdim=True).clamp(max=scaled.shape[-1] - 1)
        scaled = scaled.masked_fill(scaled < ordered.gather(-1, last), -torch.inf)
    codes = scaled.shape[-1]
    width = math.isqrt(codes - 1) + 1
    count = -(-codes // width)
    blocks = torch.nn.functional.pad(scaled, (0, count * width - codes), value=-torch.inf).unflatten(-1, (count, width))
    if temperature == 0:
        between, within = blocks.amax(-1), torch.zeros(())
    else:
        numbers = noise((*logits.shape[1:-1], count + width)).to(logits.device)
        between, within = blocks.logsumexp(-1) + numbers[..., :count], numbers[..., count:]
    block = between.argmax(-1)
    chosen = blocks.gather(-2, block[..., None, None].expand(*block.shape, 1, width))[..., 0, :]
    return block * width + (chosen + within).argmax(-1)


def guide(conditional: Tensor, unconditional: Tensor, scale: float, progress: float, ramp: str) -> Tensor:
    """Apply classifier-free guidance: (1 + w) conditional - w unconditional.

    w is `scale` - 1.  With `ramp` "linear" it is multiplied by `progress`, which keeps samples diverse early and faithful
    late.
    """
    w = (scale - 1) * (progress if ramp == "linear" else 1.0)
    return (1 + w) * conditional - w * unconditional


def halton_ranks(shape: Sequence[int]) -> Tensor:
    """Rank the cells of a grid (0 first) by the Halton sequence's first visit, so that every prefix is spread evenly."""
    size = math.prod(shape)
    axes = sorted((axis for axis, length in enumerate(shape) if length > 1), key=lambda axis: -shape[axis])
    for doubling in itertools.count(3):
        points = torch.arange(1, (size << doubling) + 1)
        cells = torch.zeros(len(points), dtype=torch.long)
        for axis, length in enumerate(shape):
            # The longest axis gets the smallest base, whose points are the most even.
            base = _PRIMES[axes.index(axis)] if axis in axes else 0
            cells = cells * length + (_radical_inverse(points, base) * length).long() if base else cells * length
        first = torch.full((size,), len(points)).scatter_reduce(0, cells, points - 1, "amin")
        if first.max() < len(points):
            return first.argsort().argsort().reshape(tuple(shape))
    raise AssertionError


def _radical_inverse(points: Tensor, base: int) -> Tensor:
    """Reflect the base-`base` digits of `points` about the radix point: 6 = 110 in base 2 becomes 0.011 = 0.375."""
    value, scale = torch.zeros(len(points), dtype=torch.float64), 1.0
    while points.any():
        scale /= base
        value, points = value + points % base * scale, points // base
    return value


@dataclasses.dataclass(frozen=True)
class Run:
    """Constants of one sampling run of `steps` steps.

    Attributes:
      free: positions to sample; the others keep their tokens.
      order: rank of each position (small first); None if it depends on the logits.
    """

    denoise: Denoise
    noise: Noise
    free: Tensor
    order: Tensor | None
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbsorbingScheduler:
    """Scheduler that reveals masked tokens step by step; MASK is the id `vocab_size`.

    Attributes:
      sampler: "ancestral" simulates the reverse process.  The others leave ceil(N m(1 - k/n)) of N tokens masked after step
        k of n.  They keep the tokens with the highest log p(x) + choice temperature * Gumbel noise ("confidence"), or the
        next ones in a low-discrepancy ("halton") or random ("random") order.
      schedule: see `masked_fraction`.
      num_inference_steps, guidance_scale, guidance_ramp: defaults of the pipeline.
      guidance_start, guidance_end: progress from 0 to 1 between which guidance applies.
      temperature, top_k, top_p: control token sampling; see `draw`.
      choice_temperature: initial temperature for choosing positions by confidence; falls linearly to 0.
      remask: number of steps before the last one in which revealed tokens compete with new ones ("confidence" only).
      remask_rate, remask_rule: probability with which a step masks a revealed token again ("ancestral" only): the rate up to
        the largest possible value ("cap"), or that share of it ("rescale").
    """

    vocab_size: int
    sampler: Literal["confidence", "halton", "random", "ancestral"] = "confidence"
    schedule: str = "cosine"
    num_inference_steps: int = 32
    guidance_scale: float = 4.0
    guidance_ramp: Literal["linear", "constant"] = "linear"
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    temperature: float = 1.0
    choice_temperature: float = 4.5
    top_k: int | None = None
    top_p: float | None = None
    remask: int = 0
    remask_rule: Literal["cap", "rescale"] = "rescale"
    remask_rate: float = 0.0

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read `scheduler_config.json`."""
        return cls(**read_settings(Path(folder) / "scheduler_config.json"))

    @property
    def always_guides(self) -> bool:
        """Return whether guidance applies at every step."""
        return self.guidance_start == 0.0 and self.guidance_end == 1.0

    def guides(self, progress: float) -> bool:
        """Return whether guidance applies at `progress`."""
        return self.guidance_start - _PROGRESS_ROUNDING <= progress <= self.guidance_end + _PROGRESS_ROUNDING

    def prior(self, shape: Sequence[int]) -> Tensor:
        """Return tokens of this shape, all MASK."""
        return torch.full(tuple(shape), self.vocab_size)

    def sample(self, denoise: Denoise, x: Tensor, noise: Noise, *, steps: int) -> Tensor:
        """Reveal the MASK positions of tokens `(b, t, h, w)` in `steps` steps; all other tokens stay unchanged.

        Raises:
          ValueError: fewer than one step, or an unknown sampler.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: at least 1 is needed")
        if self.sampler not in ("confidence", "halton", "random", "ancestral"):
            raise ValueError(f"sampler={self.sampler!r}: must be one of confidence, halton, random, ancestral")
        run = Run(denoise, noise, x == self.vocab_size, self._order(noise, x), steps)
        step = self._ancestral_step if self.sampler == "ancestral" else self._counted_step
        for index in range(steps):
            x = step(run, x, index)
        return x

    def _level(self, index: int, steps: int) -> float:
        return masked_fraction(self.schedule, 1.0 - index / steps)

    def _order(self, noise: Noise, x: Tensor) -> Tensor | None:
        """Return the rank of each position (small first), or None if it depends on the logits."""
        grid = tuple(x.shape[1:])
        if self.sampler == "random":
            return noise.uniform("order", 0, grid).to(x.device)
        if self.sampler != "halton":
            return None
        ranks, shifts = halton_ranks(grid).float(), noise.integers("order", grid)
        return torch.stack([ranks.roll(shift.tolist(), tuple(range(len(grid)))) for shift in shifts]).to(x.device)

    def _logits(self, run: Run, x: Tensor, index: int) -> Tensor:
        level = self._level(index, run.steps) * run.free.float().mean((1, 2, 3))
        return run.denoise(x, level, index / (run.steps - 1) if run.steps > 1 else 1.0).float()

    def _draw(self, logits: Tensor, noise: Noise, index: int) -> Tensor:
        source = lambda shape: noise.gumbel("draw", index, shape)  # noqa: E731
        return draw(logits, source, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def _counted_step(self, run: Run, x: Tensor, index: int) -> Tensor:
        """Sample every masked token, keep the best ones and mask the rest again."""
        masked = x == self.vocab_size
        if not masked.any():
            return x
        logits = self._logits(run, x, index)
        proposal = torch.where(masked, self._draw(logits, run.noise, index), x)
        candidates = masked | (run.free & (self.remask > 0 and index >= run.steps - 1 - self.remask))
        if run.order is None:
            scaled = logits / (self.temperature or 1.0)
            heat = self.choice_temperature * (1.0 - (index + 1) / run.steps)
            likely = scaled.gather(-1, proposal[..., None])[..., 0] - scaled.logsumexp(-1)
            score = likely + heat * run.noise.gumbel("choice", index, x.shape[1:]).to(x.device)
        else:
            score = -run.order
        wanted = torch.ceil(_count(run.free) * self._level(index + 1, run.steps) - _ROUNDING).long()
        left = torch.minimum(wanted, _count(masked) - 1).clamp(min=0)
        kept = _best(score, candidates, _count(candidates) - left)
        return torch.where(candidates, torch.where(kept, proposal, self.vocab_size), x)

    def _ancestral_step(self, run: Run, x: Tensor, index: int) -> Tensor:
        """Step from u to s: reveal each masked token with probability (m_u - m_s) / m_u, more if tokens are masked again."""
        now, after = self._level(index, run.steps), self._level(index + 1, run.steps)
        most = after / (1.0 - now) if after < 1.0 - now else 1.0
        again = min(self.remask_rate, most) if self.remask_rule == "cap" else self.remask_rate * most
        chance = run.noise.uniform("reveal", index, x.shape[1:]).to(x.device)
        masked = x == self.vocab_size
        revealed = masked & (chance < (now - after + again * (1.0 - now)) / now)
        if revealed.any():
            x = torch.where(revealed, self._draw(self._logits(run, x, index), run.noise, index), x)
        return torch.where(run.free & ~masked & (chance < again), self.vocab_size, x)


def _best(score: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Mark the `count` (b,) candidates with the highest scores in each sample; position breaks ties."""
    # Clamp to finite values, so that a candidate of zero probability still ranks before non-candidates.
    cost = torch.where(candidates, -score.clamp(min=torch.finfo(torch.float32).min), torch.inf).flatten(1)
    rank = cost.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (rank < count[:, None]).reshape(score.shape) & candidates


def _count(where: Tensor) -> Tensor:
    return where.sum((1, 2, 3))
