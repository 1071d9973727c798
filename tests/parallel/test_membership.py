"""Processes that start and end together: members run as threads, and their exits are recorded, not executed."""

import contextlib
import json
import queue
import re
import socket
import threading
import time

import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import connection as wire
from motionaura_jax.parallel.membership import AGAIN, FAILED, Member, Membership
from tests.processes import free_port


class Run:
    """Members of one run; `ends` records how each would have ended its process."""

    def __init__(self, count, *, start_timeout=5.0, heartbeat_timeout=5.0):
        self.count, self.port = count, free_port()
        self.timeouts = {"start_timeout": start_timeout, "heartbeat_timeout": heartbeat_timeout}
        self.ends = {index: queue.Queue() for index in range(count)}
        self.members = {}

    def join(self, number, **changes):
        me = Member(**{"index": number, "count": self.count, "host": f"n{number}", **changes})
        address = f"localhost:{self.port}"
        return Membership(address, me, **self.timeouts, end=lambda *end: self.ends[me.index].put(end))

    def start(self):
        self.members = together(self.join, range(self.count))
        return self.members

    def break_off(self, index):
        """Close all connections of a member, as if its process had died."""
        self.members[index]._over.set()
        for connection in list(self.members[index]._connections.values()):
            connection.close()

    def end(self, index):
        return self.ends[index].get(timeout=10)


def together(function, arguments):
    """Call `function` on all arguments in parallel threads; return the results or raise the first error."""
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


def errors_of(run, *changes):
    """Start one member for each of `changes` in turn; return the errors of all."""
    errors = queue.Queue()

    def join(change):
        try:
            run.join(change["index"], **change)
        except UserError as error:
            errors.put(str(error))

    for change in changes:
        threading.Thread(target=join, args=(change,), daemon=True).start()
        time.sleep(0.1)
    return [errors.get(timeout=10) for _ in changes]


def test_members_know_each_other_and_part_without_an_end():
    run = Run(3)
    members = run.start()
    for each in members:
        assert [str(member) for member in each.members] == ["process 0 on n0", "process 1 on n1", "process 2 on n2"]
    together(lambda index: members[index].close(), range(3))
    time.sleep(0.3)
    assert all(ends.empty() for ends in run.ends.values())


def test_a_dead_process_ends_the_others_at_once_and_by_name():
    run = Run(3, heartbeat_timeout=60)
    run.start()
    run.break_off(1)
    for index in (0, 2):
        status, message = run.end(index)
        assert status == AGAIN and message.startswith("process 1 on n1 is gone: it was killed, crashed or lost")


def test_a_silent_process_ends_the_others_within_the_heartbeat():
    run = Run(3, heartbeat_timeout=1.0)
    run.start()[1]._over.set()  # its heartbeats stop, as on a hung machine
    began = time.monotonic()
    for index in (0, 2):
        status, message = run.end(index)
        assert status == AGAIN and "no sign of life for 1 s from process 1 on n1" in message
    assert 0.5 < time.monotonic() - began < 4


def test_a_dead_process_0_is_named():
    run = Run(2)
    run.start()
    run.break_off(0)
    status, message = run.end(1)
    assert status == AGAIN and message.startswith("process 0 on n0 is gone")


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_on_one_process_ends_all_with_its_message(failing):
    run = Run(3)
    run.start()[failing].fail("data: no such folder")
    for index in {0, 1, 2} - {failing}:
        assert run.end(index) == (FAILED, f"process {failing} on n{failing} failed: data: no such folder")
    assert run.ends[failing].empty()


def test_every_process_knows_the_steps_of_the_others():
    run = Run(3, heartbeat_timeout=0.5)
    members = run.start()
    assert set(members[1].steps().values()) == {-1}
    for index, member in enumerate(members):
        member.at_step(7 - index)
    expected = {"process 0 on n0": 7, "process 1 on n1": 6, "process 2 on n2": 5}
    until = time.monotonic() + 5
    while any(member.steps() != expected for member in members):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 4}, "process 1 on n9 was started for 4 processes, process 0 for 3; .* the same --num_processes"),
        ({}, "two processes have the number 1: on n1 and on n9; .* --process_id of its own"),
    ],
)
def test_processes_that_disagree_are_refused(changes, message):
    run = Run(3, start_timeout=1.0)
    errors = errors_of(run, {"index": 0}, {"index": 1}, {"index": 1, "host": "n9", **changes})
    assert all(re.search(message, error) for error in errors)


def test_a_missing_process_is_named():
    run = Run(3, start_timeout=0.5)
    for error in errors_of(run, {"index": 0}, {"index": 1}):
        assert re.search(r"number 2 did not come within 0.5 s \(process 0 on n0; process 1 on n1 did\)", error)


def test_a_coordinator_that_is_not_there_is_one_line():
    run = Run(2, start_timeout=0.5)
    with pytest.raises(UserError, match=r"no coordinator answers at localhost:\d+ .*--coordinator_address"):
        run.join(1)


