"""Lists of prompts: a text file with one prompt per line, or JSON lines with `prompt` and `negative_prompt`."""

import dataclasses
import json
import logging
from pathlib import Path

from motionaura_jax.core.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Text to show, text to avoid, and the position (0, 1, ...) that seeds its videos."""

    text: str
    negative: str = ""
    position: int = 0


def read_prompts(path: Path) -> list[Prompt]:
    """Read `path`; `position` is the line number minus one. Blank lines are skipped.

    Malformed lines are skipped with a warning and do not change the positions of other lines.

    Raises:
      UserError: the file cannot be read, or has no usable line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check --prompts_file") from error
    prompts = []
    for position, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            prompts.append(_parse(line.decode("utf-8-sig"), position, path.suffix == ".jsonl"))
        except ValueError as error:
            logger.warning("%s: line %d is left out: %s", path, position + 1, error)
    if not prompts:
        raise UserError(f"{path}: has no usable prompt; write one per line")
    return prompts


def _parse(line: str, position: int, is_json: bool) -> Prompt:
    if not is_json:
        return Prompt(text=line.strip(), position=position)
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError('needs {"prompt": "..."}')
    if not isinstance(negative := row.get("negative_prompt", ""), str):
        raise ValueError("negative_prompt is not text")
    return Prompt(text=row["prompt"].strip(), negative=negative, position=position)
