"""One run at a time in a workdir: a lock that the operating system takes back when its process ends, however it ends."""

import contextlib
import errno
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import TextIO

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import distributed

logger = logging.getLogger(__name__)

FILE = "lock"
LEASE = 120.0  # seconds after which a file server has forgotten a machine that is gone (NFSv4: 90)


@contextlib.contextmanager
def held(workdir: pathlib.Path, lease: float = LEASE) -> Iterator[None]:
    """Keeps other runs out of `workdir` for the time of the body; of several processes, the first does it for all.

    A run of another machine gets `lease` seconds to turn out to be gone.  Where the file system or the operating system
    knows no locks of this kind, nobody is kept out.  A workdir that a refused run would leave empty is taken away again.

    Raises:
      UserError: another run holds it, or it is not writable.
    """
    if not distributed.is_primary():
        yield
        return
    fresh = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{workdir}: cannot be used as a workdir ({error.strerror}); choose another folder") from error
    with file:
        _wait(workdir, file, lease)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {distributed.host_name()}")
        file.flush()
        try:
            yield
        finally:
            if fresh and [path.name for path in workdir.iterdir()] == [FILE]:
                (workdir / FILE).unlink()
                workdir.rmdir()


def _wait(workdir: pathlib.Path, file: TextIO, lease: float) -> None:
    until, told = time.monotonic() + lease, False
    while not _take(file):
        file.seek(0)
        holder = file.read() or "another process"
        here = holder.endswith(f" on {distributed.host_name()}")
        if here or time.monotonic() > until:
            remedy = "" if here else f"; if it is gone for good, delete {workdir / FILE}"
            raise UserError(
                f"{workdir}: {holder} trains in it; wait for its end or stop it, or choose another folder{remedy}"
            )
        if not told:
            logger.warning("%s: %s trains in it; waiting up to %g s for its end", workdir, holder, lease)
        told = True
        time.sleep(min(1.0, lease))


def _take(file: TextIO) -> bool:
    """Whether nobody else holds the lock."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        # By process, not by open file: a child that outlives a killed run must not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
