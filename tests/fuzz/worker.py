"""One reading of a case, and the process that does readings one after another."""

import dataclasses
import faulthandler
import functools
import logging
import os
import shutil
import sys
import time
import traceback
import unicodedata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from motionaura_jax.core.errors import UserError
from tests.fuzz.readers import READERS, Case

MAX_SECONDS, MAX_BYTES, MAX_MESSAGE = 20, 2**30, 4000
_HEADROOM = 6 * 2**30  # address space that a reading may take before the kernel refuses it
_LINES = 3
READY = "ready"
"""First message of a worker process."""
_FORBIDDEN = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo",
                        "pickle.find_class", "subprocess.Popen"})  # fmt: skip
_actions: list[str] = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a reading.

    Attributes:
      kind: "read", "refused", or the name of an escape.
      detail: what was read or refused; the last lines of a traceback.
      seconds, memory: time, and bytes that the process grew by at most.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def escaped(self) -> bool:
        """Return whether the reader neither returned nor refused its file in one line."""
        return self.kind not in ("read", "refused")

    @property
    def signature(self) -> str:
        """Return the kind and the place in the code, which escapes of one cause share."""
        return f"{self.kind} {self.detail.partition(chr(10))[0]}"


def attempt(case: Case, folder: Path) -> Outcome:
    """Write the files of a case into a new folder, read them with each function of the reader, and remove them."""
    files = case.files
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    resident, before = _memory()
    _actions.clear()
    begin, outcome = time.monotonic(), Outcome(kind="refused")
    for read in READERS[case.reader].reads:
        found = _call(read, folder / next(iter(files)))
        if found.escaped or not outcome.escaped:
            outcome = found
        if found.escaped:
            break
    seconds = time.monotonic() - begin
    _, peak = _memory()
    grown = peak - resident if peak > before else 0  # below an earlier peak, which was allowed
    shutil.rmtree(folder, ignore_errors=True)
    if _actions:
        outcome = Outcome(kind="action", detail=f"{case.reader}: {_actions[0]}")
    if not outcome.escaped and grown > MAX_BYTES:
        outcome = Outcome(kind="memory", detail=f"{case.reader}: {grown / 2**20:.0f} MiB")
    elif not outcome.escaped and seconds > MAX_SECONDS:
        outcome = Outcome(kind="hang", detail=f"{case.reader}: {seconds:.0f} s")
    return dataclasses.replace(outcome, seconds=seconds, memory=grown)


@functools.cache
def watch() -> None:
    """Notice programs, connections and unpickling from now on; `attempt` takes them for escapes.

    Child processes that run this Python are allowed: other tests check their isolation.
    """

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        """Keep the name of a forbidden event."""
        own = event == "subprocess.Popen" and arguments[0] == sys.executable
        if event in _FORBIDDEN and not own:
            _actions.append(f"{event} {arguments}"[:200])

    sys.addaudithook(note)


def serve(connection: Connection, folder: Path, seconds: float = MAX_SECONDS) -> None:
    """Read the cases that the parent process sends until the connection ends.

    A crash or a hang leaves the stack of the process in `folder/stack.txt`.
    """
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for number in (1, 2):  # libraries print to them
        os.dup2(sys.stderr.fileno(), number)
    logging.disable(logging.CRITICAL)
    _limit_memory()
    watch()
    with (folder / "stack.txt").open("w+") as stack:
        faulthandler.enable(stack)
        connection.send(READY)
        while True:
            try:
                number, case = connection.recv()
            except EOFError:
                return
            stack.seek(0)
            stack.truncate()
            faulthandler.dump_traceback_later(0.8 * seconds, file=stack)
            outcome = attempt(case, folder / f"{number}")
            faulthandler.cancel_dump_traceback_later()
            connection.send(outcome)


def _call(read: Any, path: Path) -> Outcome:
    try:
        read(path)
    except UserError as error:
        return Outcome(kind=_fault_of(str(error)) or "refused", detail=_last_lines(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # `SystemExit` and the panics of Rust are escapes too
        return Outcome(kind=type(error).__name__, detail=_last_lines(error))
    return Outcome(kind="read")


def _fault_of(message: str) -> str:
    """Return what is wrong with the message of an error; empty if it is one printable line."""
    if not message.strip():
        return "empty message"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in message):
        return "unprintable message"
    return "long message" if len(message) > MAX_MESSAGE else ""


def _last_lines(error: BaseException) -> str:
    """Return where an error came from, the innermost place of this package first, and its message."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "motionaura_jax" in Path(frame.filename).parts]
    places = [f"{Path(frame.filename).name}:{frame.name}" for frame in (ours[-1:] + frames[-_LINES:])]
    message = ascii(str(error)[:200])
    return "\n".join(
        [f"in {' <- '.join(dict.fromkeys([places[0], places[-1]]))}", " < ".join(reversed(places[1:])), message]
    )


def _memory() -> tuple[int, int]:
    """Return the resident bytes of this process and their peak; zeros on systems without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(values["VmRSS"]) * 1024, int(values["VmHWM"]) * 1024


def _limit_memory() -> None:
    """Refuse this process memory far beyond what a reading may take, so that no case can exhaust the machine."""
    try:
        import resource
    except ImportError:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + _HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
