"""Exception for users: a single line that says what failed, where, and what to do."""

import difflib
from collections.abc import Iterable

_LONGEST = 80  # characters of a value in a message


class UserError(Exception):
    """Error that the user can fix.

    Commands print it as one line on stderr and exit with status 2; libraries raise it before any device work starts. The
    message names the file or key, the fault and the remedy.
    """

    def __init__(self, message: str):
        # Names of files may hold bytes that are not text: no terminal or log could print them.
        super().__init__(" ".join(message.split()).encode("utf-8", "backslashreplace").decode())


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the candidate closest to `name`, or a list of all candidates if none is close."""
    names = sorted(candidates)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def shown(value: object) -> str:
    """Format `value` for a message, cut after 80 characters."""
    text = str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
