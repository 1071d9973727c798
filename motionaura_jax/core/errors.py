"""Exception for users: a single line that says what failed, where, and what to do."""

import difflib
import itertools
import re
from collections.abc import Collection, Iterable

_LONGEST = 80  # characters of a value in a message
_LONGEST_REASON = 120  # characters of a message from a library
_LISTED = 3  # names in a message
_ADDRESS = r"https?://\S+"
_LONGEST_MESSAGE = 2000  # characters; fault and remedy stand at the end


class UserError(Exception):
    """Error that the user can fix.

    Commands print it as one line on stderr and exit with status 2; libraries raise it before any device work starts. The
    message names the file or key, the fault and the remedy.
    """

    def __init__(self, message: str):
        super().__init__(_printable(message))


def _printable(message: str) -> str:
    """Return `message` on one line of bounded length that any terminal and log can show.

    Messages quote untrusted names and values: bytes that are not text, escape sequences of terminals.
    """
    line = " ".join(message.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return (
        line
        if len(line) <= _LONGEST_MESSAGE
        else f"{line[: _LONGEST_MESSAGE // 2]} ... {line[-_LONGEST_MESSAGE // 2 :]}"
    )


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the candidate closest to `name`, or a list of all candidates if none is close."""
    names = sorted(candidates)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def shown(value: object, length: int = _LONGEST) -> str:
    """Format `value` for a message, cut after `length` characters."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= length else text[:length] + "..."


def reason(error: Exception) -> str:
    """Return type and message of an exception from a library, shortened and without addresses."""
    return shown(f"{type(error).__name__}: {re.sub(_ADDRESS, '...', ' '.join(str(error).split()))}", _LONGEST_REASON)


def listed(names: Collection[str], none: str = "none") -> str:
    """List the first few of `names` and the number of the others; `none` if there are no names."""
    first = ", ".join(itertools.islice(names, _LISTED)) or none
    return f"{first} and {len(names) - _LISTED} more" if len(names) > _LISTED else first
