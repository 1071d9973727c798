"""Lists of videos with captions: a folder, or a .jsonl or .csv file with a path column."""

import csv
import dataclasses
import functools
import io
import json
import logging
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("file", "path", "video")
CAPTION_COLUMNS = ("caption", "text")
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One file of a manifest; `id` is its path relative to the manifest's folder, with forward slashes."""

    path: Path
    caption: str | None
    id: str


def read_manifest(location: str | PathLike[str]) -> list[Record]:
    """Returns the records of a manifest, sorted by `id`; rows that repeat both file and caption count once.

    A folder is searched through all its subfolders for videos and images (names that begin with a dot are left out).
    The caption of NAME.mp4 is NAME.txt beside it, else its row in the nearest metadata.jsonl or metadata.csv between
    the file and the folder.  A NAME.txt that is not UTF-8 counts as no caption and is logged.  A `.jsonl` or `.csv` has a
    column `file`, `path` or `video` (relative to the manifest's folder, or absolute) and may have `caption` or `text`.
    Files are not opened, and may be missing.

    Raises:
      UserError: the manifest is missing, empty, not UTF-8, malformed or has no usable row; says where.
    """
    path = Path(location)
    try:
        if path.is_dir():
            records = _folder(path)
        elif not path.exists():
            raise UserError(f"{path}: no such folder or manifest; check data.manifest")
        elif path.suffix.lower() not in (".jsonl", ".csv"):
            raise UserError(f"{path}: not a manifest; give a folder, a .jsonl or a .csv file")
        else:
            records = _table(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return sorted(records, key=lambda record: (record.id, record.caption or ""))


def _folder(folder: Path) -> list[Record]:
    files = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]
    if not files:
        raise UserError(f"{folder}: holds no video or image; put files in it, or give a .jsonl or .csv manifest")
    tables: dict[Path, dict[str, str | None]] = {}
    captions = {file: _caption(file, folder, tables) for file in files}
    unreadable = sorted((text for text in captions.values() if isinstance(text, UserError)), key=str)
    if unreadable:
        _warn_once(f"{unreadable[0]}; {folder}: {len(unreadable)} of {len(files)} clips lose their caption in this way")
    return [
        Record(path=file, caption=text if isinstance(text, str) else None, id=file.relative_to(folder).as_posix())
        for file, text in captions.items()
    ]


@functools.cache
def _warn_once(message: str) -> None:
    """A run reads its manifest several times."""
    logger.warning("%s", message)


def _caption(file: Path, folder: Path, tables: dict[Path, dict[str, str | None]]) -> str | UserError | None:
    """The caption beside `file`, or in the metadata tables from its folder up to `folder` (cached in `tables`).

    One beside it that cannot be decoded is returned as the fault that it is: not every use of a clip needs captions.
    """
    beside = file.with_suffix(".txt")
    if beside.is_file():
        try:
            return " ".join(_text(beside).split()) or None
        except UserError as error:
            return error
    for parent in file.parents:
        if parent not in tables:
            tables[parent] = _metadata(parent)
        caption = tables[parent].get(file.relative_to(parent).as_posix())
        if caption is not None or parent == folder:
            return caption
    return None


def _metadata(folder: Path) -> dict[str, str | None]:
    table = next((folder / name for name in _METADATA_NAMES if (folder / name).is_file()), None)
    return {record.id: record.caption for record in _table(table)} if table else {}


def _table(path: Path) -> list[Record]:
    """The rows of a .jsonl or .csv; a row without a path is an error, blank lines are not rows."""
    text = _text(path)
    if not text.strip():
        raise UserError(f"{path}: is empty; add one row per video with a column {'|'.join(PATH_COLUMNS)}")
    rows = _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)
    records = {_record(path, line, row): None for line, row in rows}
    if not records:
        raise UserError(f"{path}: has a header but no rows; add one row per video")
    return list(records)


def _record(manifest: Path, line: int, row: dict[str, Any]) -> Record:
    column = next((name for name in PATH_COLUMNS if row.get(name)), None)
    if column is None:
        found = ", ".join(str(name) for name in row) or "none"
        raise UserError(
            f"{manifest}: line {line} has no file in a column {'|'.join(PATH_COLUMNS)} (columns: {found}); add it"
        )
    name, caption = row[column], next((row[c] for c in CAPTION_COLUMNS if row.get(c)), None)
    if not isinstance(name, str) or not isinstance(caption, str | None):
        wrong = column if not isinstance(name, str) else "|".join(CAPTION_COLUMNS)
        raise UserError(f"{manifest}: line {line}: column {wrong} is not text; put it in quotes")
    path = manifest.parent / name
    identity = path.relative_to(manifest.parent) if path.is_relative_to(manifest.parent) else path
    caption = " ".join(caption.split()) if caption else ""
    return Record(path=path, caption=caption or None, id=identity.as_posix())


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg}); give one object per line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is a JSON {type(row).__name__}; give one object per line")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or []]
    if not set(columns) & set(PATH_COLUMNS):
        raise UserError(
            f"{path}: no path column among {', '.join(columns)}; name the column of the files {'|'.join(PATH_COLUMNS)}"
        )
    reader.fieldnames = columns
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} is not CSV ({error}); check its quotes") from error


def _text(path: Path) -> str:
    """Reads UTF-8, with or without a byte-order mark, with line ends as newlines."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line} is not UTF-8 (byte {error.start}); save the file with UTF-8 encoding"
        ) from error
    return text.replace("\r\n", "\n")
