"""Processes that meet, agree and end together: hub and links as threads, with ends recorded instead of carried out."""

import contextlib
import queue
import re
import socket
import threading
import time

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import distributed, wire
from motionaura_jax.parallel.hub import Hub, Member, free_port
from motionaura_jax.parallel.link import Link


class Meeting:
    """A hub, and links that note in `ends` how they would have ended their process."""

    def __init__(self, count, *, start_timeout=5.0, heartbeat_timeout=5.0):
        self.count, self.port = count, free_port()
        self.timeouts = {"start_timeout": start_timeout, "heartbeat_timeout": heartbeat_timeout}
        self.hub = Hub(self.port, count, **self.timeouts, service=lambda: 4321)
        self.ends = {index: queue.Queue() for index in range(count)}

    def link(self, number, **changes):
        index = changes.get("index", number)
        member = Member(**{"index": index, "count": self.count, "host": f"n{index}", "pid": 1, **changes})

        def leave(*end):
            self.ends[index].put(end)
            link._connection.close()

        link = Link(f"localhost:{self.port}", member, **self.timeouts, leave=leave)
        return link

    def links(self):
        return together(self.link, range(self.count))

    def end(self, index):
        return self.ends[index].get(timeout=10)


def together(function, arguments):
    """Calls `function` for all arguments at once, each in a thread; returns the results or raises the first error."""
    results, errors = {}, []

    def call(argument):
        try:
            results[argument] = function(argument)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(argument,)) for argument in arguments]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    if errors:
        raise errors[0]
    return [results[argument] for argument in arguments]


def test_processes_meet_agree_and_part_without_an_end():
    meeting = Meeting(3)
    links = meeting.links()
    assert [str(member) for member in links[1].members] == ["process 0 on n0", "process 1 on n1", "process 2 on n2"]
    assert {link.service for link in links} == {4321}
    for round in range(3):
        answers = together(lambda index, n=round: links[index].gather("square", index**2 + n), range(3))
        assert answers == [[round, 1 + round, 4 + round]] * 3
    together(lambda index: links[index].close(), range(3))
    time.sleep(0.3)
    assert all(ends.empty() for ends in meeting.ends.values())


def test_processes_in_one_barrier_more_wait_for_the_others():
    meeting = Meeting(2)
    links = meeting.links()
    late = threading.Thread(target=links[1].gather, args=("place", None))
    late.start()
    late.join(0.3)
    assert late.is_alive()
    links[0].gather("place", None)
    late.join(5)
    assert not late.is_alive()


def test_a_process_that_is_gone_ends_the_others_at_once_and_by_name():
    meeting = Meeting(3, heartbeat_timeout=60)
    links = meeting.links()
    links[1]._over = True  # it hears nothing of its own end
    links[1]._connection.close()
    for index in (0, 2):
        status, message = meeting.end(index)
        assert status == wire.AGAIN and message.startswith("process 1 on n1 is gone: it was killed, crashed or lost")


def test_a_silent_process_ends_the_others_within_the_heartbeat():
    meeting = Meeting(2, heartbeat_timeout=1.0)
    links = meeting.links()
    links[1]._over = True  # stops its beat, as a machine that hangs
    began = time.monotonic()
    status, message = meeting.end(0)
    assert status == wire.AGAIN and "no sign of life for 1 s from process 1 on n1" in message
    assert 0.5 < time.monotonic() - began < 6


def test_a_process_0_that_is_gone_is_named():
    meeting = Meeting(2)
    meeting.links()
    for connection in list(meeting.hub._connections.values()):
        connection.close()
    status, message = meeting.end(1)
    assert status == wire.AGAIN and message.startswith("process 0 on n0 is gone")


def test_an_error_on_one_process_ends_all_with_its_message():
    meeting = Meeting(3)
    links = meeting.links()
    waiting = threading.Thread(target=links[0].gather, args=("never", None), daemon=True)
    waiting.start()
    links[2].report("data: no such folder")
    links[2]._connection.close()
    assert meeting.end(1) == (wire.FAILED, "process 2 on n2 failed: data: no such folder")
    assert meeting.end(0) == (wire.FAILED, "process 2 on n2 failed: data: no such folder")
    assert meeting.ends[2].empty()


def test_every_process_knows_how_far_the_others_are():
    meeting = Meeting(2, heartbeat_timeout=0.5)
    links = meeting.links()
    assert links[0].steps() == {"process 0 on n0": -1, "process 1 on n1": -1}
    links[0].at_step(7)
    links[1].at_step(5)
    until = time.monotonic() + 5
    while links[0].steps() != {"process 0 on n0": 7, "process 1 on n1": 5} and time.monotonic() < until:
        time.sleep(0.02)
    assert links[0].steps() == {"process 0 on n0": 7, "process 1 on n1": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 4}, "process 1 on n1 was started for 4 processes, process 0 for 2; .* the same --num_processes"),
        ({"index": 0, "host": "n9"}, "two processes have the number 0: on n0 and on n9; .* --process_id of its own"),
    ],
)
def test_processes_that_disagree_are_refused(changes, message):
    meeting, errors = Meeting(2), queue.Queue()

    def come(changes):
        try:
            meeting.link(1, **changes)
        except UserError as error:
            errors.put(str(error))

    threading.Thread(target=come, args=({"index": 0, "host": "n0"},)).start()
    while not meeting.hub._members:
        time.sleep(0.01)
    threading.Thread(target=come, args=({"host": "n1", **changes},)).start()
    for _ in range(2):
        assert re.search(message, errors.get(timeout=10))


def test_a_process_that_does_not_come_is_named():
    meeting = Meeting(3, start_timeout=0.5, heartbeat_timeout=0.5)
    with pytest.raises(
        UserError, match=r"number 0, 2 did not come within 0.5 s \(process 1 on n1 did\).*start_timeout"
    ):
        meeting.link(1)


def test_a_coordinator_that_is_not_there_is_one_line():
    member = Member(index=1, count=2, host="n1", pid=1)
    with pytest.raises(UserError, match=r"no coordinator answers at localhost:\d+ .*--coordinator_address"):
        Link(f"localhost:{free_port()}", member, start_timeout=0.5, heartbeat_timeout=5)


def test_a_coordinator_that_speaks_something_else_is_one_line():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            sock, _ = server.accept()
            with sock, contextlib.suppress(OSError):
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                sock.recv(100)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="does not answer like process 0 of a run"):
            Link(f"localhost:{port}", Member(index=1, count=2, host="n", pid=1), start_timeout=2, heartbeat_timeout=5)


def test_two_processes_on_one_port_are_one_line():
    meeting = Meeting(1)
    with pytest.raises(
        UserError, match=f"port {meeting.port} of this machine cannot be opened.*is another run using it"
    ):
        Hub(meeting.port, 1, start_timeout=1, heartbeat_timeout=1, service=lambda: 0)


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"hello": 3}\n', b"[1]\n"])
def test_strangers_do_not_disturb(words):
    meeting = Meeting(2)
    with socket.create_connection(("localhost", meeting.port)) as stranger:
        stranger.sendall(words)
    links = meeting.links()
    assert together(lambda index: links[index].gather("x", index), range(2)) == [[0, 1]] * 2


def test_alone_nothing_waits():
    with distributed.joined():
        assert distributed.process_count() == 1 and distributed.is_primary()
        assert distributed.gather("x", 3) == [3] and distributed.broadcast("y", "z") == "z"
        distributed.barrier("b")
    assert distributed.leave(3) == 3
