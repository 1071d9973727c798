"""A run of the fuzzer: worker processes, the escapes they find, and the files that keep those."""

import base64
import collections
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz import worker
from tests.fuzz.readers import Case, make_case
from tests.fuzz.worker import Outcome

_SHORTEN_SECONDS = 10  # to look for a shorter file with the same escape
_START_SECONDS = 120


class Lane:
    """Worker process that is replaced after a crash, a hang or an escape that took memory. Use as a context.

    Args:
      seconds: longest time of a reading.
      serve: what the process runs; see `worker.serve`.
    """

    def __init__(self, seconds: float = worker.MAX_SECONDS, serve: Callable[..., None] = worker.serve) -> None:
        self._seconds, self._serve = seconds, serve
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self._numbers = itertools.count()
        self._process: Any = None

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def ask(self, case: Case) -> Outcome:
        """Return the outcome of one reading, whatever it does to the process."""
        if self._process is None:
            self._start()
        self._connection.send((next(self._numbers), case))
        kind = "hang"
        with contextlib.suppress(EOFError, ConnectionError):
            if self._connection.poll(self._seconds):
                outcome = self._connection.recv()
                if outcome.kind in ("memory", "MemoryError"):
                    self._stop()
                return outcome
            return self._ended(kind, case)
        self._process.join(5)
        return self._ended(f"crash {self._process.exitcode}", case)

    def _ended(self, kind: str, case: Case) -> Outcome:
        """Describe a reading that did not end by itself, with the stack of its process."""
        self._stop()
        stack = (Path(self._folder.name) / "stack.txt").read_text(errors="replace").splitlines()
        current = next((at for at, line in enumerate(stack) if "most recent call first" in line), 0)
        frames = [line.strip() for line in stack[current + 1 : current + 8]]
        ours = next((line for line in frames if "motionaura_jax" in line), case.reader)
        return Outcome(kind=kind, detail="\n".join([ours, *frames]))

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=self._serve, args=(theirs, Path(self._folder.name), self._seconds), daemon=True
        )
        self._process.start()
        theirs.close()
        if not self._connection.poll(_START_SECONDS) or self._connection.recv() != worker.READY:
            raise RuntimeError("the worker process did not start")

    def _stop(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None


@dataclasses.dataclass
class Tally:
    """Counts of a run.

    Attributes:
      outcomes: number of readings by their kind.
      escapes: number of escapes by their signature.
      files: the first escape of each signature.
      slowest, largest: reading that took most time and memory, among those that are no escape.
    """

    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    escapes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    @property
    def total(self) -> int:
        """Return the number of readings."""
        return self.outcomes.total()

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count a reading."""
        self.outcomes[outcome.kind] += 1
        if outcome.escaped:
            self.escapes[outcome.signature] += 1
            return
        name = f"{case.reader}, {case.seed}, number {case.number}"
        self.slowest = max(self.slowest, (outcome.seconds, name))
        self.largest = max(self.largest, (outcome.memory, name))


def run(
    *,
    seconds: float,
    groups: Sequence[str],
    folder: Path,
    seed: int = 0,
    workers: int = 1,
    limit: int | None = None,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Read mutations until the time is over, and keep every new kind of escape in `folder`.

    Args:
      groups: groups of readers; see `readers.GROUPS`.
      seed: the mutations are numbered from `seed * 10**9` on.
      limit: largest number of mutations.
      progress: called about every five seconds.
    """
    tally, lock, end = Tally(), threading.Lock(), time.monotonic() + seconds
    numbers = iter(range(seed * 10**9, seed * 10**9 + limit)) if limit else itertools.count(seed * 10**9)
    failures: list[BaseException] = []

    def work() -> None:
        """Read cases in one worker process."""
        with Lane() as lane:
            while time.monotonic() < end and not failures:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                case = make_case(number, groups)
                outcome = lane.ask(case)
                with lock:
                    tally.add(case, outcome)
                    new = outcome.escaped and outcome.signature not in tally.files
                    path = folder / f"{case.reader.replace(' ', '-')}-{number}.json"
                    if new:
                        tally.files[outcome.signature] = path
                if new:
                    save(path, shortened(lane, case, outcome), outcome)

    def guarded() -> None:
        """Keep the exception of a thread for the caller."""
        try:
            work()
        except BaseException as error:
            failures.append(error)

    folder.mkdir(parents=True, exist_ok=True)
    threads = [threading.Thread(target=guarded, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(5)
            progress(tally)
    if failures:
        raise failures[0]
    return tally


def shortened(lane: Lane, case: Case, outcome: Outcome) -> Case:
    """Return a case with as few bytes as a short search finds that escapes in the same way."""
    end = time.monotonic() + (0 if outcome.kind == "hang" else _SHORTEN_SECONDS)
    size = max(1, len(case.data) // 2)
    while size:
        for start in range(0, len(case.data), size):
            if time.monotonic() > end:
                return case
            shorter = dataclasses.replace(case, data=case.data[:start] + case.data[start + size :])
            if lane.ask(shorter).signature == outcome.signature:
                case = shorter
                break
        else:
            size //= 2
    return case


def save(path: Path, case: Case, outcome: Outcome) -> None:
    """Write a case that `load` reads back, with the outcome for people to read."""
    content = {"zlib": base64.b64encode(zlib.compress(case.data, 9)).decode()}
    with contextlib.suppress(UnicodeDecodeError):
        text = case.data.decode()
        content = {"text": text} if len(text) < 1000 else content
    values = {"reader": case.reader, "seed": case.seed, "number": case.number, **content}
    path.write_text(
        json.dumps({**values, "found": outcome.signature, "details": outcome.detail.splitlines()[1:]}, indent=1) + "\n"
    )


def load(path: Path) -> Case:
    """Read a case that `save` wrote."""
    values = json.loads(path.read_text())
    data = values["text"].encode() if "text" in values else zlib.decompress(base64.b64decode(values["zlib"]))
    return Case(reader=values["reader"], seed=values["seed"], number=values["number"], data=data)


def replay(paths: Sequence[Path]) -> Iterator[tuple[Path, Outcome]]:
    """Yield every kept case with its outcome today."""
    with Lane() as lane:
        for path in paths:
            yield path, lane.ask(load(path))
