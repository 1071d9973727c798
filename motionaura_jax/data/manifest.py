"""Manifests: videos with captions and companion files, as a folder or a .jsonl or .csv file with a path column."""

import collections
import contextlib
import gc
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.files import check_regular, expanded, is_utf8, read_text
from motionaura_jax.data.listing import MEDIA_SUFFIXES, Listing, Names, list_folder, variants, warn_once
from motionaura_jax.data.tables import TABLE_SUFFIXES, rows
from motionaura_jax.data.video import VideoError

PATH_COLUMNS = ("file", "path", "video", "file_name")
CAPTION_COLUMNS = ("caption", "text")
MAX_CAPTION_BYTES = 2**20
"""Largest NAME.txt that is read as a caption."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Paths that are not simply the folder and the written path in one: absolute, not in the shortest form, of Windows.
_AWKWARD = re.compile(r"(?:^|/)\.?(?:/|$)|[:\\]")
_FEW, _MANY = 64, 10_000  # rows per folder, and per manifest, that are looked up without listing their folder
_KEPT = 2  # manifests: one to train on, one to evaluate on
_UNSETTLED = 2 * 10**9  # ns; a file that is younger may change without a change of its time stamp


class _Fields(NamedTuple):
    location: str
    caption: str | None
    id: str
    files: tuple[tuple[str, Path], ...]


class Record(_Fields):
    """One video of a manifest.  A tuple, and its path a text, because there may be millions of them.

    Attributes:
      path: the file.
      caption: text, or None where unknown.
      id: path relative to the manifest's folder, with forward slashes, as written in the manifest.
      files: companion files, as pairs of a column of the manifest and a path.
    """

    __slots__ = ()

    def __new__(
        cls, path: str | PathLike[str], caption: str | None, id: str, files: tuple[tuple[str, Path], ...] = ()
    ) -> Self:
        """Return a record; a path that is given as text has no superfluous parts."""
        return super().__new__(cls, os.fspath(path), caption, id, files)

    @property
    def path(self) -> Path:
        """Return the file."""
        return Path(self.location)

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

    A folder is searched with all its subfolders for videos and images, see `listing.list_folder`.  The caption of NAME.mp4
    is NAME.txt next to it, else its row in the nearest metadata.jsonl or metadata.csv between the file and the folder.  A
    NAME.txt that cannot be read as UTF-8 counts as no caption and is logged.  A `.jsonl` or `.csv` has a column `file`,
    `path`, `video` or `file_name` (relative to the manifest's folder, or absolute) and may have `caption` or `text`.
    Files are not opened, and may be missing; rows without a file are counted in one warning.  A file that is not found as
    written is also looked for with slashes for backslashes, and in the other Unicode normal forms.

    The records of the last manifests are kept for the next call: one run reads its manifest for its captions and again for
    its clips.  They are read again if a table, a text or the list of files has changed.

    Args:
      location: folder, `.jsonl` or `.csv`.
      columns: further columns to read, each with the path of a companion file.

    Raises:
      UserError: the manifest is missing, empty, not UTF-8, malformed or has no usable row; names the place.
    """
    path, columns = expanded(location), tuple(columns)
    try:
        if path.is_dir():
            listing = list_folder(path)
            records = _kept(path, columns, listing.stamp, lambda: _folder(path, columns, listing))
        elif not path.exists():
            raise UserError(f"{path}: no such folder or manifest; check data.manifest")
        elif path.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(f"{path}: not a manifest; give a folder, a .jsonl or a .csv file")
        else:
            status = path.stat()
            stamp = hash((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)), status.st_mtime_ns
            records = _kept(path, columns, stamp, lambda: _located(path, _table(path, columns)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return list(records)


# ---------------------------------------------------------------- Records of earlier calls
_records: collections.OrderedDict[Any, tuple[int, tuple[Record, ...]]] = collections.OrderedDict()


def _kept(
    path: Path, columns: tuple[str, ...], stamp: tuple[int, int], read: Callable[[], Iterable[Record]]
) -> tuple[Record, ...]:
    """Return the records that an earlier call kept under the same stamp, or read, sort and keep them."""
    key, (version, newest) = (path, path.absolute(), columns), stamp
    kept = _records.get(key)
    if kept is not None and kept[0] == version:
        return kept[1]
    settled = time.time_ns() - newest > _UNSETTLED
    _records.pop(key, None)
    with _collection_paused():
        ordered = sorted(read(), key=lambda record: (record.id, record.caption or "", record.files))
        records = tuple(record for record, _ in itertools.groupby(ordered))
    if settled:
        _records[key] = version, records
        while len(_records) > _KEPT:
            _records.popitem(last=False)
    return records


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the search for reference cycles: a million records have none, and it would take a quarter of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


# ---------------------------------------------------------------- Folders
def _folder(folder: Path, columns: Sequence[str], listing: Listing) -> list[Record]:
    if not listing.media:
        raise UserError(f"{folder}: holds no video or image; put files in it, or give a .jsonl or .csv manifest")
    names = Names(listing.media)
    tables = {place: _matched(folder / name, place, names, columns) for place, name in listing.tables.items()}
    texts = Names(listing.captions)
    lost: list[UserError] = []
    records = []
    for name in listing.media:
        found = list(_rows_of(name, tables)) if tables else []
        caption = _caption(folder, name, listing, texts, lost)
        if caption is None:
            caption = next((row.caption for row in found if row.caption is not None), "")
        files = dict(itertools.chain.from_iterable(row.files for row in reversed(found)))
        records.append(Record(path=folder / name, caption=caption or None, id=name, files=tuple(sorted(files.items()))))
    if lost:
        first = min(lost, key=str)
        warn_once(f"{first}; {folder}: {len(lost)} of {len(records)} clips lose their caption in this way")
    companions = {path for record in records for _, path in record.files}
    return [record for record in records if record.path not in companions] if companions else records


def _matched(table: Path, place: str, names: Names, columns: Sequence[str]) -> dict[str, Record]:
    """Return the rows of a metadata table by the file that each belongs to; log those that belong to none."""
    found, unmatched = dict[str, Record](), list[str]()
    for record in _table(table, columns):
        name = names.find(f"{place}/{record.id}" if place else record.id)
        if name is None:
            unmatched.append(record.id)
        else:
            found[name] = record
    _warn_of_unmatched(table, unmatched, len(unmatched) + len(found))
    return found


def _rows_of(name: str, tables: Mapping[str, Mapping[str, Record]]) -> Iterator[Record]:
    """Yield the rows of a file, from the nearest table up."""
    place = name
    while place:
        place = place.rpartition("/")[0]
        row = tables[place].get(name) if place in tables else None
        if row is not None:
            yield row


def _caption(folder: Path, name: str, listing: Listing, texts: Names, lost: list[UserError]) -> str | None:
    """Return the caption in NAME.txt next to a file, "" if that has none, or None if there is no such file.

    A caption file that cannot be read is added to `lost`: not every use of a clip needs captions.
    """
    stem = texts.find(name.rpartition(".")[0]) if listing.captions else None
    if stem is None:
        return None
    try:
        return " ".join(read_text(folder / listing.captions[stem], limit=MAX_CAPTION_BYTES).split())
    except UserError as error:
        lost.append(error)
        return ""


# ---------------------------------------------------------------- Tables
def _table(path: Path, columns: Sequence[str]) -> list[Record]:
    """Read the rows of a .jsonl or .csv; a row without a path is an error, blank lines are not rows."""
    if not check_regular(path, remedy="give a .jsonl or a .csv file").st_size:
        raise UserError(f"{path}: is empty; add one row per video with a column {'|'.join(PATH_COLUMNS)}")
    reader = _RowReader(path, columns)
    records = [reader.record(line, row) for line, row in rows(path, PATH_COLUMNS, "path", (*CAPTION_COLUMNS, *columns))]
    if not records:
        raise UserError(f"{path}: has no rows; add one row per video with a column {'|'.join(PATH_COLUMNS)}")
    if reader.lost:
        warn_once(
            f"{path}: line {reader.lost[0]}: the caption holds half of a surrogate pair and cannot be written as UTF-8; "
            f"{len(reader.lost)} of {len(records)} rows lose their caption in this way"
        )
    return records


class _RowReader:
    """Maker of records from the rows of one table.

    Attributes:
      lost: lines of captions that cannot be used.
    """

    def __init__(self, table: Path, columns: Sequence[str]):
        self._table, self._folder, self._columns = table, table.parent, sorted(columns)
        self._prefix = "" if self._folder == Path() else f"{self._folder.as_posix().removesuffix('/')}/"
        self.lost: list[int] = []

    def record(self, line: int, row: dict[str, Any]) -> Record:
        """Return the record of a row."""
        written = self._value(line, row, PATH_COLUMNS)
        if not written:
            found = ", ".join(str(name) for name in row) or "none"
            raise UserError(
                f"{self._table}: line {line} has no file in a column {'|'.join(PATH_COLUMNS)} (columns: {found}); add it"
            )
        if _AWKWARD.search(written):
            path = Path(written) if _ADDRESS.match(written) else self._folder / written
            location, name = str(path), path.as_posix().removeprefix(self._prefix)
        else:
            location, name = self._prefix + written, written
        files: tuple[tuple[str, Path], ...] = ()
        if self._columns:
            written_files = [(column, self._value(line, row, (column,))) for column in self._columns]
            files = tuple((column, self._folder / file) for column, file in written_files if file)
        return Record(location, self._caption(line, row), name, files)

    def _value(self, line: int, row: dict[str, Any], columns: tuple[str, ...]) -> str:
        """Return the text of the first of `columns` that has a value, or an empty text."""
        for name in columns:
            value = row.get(name)
            if value:
                if not isinstance(value, str):
                    shown = name if columns is PATH_COLUMNS else "|".join(columns)
                    raise UserError(f"{self._table}: line {line}: column {shown} is not text; put it in quotes")
                return value
        return ""

    def _caption(self, line: int, row: dict[str, Any]) -> str | None:
        caption = self._value(line, row, CAPTION_COLUMNS)
        # A stray quote makes the next rows part of a caption.
        is_csv = self._table.suffix.lower() == ".csv"
        if is_csv and "\n" in caption and _holds_rows(caption):
            raise UserError(f"{self._table}: line {line}: the caption holds the row of another file; check its quotes")
        if not caption.isascii() and not is_utf8(caption):
            self.lost.append(line)
            return None
        return " ".join(caption.split()) or None


def _holds_rows(caption: str) -> bool:
    """Tell whether lines of a caption hold the names of files in cells that the caption neither starts nor ends."""
    lines = [line.split(",") for line in caption.splitlines()]
    cells = [cell for line in lines[1:] for cell in line[:-1]] + [cell for line in lines[:-1] for cell in line[1:]]
    return any(os.path.splitext(cell.strip(' "'))[1].lower() in MEDIA_SUFFIXES for cell in cells)


# ---------------------------------------------------------------- Files of tables
def _located(manifest: Path, records: Sequence[Record]) -> Iterator[Record]:
    """Yield the records with the paths of files that exist under another spelling; count those without a file.

    The ids stay as written: they must not depend on what a host sees of the files.
    """
    missing = _missing(record.location for record in records if not _ADDRESS.match(record.location))
    lost, looked_up = [], 0
    for record in records:
        if record.location not in missing:
            yield record
            continue
        spellings = variants(record.id) if looked_up < _MANY else []
        looked_up += len(spellings)
        found = next((path for name in spellings if os.path.exists(path := manifest.parent / name)), None)
        if found is None:
            lost.append(record.id)
            yield record
        else:
            yield Record(found, record.caption, record.id, record.files)
    _warn_of_unmatched(manifest, lost, len(records))


def _missing(paths: Iterable[str]) -> set[str]:
    """Return the paths without a file, as far as a few system calls per folder can tell."""
    folders: dict[str, list[str]] = collections.defaultdict(list)
    for path in paths:
        folders[os.path.dirname(path)].append(path)
    missing, looked_up = set[str](), 0
    for folder, found in folders.items():
        if len(found) > _FEW:
            missing |= _unlisted(folder, found)
        elif looked_up < _MANY:
            looked_up += len(found)
            missing.update(path for path in found if not os.path.lexists(path))
    return missing


def _unlisted(folder: str, paths: Iterable[str]) -> set[str]:
    """Return the paths that a list of their folder lacks; nothing if it cannot be listed."""
    wanted = {os.path.basename(path): path for path in paths}
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                wanted.pop(entry.name, None)
                if not wanted:
                    break
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        return set()
    return set(wanted.values())


def _warn_of_unmatched(table: Path, names: Sequence[str], count: int) -> None:
    if names:
        warn_once(
            f"{table}: {len(names)} of {count} rows match no file, e.g. {min(names)!r}; check the paths, which are "
            f"relative to {table.parent}"
        )
