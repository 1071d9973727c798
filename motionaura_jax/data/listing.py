"""Files of a data folder and its subfolders, and the match of written names with files."""

import collections
import dataclasses
import functools
import logging
import os
import posixpath
import unicodedata
from collections.abc import Collection
from pathlib import Path

from motionaura_jax.core.errors import UserError
from motionaura_jax.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
MEDIA_SUFFIXES = frozenset(VIDEO_SUFFIXES + IMAGE_SUFFIXES)
_DEEPEST = 100  # levels of folders; ends a loop of links where folders have no numbers
# Files of a workdir: the first one with any of the others marks the folder of a training run.
_RUN, _RUN_FILES = "config.json", {"lock", "metrics.jsonl", "goodput.json", "checkpoints"}
_RUN_OUTPUT = "samples"
# Files that often lie next to videos and are none: nothing is said about them.
_QUIET_SUFFIXES = {"", ".txt", ".json", ".jsonl", ".csv", ".md"}


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning once, although a run may read its data several times."""
    logger.warning("%s", message)


@dataclasses.dataclass(kw_only=True)
class Listing:
    """Files below a folder, by paths relative to it with forward slashes.

    Attributes:
      media: videos and images.
      captions: text files, by their path without suffix.
      tables: one metadata table per subfolder that has any, by the subfolder ("" for the folder itself).
      stamps: (name, size, time stamp in ns) of every text file and table.
    """

    media: list[str] = dataclasses.field(default_factory=list)
    captions: dict[str, str] = dataclasses.field(default_factory=dict)
    tables: dict[str, str] = dataclasses.field(default_factory=dict)
    stamps: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)

    @property
    def stamp(self) -> tuple[int, int]:
        """Return a hash of the listing, equal if no name and no text has changed, and the newest time stamp in ns."""
        newest = max((stamp[2] for stamp in self.stamps), default=0)
        return hash((tuple(self.media), tuple(self.stamps))), newest


class Names:
    """Index of file names that also finds names written with `./`, backslashes or another Unicode normal form."""

    def __init__(self, names: Collection[str]):
        self._names = frozenset(names)
        # Names of ASCII alone have one normal form.
        self._composed = {_composed(name): name for name in sorted(names, reverse=True) if not name.isascii()}

    def find(self, written: str) -> str | None:
        """Return the file name that `written` means, or None."""
        if written in self._names:
            return written
        plain = posixpath.normpath(written.replace("\\", "/"))
        return plain if plain in self._names else self._composed.get(_composed(plain))


def variants(written: str) -> list[str]:
    """Return other spellings of a path: slashes for backslashes, and other normal forms of its letters."""
    slashed = written.replace("\\", "/")
    spellings = dict.fromkeys([slashed, _composed(slashed), unicodedata.normalize("NFD", slashed)])
    return [spelling for spelling in spellings if spelling != written]


def list_folder(folder: Path) -> Listing:
    """List a folder with its subfolders, linked ones included.  Names that begin with a dot are left out.

    Every folder is listed once, however many links lead to it, and under its own name rather than that of a link.  Workdirs
    of training runs are left out, because their videos are samples of a model.  All that is left out is logged, once.

    Raises:
      OSError: the folder itself cannot be read.
    """
    found, skipped = Listing(), _Skipped(folder)
    folders, links, seen = [""], collections.deque[str](), set[tuple[int, int]]()
    while folders or links:
        place = folders.pop() if folders else links.popleft()
        try:
            status = (folder / place).stat()
            if place.count("/") > _DEEPEST or (status.st_dev, status.st_ino) in seen:
                continue
            if status.st_ino:  # some network folders number nothing
                seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / place) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            if not place:
                raise
            skipped.unreadable.append(place)
            continue
        names = {entry.name for entry in entries}
        is_run = _RUN in names and not names.isdisjoint(_RUN_FILES)
        if is_run and place:
            skipped.runs.append(place)
            continue
        for entry in entries:
            name = f"{place}/{entry.name}" if place else entry.name
            if entry.name.startswith("."):
                continue
            if is_run and entry.name == _RUN_OUTPUT:
                skipped.runs.append(name)
                continue
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(name)
                else:
                    _add(found, skipped, place, name, entry)
            except OSError:
                skipped.unreadable.append(name)
    skipped.log()
    for files in (found.media, found.stamps):
        files.sort()
    return found


class _Skipped:
    """Entries that a listing leaves out."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.unreadable: list[str] = []
        self.runs: list[str] = []
        self.suffixes: collections.Counter[str] = collections.Counter()

    def log(self) -> None:
        """Log one line for each kind of files that were left out."""
        if self.unreadable:
            first = min(self.unreadable)
            warn_once(
                f"{self._folder / first}: cannot be read, or is a broken link; check its permissions "
                f"({len(self.unreadable)} such entries of {self._folder} are left out)"
            )
        for name in sorted(self.runs):
            warn_once(f"{self._folder / name}: left out of the data, because it belongs to a training run")
        if self.suffixes:
            kinds = ", ".join(f"{suffix} ({count})" for suffix, count in self.suffixes.most_common(8))
            warn_once(f"{self._folder}: {self.suffixes.total()} files left out, with suffixes {kinds}")


def _add(found: Listing, skipped: _Skipped, place: str, name: str, entry: os.DirEntry[str]) -> None:
    stem, dot, suffix = name.rpartition(".")
    suffix = f".{suffix.lower()}" if dot and "/" not in suffix and not name.endswith(".") else ""
    is_caption, is_table = suffix == ".txt", entry.name in METADATA_NAMES
    if suffix in MEDIA_SUFFIXES:
        if entry.is_file():
            found.media.append(name)
        else:
            skipped.unreadable.append(name)  # a broken link, a pipe or a device
    elif is_caption or (is_table and entry.is_file()):
        status = entry.stat()
        found.stamps.append((name, status.st_size, status.st_mtime_ns))
        if is_caption:
            # NAME.txt comes after NAME.TXT and replaces it.
            found.captions[stem] = name
        else:
            found.tables[place] = name  # metadata.jsonl comes after metadata.csv and replaces it
    elif suffix not in _QUIET_SUFFIXES:
        skipped.suffixes[suffix] += 1


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def check_no_output(place: Path, workdir: Path) -> None:
    """Refuse data that lie in the samples of the run that would train on them.

    Raises:
      UserError: names both folders.
    """
    samples = (workdir / _RUN_OUTPUT).absolute().resolve()
    if place.absolute().resolve().is_relative_to(samples):
        raise UserError(f"{place}: holds samples of the run in {workdir}; give data.manifest other videos")
