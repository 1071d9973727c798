"""Whether rendered-scene videos show what their prompts say, attribute by attribute, beside two yardsticks of luck.

Own construction: the attributes are measured back from the pixels (`scenes.reader`), nothing is judged by a model.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from motionaura_jax.metrics.statistics import wilson
from motionaura_jax.scenes.dataset import SceneOptions
from motionaura_jax.scenes.reader import SceneReading, score_reading
from motionaura_jax.scenes.renderer import Scene

HEADER = ("shown as asked", "share", "95 % interval", "chance", "shuffled")

# Attribute, as `score_reading` names it -> the scene option that lists the values it is drawn from.
_DRAWN_FROM = {
    "color": "colors",
    "motion": "motions",
    "shape": "shapes",
    "size": "sizes",
    "background": "backgrounds",
    "background_color": "background_colors",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adherence:
    """How many of `n` videos show the wanted value of one attribute.

    Attributes:
      shuffled_hits: the same count with every video judged against the prompt of another one.
      chance: one over the number of values that prompts draw from; two objects in a scene make it harder than that.
    """

    attribute: str
    hits: int
    n: int
    shuffled_hits: int
    chance: float

    @property
    def share(self) -> float:
        """Fraction of videos that obey."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `share`."""
        return wilson(self.hits, self.n)

    @property
    def shuffled(self) -> float:
        """Fraction that obeys the prompt of another video: what a model that does not read would reach."""
        return self.shuffled_hits / self.n

    def to_dict(self) -> dict[str, str | int | float]:
        """All numbers as plain JSON values."""
        low, high = self.interval
        rates = {"share": self.share, "low": low, "high": high, "shuffled": self.shuffled}
        return {**dataclasses.asdict(self), **rates}


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The numbers of `Adherence.to_dict` as text, in the order of HEADER; short, so that a terminal holds the table."""
    interval = f"{100 * row['low']:.1f} to {percent(row['high'])}"
    rates = (percent(row["share"]), interval, percent(row["chance"]), percent(row["shuffled"]))
    return row["attribute"].replace("_", " "), *rates


def percent(share: float) -> str:
    """A fraction for people: "94.5 %"."""
    return f"{100 * share:.1f} %"


def adherence(pairs: Sequence[tuple[Scene, SceneReading]], options: SceneOptions) -> list[Adherence]:
    """Counts, for every attribute that has a choice in `options`, the videos that show what was wanted.

    A video in which no object is found misses every attribute of the object.  For the control every wanted scene is
    replaced by the next one on a random, but always the same, cycle through the different scenes, so that no video
    meets its own prompt, while the order in which balanced prompts come has no influence.

    Args:
      pairs: the scene of the prompt and what was read from the video; several videos of one scene are fine.
      options: what the prompts were drawn from.

    Raises:
      ValueError: fewer than two different scenes.
    """
    others = _derangement([scene for scene, _ in pairs])
    true = [score_reading(reading, scene) for scene, reading in pairs]
    shuffled = [score_reading(reading, others[scene]) for scene, reading in pairs]
    choices = {name: len(set(getattr(options, values))) for name, values in _DRAWN_FROM.items()}
    return [
        Adherence(
            attribute=name,
            hits=sum(right[name] for right in true),
            n=len(pairs),
            shuffled_hits=sum(right[name] for right in shuffled),
            chance=1 / count,
        )
        for name, count in choices.items()
        if count > 1
    ]


def _derangement(scenes: Sequence[Scene]) -> dict[Scene, Scene]:
    """Maps every scene to another one."""
    different = list(dict.fromkeys(scenes))
    if len(different) < 2:
        raise ValueError("the shuffled control needs at least two different scenes")
    order = np.random.default_rng(0).permutation(len(different))
    return {different[one]: different[other] for one, other in zip(order, np.roll(order, -1), strict=True)}
