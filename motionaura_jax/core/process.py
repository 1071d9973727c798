"""Process setup of commands: signals, the compilation cache, the memory allocator, and the messages of libraries."""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from motionaura_jax.core.errors import UserError

NO_DEVICE = "check the driver and JAX_PLATFORMS; JAX_PLATFORMS=cpu runs without the accelerator"
"""Remedy for a platform without a device."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
_GROWTH = 1 << 26  # bytes
_RETRY = 0.1  # seconds
# Import our package, and nothing else from the folder that holds it; then behave like `python -m`.
_CHILD = """import importlib.util, runpy, sys
_, folder, path, module, *sys.argv[1:] = sys.argv
sys.path[:] = dict.fromkeys([*path.split("\\n"), *sys.path])
spec = importlib.util.spec_from_file_location("motionaura_jax", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
_REPORTED = ("Event loop is closed", "Encountered error while reading array index")


def child_command(module: str, *arguments: str) -> list[str]:
    """Return a command that runs a module of this package with the import path of this process.

    Unlike `python -m`, it imports nothing from the current folder, which may hold untrusted files named like libraries.
    The package need not be installed.
    """
    package = Path(__file__).resolve().parents[1]
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:
        here = ""  # it was deleted
    path = [entry for entry in sys.path if os.path.isabs(entry) and os.path.realpath(entry) != here]
    return [sys.executable, "-I", "-c", _CHILD, str(package), "\n".join(path), module, *arguments]


class Ended(KeyboardInterrupt):
    """Exception for a signal that ends the process; everything cleans up as after an interrupt."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Ended` in the main thread at SIGTERM and SIGHUP during the block, so that drafts are removed.

    A signal that is ignored, such as SIGHUP under nohup, or that the caller handles, is left alone. An exception that a
    library made of `Ended` on its way out of the block becomes `Ended` again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, received = os.getpid(), list[int]()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            if _is_called_from_c(frame):  # where an exception is lost, or becomes an ImportError or a crash
                again = threading.Timer(_RETRY, os.kill, (owner, number))
                again.daemon = True
                again.start()
                return
            received.append(number)
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)  # a forked child ends as it would have without us
        os.kill(os.getpid(), number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    caught = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, end)
    try:
        yield
    except Exception as error:
        if received:
            raise Ended(received[0]) from error
        raise
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def _is_called_from_c(frame: FrameType | None) -> bool:
    """Tell whether the initialization of an extension module or a garbage collection called the code at `frame`."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") and code.co_qualname.startswith("ExtensionFileLoader."):
            return True
        if code.co_name == "_xla_gc_callback":
            return True
        frame = frame.f_back
    return False


def check_current_folder() -> None:
    """Refuse to work in a folder that was deleted, in which no relative path means anything.

    Raises:
      UserError: the current folder is gone or cannot be read.
    """
    try:
        os.getcwd()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"the current folder cannot be used ({reason}); change to a folder that exists") from None


def is_missing_device(error: Exception) -> bool:
    """Tell whether JAX failed because the platform of JAX_PLATFORMS has no device here."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("Unable to initialize backend")
    if not isinstance(error, AssertionError) or "jax" not in sys.modules:
        return False
    # Without its plugin, JAX 0.11 leaves a platform out, and an assertion without words fails as none is left.
    try:
        sys.modules["jax"].devices()
    except (AssertionError, RuntimeError):
        return True
    return False


def compilation_cache() -> Path | None:
    """Return the folder of compiled programs: $JAX_COMPILATION_CACHE_DIR, else one in the user's cache folder.

    Returns:
      None if neither is known, because the user has no home folder.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    with contextlib.suppress(RuntimeError):
        return _user_cache() / "motionaura_jax" / "jax"
    return None


def _user_cache() -> Path:
    """Return the cache folder of the user. Raise RuntimeError without a home folder."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base)


def set_up_compilation_cache() -> None:
    """Make JAX keep every compiled program in `compilation_cache`, so that a second start is quick.

    Sets environment variables: JAX must not be imported yet, and child processes share the cache.
    """
    folder = compilation_cache()
    if folder is None:
        logger = logging.getLogger(__name__)
        logger.warning("no compilation cache, as there is no home folder; set JAX_COMPILATION_CACHE_DIR to a folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: no compilation cache (%s)", folder, error.strerror)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


XLA_FLAGS: Mapping[str, Mapping[str, str]] = {
    "gpu": {
        # Gather the parameters of the next layer, and scatter the gradients of the last one, during the products of this one.
        "xla_gpu_enable_pipelined_all_gather": "true",
        "xla_gpu_enable_pipelined_reduce_scatter": "true",
    },
    "tpu": {},
}
"""XLA flags that training sets by kind of device (docs/performance.md), unless the user sets the same flag."""

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""XLA flag with which a GPU computes the same bits each time; not set, because it makes scatters and products slower."""


def xla_flags(kind: str | None = None, present: str | None = None) -> str:
    """Return a value for the variable XLA_FLAGS: our flags for a kind of device, then those of the user.

    Args:
      kind: key of XLA_FLAGS; by default that of the accelerators of this machine.
      present: flags of the user; by default those in the environment. A flag among them replaces ours of that name.
    """
    present = os.environ.get("XLA_FLAGS", "") if present is None else present
    theirs = {flag.lstrip("-").split("=")[0] for flag in present.split()}
    ours = XLA_FLAGS.get(accelerator() if kind is None else kind, {})
    return " ".join([*(f"--{name}={value}" for name, value in ours.items() if name not in theirs), *present.split()])


def accelerator(devices: Path = Path("/dev")) -> str:
    """Return "gpu" or "tpu" if the system has device files of NVIDIA GPUs or TPUs that JAX may use, otherwise "cpu"."""
    allowed = os.environ.get("JAX_PLATFORMS", "")
    for kind, pattern, names in (("gpu", "nvidia[0-9]*", ("cuda", "gpu")), ("tpu", "accel[0-9]*", ("tpu",))):
        if any(devices.glob(pattern)) and (not allowed or any(name in allowed for name in names)):
            return kind
    return "cpu"


def set_up_xla_flags() -> None:
    """Set our flags for the accelerators of this machine. JAX must not have started a backend yet."""
    if flags := xla_flags():
        os.environ["XLA_FLAGS"] = flags


def split_cpu(devices: int) -> None:
    """Present the CPU as several JAX devices, if it has as many cores; batches are then shared among the cores.

    XLA runs most operations of small networks on one thread.  Nothing changes once JAX is loaded, with XLA_FLAGS set by the
    user, or for accelerators.
    """
    if "jax" not in sys.modules and "XLA_FLAGS" not in os.environ and (os.cpu_count() or 1) >= devices:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"


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
