"""What to tell somebody whose training ran out of device memory."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.parallel.config import shown
from motionaura_jax.planning.advice import advise
from motionaura_jax.planning.estimate import ask
from motionaura_jax.planning.machines import GIB
from motionaura_jax.planning.questions import of_recipe

logger = logging.getLogger(__name__)

_SECONDS = 300.0  # for one estimate
_LESS = 0.85  # of an estimate that did not hold


@contextlib.contextmanager
def explained(recipe: Recipe, workdir: pathlib.Path) -> Iterator[None]:
    """Turns an exhausted device into a UserError that names the cheapest change with which the run in `workdir` fits.

    A process of several must not keep the others waiting for that: it names the command that finds the change.
    """
    try:
        yield
    except Exception as error:
        # The exception type lives in jaxlib; only its message tells what it is about.
        if type(error).__name__ != "JaxRuntimeError" or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        remedy = _remedy(recipe, workdir)
        if remedy is None:
            raise
        raise UserError(f"out of device memory ({str(error).splitlines()[0]}); {remedy}") from error


def _remedy(recipe: Recipe, workdir: pathlib.Path) -> str | None:
    """The advice as one line; None where there is none to be had."""
    import jax

    mesh = recipe.mesh.sizes(jax.device_count())
    if jax.process_count() > 1:
        return f"see motionaura estimate --config={workdir}/config.json --mesh={shown(mesh)}"
    logger.info("out of device memory; looking for a change that fits, which takes some minutes")
    try:
        asked = of_recipe(recipe, mesh)
        estimate = ask(asked, _SECONDS)
        advice = advise(asked, estimate, _limit(estimate.peak), lambda one: ask(one, _SECONDS))
    except (TimeoutError, RuntimeError, UserError) as error:
        logger.warning("no estimate: %s", error)
        return None
    if not advice.changes:
        return None
    moves_numbers = any(not change.startswith("--config.mesh.") for change in advice.changes)
    less = f" without {estimate.uncounted}" if estimate.uncounted else ""
    how = " (with train --override)" if moves_numbers else ""  # a workdir takes another mesh as it is
    return f"by estimate it takes {estimate.peak / GIB:.3g} GiB on each device{less}; {advice}{how}"


def _limit(peak: int) -> float:
    """Bytes that have to suffice: the memory of the device, where it tells and is the smaller, or a part of the estimate."""
    import jax

    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    return min(stats.get("bytes_limit", peak), _LESS * peak)
