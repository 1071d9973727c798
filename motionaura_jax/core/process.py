"""How a command sets up its process: where compiled programs are kept, how memory is, what libraries may say."""

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
_GROWTH = 1 << 26  # bytes
_REPORTED = ("Event loop is closed", "Encountered error while reading array index")


def compilation_cache() -> Path:
    """Returns where compiled programs are kept: $JAX_COMPILATION_CACHE_DIR, else the user's cache folder."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "motionaura_jax" / "jax"


def set_up_compilation_cache() -> None:
    """Makes JAX keep every compiled program in `compilation_cache`, so that a second start is quick.

    Works through the environment: JAX must not be imported yet, and child processes share the cache.
    """
    folder = compilation_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: no compilation cache (%s)", folder, error.strerror)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory for the next step instead of handing it back to the kernel.

    On a CPU, XLA allocates the same temporary buffers in every step.  By default each comes from the kernel as pages of
    zeros, which takes a third of the processor time of a small network (docs/performance.md has the figures).

    Returns:
      Whether it did: only with glibc, and not where a MALLOC_* variable says how memory is to be kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    # One arena, as only the first can hold blocks beyond 64 MB; no block outside of it; nothing cut off its end; growth in
    # large pieces.
    options = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _GROWTH}
    return all(mallopt(option, value) for option, value in options.items())


def quiet_libraries() -> None:
    """Silences what orbax and its threads print, where we say the same in one line.

    orbax logs every array, warns on first use, and where a disk is full it logs a traceback for each of its threads; the
    threads of tensorstore then print that orbax has closed its event loop, and its readers which array was damaged.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook
    if getattr(before, "func", None) is not _leave_out_reported:
        sys.unraisablehook = functools.partial(_leave_out_reported, before)


def _leave_out_reported(
    show: Callable[["sys.UnraisableHookArgs"], object], unraisable: "sys.UnraisableHookArgs"
) -> None:
    if not str(unraisable.exc_value).startswith(_REPORTED):
        show(unraisable)
