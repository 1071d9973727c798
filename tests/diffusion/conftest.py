"""Settings of these tests: their programs are tiny, so optimized compilation would take longer than running them."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compile without optimizations, five times faster for programs that draw random numbers."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
