"""Mismatches between processes give a one-line error that names the odd one out; a single process trivially agrees."""

import errno
import pathlib

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import preflight

FACTS = {"clock": 100.0, "devices": "8 x H100", "motionaura_jax": "0.1", "jax": "0.10.2", "python": "3.11.7"}
NAMES = ["process 0 on n1", "process 1 on n2"]


def test_equal_processes_are_one_line() -> None:
    line = preflight.compare([FACTS, FACTS | {"clock": 100.25}], NAMES)
    assert line == "each has 8 x H100, motionaura_jax 0.1, jax 0.10.2, python 3.11.7; clocks within 0.250 s"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": "7 x H100"}, "^process 1 on n2 has devices 7 x H100, process 0 on n1 has 8 x H100; give all"),
        ({"jax": "0.11.2"}, "^process 1 on n2 has jax 0.11.2, process 0 on n1 has 0.10.2; give all"),
        ({"clock": 59.0}, "^the clock of process 1 on n2 is off by -41 s from that of process 0 on n1; set it by NTP$"),
    ],
)
def test_a_process_that_differs_is_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preflight.compare([FACTS, FACTS | change], NAMES)


def test_a_workdir_is_left_as_it_was(tmp_path: pathlib.Path) -> None:
    assert preflight.check_workdir(tmp_path / "run") == f"workdir {tmp_path}/run is writable and shared"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_full_workdir_is_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: pathlib.Path, data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill)
    with pytest.raises(
        UserError, match=r"cannot be used as a workdir .No space left on device.; choose another folder"
    ):
        preflight.check_workdir(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_sum_over_all_devices_is_right_and_measured() -> None:
    assert preflight.check_sum().startswith("all-reduce of 4 MB over ")


def test_a_config_is_known_by_its_hash() -> None:
    one, other = ({"train": {"steps": steps}, "paths": ("a",)} for steps in (1, 2))
    assert preflight.check_config(one) == preflight.check_config(one) != preflight.check_config(other)
