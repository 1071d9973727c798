"""One run on several processes: how they start together, agree on small values, and end together.

The processes meet at process 0 (`hub`), each through its `link`.  JAX aborts a process whose peer is missing, at the start
and later, with a number and a stack of C++; here the same comes as soon as the connection breaks, and as one line that names
the machine.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import cluster, wire
from motionaura_jax.parallel.hub import Hub, Member, free_port
from motionaura_jax.parallel.link import Link

AGAIN, FAILED = wire.AGAIN, wire.FAILED
"""Exit status that asks a launcher for another start, and exit status of an error."""

_LONGEST = 2000  # characters of a fault that the others print
_NEWS = 5.0  # seconds in which the hub hears of a process whose end broke a collective
_link: Link | None = None
_index = 0


def process_index() -> int:
    """Which process of the run this is, or was; 0 where it runs alone.  Starts no backend, as `jax.process_index` does."""
    return _index


def process_count() -> int:
    """How many processes the run has; 1 where it runs alone.  Starts no backend."""
    return len(_link.members) if _link else 1


def is_primary() -> bool:
    """Tells whether this process writes for all: config, metrics, samples, progress."""
    return process_index() == 0


def host_name() -> str:
    """The machine as messages call it: the node of SLURM, else the name of the host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def names() -> list[str]:
    """What messages call each process, in order: "process 1 on n2"."""
    return [str(member) for member in _link.members] if _link else [f"process 0 on {host_name()}"]


def gather(name: str, value: Any) -> list[Any]:
    """Returns the JSON values that all processes gave, in their order.

    All have to call this, `barrier` and `broadcast` with the same names in the same order, from one thread.
    A process that is gone or failed ends those that wait.  Costs a message to process 0 and back, and no device work.
    """
    return _link.gather(name, value) if _link else [value]


def barrier(name: str) -> None:
    """Waits until every process is here."""
    gather(name, None)


def broadcast(name: str, value: Any = None) -> Any:
    """Returns the JSON value that process 0 gave; waits for all."""
    return gather(name, value if is_primary() else None)[0]


def at_step(step: int) -> None:
    """Notes how far this process is, for `steps` on the others."""
    if _link:
        _link.at_step(step)


def steps() -> dict[str, int]:
    """How far each process was when it last gave a sign of life, by name; -1 where it has not said."""
    return _link.steps() if _link else {}


@contextlib.contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends all processes with `message` if the body takes longer, as where a collective never comes back."""

    def end() -> None:
        if _link:
            _link.report(message)
        wire.leave(wire.FAILED, f"{message} (waited {seconds:g} s)")

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def joined(wanted: cluster.Wanted | None = None) -> Iterator[None]:
    """Takes part in a run of several processes for the time of the body; alone, it does nothing.

    JAX must not have started a backend.  An exception in the body ends the other processes with its message.

    Raises:
      UserError: the processes do not come together (see `cluster.find`, `Link`).
    """
    wanted = wanted or cluster.Wanted()
    place = cluster.find(wanted)
    if place is None:
        yield
        return
    link = _start(place, wanted)
    try:
        yield
    except BaseException as error:
        _give_up(link, error)
        raise
    _finish(link)


def _start(place: cluster.Place, wanted: cluster.Wanted) -> Link:
    """Meets the others, then starts JAX's own service, on a port that process 0 finds free."""
    import jax

    global _link, _index
    start, heartbeat = wanted.start_timeout, wanted.heartbeat_timeout
    host, port = place.coordinator.rsplit(":", 1)
    address = place.coordinator
    if place.index == 0:
        Hub(int(port), place.count, start_timeout=start, heartbeat_timeout=heartbeat, service=free_port)
        address = f"localhost:{port}"
    member = Member(index=place.index, count=place.count, host=host_name(), pid=os.getpid())
    link = Link(address, member, start_timeout=start, heartbeat_timeout=heartbeat)
    jax.distributed.initialize(
        f"{host}:{link.service}",
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=start,
        heartbeat_timeout_seconds=2 * heartbeat + 10,  # after the hub has said more
    )
    _link, _index = link, place.index
    if place.index > 0:  # process 0 speaks for all
        logging.getLogger("motionaura_jax").setLevel(logging.WARNING)
    return link


def _finish(link: Link) -> None:
    import jax

    global _link
    link.close()
    jax.distributed.shutdown()
    _link = None


def _give_up(link: Link, error: BaseException) -> None:
    """Tells the others to end."""
    # A collective breaks off at the moment a process dies; who it was is known to the hub.
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" not in str(error):
        link.wait_for_news(_NEWS)
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    link.report(text[:_LONGEST])


def leave(status: int) -> int:
    """Returns the exit status of a command; where `joined` broke off, it ends the process here and now.

    JAX would wait for the other processes when the interpreter shuts down, and they are gone.
    """
    if _link is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
