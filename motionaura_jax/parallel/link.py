"""A process's connection to the hub: agreements with the other processes, and the news that one of them is gone."""

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import wire
from motionaura_jax.parallel.hub import PATIENCE, Member, interval


class Link:
    """Comes to the hub at `address` and stays connected until `close`.

    Attributes:
      members: all processes of the run, in order.
      service: what the hub told everyone at the start.

    Raises:
      UserError: nobody answers, too few come, or the processes contradict each other.
    """

    def __init__(
        self,
        address: str,
        member: Member,
        *,
        start_timeout: float,
        heartbeat_timeout: float,
        leave: Callable[[int, str], None] = wire.leave,
    ):
        self._leave, self._timeout = leave, heartbeat_timeout
        self._connection = wire.connect(address, start_timeout)
        self._news = threading.Condition()
        self._rounds = itertools.count()
        self._answers: dict[str, list[Any]] = {}
        self._step, self._steps, self._heard = -1, [-1] * member.count, time.monotonic()
        self._over = self._ended = False
        messages = self._connection.messages()
        self._connection.send(hello=dataclasses.asdict(member))
        first = next(messages, {})
        if "end" in first:
            raise UserError(first["end"][1])
        if "members" not in first:
            raise UserError(f"{address} does not answer like process 0 of a run; correct --coordinator_address")
        self.members, self.service = [Member(**row) for row in first["members"]], first["service"]
        threading.Thread(target=self._listen, args=(messages,), daemon=True, name="link").start()
        threading.Thread(target=self._beat, args=(member.index == 0,), daemon=True, name="link beat").start()

    def gather(self, name: str, value: Any) -> list[Any]:
        """Returns what each process gave, in their order; all have to call this with the same names in the same order."""
        key = f"{next(self._rounds)} {name}"
        return self._gather(key, value)

    def _gather(self, key: str, value: Any) -> list[Any]:
        with self._news:
            self._send(give=[key, value])
            self._news.wait_for(lambda: key in self._answers)
            return self._answers.pop(key)

    def at_step(self, step: int) -> None:
        """Notes how far this process is; the next beat tells the others."""
        self._step = step

    def steps(self) -> dict[str, int]:
        """How far each process was at its last beat; -1 where it has not said."""
        return {str(member): step for member, step in zip(self.members, self._steps, strict=True)}

    def report(self, fault: str) -> None:
        """Ends all other processes with `fault`; returns when they have been told."""
        with self._news:
            self._over = True
            self._send(fault=fault)
            self._news.wait_for(lambda: self._ended, timeout=PATIENCE + 5)

    def wait_for_news(self, seconds: float) -> None:
        """Gives the hub time to tell that a process is gone, which ends this one."""
        with self._news:
            self._news.wait_for(lambda: self._ended, timeout=seconds)

    def close(self) -> None:
        """Waits until all processes are here, and disconnects."""
        self._gather(wire.END, None)
        self._connection.close()

    def _send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # the listening thread notices, and says who is gone
            self._connection.send(**message)

    def _listen(self, messages: Any) -> None:
        for message in messages:
            self._heard = time.monotonic()
            with self._news:
                if "all" in message:
                    key, values = message["all"]
                    self._answers[key] = values
                    self._over |= key == wire.END
                elif "beat" in message:
                    self._steps = message["beat"]
                elif "end" in message:
                    if not self._over:
                        self._leave(*message["end"])
                    self._over = self._ended = True
                self._news.notify_all()
        if not self._over:
            self._leave(
                wire.AGAIN, f"{self.members[0]} is gone: it was killed, crashed or lost the network; see its log"
            )
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _beat(self, beside_hub: bool) -> None:
        while not self._over:
            self._send(beat=self._step)
            time.sleep(interval(self._timeout))
            if not (self._over or beside_hub) and time.monotonic() - self._heard > self._timeout:
                self._leave(wire.AGAIN, f"no sign of life for {self._timeout:g} s from {self.members[0]}; look at it")
