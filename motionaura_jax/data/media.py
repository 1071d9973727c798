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

OUTPUT_SUFFIXES = (".mp4", ".gif", ".webp", ".npz", ".png")
SHEET_SUFFIXES = (".png", ".webp", ".gif")

_SPACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNITS = {"GIF": 10, "WEBP": 1}  # milliseconds in which a format counts durations
_SHORTEST = {"GIF": 20, "WEBP": 11}  # milliseconds; browsers slow anything shorter down to 100
_WEBP_SIDE = 2**14 - 1
_LABEL_HEIGHT = 20
_GAP = 4

# Moving sheets: pixels, and colors that are readable on light and dark pages.
_TILE, _MARGIN, _LINE = 192, 8, 16
_GROUND, _INK = (24, 26, 31), (222, 226, 232)
_MOST_LINES, _MOST_FRAMES = 3, 240
_PAUSE = 500  # milliseconds that the last frame stays longer


def check_suffix(path: str | PathLike[str], known: Sequence[str] = OUTPUT_SUFFIXES) -> str:
    """Return the lower-case suffix of an output file.

    Raises:
      UserError: it is not one of `known`, by default those that `write_video` can write.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        hint = nearest(suffix, known)
        raise UserError(f"{path}: cannot write suffix {suffix!r}{hint}; end the name in {' '.join(known)}")
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
    lossless H.264 RGB, which few players show.  `.webp`, `.gif`: endless animations for web pages, with loss; a GIF has 256
    colors per frame.  `.npz`: the arrays `video`
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
    if suffix == ".webp" and max(frames.shape[1:3]) > _WEBP_SIDE:
        raise UserError(f"{path}: a .webp has at most {_WEBP_SIDE} pixels a side; write .mp4 or .png")
    targets = output_files(target, len(frames))
    existing = next((t for t in targets if t.exists()), None)
    if existing and not overwrite:
        raise UserError(f"{existing}: exists already; choose another name or remove it")
    with _atomic(targets) as drafts:
        if suffix == ".mp4":
            encode_h264(drafts[0], frames, fps, lossless=lossless, container_format="mp4")
        elif suffix in (".gif", ".webp"):
            _encode_animation(drafts[0], [Image.fromarray(frame) for frame in frames], fps, suffix)
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


def moving_sheet(
    rows: Sequence[tuple[str, UInt8[np.ndarray, "t h w 3"]]], path: str | PathLike[str], fps: float, columns: int = 4
) -> Path:
    """Write an animation of all videos side by side with their labels, scaled to tiles of one size.

    A video that ends early keeps its last frame. At most 240 frames and three lines of each label are shown.

    Raises:
      UserError: `path` does not end in .webp or .gif, or a failure of the disk.
      ValueError: no rows, or less than one column.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (".webp", ".gif"):
        raise UserError(f"{path}: a moving sheet is an animation; end the name in .webp or .gif")
    if not rows or columns < 1:
        raise ValueError(f"need at least one row and one column, got {len(rows)} and {columns}")
    scale = _TILE / max(side for _, video in rows for side in video.shape[1:3])
    height = round(scale * max(video.shape[1] for _, video in rows))
    ground, corners = _ground([label for label, _ in rows], height, min(columns, len(rows)))
    frames = []
    for index in range(min(_MOST_FRAMES, max(len(video) for _, video in rows))):
        frames.append(ground.copy())
        for corner, (_, video) in zip(corners, rows, strict=True):
            frame = Image.fromarray(video[min(index, len(video) - 1)])
            size = max(1, round(scale * frame.width)), max(1, round(scale * frame.height))
            frames[-1].paste(frame.resize(size, Image.Resampling.LANCZOS), corner)
    with _atomic([target]) as drafts:
        _encode_animation(drafts[0], frames, fps, suffix, pause=_PAUSE)
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


def _encode_animation(path: Path, frames: Sequence[Image.Image], fps: float, suffix: str, pause: int = 0) -> None:
    """Write an animation whose frames begin as close to their times as the format allows."""
    kind = suffix[1:].upper()
    unit = _UNITS[kind]
    begins = [round(1000 / unit * index / fps) * unit for index in range(len(frames) + 1)]
    durations = [max(_SHORTEST[kind], end - begin) for begin, end in itertools.pairwise(begins)]
    durations[-1] += pause
    options: dict[str, Any] = {"quality": 90, "method": 4}
    if kind == "GIF":
        frames, options = [frame.quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames], {}
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)


def _ground(labels: Sequence[str], height: int, columns: int) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Draw labels under tiles of `height`; return the picture and the corners of the tiles."""
    font = ImageFont.load_default(size=13)
    texts = [_wrapped(label, font, _TILE) for label in labels]
    corners, top = [], _MARGIN
    for start in range(0, len(texts), columns):
        row = texts[start : start + columns]
        corners += [(_MARGIN + column * (_TILE + _MARGIN), top) for column in range(len(row))]
        top += height + max(map(len, row)) * _LINE + 2 * _MARGIN
    ground = Image.new("RGB", (columns * (_TILE + _MARGIN) + _MARGIN, top), _GROUND)
    pen = ImageDraw.Draw(ground)
    for (left, upper), lines in zip(corners, texts, strict=True):
        pen.text((left, upper + height + 4), "\n".join(lines), fill=_INK, font=font, spacing=2)
    return ground, corners


def _wrapped(label: str, font: Any, width: int) -> list[str]:
    """Break a label into lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > _MOST_LINES
    lines = lines[:_MOST_LINES]
    lines[-1] += "…" if cut else ""
    for number, line in enumerate(lines):
        while font.getlength(lines[number]) > width and len(line) > 1:
            line = line.rstrip("…")[:-1]
            lines[number] = line + "…"
    return lines


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
