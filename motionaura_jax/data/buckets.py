"""Buckets of clip shapes, and the exact, stateless order in which training steps visit them."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Batch, Checked, Frames, Positive, Rate, Side

MAX_PERIOD = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Length, size in pixels and frame rate of a clip."""

    num_frames: int
    height: int
    width: int
    fps: float

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.width}x{self.height} at {self.fps:g} fps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket(Checked):
    """Clips of one shape that share a training step.

    Attributes:
      num_frames, height, width: shape of a clip, in frames and pixels.
      batch_size: clips per step, over all processes.
      weight: relative share of the steps.
      fps: frame rate; None for `data.fps`.

    Raises:
      UserError: a size below 1, or a weight that is not positive.
    """

    num_frames: Frames
    height: Side
    width: Side
    batch_size: Batch
    weight: Positive = 1.0
    fps: Rate | None = None

    def clip_shape(self, fps: float) -> ClipShape:
        """Return the shape of one clip; `fps` is the rate of buckets that have none of their own."""
        return ClipShape(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps or fps)


def at_rates(buckets: Sequence[Bucket], rates: Sequence[float]) -> tuple[Bucket, ...]:
    """Return each bucket once for each of `rates`, which share its weight; one with a rate of its own stays alone.

    The first bucket comes first, at the first rate: it is the one that evaluations use.
    """
    if not rates:
        return tuple(buckets)
    found: list[Bucket] = []
    for bucket in buckets:
        if bucket.fps is not None:
            # Weights are relative, so those of the others need no division, which would round.
            weight = float(Fraction(str(bucket.weight)) * len(rates))
            found.append(dataclasses.replace(bucket, weight=weight))
        else:
            found += [dataclasses.replace(bucket, fps=rate) for rate in rates]
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Bucket of each step: `pattern`, a list of indices into `buckets`, repeated forever.

    Any `len(pattern)` consecutive steps hold each bucket in exact proportion to its weight.  The samples of a bucket
    form one stream, numbered from 0, that its steps consume in order.
    """

    buckets: tuple[Bucket, ...]
    pattern: tuple[int, ...]

    @classmethod
    def from_buckets(cls, buckets: Sequence[Bucket]) -> "Schedule":
        """Build the shortest exact schedule, evenly interleaved.

        Weights 40, 10, 25, 25 give a pattern of 20 steps with 8, 2, 5 and 5.  Each position goes to the bucket whose
        next turn is due first; its k-th turn is due at (k + 1/2) / share (Webster's method of apportionment).

        Raises:
          UserError: no buckets, or weights whose proportions need more than MAX_PERIOD steps.
        """
        if not buckets:
            raise UserError("the data has no buckets; give at least one")
        weights = [Fraction(str(bucket.weight)) for bucket in buckets]
        scale = math.lcm(*(weight.denominator for weight in weights))
        whole = [int(weight * scale) for weight in weights]
        turns = [number // math.gcd(*whole) for number in whole]
        if sum(turns) > MAX_PERIOD:
            raise UserError(
                f"bucket weights {[b.weight for b in buckets]} repeat only after {sum(turns)} steps; round them"
            )
        due = [(Fraction(2 * k + 1, 2 * n), index) for index, n in enumerate(turns) for k in range(n)]
        return cls(tuple(buckets), tuple(index for _, index in sorted(due)))

    def index(self, step: int) -> int:
        """Return the position in `buckets` of the bucket of `step` (0, 1, ...)."""
        return self.pattern[step % len(self.pattern)]

    def bucket(self, step: int) -> Bucket:
        """Return the bucket of `step`."""
        return self.buckets[self.index(step)]

    def first_sample(self, step: int) -> int:
        """Return the number of the first sample of `step` in the stream of its bucket."""
        periods, position = divmod(step, len(self.pattern))
        index = self.pattern[position]
        visits = periods * self.pattern.count(index) + self.pattern[:position].count(index)
        return visits * self.buckets[index].batch_size
