"""core/memory.py: work that cannot fit is refused with the largest number that does."""

import re

import pytest

from motionaura_jax.core import memory
from motionaura_jax.core.errors import UserError


def test_the_largest_value_that_fits_is_named():
    for value in range(1, 40):
        if value <= 12:
            memory.require("--n", value, lambda n: 8 * n, limit=100)
        else:
            with pytest.raises(
                UserError, match=rf"^--n={value}: needs at least .*; the largest value that fits is 12$"
            ):
                memory.require("--n", value, lambda n: 8 * n, limit=100)
    with pytest.raises(UserError, match=r"is 10$"):
        memory.require("--n", 30, lambda n: 8 * n, limit=100, valid=lambda n: n // 5 * 5)
    with pytest.raises(UserError, match="no value fits"):
        memory.require("--n", 30, lambda n: 200, limit=100)


def test_a_container_may_have_less_than_its_machine(tmp_path, monkeypatch):
    whole = memory.total()
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", (limit,))
    assert memory.total() == 1_000_000 < (whole or 1_000_001)
    limit.write_text("max\n")
    assert memory.total() != 1_000_000
    assert re.fullmatch(r"\d+", str(memory.total()))
