"""Where the numbers of a run go: `metrics.jsonl` for programs, TensorBoard for people."""

import json
import pathlib
from collections.abc import Mapping
from typing import TextIO

import numpy as np
from PIL import Image

from motionaura_jax.data.media import write_text
from motionaura_jax.errors import UserError


class MetricWriter:
    """Appends one JSON object per logged step and mirrors it to TensorBoard events in `workdir/tensorboard`."""

    def __init__(self, workdir: pathlib.Path, resumed_step: int):
        """Drops lines after `resumed_step`: those steps will be run, and logged, again."""
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(self._path) if row["step"] <= resumed_step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file: TextIO = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes finite and non-finite numbers alike; JSON holds the latter as null."""
        row = {"step": step, **{k: (float(v) if np.isfinite(v) else None) for k, v in values.items()}}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot write ({error.strerror}); free space and run again to resume"
            ) from error
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def picture(self, step: int, name: str, path: pathlib.Path) -> None:
        """Shows an image file in TensorBoard."""
        with Image.open(path) as image:
            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both files."""
        self._file.close()
        self._board.close()


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
