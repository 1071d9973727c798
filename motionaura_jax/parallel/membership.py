"""Who takes part in a run, and the news that one process is gone.

Each process keeps one TCP connection to process 0 from the start of a run to its end. It carries one JSON object per line:
who the process is, who takes part, beats, and last words. A connection that breaks without last words is a dead process.

JAX's own service cannot give this news: it knows numbers but not machines, waits for a heartbeat timeout even when a
process was killed, and then aborts the others from C++. docs/parallelism.md has the figures.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from motionaura_jax.core.errors import UserError

FAILED, AGAIN = 2, 75
"""Exit statuses: an error, and the loss of a process, after which the launcher starts the run again."""

PATIENCE = 10.0  # seconds that process 0 waits for the others to end
_GREETING = 5.0  # seconds within which a process that has connected says who it is
_LONGEST_LINE = 1 << 24  # bytes; a stranger must not fill the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One process: its number, the number of processes it was started for, and its machine."""

    index: int
    count: int
    host: str

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


def end_process(status: int, message: str) -> NoReturn:
    """Print one line and exit at once, although the main thread may wait for a dead process."""
    os.write(sys.stderr.fileno(), f"error: {' '.join(message.split())}\n".encode())
    os._exit(status)


class Connection:
    """One side of a TCP connection that carries JSON objects. Any thread may send; one receives."""

    def __init__(self, sock: socket.socket, silence: float):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._lines, self._lock = sock, sock.makefile("rb"), threading.Lock()
        self.allow(silence)

    def allow(self, silence: float) -> None:
        """Set the number of seconds that `receive` waits."""
        self._socket.settimeout(silence)

    def send(self, **message: Any) -> None:
        """Send an object, unless the connection is broken, which `receive` finds out."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Return the next object; {} if the connection is closed or the other side speaks something else.

        Raises:
          TimeoutError: nothing came in time.
        """
        try:
            return dict(json.loads(self._lines.readline(_LONGEST_LINE)))
        except TimeoutError:
            raise
        except (OSError, ValueError, TypeError):
            return {}

    def close(self) -> None:
        """Close the connection, which ends `receive` on both sides."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Membership:
    """Participation of one process in a run, from the moment all processes have connected.

    Args:
      address: HOST:PORT of process 0.
      me: this process.
      start_timeout: seconds to wait for all processes.
      heartbeat_timeout: seconds without a beat after which a process counts as gone.
      end: called with an exit status and a message when the run cannot continue.

    Attributes:
      members: all processes in order.

    Raises:
      UserError: the port is taken, nobody answers, a process is missing, or two contradict each other.
    """

    def __init__(
        self,
        address: str,
        me: Member,
        *,
        start_timeout: float,
        heartbeat_timeout: float,
        end: Callable[[int, str], None] = end_process,
    ):
        self._me, self._timeout, self._end_process = me, heartbeat_timeout, end
        self._lock, self._over = threading.Lock(), threading.Event()
        self._steps = dict.fromkeys(range(me.count), -1)
        meet = self._wait_for_all if me.index == 0 else self._come
        self.members, self._connections = meet(address, start_timeout)
        for index, connection in list(self._connections.items()):
            connection.allow(heartbeat_timeout)
            threading.Thread(target=self._listen, args=(index, connection), daemon=True, name="listen").start()
        threading.Thread(target=self._beat, daemon=True, name="beat").start()

    def at_step(self, step: int) -> None:
        """Record the step of this process; the next beat carries it to the others."""
        self._steps[self._me.index] = step

    def steps(self) -> dict[str, int]:
        """Return the last known step of each process by name; -1 before its first."""
        return {str(member): self._steps[member.index] for member in self.members}

    def fail(self, fault: str) -> None:
        """End all other processes with `fault` and the name of this one."""
        if self._first_to_end():
            self._say_last(FAILED, f"{self._me} failed: {fault}")

    def close(self) -> None:
        """Leave the run. All processes must have finished their work."""
        if self._first_to_end():
            self._say_last(0, "")

    def _wait_for_all(self, address: str, timeout: float) -> tuple[list[Member], dict[int, Connection]]:
        """Accept every other process, as process 0."""
        here, connections = {0: self._me}, {}
        until, fault = time.monotonic() + timeout, ""
        with _listen_at(int(address.rsplit(":", 1)[1])) as server:
            while len(here) < self._me.count and not fault:
                server.settimeout(max(until - time.monotonic(), 0.001))
                try:
                    sock, _ = server.accept()
                except TimeoutError:
                    fault = _incomplete(here, self._me.count, timeout)
                    break
                connection = Connection(sock, _GREETING)
                member = _greeting(connection)
                if member is None:
                    connection.close()  # a stranger, such as a port scan
                    continue
                if fault := _contradiction(member, here):
                    connection.send(end=[FAILED, fault])
                else:
                    here[member.index], connections[member.index] = member, connection
        members = [here[index] for index in sorted(here)]
        answer = {"end": [FAILED, fault]} if fault else {"members": [dataclasses.asdict(member) for member in members]}
        for connection in connections.values():
            connection.send(**answer)
        if fault:
            raise UserError(fault)
        return members, connections

    def _come(self, address: str, timeout: float) -> tuple[list[Member], dict[int, Connection]]:
        """Introduce this process to process 0 and wait for all others."""
        connection = _connect(address, timeout)
        connection.send(**dataclasses.asdict(self._me))
        answer: dict[str, Any] = {}
        with contextlib.suppress(TimeoutError):
            answer = connection.receive()
        if "end" in answer:
            raise UserError(answer["end"][1])
        if "members" not in answer:
            raise UserError(f"{address} does not answer like process 0 of a run; correct --coordinator_address")
        return [Member(**row) for row in answer["members"]], {0: connection}

    def _listen(self, index: int, connection: Connection) -> None:
        """Follow one process from its first beat to its last words."""
        name = self.members[index]
        try:
            while "beat" in (message := connection.receive()):
                news = {int(number): step for number, step in message["beat"].items()}
                self._steps.update({**news, self._me.index: self._steps[self._me.index]})
        except TimeoutError:
            message = {"end": [AGAIN, f"no sign of life for {self._timeout:g} s from {name}; look at that machine"]}
        gone = f"{name} is gone: it was killed, crashed or lost the network; its log has the reason"
        status, words = message.get("end", (AGAIN, gone))
        self._connections.pop(index)
        if status and self._first_to_end():
            self._say_last(status, words)
            self._end_process(status, words)
        connection.close()  # process 0 waits for this, so it comes after the line about the end

    def _beat(self) -> None:
        while not self._over.wait(min(self._timeout / 5, 2.0)):
            # Process 0 knows all steps and passes them on.
            known = self._steps if self._me.index == 0 else {self._me.index: self._steps[self._me.index]}
            self._send(beat=known)

    def _first_to_end(self) -> bool:
        """Return True to the one thread that ends this process's part in the run."""
        with self._lock:
            first = not self._over.is_set()
            self._over.set()
        return first

    def _say_last(self, status: int, message: str) -> None:
        """Send last words. Process 0 then waits for the others to end: without it, JAX aborts them."""
        self._send(end=[status, message])
        if self._me.index:
            return
        until = time.monotonic() + PATIENCE
        while self._connections and time.monotonic() < until:
            time.sleep(0.02)

    def _send(self, **message: Any) -> None:
        for connection in list(self._connections.values()):
            connection.send(**message)


