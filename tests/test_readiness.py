"""How services say that they are ready, and what strangers can send along: real sockets, real boards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Board, eventually
from test_control import Server
from test_process import World, make, run

from pid1 import control
from pid1.closer import Closer, peek
from pid1.loop import Loop
from pid1.process import Process, State
from pid1.readiness import Notification, NotifySockets, PathWatch

Boot = Callable[..., Board]


@pytest.fixture
def closer() -> Iterator[Closer]:
    one = Closer()
    yield one
    if one.pid:
        os.kill(one.pid, signal.SIGKILL)
        os.waitpid(one.pid, 0)


# --- what came with a message -----------------------------------------------------------------------------------------
def lingering() -> tuple[socket.socket, socket.socket]:
    """A TCP connection whose last close waits 20 s for a peer that does not read."""
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while one.send(bytes(65536)):
            pass
    one.setblocking(True)
    return one, listener


def test_a_close_that_takes_long_is_somebody_elses(closer: Closer) -> None:
    one, _listener = lingering()
    started = time.monotonic()
    closer.close([one.detach()])
    assert time.monotonic() - started < 2
    assert closer.pid


def test_what_is_handed_over_is_closed_in_the_end_and_not_before_ours(closer: Closer) -> None:
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(3):  # the same child does it again
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        closer.close([ours.detach()])
        assert theirs.recv(1) == b"", "the other end sees the end"
        theirs.close()
    assert len(os.listdir("/proc/self/fd")) == count + 1, "the channel to the child"


def test_a_pipe_is_closed_at_once_and_needs_no_child(closer: Closer) -> None:
    reader, writer = os.pipe()
    closer.close([writer])
    assert os.read(reader, 1) == b""
    assert closer.pid == 0
    os.close(reader)


def test_a_child_that_hangs_is_replaced(closer: Closer) -> None:
    one, _listener = lingering()
    closer.close([one.detach()])
    first = closer.pid
    for _ in range(600):  # until the channel is full
        ours, theirs = socket.socketpair()
        closer.close([ours.detach()])
        theirs.close()
        if closer.pid != first:
            break
    assert closer.pid != first
    assert os.waitpid(first, 0)[1] == signal.SIGKILL
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    closer.close([ours.detach()])
    assert theirs.recv(1) == b""


def test_a_queue_is_emptied_before_its_socket_is_closed(closer: Closer) -> None:
    """Behind messages without a byte, too."""
    for before in ([], [b"", b"x", b""]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        for message in before:
            theirs.send(message)
        one, _listener = lingering()
        socket.send_fds(theirs, [b"hidden"], [one.fileno()])
        os.close(one.detach())
        started = time.monotonic()
        closer.close_socket(ours)
        assert time.monotonic() - started < 2
        assert ours.fileno() == -1
        assert closer.pid


def test_a_socket_without_descriptors_in_it_needs_no_child(closer: Closer) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    theirs.send(b"words")
    assert peek(ours) == (True, False)
    closer.close_socket(ours)
    with pytest.raises(BrokenPipeError):
        theirs.send(b"more")
    assert closer.pid == 0


def test_the_control_socket_of_an_older_kernel_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "refuse_rights", lambda listener: False)
    server = Server(str(tmp_path / "s"))
    one, _listener = lingering()
    client = server.client()
    socket.send_fds(client, [b'{"op": "who"}'], [one.fileno()])
    os.close(one.detach())
    started = time.monotonic()
    server.turns()
    assert time.monotonic() - started < 2
    with contextlib.suppress(ConnectionResetError):  # which may come first: nobody has read what it sent
        assert b"takes no descriptors" in client.recv(1000)
    assert server.ask(b'{"op": "who"}') == {"ok": {"uid": os.getuid()}}
    assert server.loop.errors == 0
    pid = server.control._closer.pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# --- who said it ------------------------------------------------------------------------------------------------------
@pytest.fixture
def heard(tmp_path: Path, closer: Closer) -> Iterator[Any]:
    loop = Loop()
    sockets = NotifySockets(loop, closer, str(tmp_path / "notify"))
    said: list[Notification] = []
    process = make(World())
    path = sockets.prepare(process, lambda process, message, now: said.append(message))

    def turn() -> list[Notification]:
        loop.timers.append((lambda: 0.0, lambda now: None))
        loop.turn()
        loop.timers.pop()
        return said

    yield sockets, process, path, turn
    sockets.forget("one")
    assert not os.path.exists(path)


def test_the_kernel_says_who_sent_a_message(heard: Any) -> None:
    _, _, path, turn = heard
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.sendto(b"READY=1\nSTATUS=up\nno pair", path)
    assert turn() == [Notification({"READY": "1", "STATUS": "up"}, os.getpid(), os.getuid())]
    assert os.stat(path).st_mode & 0o777 == 0o666
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o711


def test_a_line_ends_with_a_newline_alone_and_a_message_that_was_cut_says_nothing(heard: Any) -> None:
    _, _, path, turn = heard
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for data in ("STATUS=a\u2028READY=1\x0bMAINPID=2\r".encode(), b"X=" + b"x" * 4083 + b"\nMAINPID=12345", b"STATUS=next"):
        sender.sendto(data, path)
    assert [one.words for one in turn()] == [{"STATUS": "a\u2028READY=1\x0bMAINPID=2\r"}, {}, {"STATUS": "next"}]


def test_a_socket_that_somebody_has_deleted_is_made_again_and_is_no_error_when_it_is_forgotten(heard: Any) -> None:
    sockets, process, path, _ = heard
    os.unlink(path)
    again = sockets.prepare(process, lambda process, message, now: None)
    assert again != path
    assert os.path.exists(again)
    os.unlink(again)
    sockets.forget("one")
    sockets.forget("one")


def test_words_of_a_predecessor_do_not_count_and_the_name_stays(heard: Any) -> None:
    sockets, process, path, turn = heard
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", path)
    assert sockets.prepare(process, lambda *_: None) == path
    assert turn() == []


def test_a_barrier_is_answered_by_closing_its_pipe(heard: Any) -> None:
    _, _, path, turn = heard
    reader, writer = os.pipe()
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(path)
    socket.send_fds(sender, [b"BARRIER=1"], [writer])
    os.close(writer)
    turn()
    assert os.read(reader, 1) == b""


def due(process: Process) -> float | None:
    return process.deadline


# --- what it means ----------------------------------------------------------------------------------------------------
def test_the_watchdog_counts_from_readiness() -> None:
    world = World()
    process = make(world, ready="notify", ready_timeout=1.0, watchdog=2.0)
    run(process, 100.0)
    process.tick(101.0)
    assert (process.state, process.late, process.deadline) == (State.RUNNING, True, None), "late, and nobody kills it"
    process.tick(103.5)
    assert world.kills == []
    process.notified({"READY": "1"}, 104.0)
    assert (process.ready, process.deadline) == (True, 106.0)
    process.notified({"READY": "1"}, 105.0)
    assert process.deadline == 106.0, "said again, it is no sign of life"
    process.tick(106.0)
    assert world.kills == [signal.SIGKILL]


@pytest.mark.parametrize(
    ("text", "deadline"),
    [("5000000", 104.0), ("100", 103.0), ("x", 103.0), ("-1", 103.0), ("", 103.0), ("9" * 13, 103.0), ("²", 103.0)],
)
def test_more_time_to_get_ready(text: str, deadline: float) -> None:
    process = make(World(), ready="notify", ready_timeout=3.0)
    run(process, 100.0)
    process.notified({"EXTEND_TIMEOUT_USEC": text}, 99.0)
    assert process.deadline == deadline


def test_more_time_to_stop_but_not_after_the_kill() -> None:
    world = World()
    process = make(world, stop_timeout=5.0)
    run(process, 100.0)
    process.notified({"EXTEND_TIMEOUT_USEC": "1000000"}, 100.5)
    assert due(process) is None, "there is nothing to wait for while it runs"
    process.stop(101.0)
    process.notified({"EXTEND_TIMEOUT_USEC": "9000000"}, 102.0)
    process.tick(106.0)
    assert world.kills[2:] == []
    assert due(process) == 111.0
    process.tick(111.0)
    process.notified({"EXTEND_TIMEOUT_USEC": "9000000"}, 111.1)
    assert world.kills[2:] == [signal.SIGKILL]
    assert due(process) == 112.0


# --- boards -----------------------------------------------------------------------------------------------------------
DROPS = """
import os, socket, time
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.sendto(b"READY=1\\nSTATUS=dropped\\nFDSTORE=1", os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""


def test_a_daemon_that_has_dropped_its_rights_is_heard(boot: Boot) -> None:
    rows = "Service('d', ('python3', '/test/drops.py'), ready='notify'), Service('n', ('sleep', '9'), user='nobody'),"
    board = boot(rows, files={"drops.py": DROPS}).up()
    board.wait_state("n", "running")
    if board.stats("n")["user"] != "nobody":
        pytest.skip("a user namespace with one user has nobody to become")
    assert board.wait_state("d", "running")["status"] == "dropped"
    assert board.stats("d")["ready"]
    assert eventually(lambda: "d: asks PID 1 to keep descriptors (FDSTORE=1)" in board.log())


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="no systemd-notify here")
def test_systemd_notify_ends_well(boot: Boot) -> None:
    script = "systemd-notify --ready --status=up; echo ended with $?; sleep 1000"
    board = boot(f"Service('s', ('sh', '-c', {script!r}), ready='notify'),").up()
    eventually(lambda: "ended with 0" in board.log("s"))
    assert board.wait_state("s", "running")["status"] == "up"


