"""Where the numbers of a run go: `metrics.jsonl` for programs, TensorBoard for people."""

import contextlib
import json
import pathlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, TextIO

import numpy as np
from PIL import Image

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.media import write_text
from motionaura_jax.parallel import distributed

FILE = "metrics.jsonl"


class MetricWriter:
    """Appends one JSON object per logged step and mirrors it to TensorBoard events in `workdir/tensorboard`.

    Of several processes only the first writes; in the others nothing happens.

    Raises:
      UserError: a full disk, or a file that cannot be written; names the file.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int):
        """Drops lines after `resumed_step`: those steps will be run, and logged, again."""
        self._writes = distributed.is_primary()
        if not self._writes:
            return
        self._path = workdir / FILE
        rows = [row for row in read_metrics(self._path) if row["step"] <= resumed_step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        with _named(self._path):
            self._file: TextIO = self._path.open("a", encoding="utf-8")
        self._board = _Board(workdir / "tensorboard", resumed_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes finite and non-finite numbers alike; JSON holds the latter as null."""
        if not self._writes:
            return
        row = {"step": step, **{k: (float(v) if np.isfinite(v) else None) for k, v in values.items()}}
        with _named(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._board.scalars(step, values)

    def picture(self, step: int, name: str, path: pathlib.Path) -> None:
        """Shows an image file in TensorBoard."""
        if self._writes:
            self._board.picture(step, name, path)

    def close(self) -> None:
        """Closes both files.  What was written is flushed already, so that a disk that failed before is not reported twice."""
        if not self._writes:
            return
        with contextlib.suppress(OSError):
            self._file.close()
        self._board.close()


class _Board:
    """The event file of TensorBoard, written in the calling thread.

    tensorboardX would hand every event to a thread through a short queue: a full disk ends the thread, and the next calls
    wait for it forever.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        """Opens a new file, in which TensorBoard reads that events from `purge_step` on are void in older ones."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        with _named(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._path.open("ab")
        start = SessionLog(status=SessionLog.START)
        self._write([Event(file_version="brain.Event:2"), Event(step=purge_step, session_log=start)])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name, whether finite or not."""
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._write([self._event(step=step, summary=Summary(value=[number])) for number in numbers])

    def picture(self, step: int, name: str, path: pathlib.Path) -> None:
        """Writes the pixels of an image file."""
        from tensorboardX.summary import image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._write([self._event(step=step, summary=image(name, pixels, dataformats="HWC"))])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, events: list[Any]) -> None:
        with _named(self._path):
            for event in events:
                event.wall_time = time.time()
                self._file.write(_record(event.SerializeToString()))
            self._file.flush()


def _record(data: bytes) -> bytes:
    """One entry of a TFRecord file: length, its checksum, data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Turns a failing disk into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space and run again to resume") from error


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """Reads `metrics.jsonl`; a last line that a crash left unfinished is ignored.

    Returns:
      One dict per logged step, empty when the file is absent.
    """
    rows = []
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
