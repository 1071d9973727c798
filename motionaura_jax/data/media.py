"""Writing of videos, contact sheets and text files; a file appears under its name only when it is complete."""

import contextlib
import errno
import itertools
import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.data.mp4 import encode_h264

OUTPUT_SUFFIXES = (".mp4", ".gif", ".npz", ".png")

_SPACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_GIF_SHORTEST = 2  # hundredths of a second; browsers slow anything shorter down to ten
_LABEL_HEIGHT = 20
_GAP = 4


def check_suffix(path: str | PathLike[str]) -> str:
    """Return the lower-case suffix of an output file.

    Raises:
      UserError: it is not one that `write_video` can write.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        hint = nearest(suffix, OUTPUT_SUFFIXES)
        raise UserError(f"{path}: cannot write suffix {suffix!r}{hint}; end the name in {' '.join(OUTPUT_SUFFIXES)}")
    return suffix


def check_output(path: str | PathLike[str], *, overwrite: bool) -> None:
    """Refuse ahead of the work what `write_video` would refuse after it.

    Raises:
      UserError: a wrong suffix, or a file that exists.
    """
    target = Path(path)
    numbered = target.with_name(f"{target.stem}_0000{target.suffix}") if check_suffix(path) == ".png" else target
    check_free(target, numbered, overwrite=overwrite)


def check_free(*paths: Path, overwrite: bool) -> None:
    """Raise UserError for the first output file that exists, unless `overwrite`."""
    taken = next((path for path in paths if path.exists()), None)
    if taken and not overwrite:
        raise UserError(f"{taken}: exists already; choose another name or add --overwrite")


def output_files(path: str | PathLike[str], num_frames: int) -> list[Path]:
    """Return the files that `write_video` would write: `path`, or one per frame for several frames in `.png`."""
    target = Path(path)
    if target.suffix.lower() != ".png" or num_frames == 1:
        return [target]
    return [target.with_name(f"{target.stem}_{index:04d}{target.suffix}") for index in range(num_frames)]


def write_video(
    path: str | PathLike[str],
    frames: UInt8[np.ndarray, "t h w 3"],
    fps: float,
    *,
    overwrite: bool = True,
    lossless: bool = False,
) -> list[Path]:
    """Write a video in the format that the suffix of `path` names.

    `.mp4`: H.264, yuv420p, BT.709, index first; odd sizes are padded to even by repeating the edge.  With `lossless`,
    lossless H.264 RGB, which few players show.  `.gif`: 256 colors per frame, for previews.  `.npz`: the arrays `video`
    and `fps`.  `.png`: exact; one file per frame, NAME_0000.png, NAME_0001.png, ..., or NAME.png for a single frame.

    Args:
      path: output file; missing folders are created.
      frames: RGB, 0 to 255.
      fps: frames per second.
      overwrite: replace existing files.
      lossless: keep every bit; only `.mp4` heeds it.

    Returns:
      The files written.

    Raises:
      UserError: wrong suffix, existing file with `overwrite` off, or a failure of the disk.
      ValueError: `frames` is not a uint8 RGB video, or `fps` is not positive.
    """
    suffix, target = check_suffix(path), Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be positive, got {fps}")
    targets = output_files(target, len(frames))
    existing = next((t for t in targets if t.exists()), None)
    if existing and not overwrite:
        raise UserError(f"{existing}: exists already; choose another name or remove it")
    with _atomic(targets) as drafts:
        if suffix == ".mp4":
            encode_h264(drafts[0], frames, fps, lossless=lossless, container_format="mp4")
        elif suffix == ".gif":
            _encode_gif(drafts[0], frames, fps)
        elif suffix == ".npz":
            with drafts[0].open("wb") as file:
                np.savez_compressed(file, video=frames, fps=np.float64(fps))
        else:
            for draft, frame in zip(drafts, frames, strict=True):
                Image.fromarray(frame).save(draft, "PNG")
    return targets


def contact_sheet(
    rows: Sequence[tuple[str, UInt8[np.ndarray, "t h w 3"]]], path: str | PathLike[str], columns: int = 8
) -> Path:
    """Write a PNG with one labelled row per video: up to `columns` frames, evenly spaced from the first to the last.

    Raises:
      UserError: `path` does not end in .png, or a failure of the disk.
      ValueError: no rows, or less than one column.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UserError(f"{path}: a contact sheet is a PNG image; end the name in .png")
    if not rows or columns < 1:
        raise ValueError(f"need at least one row and one column, got {len(rows)} and {columns}")
    strips = [_strip(label, video, columns) for label, video in rows]
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    with _atomic([target]) as drafts:
        sheet.save(drafts[0], "PNG")
    return target


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write UTF-8 text.  Raises UserError on a failure of the disk."""
    with _atomic([Path(path)]) as drafts:
        drafts[0].write_text(text, encoding="utf-8")


def write_json(path: str | PathLike[str], value: Any) -> None:
    """Write indented JSON.  Raises UserError on a failure of the disk, TypeError for a value that JSON cannot hold."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _atomic(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield draft paths next to the targets; rename them at the end, or remove them if the block fails."""
    tag = uuid.uuid4().hex[:12]
    drafts = [target.with_name(f".{target.name}.{tag}.tmp") for target in targets]
    try:
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        yield drafts
        for draft, target in zip(drafts, targets, strict=True):
            os.replace(draft, target)
    except (OSError, av.FFmpegError) as error:
        remedy = "check the folder's permissions"
        if error.errno in _SPACE_ERRORS:
            remedy = "free disk space or write to another disk"
        raise UserError(f"{targets[0]}: cannot be written ({error.strerror or error}); {remedy}") from error
    finally:
        for draft in drafts:
            with contextlib.suppress(OSError):
                draft.unlink()


def _encode_gif(path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: float) -> None:
    """Write a GIF whose frames begin at the hundredth of a second nearest to their times."""
    begins = [round(100 * index / fps) for index in range(len(frames) + 1)]
    durations = [10 * max(_GIF_SHORTEST, end - begin) for begin, end in itertools.pairwise(begins)]
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def _strip(label: str, video: UInt8[np.ndarray, "t h w 3"], columns: int) -> Image.Image:
    shown = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    height, width = video.shape[1:3]
    text, font = " ".join(label.split()), ImageFont.load_default(size=13)
    needed = max(len(shown) * (width + _GAP) - _GAP, math.ceil(font.getlength(text)) + _GAP)
    strip = Image.new("RGB", (needed, _LABEL_HEIGHT + height + _GAP), "white")
    ImageDraw.Draw(strip).text((2, 2), text, fill="black", font=font)
    for column, index in enumerate(shown):
        strip.paste(Image.fromarray(video[index]), (column * (width + _GAP), _LABEL_HEIGHT))
    return strip
