"""Process setup of commands: the compilation cache, the memory allocator, and the messages of libraries."""

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
    """Return the folder of compiled programs: $JAX_COMPILATION_CACHE_DIR, else one in the user's cache folder."""
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
    """Make JAX keep every compiled program in `compilation_cache`, so that a second start is quick.

    Sets environment variables: JAX must not be imported yet, and child processes share the cache.
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
    """Make the C library keep freed memory for the next step instead of returning it to the kernel.

    On a CPU, XLA allocates the same temporary buffers in every step. By default the kernel hands out zeroed pages for
    each of them, which takes a third of the processor time of a small network (docs/performance.md has the figures).

    Returns:
      True if this took effect. It needs glibc, and any MALLOC_* variable in the environment takes precedence.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    # Use one arena, because only the first can hold blocks over 64 MB. Allocate no block outside it, never trim it, and
    # grow it in large pieces.
    options = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _GROWTH}
    return all(mallopt(option, value) for option, value in options.items())


def quiet_libraries() -> None:
    """Silence orbax and its threads; our own messages say the same in one line.

    orbax logs every array and warns on first use. On a full disk it logs a traceback for each of its threads; the threads
    of tensorstore then report that orbax has closed its event loop, and its readers report which array was damaged.
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
