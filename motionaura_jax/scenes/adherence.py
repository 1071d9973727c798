"""Prompt adherence and agreement of videos of rendered scenes, with two baselines of luck.  Own construction.

The attributes are measured from the pixels (`scenes.reader`); no model judges anything.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from motionaura_jax.scenes.agreement import LIMITS
from motionaura_jax.scenes.dataset import SceneOptions
from motionaura_jax.scenes.reader import SceneReading, score_reading
from motionaura_jax.scenes.scene import GROUNDS, PATTERNS, Scene

HEADER = ("shown as asked", "share", "95 % interval", "chance", "shuffled")

OVERALL = "agreement"  # row that counts videos whose every part agrees

# Attribute, as `score_reading` names it -> the scene option that lists its possible values.
_CHOICES = {
    "color": "colors",
    "motion": "motions",
    "shape": "shapes",
    "size": "sizes",
    "background": "backgrounds",
    "background_color": "background_colors",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adherence:
    """Score of one attribute.

    Attributes:
      hits: videos that show the wanted value, of the `n` whose prompt names the attribute.
      shuffled_hits: the same of `shuffled_n` with every video scored against the prompt of another; None for agreement, which
        does not depend on the prompt.
      chance: one over the number of possible values; scenes with two objects are harder than that.  None for agreement and
        for what a prompt names only if it is there.
    """

    attribute: str
    hits: int
    n: int
    shuffled_hits: int | None
    shuffled_n: int
    chance: float | None

    @property
    def share(self) -> float:
        """Return the fraction of videos that show the wanted value."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of `share`."""
        return wilson(self.hits, self.n)

    @property
    def shuffled(self) -> float | None:
        """Return the fraction that matches the prompt of another video, as a model that ignores prompts would reach it."""
        return None if self.shuffled_hits is None or not self.shuffled_n else self.shuffled_hits / self.shuffled_n

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Return all numbers as plain JSON values."""
        low, high = self.interval
        rates = {"share": self.share, "low": low, "high": high, "shuffled": self.shuffled}
        return {**dataclasses.asdict(self), **rates}


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the numbers of `Adherence.to_dict` as short text, in the order of HEADER."""
    interval = f"{100 * row['low']:.1f} to {percent(row['high'])}"
    rates = (percent(row["share"]), interval, percent(row["chance"]), percent(row["shuffled"]))
    return row["attribute"].replace("_", " "), *rates


def percent(share: float | None) -> str:
    """Return a fraction as text: "94.5 %", or nothing for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def adherence(pairs: Sequence[tuple[Scene, SceneReading]], options: SceneOptions) -> list[Adherence]:
    """Count the videos that show the wanted value, for every attribute with more than one value in `options`.

    A video in which no object is found misses every attribute of the object.  For the shuffled baseline every wanted scene
    is replaced by the next one on a fixed random cycle through the different scenes.  No video then meets its own prompt,
    and the order of the prompts, which is balanced, has no influence.

    In the style `world` an attribute counts where the prompt names it, and further rows count the videos that agree with
    themselves (`scenes.agreement`): OVERALL, and one row for each part.

    Args:
      pairs: scene of the prompt and reading of the video; a scene may have several videos.
      options: the values that prompts may have.

    Raises:
      ValueError: fewer than two different scenes.
    """
    others = _derangement([scene for scene, _ in pairs])
    true = [score_reading(reading, scene) for scene, reading in pairs]
    shuffled = [score_reading(reading, others[scene]) for scene, reading in pairs]
    rows = []
    for name, chance in _chances(options).items():
        hits, control = ([right[name] for right in scores if name in right] for scores in (true, shuffled))
        if hits:
            rows.append(
                Adherence(
                    attribute=name,
                    hits=sum(hits),
                    n=len(hits),
                    shuffled_hits=sum(control),
                    shuffled_n=len(control),
                    chance=chance,
                )
            )
    return rows + (agreement([reading for _, reading in pairs]) if options.world else [])


def agreement(readings: Sequence[SceneReading]) -> list[Adherence]:
    """Count the videos of the style `world` that agree with themselves, overall and part by part."""
    found = [reading.world.agreement for reading in readings if reading.world is not None]
    counts = {OVERALL: sum(one.overall for one in found)}
    counts |= {f"{OVERALL}_{name}": sum(one.parts[name] for one in found) for name in LIMITS}
    return [
        Adherence(attribute=name, hits=count, n=len(readings), shuffled_hits=None, shuffled_n=0, chance=None)
        for name, count in counts.items()
    ]


def _chances(options: SceneOptions) -> dict[str, float | None]:
    """Return the attributes that vary, and the probability of guessing each."""
    if options.world:
        known = {
            "color": len(options.colors),
            "motion": len(options.motions),
            "shape": len(options.shapes),
            "texture": len(PATTERNS),
            "background": len(GROUNDS),
            "background_color": len(options.background_colors),
        }
        return {name: 1 / count for name, count in known.items() if count > 1} | {
            "shadow": None,
            "second_color": None,
            "second_shape": None,
        }
    choices = {name: len(set(getattr(options, values))) for name, values in _CHOICES.items()}
    return {name: 1 / count for name, count in choices.items() if count > 1}


def _derangement(scenes: Sequence[Scene]) -> dict[Scene, Scene]:
    """Map every scene to another one."""
    different = list(dict.fromkeys(scenes))
    if len(different) < 2:
        raise ValueError("the shuffled baseline needs at least two different scenes")
    order = np.random.default_rng(0).permutation(len(different))
    return {different[one]: different[other] for one, other in zip(order, np.roll(order, -1), strict=True)}


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the score interval of a success probability (Wilson 1927); z = 1.96 gives 95 % coverage.

    The bounds are the probabilities p with |successes / n - p| = z sqrt(p (1 - p) / n).  Unlike the normal approximation,
    the interval is sensible for 0 of n and n of n, too.

    Returns:
      Lower and upper bound in [0, 1].

    Raises:
      ValueError: `n` is not positive, `successes` not in [0, n], or `z` negative.
    """
    if n < 1 or not 0 <= successes <= n or z < 0:
        raise ValueError(f"not a success rate: {successes} of {n} with z = {z}")
    rate = successes / n
    shrink = 1 + z * z / n
    center = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)
