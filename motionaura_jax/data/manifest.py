"""Manifests: videos with captions and companion files, as a folder or a .jsonl or .csv file with a path column."""

import csv
import dataclasses
import functools
import io
import json
import logging
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoError

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("file", "path", "video")
CAPTION_COLUMNS = ("caption", "text")
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One video of a manifest.

    Attributes:
      path: the file.
      caption: text, or None where unknown.
      id: path relative to the manifest's folder, with forward slashes.
      files: companion files, as pairs of a column of the manifest and a path.
    """

    path: Path
    caption: str | None
    id: str
    files: tuple[tuple[str, Path], ...] = ()

    def file(self, column: str) -> Path:
        """Return the companion file in `column`.

        Raises:
          VideoError: the manifest names none.
        """
        found = dict(self.files).get(column)
        if found is None:
            raise VideoError(self.path, f"has no {column} in the manifest", f"add a column {column} with its file")
        return found


def read_manifest(location: str | PathLike[str], columns: Sequence[str] = ()) -> list[Record]:
    """Read a manifest and return its records, sorted by `id`.  Rows that repeat another row count once.

    A folder is searched with all its subfolders for videos and images; names that begin with a dot are left out.  The
    caption of NAME.mp4 is NAME.txt next to it, else its row in the nearest metadata.jsonl or metadata.csv between the
    file and the folder.  A NAME.txt that is not UTF-8 counts as no caption and is logged.  A `.jsonl` or `.csv` has a
    column `file`, `path` or `video` (relative to the manifest's folder, or absolute) and may have `caption` or `text`.
    Files are not opened, and may be missing.

    Args:
      location: folder, `.jsonl` or `.csv`.
      columns: further columns to read, each with the path of a companion file.

    Raises:
      UserError: the manifest is missing, empty, not UTF-8, malformed or has no usable row; names the place.
    """
    path = Path(location)
    try:
        if path.is_dir():
            records = _folder(path, columns)
        elif not path.exists():
            raise UserError(f"{path}: no such folder or manifest; check data.manifest")
        elif path.suffix.lower() not in (".jsonl", ".csv"):
            raise UserError(f"{path}: not a manifest; give a folder, a .jsonl or a .csv file")
        else:
            records = _table(path, columns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return sorted(records, key=lambda record: (record.id, record.caption or "", record.files))


class _Tables:
    """The metadata tables of a folder and its subfolders, each read once."""

    def __init__(self, folder: Path, columns: Sequence[str]):
        self._folder, self._columns = folder, columns
        self._read: dict[Path, dict[str, Record]] = {}

    def rows(self, file: Path) -> Iterator[Record]:
        """Yield the rows of `file`, from the nearest table up."""
        for parent in file.parents:
            if parent not in self._read:
                table = next((parent / name for name in _METADATA_NAMES if (parent / name).is_file()), None)
                self._read[parent] = {row.id: row for row in _table(table, self._columns)} if table else {}
            row = self._read[parent].get(file.relative_to(parent).as_posix())
            if row is not None:
                yield row
            if parent == self._folder:
                return

    def caption(self, file: Path) -> str | None:
        """Return the caption of `file` in the nearest table that has one."""
        return next((row.caption for row in self.rows(file) if row.caption is not None), None)

    def files(self, file: Path) -> tuple[tuple[str, Path], ...]:
        """Return the companions of `file`, each from the nearest table that names it."""
        found: dict[str, Path] = {}
        for row in self.rows(file):
            found = dict(row.files) | found
        return tuple(sorted(found.items()))


def _folder(folder: Path, columns: Sequence[str]) -> list[Record]:
    files = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]
    if not files:
        raise UserError(f"{folder}: holds no video or image; put files in it, or give a .jsonl or .csv manifest")
    tables = _Tables(folder, columns)
    companions = {path for file in files for _, path in tables.files(file)} if columns else set()
    files = [file for file in files if file not in companions]
    captions = {file: _caption(file, tables) for file in files}
    unreadable = sorted((text for text in captions.values() if isinstance(text, UserError)), key=str)
    if unreadable:
        _warn_once(f"{unreadable[0]}; {folder}: {len(unreadable)} of {len(files)} clips lose their caption in this way")
    return [
        Record(
            path=file,
            caption=text if isinstance(text, str) else None,
            id=file.relative_to(folder).as_posix(),
            files=tables.files(file) if columns else (),
        )
        for file, text in captions.items()
    ]


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning once, although a run reads its manifest several times."""
    logger.warning("%s", message)


def _caption(file: Path, tables: _Tables) -> str | UserError | None:
    """Return the caption of `file` from NAME.txt next to it, else from the tables.

    A caption file that cannot be decoded is returned as its error: not every use of a clip needs captions.
    """
    text_file = file.with_suffix(".txt")
    if text_file.is_file():
        try:
            return " ".join(_text(text_file).split()) or None
        except UserError as error:
            return error
    return tables.caption(file)


def _table(path: Path, columns: Sequence[str]) -> list[Record]:
    """Read the rows of a .jsonl or .csv; a row without a path is an error, blank lines are not rows."""
    text = _text(path)
    if not text.strip():
        raise UserError(f"{path}: is empty; add one row per video with a column {'|'.join(PATH_COLUMNS)}")
    rows = _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)
    records = {_record(path, line, row, columns): None for line, row in rows}
    if not records:
        raise UserError(f"{path}: has a header but no rows; add one row per video")
    return list(records)


def _record(manifest: Path, line: int, row: dict[str, Any], columns: Sequence[str]) -> Record:
    column = next((name for name in PATH_COLUMNS if row.get(name)), None)
    if column is None:
        found = ", ".join(str(name) for name in row) or "none"
        raise UserError(
            f"{manifest}: line {line} has no file in a column {'|'.join(PATH_COLUMNS)} (columns: {found}); add it"
        )
    caption_column = next((name for name in CAPTION_COLUMNS if row.get(name)), None)
    used = {name: row[name] for name in (column, caption_column, *columns) if name is not None and row.get(name)}
    for name, value in used.items():
        if not isinstance(value, str):
            shown = "|".join(CAPTION_COLUMNS) if name == caption_column else name
            raise UserError(f"{manifest}: line {line}: column {shown} is not text; put it in quotes")
    path = manifest.parent / used[column]
    identity = path.relative_to(manifest.parent) if path.is_relative_to(manifest.parent) else path
    caption = " ".join(used[caption_column].split()) if caption_column else ""
    files = tuple((name, manifest.parent / used[name]) for name in sorted(columns) if name in used)
    return Record(path=path, caption=caption or None, id=identity.as_posix(), files=files)


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
    """Read UTF-8, with or without a byte-order mark, with line ends as newlines."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line} is not UTF-8 (byte {error.start}); save the file with UTF-8 encoding"
        ) from error
    return text.replace("\r\n", "\n")
