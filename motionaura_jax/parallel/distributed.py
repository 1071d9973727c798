"""One run on several processes: start together, agree on small values, end together.

`membership` knows who takes part and who is gone. JAX's coordination service does the rest: it connects the devices,
agrees on the step at which a preempted run saves (`training/monitoring/monitor.py`), and holds the values that processes
exchange.
"""

import contextlib
import ctypes
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import cluster
from motionaura_jax.parallel.membership import AGAIN as AGAIN
from motionaura_jax.parallel.membership import FAILED, Member, Membership, end_process

_LONGEST_FAULT = 2000  # characters of an error that the other processes print
_NEWS = 5.0  # seconds in which news of a dead process arrives after a collective broke
_FOREVER = 10**9  # milliseconds; the news that a process is gone ends this one sooner
_JAX_LATER = 10  # seconds by which JAX's own heartbeat, which names no machine, comes after ours

_membership: Membership | None = None
_index = 0
_rounds: Iterator[int] = itertools.count()


def process_index() -> int:
    """Return the number of this process in the run; 0 if it runs alone. Starts no backend, unlike `jax.process_index`."""
    return _index


def process_count() -> int:
    """Return the number of processes of the run; 1 if this one runs alone. Starts no backend."""
    return len(_membership.members) if _membership else 1


def is_primary() -> bool:
    """Tell whether this process writes for all: config, metrics, samples, progress."""
    return process_index() == 0


def host_name() -> str:
    """Return the name that messages use for this machine: the SLURM node or the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def names() -> list[str]:
    """Return the name of each process in order, such as "process 1 on n2"."""
    return [str(member) for member in _membership.members] if _membership else [f"process 0 on {host_name()}"]


def gather(name: str, value: Any) -> list[Any]:
    """Return the JSON values of all processes in order.

    All processes must call `gather`, `barrier` and `broadcast` with the same names in the same order, from one thread.
    A process that fails or dies ends those that wait. Needs no device: `multihost_utils.process_allgather` would compile
    a program and could not carry text.
    """
    if _membership is None:
        return [value]
    round_, service = next(_rounds), _service()
    folder = f"motionaura/{round_}/"
    service.key_value_set(f"{folder}{_index:06d}", json.dumps(value))
    service.wait_at_barrier(f"motionaura {round_} {name}", _FOREVER)
    values = [json.loads(text) for _, text in sorted(service.key_value_dir_get(folder))]
    if is_primary():  # all have read the values of the round before
        service.key_value_delete(f"motionaura/{round_ - 1}/")
    return values


def _service() -> Any:
    """Return the client of JAX's coordination service.

    JAX has no public call for its key-value store, so this one place uses the internal client, as orbax does.
    """
    from jax._src import distributed

    return distributed.global_state.client


def barrier(name: str) -> None:
    """Wait until every process is here."""
    gather(name, None)


def broadcast(name: str, value: Any = None) -> Any:
    """Return the JSON value of process 0; waits for all processes."""
    return gather(name, value if is_primary() else None)[0]


def at_step(step: int) -> None:
    """Record the step of this process for `steps` on the others."""
    if _membership:
        _membership.at_step(step)


def steps() -> dict[str, int]:
    """Return the last known step of each process by name; -1 before its first, empty if this process runs alone."""
    return _membership.steps() if _membership else {}


@contextlib.contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """End all processes with `message` if the body takes longer, for example in a collective that never returns."""

    def end() -> None:
        if _membership:
            _membership.fail(message)
        end_process(FAILED, f"{message} (waited {seconds:g} s)")

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def joined(wanted: cluster.Wanted | None = None) -> Iterator[None]:
    """Take part in a run of several processes during the body; do nothing if this process runs alone.

    JAX must not have started a backend. An exception in the body ends the other processes with its message.

    Raises:
      UserError: the processes do not come together (see `cluster.find`, `Membership`).
    """
    wanted = wanted or cluster.Wanted()
    place = cluster.find(wanted)
    if place is None:
        yield
        return
    membership = _start(place, wanted)
    try:
        yield
    except BaseException as error:
        _give_up(membership, error)
        raise
    _finish(membership)


def _start(place: cluster.Place, wanted: cluster.Wanted) -> Membership:
    """Meet the other processes, then start JAX's service on the same port."""
    import jax

    global _membership, _index
    membership = Membership(
        place.coordinator,
        Member(index=place.index, count=place.count, host=host_name()),
        start_timeout=wanted.start_timeout,
        heartbeat_timeout=wanted.heartbeat_timeout,
    )
    _delay_aborts()
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=wanted.start_timeout,
        heartbeat_timeout_seconds=2 * wanted.heartbeat_timeout + _JAX_LATER,
    )
    _membership, _index = membership, place.index
    if place.index > 0:  # process 0 speaks for all
        logging.getLogger("motionaura_jax").setLevel(logging.WARNING)
    return membership


def _delay_aborts() -> None:
    """Let an abort of this process wait for six seconds.

    When process 0 dies, JAX 0.11 aborts all others from C++ at that moment, before `Membership` can print which machine
    is gone and exit with `AGAIN`. The handler is the C function `sleep`, called with the number of the signal, 6. It needs
    no Python, so that it cannot hang.
    """
    if os.name != "posix":
        return
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _finish(membership: Membership) -> None:
    import jax

    global _membership
    barrier("end")
    membership.close()
    jax.distributed.shutdown()
    _membership = None


def _give_up(membership: Membership, error: BaseException) -> None:
    """Tell the other processes to end."""
    # A collective breaks when a process dies. The news of who it was comes an instant later and ends this process.
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" not in str(error):
        time.sleep(_NEWS)
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    # A signal that ends this process (`core.process.Ended`) says nothing about the run: launchers start it again.
    membership.fail(text[:_LONGEST_FAULT], AGAIN if getattr(error, "signal", None) else FAILED)


def leave(status: int) -> int:
    """Return the exit status of a command, or exit at once if `joined` broke off.

    JAX would wait for the other processes when the interpreter shuts down, and they are gone.
    """
    if _membership is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
