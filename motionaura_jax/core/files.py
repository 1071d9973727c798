"""Reading of untrusted paths, text and JSON, and checks of paths to write.

Every reader of such files goes through this module: it opens regular files only, because a pipe or a device would hang or
never end, and it bounds size and nesting before anything is built from the content.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from motionaura_jax.core.errors import UserError

MAX_JSON_BYTES = 2**26
"""Largest description, index or list in JSON that is read (64 MiB)."""
MAX_TEXT_BYTES = 2**32
"""Largest table or list of texts that is read (4 GiB)."""
MAX_DEPTH = 64
"""Deepest nesting of JSON objects and lists."""
_PROBE_BYTES = 2**16
MAX_LINE = 2**24
"""Longest line of a table, in characters."""


def expanded(text: str | os.PathLike[str]) -> Path:
    """Return a path as the user wrote it, with a leading `~` or `~user` replaced by the home folder.

    Raises:
      UserError: the text is empty, holds a NUL character, or there is no such home folder.
    """
    written = os.fspath(text)
    if not written.strip() or "\0" in written:
        raise UserError(f"{written!r} is not a path; give the name of a file or folder")
    try:
        return Path(written).expanduser()
    except RuntimeError:
        raise UserError(f"{written}: there is no such home folder; write the path in full") from None


def kind_of(status: os.stat_result) -> str | None:
    """Return "a folder" or "a pipe or device", or None for a regular file."""
    if stat.S_ISREG(status.st_mode):
        return None
    return "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"


def place(text: str) -> str:
    """Return a local path with a leading `~` replaced, and any other place (`gs://...`, a hub id, nothing) unchanged.

    Raises:
      UserError: see `expanded`.
    """
    return str(expanded(text)) if text.startswith("~") or "\0" in text else text


def readable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that UTF-8 can hold; bytes that are no text become question marks."""
    return os.fspath(path).encode(errors="replace").decode()


def check_writable(path: Path, shown: Path | None = None) -> None:
    """Check ahead of the work that the file or folder `path` can be written after it; leave nothing behind.

    Args:
      shown: path to name in messages, by default `path`.

    Raises:
      UserError: the folder cannot be made or written to, its disk is full, or the name is too long for a draft.
    """
    name = f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        folder = next(each for each in path.absolute().parents if each.exists() or each.is_symlink())
        draft = folder / name
        draft.mkdir()
        try:
            probe = draft / name  # one level down, as missing folders will be made
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free disk space or write to another disk" if full else "choose a folder that you can write to"
        raise UserError(f"{shown or path}: cannot be written ({_reason(error)}); {remedy}") from None


def check_folder(folder: Path) -> None:
    """Check ahead of the work that files can be written into a folder, which may not exist yet; see `check_writable`.

    Raises:
      UserError: also if `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; choose another name")
    check_writable(folder / "file", folder)


def check_outputs(paths: Iterable[Path]) -> None:
    """Check ahead of the work that files of one folder can be written after it; see `check_writable`.

    Raises:
      UserError: also for a folder, pipe or device under the name of a file.
    """
    longest = None
    for path in paths:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a file; remove it or choose another name")
        longest = max(longest or path, path, key=lambda each: len(os.fsencode(each.name)))
    if longest is not None:
        check_writable(longest)


def check_regular(path: Path, *, limit: int | None = None, remedy: str) -> os.stat_result:
    """Return the status of a regular file of at most `limit` bytes (None: any size), following links.

    Raises:
      UserError: "PATH: fault; remedy" for a missing file, a folder, pipe, socket or device, or a larger file.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); {remedy}") from None
    kind = kind_of(status)
    if kind is not None:
        raise UserError(f"{path}: is {kind}, not a file; {remedy}")
    if limit is not None and status.st_size > limit:
        raise UserError(f"{path}: is too large ({status.st_size} bytes, at most {limit}); {remedy}")
    return status


def check_own(path: Path, *, depth: int = MAX_DEPTH, remedy: str = "remove it") -> None:
    """Refuse links, pipes, sockets and devices at `path` and up to `depth` levels below, before a command writes there.

    What a command writes, appends to or deletes must lie in the folder that the user named, even if that folder is
    untrusted. The folder itself may be a link.

    Raises:
      UserError: "PATH: fault; remedy".
    """
    with contextlib.suppress(FileNotFoundError):  # another process of the run may have removed a draft meanwhile
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, and only this folder may be written to; {remedy}"
            )
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path}: is a pipe or device, not a file; {remedy}")
        if stat.S_ISDIR(mode) and depth > 0:
            with os.scandir(path) as entries:
                # The type of most entries comes with the list, without a look at each file.
                unsure = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
            for name in unsure:
                check_own(path / name, depth=depth - 1, remedy=remedy)


