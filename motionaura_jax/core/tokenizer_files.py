"""Checks of published tokenizers before the library `tokenizers` opens them, which a hostile file can make abort.

Run as a module, it tries a tokenizer in this process: `python -P -m motionaura_jax.core.tokenizer_files FILE`.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from motionaura_jax.core import files, process
from motionaura_jax.core.errors import UserError, shown

FILE = "tokenizer.json"
_JSON = (FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_OTHER = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt", "merges.txt")
NAMES = (*_JSON, *_OTHER)
"""Files of published tokenizers."""
_REMEDY = "copy the files of the published tokenizer there again"

_MOST_STEPS = 64  # in a normalizer, pre-tokenizer, decoder or template
_MOST_GROWTH = 4096  # factor by which a chain of replacements may lengthen a text
_LONGEST_PATTERN = 1000  # characters
_MOST_PADDING = 2**16  # ids

# Patterns of T5, SigLIP and CLIP, which need no trial.
_KNOWN_PATTERNS = frozenset(
    (
        " {2,}",
        r"\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"""[!"\#\$%\&'\(\)\*\+,\-\.:;=\?@\[\\\]\^_`\{\|\}\~]""",
    )
)
_SECONDS, _BYTES = 5, 2**31  # of a trial
# Texts on which patterns that backtrack without end do so: long runs of one kind of character, ended by another.
_TRIALS = tuple(
    end.join(("", run * 400, "")) for run in ("a", "aB", " ", "1", "a ", ".", "é", "_-") for end in ("", "!", "\n")
)


def check_tokenizer(folder: Path) -> None:
    """Refuse tokenizer files that are too large, malformed, or make the library grow texts or search without end.

    Raises:
      UserError: "FILE: fault; remedy".
    """
    for name in _OTHER:
        if (folder / name).exists():
            files.check_regular(folder / name, limit=files.MAX_JSON_BYTES, remedy=_REMEDY)
    found = {name: files.read_json(folder / name, remedy=_REMEDY) for name in _JSON if (folder / name).exists()}
    if FILE not in found:
        return
    settings = found[FILE]
    if fault := _fault(settings):
        raise UserError(f"{folder / FILE}: {fault}; {_REMEDY}")
    if any(pattern not in _KNOWN_PATTERNS for pattern in _patterns(settings)):
        _try(folder / FILE)


def _fault(settings: Mapping[str, Any]) -> str:
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        steps = list(_steps(settings.get(part)))
        if len(steps) > _MOST_STEPS:
            return f"its {part} has {len(steps)} steps, {_MOST_STEPS} at most are read"
        growth = 1
        for step in steps:
            growth *= max(
                [1, *(len(step[key]) for key in ("content", "prepend", "replacement") if _is_text(step, key))]
            )
            if growth > _MOST_GROWTH:
                return f"its {part} makes texts more than {_MOST_GROWTH} times as long"
            for template in ("single", "pair"):
                if len(step.get(template) or ()) > _MOST_STEPS:
                    return f"its {part} has {len(step[template])} parts, {_MOST_STEPS} at most are read"
    for pattern in _patterns(settings):
        if len(pattern) > _LONGEST_PATTERN:
            return f"the pattern {shown(pattern)!r} is too long"
    padding = settings.get("padding")
    strategy = padding.get("strategy") if isinstance(padding, Mapping) else None
    if isinstance(strategy, Mapping) and any(not _is_count(value) for value in strategy.values()):
        return f"it pads every text to {shown(strategy)}"
    return ""


def _is_text(step: Mapping[str, Any], key: str) -> bool:
    return isinstance(step.get(key), str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= _MOST_PADDING


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every typed object below a value."""
    if isinstance(value, Mapping):
        if "type" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _steps(item)


def _patterns(settings: Mapping[str, Any]) -> Iterator[str]:
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(settings.get(part)):
            pattern = step.get("pattern")
            if isinstance(pattern, Mapping) and _is_text(pattern, "Regex"):
                yield pattern["Regex"]


def _try(path: Path) -> None:
    """Encode texts in a child process with little time and memory.

    Raises:
      UserError: the child fails.
    """
    command = process.child_command("motionaura_jax.core.tokenizer_files", str(path))
    try:
        done = subprocess.run(command, capture_output=True, timeout=4 * _SECONDS + 20)
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        raise UserError(
            f"{path}: reading short texts with it fails, or takes more than {_SECONDS} s or {_BYTES >> 30} GiB; {_REMEDY}"
        )


def _main(path: str) -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    import tokenizers

    opened = tokenizers.Tokenizer.from_file(path)
    for text in _TRIALS:
        opened.decode(opened.encode(text).ids)


if __name__ == "__main__":
    _main(*sys.argv[1:])
