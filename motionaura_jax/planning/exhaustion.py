"""What to tell somebody whose training ran out of device memory."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from motionaura_jax.errors import UserError
from motionaura_jax.planning.advice import advise
from motionaura_jax.planning.estimate import ask
from motionaura_jax.planning.machines import GIB
from motionaura_jax.planning.questions import of_recipe
from motionaura_jax.recipe import Recipe

logger = logging.getLogger(__name__)

_SECONDS = 300.0  # for one estimate
_LESS = 0.85  # of what did not fit, where the device does not tell its memory or the estimate would have fitted


@contextlib.contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Turns an exhausted device into a UserError that names the cheapest change with which the run fits."""
    try:
        yield
    except Exception as error:
        # The exception type lives in jaxlib; only its message tells what it is about.
        if type(error).__name__ != "JaxRuntimeError" or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        remedy = _remedy(recipe)
        if remedy is None:
            raise
        raise UserError(f"out of device memory ({first}); {remedy}") from error


def _remedy(recipe: Recipe) -> str | None:
    """The advice as one line, for a workdir that may have checkpoints; None where there is none to be had."""
    import jax

    if jax.process_index():
        return None
    logger.info("out of device memory; looking for a change that fits, which takes some minutes")
    question = of_recipe(recipe, recipe.mesh.sizes(jax.device_count()))
    try:
        estimate = ask(question, _SECONDS)
        advice = advise(question, estimate, _limit(estimate.peak), lambda one: ask(one, _SECONDS))
    except (TimeoutError, RuntimeError, UserError) as error:
        logger.warning("no estimate: %s", error)
        return None
    if not advice.changes:
        return None
    return f"by estimate it takes {estimate.peak / GIB:.1f} GiB on each device; {advice} (with train --override)"


def _limit(peak: int) -> float:
    import jax

    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    return min(stats.get("bytes_limit", peak), _LESS * peak)
