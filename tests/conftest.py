"""Settings of the whole suite: CPU only, a persistent compilation cache, deterministic hypothesis examples.

They are environment variables, set before anything imports JAX, so that child processes inherit them.
"""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import compilation

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
for name, value in compilation.QUICKLY.items():
    os.environ.setdefault(name, value)

for profile, count in (("suite", 25), ("all", 100)):
    hypothesis.settings.register_profile(profile, max_examples=count, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Take more examples if slow tests run, too."""
    if "not slow" not in config.option.markexpr:
        hypothesis.settings.load_profile("all")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking all imported modules whenever a test traces a program."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True)
def optimizations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile with full optimization for kernels (tests/ops), slow tests that are not `quick`, and tests marked for it.

    All others compile in a fraction of the time; only long runs would lose by that.
    """
    slow = request.node.get_closest_marker("slow")
    marked = request.node.get_closest_marker("as_users_do") or (slow and not slow.kwargs.get("quick"))
    if request.path.parent.name != "ops" and not marked:
        yield
        return
    import jax

    for name, value in compilation.AS_USERS_DO.items():
        monkeypatch.setenv(name, value)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Trace the shapes of each network once per process, although tests open hundreds of checkpoints."""
    import jax

    from motionaura_jax.core import config
    from motionaura_jax.weights.load import Checkpoint

    original: Any = Checkpoint.abstract
    traced: dict[str, Any] = {}

    def abstract(self: Checkpoint, system: Any) -> Any:
        key = json.dumps([type(system).__qualname__, len(self._shapes), config.to_dict(system.recipe)], default=str)
        if key not in traced:
            traced[key] = original(self, system)
        return jax.tree.map(lambda leaf: leaf, traced[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "abstract", abstract)
        yield


@pytest.fixture(scope="session")
def data_root() -> Path | None:
    """Return the folder of real development clips, $MOTIONAURA_DATA or ../shared/data, or None."""
    folder = Path(os.environ.get("MOTIONAURA_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the checkout."""
    return ROOT