def _listen_at(port: int) -> socket.socket:
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of this machine cannot be opened for the other processes ({error}); is another run using it? "
            f"choose another port in --coordinator_address"
        ) from error


def _connect(address: str, timeout: float) -> Connection:
    """Connect to process 0, which may start later than this process or publish its name late."""
    host, port = address.rsplit(":", 1)
    until = time.monotonic() + timeout
    while True:
        try:
            sock = socket.create_connection((host.strip("[]"), int(port)), timeout=max(until - time.monotonic(), 1))
        except (OSError, OverflowError) as error:
            if time.monotonic() + 0.2 > until:
                raise UserError(
                    f"no coordinator answers at {address} ({error}); start process 0 there, or correct "
                    f"--coordinator_address (waited {timeout:g} s, see --start_timeout)"
                ) from error
            time.sleep(0.2)
        else:
            # Process 0 answers within its own timeout, even when a process is missing.
            return Connection(sock, timeout + 2 * _GREETING)


def _greeting(connection: Connection) -> Member | None:
    try:
        return Member(**connection.receive())
    except (TimeoutError, TypeError):
        return None


def _contradiction(member: Member, here: dict[int, Member]) -> str:
    """Return why `member` cannot take part, or nothing."""
    if member.count != here[0].count:
        fault = f"{member} was started for {member.count} processes, process 0 for {here[0].count}"
    elif other := here.get(member.index):
        fault = f"two processes have the number {member.index}: on {other.host} and on {member.host}"
    else:
        return ""
    return f"{fault}; start every process with the same --num_processes and a --process_id of its own"


def _incomplete(here: dict[int, Member], count: int, timeout: float) -> str:
    missing = ", ".join(str(index) for index in range(count) if index not in here)
    names = "; ".join(str(here[index]) for index in sorted(here))
    return (
        f"of {count} processes, number {missing} did not come within {timeout:g} s ({names} did); "
        f"see why it did not start, or wait longer with --start_timeout"
    )
