"""Rows of .jsonl and .csv tables, read line by line; every fault names its line."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.files import parse_json, read_lines

TABLE_SUFFIXES = (".jsonl", ".csv")


def rows(
    path: Path, wanted: Sequence[str], kind: str, used: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of the first line and the values of each row; lines without content are not rows.

    Args:
      path: a .jsonl or .csv file.
      wanted: the header of a .csv must have one of these columns.
      kind: names those columns in messages.
      used: other columns that the caller reads; none may come twice.

    Raises:
      UserError: the file cannot be read, or a row is malformed; names the line.
    """
    if path.suffix.lower() == ".jsonl":
        return _json_rows(path)
    return _csv_rows(path, wanted, kind, used)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        text = line.strip()
        if not text:
            continue
        try:
            row = parse_json(text, strict=False)
        except ValueError as error:
            fault = str(error).removeprefix("not JSON: ").removesuffix(" at line 1")
            raise UserError(f"{path}: line {number} is not JSON ({fault}); give one object per line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is a JSON {type(row).__name__}; give one object per line")
        yield number, row


def _csv_rows(
    path: Path, wanted: Sequence[str], kind: str, used: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    names: list[str] = []
    for number, cells in _cells(path):
        if not names:
            names = [name.strip() for name in cells]
            _check_header(path, names, wanted, kind, used)
            continue
        if len(cells) > len(names) and any(cells[len(names) :]):
            raise UserError(
                f"{path}: line {number} has {len(cells)} cells, but the header names {len(names)} columns; "
                f"put text that holds commas in double quotes"
            )
        yield number, dict(zip(names, cells, strict=False))


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the cells of each record that is not blank."""
    reader = csv.reader(read_lines(path), skipinitialspace=True, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}: line {first} is not CSV ({error}); check its quotes") from None
        if cells is None:
            return
        if any(cells):
            yield first, cells


def _check_header(path: Path, names: Sequence[str], wanted: Sequence[str], kind: str, used: Sequence[str]) -> None:
    if not set(names) & set(wanted):
        raise UserError(
            f"{path}: no {kind} column among {', '.join(names)}; name the column of the {kind}s {'|'.join(wanted)}"
        )
    twice = next((name for name in (*wanted, *used) if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}: has two columns {twice}; rename one of them")
