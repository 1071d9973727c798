"""Advice for a training run that ran out of device memory."""

import contextlib
import functools
import logging
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from motionaura_jax.core import memory
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.parallel.config import shown
from motionaura_jax.planning import machines
from motionaura_jax.planning.advice import advise
from motionaura_jax.planning.estimate import ask
from motionaura_jax.planning.machines import GIB
from motionaura_jax.planning.questions import of_recipe

logger = logging.getLogger(__name__)

_PIXEL = 3  # bytes of a clip as the loader holds it
_SECONDS = 300.0  # time limit of one estimate
_LESS = 0.85  # target as a share of an estimate that proved too low


def check_batch(recipe: Recipe, processes: int) -> None:
    """Refuse a batch that the memory of this machine cannot hold, before anything is loaded or compiled.

    Raises:
      UserError: names the key of the batch size, and the largest value that fits.
    """
    for index, bucket in enumerate(recipe.data.buckets or recipe.data.all_buckets()[:1]):
        key = f"config.data.buckets[{index}].batch_size" if recipe.data.buckets else "config.data.batch_size"
        clip = bucket.num_frames * bucket.height * bucket.width * _PIXEL
        needed = functools.partial(_share, clip, processes)
        memory.require(key, bucket.batch_size, needed)


def _share(clip: int, processes: int, batch_size: int) -> int:
    """Return the bytes of the clips that one of several processes holds."""
    return -(-batch_size // processes) * clip


@contextlib.contextmanager
def explained(recipe: Recipe, workdir: pathlib.Path) -> Iterator[None]:
    """Turn exhausted device memory into a UserError that names the cheapest change that makes the run in `workdir` fit.

    With several processes, the search would keep the others waiting, so the error names the command that runs it.
    """
    try:
        yield
    except Exception as error:
        # The exception type lives in jaxlib, and only its message tells the cause.
        if type(error).__name__ != "JaxRuntimeError" or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        remedy = _remedy(recipe, workdir)
        if remedy is None:
            raise
        raise UserError(f"out of device memory ({str(error).splitlines()[0]}); {remedy}") from error


def _remedy(recipe: Recipe, workdir: pathlib.Path) -> str | None:
    """Return the advice as one line, or None if the search fails or no change helps."""
    import jax

    mesh = recipe.mesh.sizes(jax.device_count())
    if jax.process_count() > 1:
        return f"see motionaura estimate --config={workdir}/config.json --mesh={shown(mesh)}"
    logger.info("out of device memory; searching for a change that fits, which takes a few minutes")
    try:
        asked = of_recipe(recipe, mesh, _topology(math.prod(mesh.values())))
        estimate = ask(asked, _SECONDS)
        advice = advise(asked, estimate, _limit(estimate.peak), lambda one: ask(one, _SECONDS))
    except (TimeoutError, RuntimeError, UserError) as error:
        logger.warning("no estimate: %s", error)
        return None
    if not advice.changes:
        return None
    moves_numbers = any(not change.startswith("--config.mesh.") for change in advice.changes)
    less = f" without {estimate.uncounted}" if estimate.uncounted else ""
    how = " (with train --override)" if moves_numbers else ""  # a new mesh needs no --override
    return f"the estimate is {estimate.peak / GIB:.3g} GiB on each device{less}; {advice}{how}"


def _topology(count: int) -> str | None:
    """Return the devices of this machine as an estimate names them; None if only a CPU can stand for them."""
    import jax

    name = machines.of_kind(jax.local_devices()[0].device_kind)
    return machines.topology(name, count) if name and not machines.missing() else None


def _limit(peak: int) -> float:
    """Return the bytes that must suffice: a share of the estimate, or the memory of the device if known and smaller."""
    import jax

    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    return min(stats.get("bytes_limit", peak), _LESS * peak)
