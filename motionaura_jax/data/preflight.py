"""Files that cannot be used: a list of them for the user, and a look at a sample of the files before training."""

import dataclasses
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.files import MAX_TEXT_BYTES, is_utf8, parse_json, read_bytes
from motionaura_jax.data.buckets import ClipShape
from motionaura_jax.data.manifest import Record
from motionaura_jax.data.video import VideoError, check_duration, probe


class NoUsableFile(UserError):
    """Error for data in which every tried file is unusable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preflight:
    """Result of a look at the data: how many files were probed and can be used, and one line for each of the others."""

    probed: int
    usable: int
    faults: tuple[str, ...]


class Rejections:
    """List of files that cannot be used, shared by all threads.

    Each file is counted once per run and appended once to a JSON-lines file, however many runs find it.

    Args:
      path: the file; with None, files are only counted.
    """

    def __init__(self, path: Path | None = None):
        self.path, self._lock = path, threading.Lock()
        self._files: set[str] = set()
        self._written: set[str] = set()
        self._partial = False
        if path is not None and path.exists():
            listed = read_bytes(path, limit=MAX_TEXT_BYTES, remedy="remove it")
            self._written = {file for line in listed.splitlines() if (file := _rejected_file(line))}
            self._partial = bool(listed) and not listed.endswith(b"\n")  # a run that was killed left half a line

    def __len__(self) -> int:
        return len(self._files)

    def add(self, error: VideoError) -> None:
        """Count the file of `error`, and append its fault and remedy to the list unless an earlier run did.

        Raises:
          UserError: the list cannot be written.
        """
        file = str(error.path)
        with self._lock:
            self._files.add(file)
            if self.path is None or file in self._written:
                return
            self._written.add(file)
            values = {"file": file, "reason": error.fault, "remedy": error.remedy}
            row = json.dumps(values, ensure_ascii=False)
            if not is_utf8(row):
                row = json.dumps(values)  # escapes the bytes of a name in another encoding
            if self._partial:
                row, self._partial = f"\n{row}", False
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(row + "\n")
            except OSError as failure:
                raise UserError(f"{self.path}: cannot be written ({failure.strerror}); free disk space") from failure


def preflight(
    records: Sequence[Record],
    shapes: Sequence[ClipShape],
    *,
    limit: int = 64,
    threads: int = 8,
    rejections: Rejections | None = None,
) -> Preflight:
    """Probe up to `limit` evenly spaced files.  A file can be used if it is long enough for any of the clip shapes.

    Args:
      rejections: takes the files that cannot be used.

    Raises:
      NoUsableFile: none of the probed files can be used; gives the first reason.
    """
    shortest = min(shapes, key=lambda shape: (shape.num_frames - 1) / shape.fps)
    positions = np.unique(np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int))

    def find_fault(position: int) -> str | None:
        """Return the reason why a file cannot be used."""
        try:
            info = probe(records[position].path)
            check_duration(info, fps=shortest.fps, num_frames=shortest.num_frames)
        except VideoError as error:
            if rejections is not None:
                rejections.add(error)
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        faults = tuple(line for line in pool.map(find_fault, positions.tolist()) if line)
    if len(faults) == len(positions):
        reason = faults[0] if faults else "the manifest has no records; check data.manifest"
        raise NoUsableFile(f"none of {len(positions)} probed files can be used, the first: {reason}")
    return Preflight(probed=len(positions), usable=len(positions) - len(faults), faults=faults)


def _rejected_file(line: bytes) -> str | None:
    """Return the file of a row, or None for a damaged one."""
    try:
        row = parse_json(line, strict=False)
    except ValueError:
        return None
    file = row.get("file") if isinstance(row, dict) else None
    return file if isinstance(file, str) else None