def test_a_coordinator_that_speaks_something_else_is_one_line():
    run = Run(2)

    def answer(server):
        sock, _ = server.accept()
        with sock:
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            sock.recv(100)

    with socket.create_server(("localhost", run.port)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        with pytest.raises(UserError, match="does not answer like process 0 of a run"):
            run.join(1)


def test_a_taken_port_is_one_line():
    run = Run(2)
    message = f"port {run.port} of this machine cannot be opened.*is another run using it"
    with socket.create_server(("", run.port)), pytest.raises(UserError, match=message):
        run.join(0)


SPOOFED = b'{"index": 1, "count": 2, "host": "n1"}\n'
WORDS = [b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"index": 3}\n', b"[1]\n", b"\n", b"\xff\0\n", SPOOFED]
WORDS += [SPOOFED.replace(b"2", b"3"), b'{"index": 7, "count": 9, "host": "x"}\n', b'{"index": [], "count": {}}\n']
WORDS += [b"[" * 10**5 + b"\n", b"x" * 10**6, b'{"beat": 3}\n', b'{"end": [2, "over"]}\n']


@pytest.mark.parametrize("words", WORDS, ids=range(len(WORDS)))
@pytest.mark.parametrize("leaves", [True, False])
def test_other_programs_do_not_disturb(words, leaves):
    run = Run(2)
    with contextlib.ExitStack() as opened:

        def join(number):
            if number == 1:  # after the other program has connected
                other = opened.enter_context(connected(run.port))
                with contextlib.suppress(OSError):  # closed while it was speaking
                    other.sendall(words)
                if leaves:
                    other.close()
            return run.join(number)

        began = time.monotonic()
        members = together(join, range(2))
    assert [len(membership.members) for membership in members] == [2, 2]
    assert time.monotonic() - began < 3
    time.sleep(0.05)
    assert all(ends.empty() for ends in run.ends.values())


def test_a_crowd_of_silent_programs_keeps_nobody_out():
    run = Run(2)

    def join(number):
        if number == 1:
            crowd.extend(connected(run.port) for _ in range(3 * wire._GUESTS))
        return run.join(number)

    crowd = []
    assert [len(membership.members) for membership in together(join, range(2))] == [2, 2]
    [other.close() for other in crowd]


def test_all_processes_of_a_large_run_may_connect_before_the_first_answers():
    with socket.create_server(("localhost", 0), backlog=512) as server, contextlib.ExitStack() as stack:
        reception = stack.enter_context(contextlib.closing(wire.Reception(server, 300)))
        joining = [stack.enter_context(socket.create_connection(server.getsockname())) for _ in range(200)]
        reception.next(time.monotonic() + 0.3)  # nobody has answered yet
        greetings = [json.loads(one.makefile().readline()) for one in joining]
        for index, (one, greeting) in enumerate(zip(joining, greetings, strict=True)):
            member = {"index": index, "count": 300, "host": "here", "number": greeting["number"]}
            one.sendall(json.dumps(member).encode() + b"\n")
        arrived = {reception.next(time.monotonic() + 5)[0].index for _ in range(200)}
    assert arrived == set(range(200))


def test_a_program_that_says_little_by_little_is_closed_in_time(monkeypatch):
    monkeypatch.setattr(wire, "GREETING", 0.3)
    with socket.create_server(("localhost", 0)) as server:
        reception = wire.Reception(server, 1)
        with socket.create_connection(server.getsockname()) as other:
            stop = threading.Event()

            def drip():
                with contextlib.suppress(OSError):
                    while not stop.wait(0.05):
                        other.sendall(b" ")

            threading.Thread(target=drip, daemon=True).start()
            assert reception.next(time.monotonic() + 0.8) is None
            assert not reception._guests
            stop.set()
        reception.close()


def test_a_process_that_leaves_before_all_have_come_may_come_again():
    run, first = Run(3), threading.Event()

    def join(number):
        if number == 1:  # killed and started again
            early = connected(run.port)
            number_line = json.loads(early.makefile().readline())["number"]
            early.sendall(json.dumps({"index": 1, "count": 3, "host": "n1", "number": number_line}).encode() + b"\n")
            time.sleep(0.1)
            early.close()
            first.set()
        first.wait(10)
        return run.join(number)

    def start(number):
        return run.join(0) if number == 0 else join(number)

    assert [len(membership.members) for membership in together(start, range(3))] == [3, 3, 3]


@pytest.mark.parametrize("speech", ["silence", "drops", "a flood", "members", "hello", "end"])
def test_another_program_on_the_port_is_one_line_and_no_wait(speech, monkeypatch):
    monkeypatch.setattr(wire, "GREETING", 0.3)
    monkeypatch.setattr(wire, "_LONGEST_LINE", 1 << 18)
    run, stop = Run(2, start_timeout=1), threading.Event()
    hello = b'{"hello": "motionaura_jax", "number": "1"}\n'
    words = {"silence": b"", "drops": b" ", "a flood": b"x" * 4096, "members": b'{"members": [{"index": 0}, 3]}\n'}
    words |= {"hello": hello + b'{"members": "abc"}\n', "end": hello + b'{"end": {"a": 1}}\n'}

    def answer(server):
        sock, _ = server.accept()
        with sock, contextlib.suppress(OSError):
            while not stop.wait(0 if speech == "a flood" else 0.05):
                sock.sendall(words[speech])

    with socket.create_server(("localhost", run.port)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer like process 0 of a run; correct --coordinator_address"):
            run.join(1)
        assert time.monotonic() - began < 2
        stop.set()


@pytest.mark.parametrize("message", [{"beat": 3}, {"end": 5}, {"end": ["a"]}, {"x": 1}])
def test_a_member_that_talks_nonsense_is_gone(message):
    run = Run(2, heartbeat_timeout=60)
    run.start()[1]._connections[0].send(**message)
    assert run.end(0)[0] == AGAIN


def test_steps_of_nobody_are_ignored():
    run = Run(2, heartbeat_timeout=60)
    members = run.start()
    members[1]._connections[0].send(beat={"0": 7, "1": "x", "9": 1})
    members[1].at_step(3)
    until = time.monotonic() + 10
    while members[0].steps() != {"process 0 on n0": -1, "process 1 on n1": 3}:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_error_that_is_not_utf_8_reaches_the_others():
    run = Run(2)
    run.start()[0].fail("data/caf\udce9.mp4: no such file")
    status, message = run.end(1)
    assert status == FAILED and message == "process 0 on n0 failed: data/caf?.mp4: no such file"


def connected(port):
    until = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.02)
