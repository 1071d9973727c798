"""The folder of a run: one process at a time holds it, one config belongs to it, and its origin is recorded.

It holds `config.json`, `metrics.jsonl`, `goodput.json`, `checkpoints/`, `samples/`, `tensorboard/` and `rejected.jsonl`.
"""

import contextlib
import errno
import fnmatch
import importlib.metadata
import logging
import os
import pathlib
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any, TextIO

from etils import epath

import motionaura_jax
from motionaura_jax.core import config, files
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import SCENES, Recipe
from motionaura_jax.data.media import write_json
from motionaura_jax.parallel import distributed
from motionaura_jax.training import data, recovery
from motionaura_jax.training.monitoring import goodput, watchdog, writers
from motionaura_jax.weights import steps

logger = logging.getLogger(__name__)

CONFIG, LOCK = "config.json", "lock"
_LONGEST_HOLDER = 300  # characters
LEASE = 120.0  # seconds until a file server forgets a machine that is gone (NFSv4: 90)

# Keys that may differ between two starts in one workdir, as they affect neither parameters nor samples.  A change of
# BOUND_KEYS points to another run.
FREE_SECTIONS = ("checkpoint", "evaluate", "mesh", "profile", "sample", "watchdog")
BOUND_KEYS = ("checkpoint.folder",)
FREE_KEYS = ("data.threads", "train.log_every", "train.max_rollbacks")

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


_OWN = (
    *(CONFIG, LOCK, writers.FILE, writers.FOLDER, goodput.FILE, goodput.PROFILE, watchdog.FOLDER, recovery.FOLDER),
    *("rejected*.jsonl", "samples", SCENES),
)
"""What a run writes besides checkpoints."""


# ---------------------------------------------------------------- Links
def check_links(workdir: pathlib.Path) -> None:
    """Raise UserError if a run in `workdir` would write to, or delete, what lies elsewhere."""
    for path in workdir.iterdir():  # not by `exists`: a link may lead to a file that does not exist yet
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _OWN):
            files.check_own(path)
    folder = workdir / steps.FOLDER
    remedy = f"remove it, or train with --config.checkpoint.folder={folder.resolve()} --override"
    files.check_own(folder, depth=0, remedy=remedy)
    _check_steps(folder)


def _check_steps(folder: pathlib.Path) -> None:
    """Raise UserError for links among step folders.  Their files may be links: nothing is written through them."""
    for step in folder.iterdir() if folder.is_dir() else ():
        if re.match(r"(damaged-)?\d+($|\.)", step.name):
            files.check_own(step, depth=0)


# ---------------------------------------------------------------- Lock
@contextlib.contextmanager
def lock(workdir: pathlib.Path, lease: float = LEASE) -> Iterator[None]:
    """Keep other runs out of `workdir` during the body; the first process does it for all.

    The operating system frees the lock when the process ends, however it ends.  A holder on another machine gets `lease`
    seconds to turn out to be gone.  If the file system or the operating system has no such locks, nobody is kept out.
    A workdir that a refused run would leave empty is removed again.

    Raises:
      UserError: another run holds it, it is not writable, or a run would follow a link in it.
    """
    if not distributed.is_primary():
        yield
        return
    fresh = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_links(workdir)
        file = (workdir / LOCK).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise _unusable(workdir, error) from error
    with file:
        _acquire(workdir, file, lease)
        _check_lock(workdir / LOCK, file)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {distributed.host_name()}")
        file.flush()
        try:
            yield
        finally:
            if fresh and [path.name for path in workdir.iterdir()] == [LOCK]:
                (workdir / LOCK).unlink()
                workdir.rmdir()


def _check_lock(path: pathlib.Path, file: TextIO) -> None:
    """Raise UserError if the file holds more than a run writes there, such as a file that a hard link shares."""
    file.seek(0)
    text = file.read(_LONGEST_HOLDER + 1)
    if text and not (text.startswith("process ") and len(text) <= _LONGEST_HOLDER and text.isprintable()):
        raise UserError(f"{path}: is not the lock of a run, and a run would empty it; move it away")


