"""Lines of JSON over TCP, and how long to wait for them: what the hub and the links of a run speak."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from motionaura_jax.core.errors import UserError

AGAIN, FAILED = 75, 2
"""Exit status that asks a launcher for another start, as where a process is gone, and that of an error."""

END = "end"
"""Name of the last barrier of a run: after it, a closed connection is no loss."""

LONGEST_LINE = 1 << 24  # bytes; a stranger must not fill the memory


class Connection:
    """One side of a TCP connection that carries JSON objects; many threads may send, one receives."""

    def __init__(self, sock: socket.socket):
        self._socket, self._lock = sock, threading.Lock()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message: Any) -> None:
        """Sends one object.

        Raises:
          OSError: the other side is gone.
        """
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            self._socket.sendall(data)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields what the other side sends until it closes, breaks off, or sends what is no message."""
        try:
            with self._socket.makefile("rb") as lines:
                while line := lines.readline(LONGEST_LINE):
                    yield dict(json.loads(line))
        except (OSError, ValueError, TypeError):
            return

    def close(self) -> None:
        """Closes the connection, which ends `messages` on both sides."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def connect(address: str, timeout: float) -> Connection:
    """Connects to HOST:PORT, trying for `timeout` seconds: the other side may start later, or its name be published late.

    Raises:
      UserError: nobody answered.
    """
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
            sock.settimeout(None)
            return Connection(sock)


def listen(port: int) -> socket.socket:
    """Opens a port for the other processes.

    Raises:
      UserError: another program has it.
    """
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of this machine cannot be opened for the other processes ({error}); is another run using it? "
            f"choose another port in --coordinator_address"
        ) from error


def leave(status: int, message: str) -> None:
    """Prints one line and ends the process at once: its main thread may wait for a peer that never comes."""
    os.write(sys.stderr.fileno(), f"error: {' '.join(message.split())}\n".encode())
    os._exit(status)
