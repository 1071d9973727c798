"""Metrics of a run on disk: `metrics.jsonl` for programs, TensorBoard events for people."""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import image

from motionaura_jax.core import files
from motionaura_jax.core.errors import UserError
from motionaura_jax.data.media import write_text
from motionaura_jax.parallel import distributed

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
FOLDER = "tensorboard"
_LARGEST = 2**63  # whole numbers in a row are smaller
_FLUSH_SECONDS = 30.0  # tensorboardX calls fsync at every flush, which uploads the file again on a mounted bucket


class MetricWriter:
    """Writer of one JSON object per logged step, mirrored to TensorBoard events in `workdir/tensorboard`.

    Only the first process writes; in the others every method does nothing.

    Raises:
      UserError: a full disk or a file that cannot be written; the message names the path.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int):
        """Drop rows after `resumed_step`: those steps will run, and be logged, again."""
        self._writes = distributed.is_primary()
        if not self._writes:
            return
        self._path, self._folder = workdir / FILE, workdir / FOLDER
        rows = [row for row in read_metrics(self._path) if row["step"] <= resumed_step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        with _named(self._path):
            self._file: TextIO = self._path.open("a", encoding="utf-8")
        self._flushed = -_FLUSH_SECONDS
        with _named(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # tensorboardX names files by the second and would overwrite one that a restart left in the same second.
            suffix = f".{len(list(self._folder.iterdir()))}"
            # Not SummaryWriter: a full disk ends its thread, and the next calls wait for that thread forever.
            self._events = EventsWriter(str(self._folder / "events"), suffix)
        # Tells TensorBoard to discard events of older files from this step on.
        self._event(resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row of numbers; a non-finite number becomes null in JSON."""
        if not self._writes:
            return
        row = {"step": step, **{k: (float(v) if np.isfinite(v) else None) for k, v in values.items()}}
        with _named(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        numbers = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._event(step, summary=Summary(value=numbers))

    def picture(self, step: int, name: str, path: pathlib.Path) -> None:
        """Add an image file to the TensorBoard events."""
        if not self._writes:
            return
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._event(step, summary=image(name, pixels, dataformats="HWC"))

    def flush(self) -> None:
        """Force all events to disk; the rows of `metrics.jsonl` are flushed as they are written."""
        if self._writes:
            with _named(self._folder):
                self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Close both files without raising: a full disk has already been reported by a write."""
        if not self._writes:
            return
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                file.close()

    def _event(self, step: int, **content: Any) -> None:
        with _named(self._folder):
            self._events.write_event(Event(step=step, wall_time=time.time(), **content))
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Turn an OSError of the body into one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space and run again to resume") from error


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`, leaving out damaged lines, such as a last one that a crash left unfinished.

    Returns:
      One dict per logged step, with an integer `step` and numbers or None; empty if the file is absent.

    Raises:
      UserError: the file cannot be read.
    """
    if not path.exists():
        return []
    data = files.read_bytes(path, limit=files.MAX_TEXT_BYTES, remedy="move it away")
    lines = data.decode("utf-8", "replace").split("\n")
    rows = [row for line in lines if (row := _row(line))]
    damaged = sum(1 for line in lines[:-1] if line.strip()) - len(rows)
    if damaged > 0:
        logger.warning("%s: %d damaged lines are left out", path, damaged)
    return rows


def _row(line: str) -> dict[str, Any]:
    """Return the numbers of one line, or nothing if it is damaged."""
    try:
        row = files.parse_json(line, strict=False)
    except ValueError:
        return {}
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < _LARGEST:
        return {}
    return {name: value for name, value in row.items() if value is None or _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < _LARGEST)
