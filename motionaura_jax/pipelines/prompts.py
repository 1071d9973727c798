"""Lists of prompts: text with one prompt per line, or a .jsonl or .csv with `prompt` and `negative_prompt`."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.files import parse_json, read_lines
from motionaura_jax.data import tables

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", *tables.TABLE_SUFFIXES)
_COLUMN = "prompt"
_MARK = "\ufeff"  # byte-order mark, also at the start of later lines where files were joined


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Text to show, text to avoid, and the position (0, 1, ...) that seeds its videos."""

    text: str
    negative: str = ""
    position: int = 0


def read_prompts(path: Path) -> list[Prompt]:
    """Read `path`; `position` is the line number minus one. Blank lines are skipped.

    A `.jsonl` holds objects with `prompt` and perhaps `negative_prompt`, a `.csv` columns of these names, and a `.txt` or a
    file without suffix one prompt per line. Malformed lines are skipped with a warning and do not change the positions of
    other lines.

    Raises:
      UserError: the file has another suffix, cannot be read, is not UTF-8 text, or has no usable line.
    """
    suffix = path.suffix.lower()
    if suffix not in ("", *SUFFIXES):
        hint = nearest(suffix, SUFFIXES)
        raise UserError(f"{path}: suffix {suffix!r} is not that of a list of prompts{hint}; use {' '.join(SUFFIXES)}")
    prompts = []
    for position, row in _rows(path, suffix):
        try:
            prompts.append(_prompt(row, position))
        except ValueError as error:
            logger.warning("%s: line %d is left out: %s", path, position + 1, error)
    if not prompts:
        raise UserError(f"{path}: has no usable prompt; write one per line")
    return prompts


def _rows(path: Path, suffix: str) -> Iterator[tuple[int, Any]]:
    """Yield the position of each row, and its text or table row."""
    if suffix == ".csv":
        for number, row in tables.rows(path, (_COLUMN,), _COLUMN):
            yield number - 1, row
        return
    remedy = "check --prompts_file, a file of UTF-8 text"
    for position, line in enumerate(read_lines(path, remedy=remedy)):
        text = line.lstrip(_MARK).strip()
        if text:
            yield position, text if suffix == ".jsonl" else {_COLUMN: text}


def _prompt(row: Any, position: int) -> Prompt:
    """Return the prompt of a row, a table row or the text of one.

    Raises:
      ValueError: says what is wrong.
    """
    if isinstance(row, str):
        row = parse_json(row)
    text = row.get(_COLUMN) if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError('needs {"prompt": "..."}')
    negative = row.get("negative_prompt")
    if not isinstance(negative, str | None):
        raise ValueError("negative_prompt is not text")
    return Prompt(text=text.strip(), negative=negative or "", position=position)
