"""Connections between the processes of a run: lines of JSON over TCP, and the greeting of those that connect.

Any program can connect to the port of process 0 until all processes have joined. Process 0 closes connections that do not
repeat its greeting number, and keeps waiting for the others. This keeps accidents out, not attackers: like JAX's own
service, the port has no password, so it belongs behind a firewall.
"""

import contextlib
import dataclasses
import json
import secrets
import selectors
import socket
import threading
import time
from typing import Any

from motionaura_jax.core import files
from motionaura_jax.core.errors import UserError

GREETING = 10.0
"""Seconds within which both sides say who they are."""
HELLO = "motionaura_jax"
"""First word of process 0."""
_LONGEST_GREETING, _LONGEST_LINE = 1 << 12, 1 << 24  # bytes; an untrusted program must not fill the memory
_GUESTS = 128  # connections of other programs that have not said who they are; one more closes the oldest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One process: its number, the number of processes it was started for, and its machine."""

    index: int
    count: int
    host: str

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


class Connection:
    """One side of a TCP connection that carries JSON objects. Any thread may send; one receives.

    Args:
      received: bytes that were read before.
    """

    def __init__(self, sock: socket.socket, silence: float, received: bytes = b""):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._received, self._lock = sock, received, threading.Lock()
        self.allow(silence)

    def allow(self, silence: float) -> None:
        """Set the number of seconds that `receive` waits."""
        self._silence = silence
        self._socket.settimeout(silence)

    def send(self, **message: Any) -> None:
        """Send an object, unless the connection is broken, which `receive` finds out."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, until: float | None = None) -> dict[str, Any]:
        """Return the next object; {} if the connection is closed or the other side speaks something else.

        Args:
          until: reading of `time.monotonic` by which the whole object must be there. Only while no other thread sends.

        Raises:
          TimeoutError: nothing came in time.
        """
        try:
            while b"\n" not in self._received and len(self._received) < _LONGEST_LINE:
                if until is not None:
                    self._socket.settimeout(max(until - time.monotonic(), 1e-3))
                    if time.monotonic() > until:
                        raise TimeoutError
                if not (piece := self._socket.recv(1 << 16)):
                    return {}
                self._received += piece
            line, _, self._received = self._received.partition(b"\n")
            return _object(line)
        except TimeoutError:
            raise
        except OSError:
            return {}

    def is_open(self) -> bool:
        """Return whether the other side has not closed the connection. Only while no other thread sends."""
        self._socket.settimeout(0)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self._socket.settimeout(self._silence)

    def close(self) -> None:
        """Close the connection, which ends `receive` on both sides."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Reception:
    """Connections to process 0 whose other side has not said yet who it is. One thread waits for all of them."""

    def __init__(self, server: socket.socket, expected: int):
        server.setblocking(False)
        # A run of thousands of processes connects at once: each must have a place besides those of other programs.
        self._most = _GUESTS + 2 * expected
        self._server, self._selector = server, selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)
        self._number = secrets.token_hex(16)
        self._guests: dict[socket.socket, tuple[float, bytes]] = {}  # deadline and words so far; the oldest first

    def next(self, until: float) -> tuple[Member, Connection] | None:
        """Return the next process that introduces itself, or None at the time `until`; close all others."""
        while (now := time.monotonic()) < until:
            for guest in [guest for guest, (deadline, _) in self._guests.items() if deadline <= now]:
                self._dismiss(guest)
            wake = min([until, *(deadline for deadline, _ in self._guests.values())])
            for key, _ in self._selector.select(max(wake - now, 0)):
                if key.fileobj is self._server:
                    self._welcome()
                elif key.fileobj in self._guests and (arrival := self._hear(key.fileobj)):
                    return arrival
        return None

    def close(self) -> None:
        """Close all connections that are left."""
        for guest in list(self._guests):
            self._dismiss(guest)
        self._selector.close()

    def _welcome(self) -> None:
        if len(self._guests) >= self._most:
            self._dismiss(next(iter(self._guests)))
        try:
            guest, _ = self._server.accept()
        except OSError:  # the guest has left, or too many files are open
            time.sleep(0.01)
            return
        guest.setblocking(False)
        with contextlib.suppress(OSError):
            guest.send(json.dumps({"hello": HELLO, "number": self._number}).encode() + b"\n")
        self._guests[guest] = (time.monotonic() + GREETING, b"")
        self._selector.register(guest, selectors.EVENT_READ)

    def _hear(self, guest: socket.socket) -> tuple[Member, Connection] | None:
        """Read what has come; return the process if it has introduced itself."""
        deadline, words = self._guests[guest]
        try:
            piece = guest.recv(_LONGEST_GREETING)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        line, end, rest = (words + piece).partition(b"\n")
        if not end and piece and len(line) < _LONGEST_GREETING:
            self._guests[guest] = (deadline, line)
            return None
        greeting = _object(line) if end else {}
        answer, member = greeting.pop("number", ""), member_of(greeting)
        if member is None or answer != self._number:
            self._dismiss(guest)
            return None
        self._selector.unregister(guest)
        del self._guests[guest]
        return member, Connection(guest, GREETING, rest)

    def _dismiss(self, guest: socket.socket) -> None:
        self._selector.unregister(guest)
        del self._guests[guest]
        guest.close()


def listen_at(port: int) -> socket.socket:
    """Open the port of process 0. Raise UserError if it is taken."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of this machine cannot be opened for the other processes ({error}); is another run using it? "
            f"choose another port in --coordinator_address"
        ) from error


def connect(address: str, timeout: float) -> Connection:
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
            return Connection(sock, GREETING)


def _object(line: bytes) -> dict[str, Any]:
    """Parse one line; return {} if it is no JSON object."""
    try:
        value = files.parse_json(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def member_of(row: Any) -> Member | None:
    """Return the process that introduces itself with `row`, or None if it is something else."""
    if not isinstance(row, dict) or row.keys() != {"index", "count", "host"}:
        return None
    index, count, host = row["index"], row["count"], row["host"]
    if type(index) is not int or type(count) is not int or not 0 <= index < count or not isinstance(host, str):
        return None
    return Member(index=index, count=count, host=host) if host.isprintable() and len(host) <= 255 else None


def last_words(message: dict[str, Any]) -> tuple[int, str] | None:
    """Return the exit status and the reason in a message that ends the run, or None."""
    end = message.get("end")
    if isinstance(end, list) and len(end) == 2 and type(end[0]) is int and isinstance(end[1], str):
        return end[0], end[1]
    return None