def _acquire(workdir: pathlib.Path, file: TextIO, lease: float) -> None:
    deadline, told = time.monotonic() + lease, False
    while not _try_lock(file):
        file.seek(0)
        holder = file.read() or "another process"
        here = holder.endswith(f" on {distributed.host_name()}")
        if here or time.monotonic() > deadline:
            remedy = "" if here else f"; if it is gone for good, delete {workdir / LOCK}"
            raise UserError(
                f"{workdir}: {holder} trains in it; wait until it ends or stop it, or choose another folder{remedy}"
            )
        if not told:
            logger.warning("%s: %s trains in it; waiting up to %g s for its end", workdir, holder, lease)
        told = True
        time.sleep(min(1.0, lease))


def _try_lock(file: TextIO) -> bool:
    """Return False if another process holds the lock."""
    try:
        import fcntl  # absent on Windows
    except ImportError:
        return True
    try:
        # A lock of the process, not of the open file: a child that outlives a killed run must not keep it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


# ---------------------------------------------------------------- Config
def open_workdir(workdir: pathlib.Path, recipe: Recipe, *, override: bool = False) -> dict[str, Any]:
    """Create the workdir, or check that it belongs to `recipe`, and save the resolved config.

    The first process does this while the others wait.  A workdir without a finished checkpoint accepts any config and
    starts over.  With `override`, a different config is accepted but not yet saved, because its checkpoint may not fit;
    call `record` after restoring it.

    Returns:
      The recipe as plain JSON values.

    Raises:
      UserError: the folder is not writable, or its checkpoints have another config (the message names the keys).
    """
    wanted = config.to_dict(recipe)
    if distributed.is_primary():
        _claim(workdir, recipe, wanted, override)
    distributed.barrier("workdir is open")
    return wanted


def record(workdir: pathlib.Path, wanted: dict[str, Any]) -> None:
    """Save the resolved config of a run whose checkpoint was restored; the first process writes."""
    if distributed.is_primary():
        write_json(workdir / CONFIG, wanted)


def _claim(workdir: pathlib.Path, recipe: Recipe, wanted: dict[str, Any], override: bool) -> None:
    path, place = workdir / CONFIG, steps.folder_of(workdir, recipe.checkpoint.folder)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if "://" not in str(place):
            _check_steps(pathlib.Path(place))
        again = "delete it to save the config again"
        present = path.exists()
        saved = files.read_json(path, remedy=again, strict=False) if present else _from_checkpoint(place) or wanted
    except OSError as error:
        raise _unusable(workdir, error) from error
    changed = [line for line in config.differences(_completed(saved, recipe), wanted) if not _free(line)]
    if changed and steps.newest(place) is None and steps.newest(workdir) is None:
        data.forget(workdir)
    elif changed and not override:
        raise UserError(
            f"{workdir}: was made with another config ({'; '.join(changed)}); choose another folder, or use train --override"
        )
    elif changed:
        return
    write_json(path, wanted)


def _from_checkpoint(place: epath.Path) -> dict[str, Any] | None:
    """Read the recipe of a run whose checkpoints, in another folder, outlived its workdir."""
    newest = steps.newest(place)
    return steps.read_meta(newest)[1]["recipe"] if newest else None


def _completed(saved: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Add the defaults of keys that are newer than the workdir; return a config that no longer fits unchanged."""
    try:
        return config.to_dict(config.build(type(recipe), saved))
    except UserError:
        return saved


def _free(line: str) -> bool:
    key = line.split(":")[0]
    return key not in BOUND_KEYS and (key.split(".")[0] in FREE_SECTIONS or key in FREE_KEYS)


def _unusable(workdir: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"{workdir}: cannot be used as a workdir ({error.strerror}); choose another folder")


# ---------------------------------------------------------------- Provenance
def provenance(data_hash: str) -> dict[str, Any]:
    """Describe the origin of a checkpoint: `versions` of the libraries, git `revision` of the source (or None), `data`."""
    versions = {"motionaura_jax": motionaura_jax.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "versions": versions,
        "revision": _revision(pathlib.Path(motionaura_jax.__file__).parent),
        "data": data_hash,
    }


def _revision(folder: pathlib.Path) -> str | None:
    """Return the commit that `folder` was checked out at, with "+" appended if tracked files changed since."""
    describe = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--match=", "--dirty=+"]
    try:
        # A package installed inside another repository does not belong to that repository.
        if not (folder.parent / ".git").exists():
            return None
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
