"""The meeting point of a run, in a thread of process 0: who takes part, what all have said, and who is gone."""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from motionaura_jax.parallel import wire

_INTERVALS = 5  # beats in one heartbeat timeout
PATIENCE = 10.0  # seconds for which process 0 waits until the others have ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """What a process says about itself when it comes."""

    index: int
    count: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


def interval(timeout: float) -> float:
    """Seconds between two beats."""
    return min(timeout / _INTERVALS, 2.0)


class Hub:
    """Accepts `count` processes, then passes on what they tell each other until the run ends.

    Args:
      port: where processes come.
      start_timeout, heartbeat_timeout: seconds to wait for all to come, and for a sign of life of one that came.
      service: called once all are there; its result is told to everyone.

    Raises:
      UserError: the port is taken.
    """

    def __init__(
        self, port: int, count: int, *, start_timeout: float, heartbeat_timeout: float, service: Callable[[], Any]
    ):
        self._server = wire.listen(port)
        self._count, self._service = count, service
        self._start_timeout, self._timeout = start_timeout, heartbeat_timeout
        self._lock = threading.RLock()
        self._members: dict[int, Member] = {}
        self._connections: dict[int, wire.Connection] = {}
        self._heard: dict[int, float] = {}
        self._steps: dict[int, int] = {}
        self._said: dict[str, dict[int, Any]] = {}
        self._over = False
        for work in (self._accept, self._beat):
            threading.Thread(target=work, daemon=True, name=f"hub {work.__name__}").start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            connection = wire.Connection(sock)
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="hub connection").start()

    def _serve(self, connection: wire.Connection) -> None:
        """Talks with one process from its first message to its last."""
        messages = connection.messages()
        try:
            member = Member(**next(messages, {})["hello"])
        except (KeyError, TypeError):
            connection.close()  # a stranger, such as a scan of ports
            return
        if not self._admit(member, connection):
            return
        for message in messages:
            with self._lock:
                self._heard[member.index] = time.monotonic()
                self._take(member, message)
        with self._lock:
            self._connections.pop(member.index, None)
            over = self._over
        if not over:
            self._end(
                wire.AGAIN, f"{member} is gone: it was killed, crashed or lost the network; its log has the reason"
            )

    def _admit(self, member: Member, connection: wire.Connection) -> bool:
        with self._lock:
            other = self._members.get(member.index)
            fault = ""
            if member.count != self._count:
                fault = f"{member} was started for {member.count} processes, process 0 for {self._count}"
            elif other:
                fault = f"two processes have the number {member.index}: on {other.host} and on {member.host}"
            if fault:
                connection.send(end=[wire.FAILED, remedied(fault)])
                self._end(wire.FAILED, remedied(fault))
                return False
            self._members[member.index], self._connections[member.index] = member, connection
            self._heard[member.index] = time.monotonic()
            if len(self._members) == self._count:
                rows = [dataclasses.asdict(self._members[index]) for index in range(self._count)]
                self._send_all(members=rows, service=self._service())
        return True

    def _take(self, member: Member, message: dict[str, Any]) -> None:
        if "beat" in message:
            self._steps[member.index] = message["beat"]
        elif "fault" in message:
            self._end(wire.FAILED, f"{member} failed: {message['fault']}")
        elif "give" in message:
            name, value = message["give"]
            said = self._said.setdefault(name, {})
            said[member.index] = value
            if len(said) == self._count:
                del self._said[name]
                self._over |= name == wire.END
                self._send_all(all=[name, [said[index] for index in range(self._count)]])

    def _beat(self) -> None:
        began = time.monotonic()
        while not self._over:
            time.sleep(interval(self._timeout))
            now = time.monotonic()
            with self._lock:
                if len(self._members) < self._count:
                    if now - began > self._start_timeout:
                        self._end(wire.FAILED, self._incomplete())
                    continue
                silent = [index for index, heard in self._heard.items() if now - heard > self._timeout]
                if silent and not self._over:
                    names = ", ".join(str(self._members[index]) for index in silent)
                    self._end(wire.AGAIN, f"no sign of life for {self._timeout:g} s from {names}; look at that machine")
                    for index in silent:  # which process 0 does not wait for
                        self._connections.pop(index, None)
                self._send_all(beat=[self._steps.get(index, -1) for index in range(self._count)])

    def _incomplete(self) -> str:
        missing = ", ".join(str(index) for index in range(self._count) if index not in self._members)
        here = "; ".join(str(self._members[index]) for index in sorted(self._members))
        return (
            f"of {self._count} processes, number {missing} did not come within {self._start_timeout:g} s ({here} did); "
            f"see why it did not start, or wait longer with --start_timeout"
        )

    def _end(self, status: int, message: str) -> None:
        """Tells all processes to end, process 0 last: its end makes JAX abort those that are left."""
        with self._lock:
            if self._over:
                return
            self._over = True
            last = self._connections.pop(0, None)
            self._send_all(end=[status, message])
        threading.Thread(target=self._end_last, args=(last, status, message), daemon=True, name="hub end").start()

    def _end_last(self, last: wire.Connection | None, status: int, message: str) -> None:
        until = time.monotonic() + PATIENCE
        while self._connections and time.monotonic() < until:
            time.sleep(0.02)
        if last:
            _send(last, end=[status, message])

    def _send_all(self, **message: Any) -> None:
        for connection in self._connections.values():
            _send(connection, **message)


def _send(connection: wire.Connection, **message: Any) -> None:
    with contextlib.suppress(OSError):  # the thread that serves the connection notices
        connection.send(**message)


def remedied(fault: str) -> str:
    """Adds what to do about processes that were started with different numbers."""
    return f"{fault}; start every process with the same --num_processes and a --process_id of its own"


def free_port() -> int:
    """Returns a port of this machine that nobody listens on."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