def read_bytes(path: Path, *, limit: int, remedy: str) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
      UserError: see `check_regular`, or the file cannot be read.
    """
    check_regular(path, limit=limit, remedy=remedy)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); {remedy}") from None


def read_text(
    path: Path, *, limit: int = MAX_TEXT_BYTES, remedy: str = "make it a readable file with UTF-8 encoding"
) -> str:
    """Read UTF-8 text, with or without a byte-order mark, and with line ends as newlines.

    Raises:
      UserError: see `read_bytes`; or the text is in another encoding or holds a NUL character, with the line.
    """
    data = read_bytes(path, limit=limit, remedy=remedy)
    try:
        text = data.decode("utf-8-sig")
        fault = data.find(b"\0")
    except UnicodeDecodeError as error:
        fault = error.start
    if fault >= 0:
        line = data.count(b"\n", 0, fault) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text (byte {fault}); {remedy}")
    return text.replace("\r\n", "\n")


def read_lines(
    path: Path, *, limit: int | None = None, remedy: str = "make it a readable file with UTF-8 encoding"
) -> Iterator[str]:
    """Yield the lines of UTF-8 text with their ends, without holding the whole file in memory.

    Lines end as in Python: with a newline, a carriage return, or both.  A byte-order mark is left out.

    Raises:
      UserError: see `read_text`; or a line is longer than `MAX_LINE` characters.
    """
    check_regular(path, limit=limit, remedy=remedy)
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                if "\0" in line:
                    raise UserError(f"{path}: line {number} is not UTF-8 text (NUL character); {remedy}")
                if len(line) == MAX_LINE:
                    raise UserError(f"{path}: line {number} is longer than {MAX_LINE} characters; {remedy}")
                yield line
    except UnicodeDecodeError:
        # Raises with the place, which decoding by blocks does not know.
        read_text(path, limit=limit or MAX_TEXT_BYTES, remedy=remedy)
        raise UserError(f"{path}: changed while it was read; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); {remedy}") from None


def parse_json(text: str | bytes, *, strict: bool = True) -> Any:
    """Parse JSON: no NaN or Infinity, no half of a surrogate pair, at most `MAX_DEPTH` levels.

    Args:
      strict: False lets NaN, Infinity and halves of surrogate pairs pass, for rows in which only some values are used.

    Raises:
      ValueError: says in a few words what is wrong.
    """
    try:
        value = (_STRICT if strict else _LENIENT).decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
        _check_value(value, MAX_DEPTH, strict)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno}") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except ValueError as error:
        if "digits" in str(error):  # Python's message tells how to raise its limit
            raise ValueError("a number has too many digits") from None
        raise
    return value


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES, remedy: str, strict: bool = True) -> dict[str, Any]:
    """Read a file that holds one JSON object; `strict` is that of `parse_json`.

    Raises:
      UserError: "PATH: fault; remedy" for a file that cannot be read, that is not strict JSON, or that holds another value.
    """
    data = read_bytes(path, limit=limit, remedy=remedy)
    try:
        value = parse_json(data.decode("utf-8-sig"), strict=strict)
    except ValueError as error:
        fault = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(f"{path}: is damaged ({fault}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged (holds a JSON {type(value).__name__}, an object was expected); {remedy}")
    return value


def is_utf8(text: str) -> bool:
    """Tell whether UTF-8 can hold a text: it has no half of a surrogate pair, as a file name that is not UTF-8 has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is not a number")


# Built once, because a table of a million rows is parsed row by row.
_STRICT, _LENIENT = json.JSONDecoder(parse_constant=_refuse_constant), json.JSONDecoder()


def _check_value(value: Any, depth: int, strict: bool) -> None:
    """Refuse nesting deeper than `depth`, and if `strict` strings that UTF-8 cannot hold."""
    if isinstance(value, str):
        if strict and not is_utf8(value):
            raise ValueError("a string holds half of a surrogate pair")
    elif isinstance(value, (dict, list)):
        if depth == 0:
            raise ValueError("nested too deeply")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            if strict or isinstance(item, (dict, list)):
                _check_value(item, depth - 1, strict)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
