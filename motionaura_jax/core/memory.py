"""Memory of this machine, and the check that work can fit before any of it is allocated. Imports no jax."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import largest

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
GIB = 2**30


def total() -> int | None:
    """Return the bytes of memory of this machine or container; None if the system does not tell."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # an unknown name, or a container without /proc
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        sizes += [pages * page] if pages > 0 and page > 0 else []
    for path in _CGROUPS:
        with contextlib.suppress(OSError):
            text = path.read_text().strip()
            sizes += [int(text)] if text.isdigit() and int(text) > 0 else []
    return min(sizes, default=None)


def require(
    key: str,
    value: int,
    needed: Callable[[int], int],
    *,
    limit: int | None = None,
    valid: Callable[[int], int] = lambda number: number,
) -> None:
    """Refuse a number whose work cannot fit into memory.

    Args:
      key: flag or key of the number, as the user writes it.
      needed: bytes that any run with a number allocates at least; rises with the number.
      limit: bytes of the memory; by default those of this machine.
      valid: rounds a number down to the nearest that is allowed, or to 0.

    Raises:
      UserError: names the largest number that fits.
    """
    limit = total() if limit is None else limit
    if limit is None or needed(value) <= limit:
        return
    most: int = limit
    best = valid(largest(lambda number: needed(number) <= most, value))
    remedy = f"the largest value that fits is {best}" if best > 0 else "no value fits; lower the other sizes as well"
    raise UserError(
        f"{key}={value}: needs at least {needed(value) / GIB:.3g} GiB of memory, and there are only "
        f"{limit / GIB:.3g} GiB; {remedy}"
    )
