"""Readers that do what none may do, to test that the fuzzer notices."""

import ctypes
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from motionaura_jax.core.errors import UserError
from tests.fuzz import mutators, worker
from tests.fuzz.readers import READERS, Case, Reader


def _crash(_: Path) -> None:
    ctypes.string_at(0)


def _exit(_: Path) -> None:
    sys.exit(3)


def _hang(_: Path) -> None:
    time.sleep(60)


def _allocate(_: Path) -> None:
    assert len(b"x" * (worker.MAX_BYTES + 2**26))


def _overflow(_: Path) -> None:
    assert len(bytearray(2**40))


def _start_program(_: Path) -> None:
    subprocess.run(["true"], check=True)


def _refuse(path: Path) -> None:
    error = UserError("")
    error.args = (path.read_text(),)
    raise error


def _return(path: Path) -> None:
    path.read_bytes()


_READS = (_crash, _exit, _hang, _allocate, _overflow, _start_program, _refuse, _return)


def case(name: str, data: bytes = b"x") -> Case:
    """Return a case of one of these readers."""
    return Case(reader=name, seed="file", data=data)


def register() -> None:
    """Add these readers to the known ones."""
    for read in _READS:
        name = read.__name__[1:]
        READERS[name] = Reader(
            name=name,
            group="misbehaving",
            mutate=mutators.mutate_bytes,
            seeds=lambda: {"file": {"file": b""}},
            reads=(read,),
        )


def serve(connection: Connection, folder: Path, seconds: float) -> None:
    """Serve these readers; see `worker.serve`."""
    register()
    worker.serve(connection, folder, seconds)
