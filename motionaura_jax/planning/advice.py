"""Search for the cheapest change of settings that makes a run fit; an estimate tests each change."""

import copy
import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from motionaura_jax.planning.estimate import Estimate, Question
from motionaura_jax.planning.machines import GIB
from motionaura_jax.systems import registry

Ask = Callable[[Question], Estimate]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """Accumulated changes of settings and their effect.

    Attributes:
      changes: flags of `train` and `estimate`, cheapest first.
      estimate: estimate of the run with all changes.
      fits: whether the run then fits.
    """

    changes: tuple[str, ...]
    estimate: Estimate
    fits: bool

    def __str__(self) -> str:
        flags, peak = " ".join(self.changes), f"{self.estimate.peak / GIB:.3g} GiB on each device"
        if self.fits:
            return f"{flags} takes {peak}" if flags else f"it takes {peak} unchanged"
        tried = f"even {flags} takes {peak}" if flags else f"it takes {peak}"
        return f"{tried}; use more devices (--config.mesh.fsdp), smaller clips or a smaller model"


def advise(question: Question, estimate: Estimate, limit: float, ask: Ask) -> Advice:
    """Change `question`, whose answer is `estimate`, until it fits a device of `limit` bytes.

    While the state alone is too large, try only changes that shrink the state. Keep a change if it helps and drop it
    otherwise.
    """
    changes: dict[str, Any] = {}
    for of_state in (True, False):
        for keys, changed in _changes(question, of_state):
            if estimate.peak <= limit or (of_state and estimate.state <= limit):
                break
            later = changed(question, estimate, limit)
            if later is None:
                continue
            answer = ask(later)
            if answer.peak < 0.98 * estimate.peak:
                kept = {key: value for key, value in changes.items() if key not in keys}
                changes = kept | {key: _value(later, key) for key in keys}
                question, estimate = later, answer
    flags = tuple(f"--config.{key}={value}" for key, value in changes.items())
    return Advice(changes=flags, estimate=estimate, fits=estimate.peak <= limit)


Changed = Callable[[Question, Estimate, float], Question | None]


def _changes(question: Question, of_state: bool) -> Iterator[tuple[tuple[str, ...], Changed]]:
    """Yield (keys, change) by rising cost; a change returns None if it does not apply."""
    if not of_state:
        yield ("model.loss_chunk",), _set("model.loss_chunk", 1024, {0})
        yield ("model.remat",), _set("model.remat", "dots", {"none"})
        yield ("model.remat",), _set("model.remat", "full", {"none", "dots", "offload"})
        yield ("train.microbatch",), _microbatch
        yield ("train.accumulation",), _accumulate
        yield ("train.accumulation",), _accumulate
        yield ("model.remat",), _set("model.remat", "branch", {"full"})
    yield ("mesh.data", "mesh.fsdp"), _split_state
    yield ("optimizer.mu_dtype",), _set("optimizer.mu_dtype", "bfloat16", {"float32"})
    yield ("optimizer.name",), _set("optimizer.name", "adafactor", {"adam", "adamw"})


def _set(key: str, value: Any, instead_of: set[Any]) -> Changed:
    def change(question: Question, estimate: Estimate, limit: float) -> Question | None:
        applies = _at(question.values, key) in instead_of and _is_choice(question.values, key, value)
        return _with(question, key, value) if applies else None

    return change


def _is_choice(values: Mapping[str, Any], key: str, value: Any) -> bool:
    """Tell whether the system's recipe lets `key` have `value`; keys that are no choice take any value."""
    hint: Any = registry.system_class(values["system"]).Recipe
    for name in key.split("."):
        hint = typing.get_type_hints(hint)[name]
    return typing.get_origin(hint) is not typing.Literal or value in typing.get_args(hint)


def _microbatch(question: Question, estimate: Estimate, limit: float) -> Question | None:
    """Lower the clips of a microbatch so that the activations fit, assuming that these shrink in proportion."""
    clips = int(_at(question.values, "train.microbatch") or 0)
    room = limit - estimate.state - 2 * estimate.held["parameters"]
    activations = max(estimate.temporary + estimate.results - estimate.held["parameters"], 1)
    wanted = min(max(int(clips * room / activations), 1), clips - 1)
    return _with(question, "train.microbatch", wanted) if clips > 1 else None


def _accumulate(question: Question, estimate: Estimate, limit: float) -> Question | None:
    """Use enough microbatches to make the activations fit, assuming that these shrink in proportion; else one per clip."""
    if _at(question.values, "train.microbatch"):
        return None
    count = int(_at(question.values, "train.accumulation"))
    clips = _clips(question.values)
    choices = [n for n in range(count + 1, clips + 1) if clips % n == 0 and clips // n % _shards(question.mesh) == 0]
    if not choices:
        return None
    gradients = estimate.held["parameters"] * (1 if count > 1 else 2)  # the sums, and those of one microbatch
    room = limit - estimate.state - gradients
    activations = max(estimate.temporary + estimate.results - estimate.held["parameters"], 0)
    wanted = count * math.ceil(activations / room) if room > 0 else choices[-1]
    return _with(question, "train.accumulation", next((n for n in choices if n >= wanted), choices[-1]))


def _split_state(question: Question, estimate: Estimate, limit: float) -> Question | None:
    """Split the state over the devices that hold copies of it."""
    mesh = dict(question.mesh)
    if mesh["data"] == 1:
        return None
    return dataclasses.replace(question, mesh={**mesh, "data": 1, "fsdp": mesh["data"] * mesh["fsdp"]})


def _shards(mesh: Mapping[str, int]) -> int:
    return mesh["data"] * mesh["fsdp"]


def _clips(values: Mapping[str, Any]) -> int:
    """Return the largest number of parts into which the batch of every bucket can be cut."""
    buckets = values["data"].get("buckets") or [values["data"]]
    return math.gcd(*(int(bucket["batch_size"]) for bucket in buckets))


def _at(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, or None if the recipe has no such key."""
    section, _, name = key.partition(".")
    return values.get(section, {}).get(name)


def _with(question: Question, key: str, value: Any) -> Question:
    section, _, name = key.partition(".")
    values = copy.deepcopy(dict(question.values))
    values[section][name] = value
    return dataclasses.replace(question, values=values)


def _value(question: Question, key: str) -> Any:
    section, _, name = key.partition(".")
    return question.mesh[name] if section == "mesh" else _at(question.values, key)
