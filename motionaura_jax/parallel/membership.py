"""Who takes part in a run, and the news that one process is gone.

Each process keeps one TCP connection to process 0 from the start of a run to its end. It carries one JSON object per line:
a greeting of both sides, who takes part, beats, and last words. A connection that breaks without last words is a dead
process.

A process that contradicts the run is told why, and process 0 keeps waiting for the missing ones.

JAX's own service cannot give this news: it knows numbers but not machines, waits for a heartbeat timeout even when a
process was killed, and then aborts the others from C++. docs/parallelism.md has the figures.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import connection as wire
from motionaura_jax.parallel.connection import Connection, Member

FAILED, AGAIN = 2, 75
"""Exit statuses: an error, and the loss of a process, after which the launcher starts the run again."""

PATIENCE = 10.0  # seconds that process 0 waits for the others to end
_TOLD = 8  # refused processes that an error names


def end_process(status: int, message: str) -> NoReturn:
    """Print one line and exit at once, although the main thread may wait for a dead process."""
    os.write(sys.stderr.fileno(), f"error: {' '.join(message.split())}\n".encode("utf-8", "replace"))
    os._exit(status)


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

    def fail(self, fault: str, status: int = FAILED) -> None:
        """End all other processes with `fault` and the name of this one."""
        if self._first_to_end():
            self._say_last(status, f"{self._me} failed: {fault}")

    def close(self) -> None:
        """Leave the run. All processes must have finished their work."""
        if self._first_to_end():
            self._say_last(0, "")

    def _wait_for_all(self, address: str, timeout: float) -> tuple[list[Member], dict[int, Connection]]:
        """Accept every other process, as process 0."""
        here, connections = {0: self._me}, dict[int, Connection]()
        until, refused, fault = time.monotonic() + timeout, list[str](), ""
        with (
            wire.listen_at(int(address.rsplit(":", 1)[1])) as server,
            contextlib.closing(wire.Reception(server, self._me.count)) as reception,
        ):
            while len(here) < self._me.count:
                arrival = reception.next(until)
                for gone in [here[index] for index, connection in connections.items() if not connection.is_open()]:
                    refused.append(f"{gone} connected and disconnected; see its log")
                    del here[gone.index]
                    connections.pop(gone.index).close()
                if arrival is None:
                    fault = _incomplete(here, self._me.count, timeout, refused)
                    break
                member, connection = arrival
                if contradiction := _contradiction(member, here):
                    refused.append(contradiction)
                    connection.send(end=[FAILED, contradiction])
                    connection.close()
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
        connection = wire.connect(address, timeout)
        answer: dict[str, Any] = {}
        with contextlib.suppress(TimeoutError):
            hello = connection.receive(time.monotonic() + wire.GREETING)
            if hello.get("hello") == wire.HELLO:
                connection.send(**dataclasses.asdict(self._me), number=hello.get("number"))
                # Process 0 answers within its own timeout, even when a process is missing.
                answer = connection.receive(time.monotonic() + timeout + 2 * wire.GREETING)
        if end := wire.last_words(answer):
            raise UserError(end[1])
        rows = answer.get("members")
        members = [wire.member_of(row) for row in rows] if isinstance(rows, list) else []
        known = [member for member in members if member is not None]
        if [member.index for member in known] != list(range(self._me.count)):
            connection.close()
            raise UserError(f"{address} does not answer like process 0 of a run; correct --coordinator_address")
        return known, {0: connection}

    def _listen(self, index: int, connection: Connection) -> None:
        """Follow one process from its first beat to its last words."""
        name = self.members[index]
        try:
            while isinstance(beat := (message := connection.receive()).get("beat"), dict):
                news = {number: beat.get(str(number)) for number in self._steps if number != self._me.index}
                self._steps.update({number: step for number, step in news.items() if isinstance(step, int)})
        except TimeoutError:
            message = {"end": [AGAIN, f"no sign of life for {self._timeout:g} s from {name}; look at that machine"]}
        gone = f"{name} is gone: it was killed, crashed or lost the network; its log has the reason"
        status, words = wire.last_words(message) or (AGAIN, gone)
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
        self._send(end=[status, message.encode("utf-8", "replace").decode()])  # names of files may not be UTF-8
        if self._me.index:
            return
        until = time.monotonic() + PATIENCE
        while self._connections and time.monotonic() < until:
            time.sleep(0.02)

    def _send(self, **message: Any) -> None:
        for connection in list(self._connections.values()):
            connection.send(**message)


def _contradiction(member: Member, here: dict[int, Member]) -> str:
    """Return why `member` cannot take part, or nothing."""
    if member.count != here[0].count:
        fault = f"{member} was started for {member.count} processes, process 0 for {here[0].count}"
    elif other := here.get(member.index):
        fault = f"two processes have the number {member.index}: on {other.host} and on {member.host}"
    else:
        return ""
    return f"{fault}; start every process with the same --num_processes and a --process_id of its own"


def _incomplete(here: dict[int, Member], count: int, timeout: float, refused: list[str]) -> str:
    missing = ", ".join(str(index) for index in range(count) if index not in here)
    names = "; ".join(str(here[index]) for index in sorted(here))
    remedy = "; ".join(refused[:_TOLD]) or "see why it did not start, or wait longer with --start_timeout"
    return f"of {count} processes, number {missing} did not come within {timeout:g} s ({names} did); {remedy}"
