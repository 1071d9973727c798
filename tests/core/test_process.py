"""process.py: the compilation cache folder, and memory that the process keeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from motionaura_jax.core import process
from motionaura_jax.health import machine


@pytest.fixture(autouse=True)
def chosen_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


def test_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert process.compilation_cache() == tmp_path / "cache"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert process.compilation_cache() == tmp_path / "xdg" / "motionaura_jax" / "jax"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert process.compilation_cache() == Path.home() / "Library" / "Caches" / "motionaura_jax" / "jax"


def test_a_user_without_home_works_without_a_cache(monkeypatch, caplog):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    assert process.compilation_cache() is None
    process.set_up_compilation_cache()
    assert "no home folder; set JAX_COMPILATION_CACHE_DIR" in caplog.text
    assert not machine.cache(None)["writable"]


def new_pages(call: str, **environment: str) -> int:
    """Return how many pages a fresh interpreter gets from the kernel for a second array of 256 MB after a first one."""
    code = (
        "import resource, numpy as np\n"
        "from motionaura_jax.core import process\n"
        f"{call}\n"
        "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(1 << 25).sum(); before = pages(); np.ones(1 << 25).sum(); print(pages() - before)\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    child = subprocess.run([sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True)
    return int(child.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no mallopt")
def test_freed_memory_serves_the_next_array() -> None:
    fresh = new_pages("assert True")
    assert new_pages("assert process.keep_freed_memory()") < fresh / 10
    # The user's own allocator settings are kept.
    assert new_pages("assert not process.keep_freed_memory()", MALLOC_ARENA_MAX="4") > fresh / 2
