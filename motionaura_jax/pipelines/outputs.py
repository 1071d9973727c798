"""Generated videos as files, with a sidecar that records the settings of each; a repeated call resumes."""

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence
from rich.progress import track

from motionaura_jax.core import cli
from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.core.files import check_outputs, check_regular, read_json
from motionaura_jax.core.limits import MAX_FRAMES
from motionaura_jax.data import media
from motionaura_jax.data.video import read_video
from motionaura_jax.pipelines.base import Pipeline, Settings

SHEET_ROWS = 16
_MAX_SIDECAR = 2**20  # bytes
_MAX_HEADER = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One video to generate, its file, and the settings that its sidecar records.

    The sidecar is written first. So a file without a sidecar is never ours, and a sidecar without its video marks the
    point where a call was stopped.

    Attributes:
      job: job of the pipeline.
      label: caption in the contact sheet.
      record: JSON values with at least `num_frames`, `height`, `width` and `checkpoint_hash`.
      defaults: values of settings that sidecars of earlier versions lack.
    """

    job: Any
    path: Path
    label: str
    record: dict[str, Any]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def sidecar(self) -> Path:
        """Return the JSON file next to the video."""
        return self.path.with_suffix(".json")

    @property
    def files(self) -> list[Path]:
        """Return the files of the video."""
        return self._files(self.record)

    @property
    def recorded_files(self) -> list[Path]:
        """Return the files of the video that the sidecar describes; it may have more frames."""
        return self._files(self.recorded) if self.recorded else []

    def _files(self, record: Mapping[str, Any]) -> list[Path]:
        return media.output_files(self.path, record["num_frames"])

    @property
    def recorded(self) -> dict[str, Any] | None:
        """Read the sidecar; return None unless we wrote it."""
        try:
            found = read_json(self.sidecar, limit=_MAX_SIDECAR, remedy="")
        except UserError:
            return None
        frames = found.get("num_frames")
        counted = isinstance(frames, int) and not isinstance(frames, bool) and 1 <= frames <= MAX_FRAMES
        return found if counted and "checkpoint_hash" in found else None

    @property
    def is_ours(self) -> bool:
        """Return whether the sidecar describes exactly this video, from the same weights at any path."""
        places = {"checkpoint": "", "lora": ""}
        return {**self.defaults, **(self.recorded or {}), **places} == {**self.record, **places}

    def is_done(self) -> bool:
        """Return whether an earlier call wrote exactly this video in full.

        Raises:
          UserError: the path holds a file from elsewhere, or a video generated with other settings.
        """
        if self.is_ours:
            return all(file.exists() for file in self.files)
        if self.recorded:
            raise UserError(
                f"{self.path}: was generated with other settings; choose another --output or add --overwrite"
            )
        media.check_free(*self.files, self.sidecar, overwrite=False)
        return False


def write(
    pipeline: Pipeline, targets: Sequence[Target], settings: Settings, sheet: Path, *, overwrite: bool
) -> list[Target]:
    """Generate and write the missing videos, and a sheet of the first targets: a `.png` of frames, or an animation.

    Returns:
      The targets that this call generated.

    Raises:
      UserError: a file blocks a path, is damaged, or cannot be written; the check comes before the first video.
    """
    if any(sheet in (*target.files, target.sidecar) for target in targets):
        raise UserError(f"{sheet}: is the name of a video and of the sheet; choose another --sheet")
    left = [target for target in targets if overwrite or not target.is_done()]
    media.check_free(sheet, overwrite=overwrite or any(target.is_ours for target in targets))
    if left or not sheet.exists():
        check_outputs(path for target in targets for path in (*target.files, target.sidecar, sheet))
    first, generated = targets[:SHEET_ROWS], {}
    console = cli.console()
    videos = pipeline.generate([target.job for target in left], settings)
    progress = track(videos, "sampling", total=len(left), console=console, disable=not console.is_terminal)
    for target, video in zip(left, progress, strict=True):
        # With --overwrite, an old video must never lie next to a new sidecar.
        for file in {*target.files, *target.recorded_files}:
            file.unlink(missing_ok=True)
        media.write_json(target.sidecar, target.record)
        media.write_video(target.path, video, settings.fps)
        if target in first:
            generated[target.path] = video
    if left or not sheet.exists():
        rows = [
            (shown(target.label), generated[path] if (path := target.path) in generated else _read(target))
            for target in first
        ]
        if sheet.suffix.lower() == ".png":
            media.contact_sheet(rows, sheet)
        else:
            media.moving_sheet(rows, sheet, settings.fps)
    return left


def _read(target: Target) -> UInt8[np.ndarray, "t h w 3"]:
    """Read the frames of a video from an earlier call, without the padding of an .mp4."""
    suffix = target.path.suffix.lower()
    if suffix in (".npz", ".webp"):
        return _read_npz(target) if suffix == ".npz" else _read_webp(target)
    frames = np.concatenate([read_video(file)[0] for file in target.files])
    return frames[:, : target.record["height"], : target.record["width"]]


def _read_webp(target: Target) -> UInt8[np.ndarray, "t h w 3"]:
    """Read the frames of an animation, in which equal neighbors are stored once, if it is of the size in the sidecar."""
    remedy, record = "remove it and run the same command again", target.record
    count, *size = (record[name] for name in ("num_frames", "width", "height"))
    check_regular(target.path, limit=2 * 3 * math.prod((count, *size)) + _MAX_HEADER, remedy=remedy)
    try:
        with Image.open(target.path, formats=["WEBP"]) as image:
            found = getattr(image, "n_frames", 1)
            if image.size != tuple(size) or found > count:
                raise ValueError(f"holds {found} frames of {image.size}, {count} of {tuple(size)} were expected")
            frames, ends, elapsed = [], [], 0.0
            for frame in ImageSequence.Iterator(image):
                frames.append(np.asarray(frame.convert("RGB")))
                elapsed += frame.info.get("duration", 0)  # a still picture has none
                ends.append(round(elapsed * record["fps"] / 1000))
        ends[-1] = count
        return np.repeat(np.stack(frames), np.diff([0, *ends]), axis=0)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{target.path}: is damaged ({error}); {remedy}") from error


def _read_npz(target: Target) -> UInt8[np.ndarray, "t h w 3"]:
    """Read the array of a video, if it is of the size that the sidecar records."""
    remedy, record = "remove it and run the same command again", target.record
    shape = (record["num_frames"], record["height"], record["width"], 3)
    check_regular(target.path, limit=2 * math.prod(shape) + _MAX_HEADER, remedy=remedy)
    try:
        with zipfile.ZipFile(target.path) as archive, archive.open("video.npy") as file:
            # NumPy allocates what the header names, so compare the header first.
            np.lib.format.read_magic(file)
            found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if (found, fortran, dtype) != (shape, False, np.uint8):
                raise ValueError(f"holds {dtype} {found}, {shape} was expected")
            frames = np.frombuffer(file.read(math.prod(shape)), np.uint8)
            return frames.reshape(shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{target.path}: is damaged ({error}); {remedy}") from error