def test_the_name_of_a_socket_is_for_its_service_alone(boot: Boot) -> None:
    script = "echo the way is $NOTIFY_SOCKET; ls /run/stack/notify 2>&1; sleep 1000"
    rows = f"Service('a', ('sh', '-c', {script!r}), ready='notify', ready_timeout=0.1), Service('b', ('sh', '-c', {script!r}), user='nobody'),"
    board = boot(rows).up()
    eventually(lambda: "/run/stack/notify/a." in board.log("a"))
    board.wait_state("b", "running")
    if board.stats("b")["user"] != "nobody":
        pytest.skip("a user namespace with one user has nobody to refuse")
    eventually(lambda: "Permission denied" in board.log("b"))
    assert "a." not in board.log("b")


def test_a_path_that_cannot_be_watched_keeps_nobody_else_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, appeared = Loop(), list[str]()
    watch = PathWatch(loop, lambda process, now: appeared.append(process.row.name))
    bad, good = (make(World(), ready=f"{tmp_path}/{name}/x") for name in ("bad", "good"))
    bad.row, good.row = bad.row._replace(name="bad"), good.row._replace(name="good")
    for process in (bad, good):
        watch.expect(process)
    arm = watch._arm

    def no_room(path: str) -> None:
        if "bad" in path:
            raise OSError(28, "No space left on device")
        arm(path)

    monkeypatch.setattr(watch, "_arm", no_room)
    (tmp_path / "good").mkdir()
    (tmp_path / "good/x").touch()
    watch.check(1.0)
    assert appeared == ["good"]
    watch.cancel(bad)
