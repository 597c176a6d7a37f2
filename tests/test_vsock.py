"""The host's way in over AF_VSOCK, without AF_VSOCK: this machine's kernel may have no loopback of it.

The connections here are a pair of Unix stream sockets in the place of AF_VSOCK's, and Firecracker is a few lines that speak
its convention. tests/qemu_microvm.py has the real one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Board, eventually

from base import stdlib
from laptop import namespaces
from onboard import events
from services import vsock_door
from services.vsock_door import Door

sys.path.insert(0, str(ROOT / "lab"))
import vsock_client

Boot = Callable[..., Board]


class Host:
    """A door of ours in a thread, and the host's end of connections to it."""

    def __init__(self, folder: Path, control: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vsock_door, "EXIT", str(folder / "exit.json"))
        monkeypatch.setattr(events, "FILE", str(folder / "events"))
        monkeypatch.setenv("STACK_CONTROL", control)
        self.folder = folder
        self.knock = str(folder / "knock")
        listener = stdlib.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
        listener.bind(self.knock)
        listener.listen(8)
        self.door = Door(listener, {2})
        self.door._accept = self.accept  # type: ignore[method-assign]
        self.ends = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def accept(self) -> None:
        fd, _ = self.door.listener._accept()  # type: ignore[attr-defined]
        if self.ends:
            raise SystemExit
        self.door.admit(stdlib.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd))

    def run(self) -> None:
        try:
            while True:
                self.door.turn()
        except SystemExit:
            self.door.last_words()

    def connect(self) -> vsock_client.Lines:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(3)

        def connect() -> bool:  # the backlog may be full: AF_UNIX does not wait
            stream.connect(self.knock)
            return True

        eventually(connect)
        return vsock_client.Lines(stream)

    def end(self) -> None:
        self.ends = True
        self.connect()
        self.thread.join(10)


@pytest.fixture
def host(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    board = boot('Service("one", ("sleep", "1000")),').up()
    with tempfile.TemporaryDirectory() as folder:
        if os.getuid() == 0:
            os.chown(folder, namespaces.FOREIGN_ROOT, -1)
        with board.as_its_root() as control:  # root of the board's user namespace, for the whole test
            one = Host(Path(folder), control, monkeypatch)
            yield one
            one.end()


def said(lines: vsock_client.Lines, request: Any) -> Any:
    lines.send(request)
    return json.loads(lines.line())


def test_requests_go_to_pid_1_and_replies_come_back(host: Host) -> None:
    lines = host.connect()
    assert said(lines, {"op": "stats", "name": "one"})["ok"][0]["state"] == "running"
    assert said(lines, {"op": "stop", "name": "one"})["ok"]["wanted"] is False
    assert "no service 'two'" in said(lines, {"op": "start", "name": "two"})["error"]
    assert "no such request" in said(lines, {"op": "nonsense"})["error"]


def test_several_requests_at_once_are_answered_in_their_order(host: Host) -> None:
    lines = host.connect()
    lines.stream.sendall(b'{"op": "board"}\n\n{"op": "stats"}\n{"op": "x"}\n')
    assert "kernel" in json.loads(lines.line())["ok"]
    assert json.loads(lines.line())["ok"][0]["name"] == "logd"
    assert "error" in json.loads(lines.line())


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"x\n", "not JSON"), (b"[]\n", 'not an object with an "op"'), (b'{"op": "events", "since": "x"}\n', "number"),
     (b"[" * 70_000 + b"\n", "longer than 65536")],
)  # fmt: skip
def test_what_is_no_request_gets_an_error(host: Host, text: bytes, words: str) -> None:
    lines = host.connect()
    lines.stream.sendall(text)
    assert words in json.loads(lines.line())["error"]


def test_events_are_lines_and_the_exit_of_a_microvm_is_one(host: Host) -> None:
    def event(number: int) -> str:
        return json.dumps({"seq": number, "kind": "crash"}) + "\n"

    (host.folder / "events").write_text(event(1) + event(2))
    lines = host.connect()
    assert said(lines, {"op": "events", "since": 1}) == {"ok": "events follow"}
    assert json.loads(lines.line())["seq"] == 2
    with open(host.folder / "events", "a") as file:
        file.write(event(3))
    assert json.loads(lines.line())["seq"] == 3
    assert said(lines, {"op": "stats", "name": "one"})["ok"], "requests are answered on the same connection"
    (host.folder / "exit.new").write_text('{"kind": "exit"}')
    os.rename(host.folder / "exit.new", host.folder / "exit.json")
    assert json.loads(lines.line()) == {"kind": "exit"}


def test_what_happens_last_is_sent_before_the_end(host: Host) -> None:
    lines = host.connect()
    said(lines, {"op": "events"})
    host.ends = True
    (host.folder / "events").write_text('{"seq": 1, "kind": "stop"}\n')
    host.connect()
    assert json.loads(lines.line())["kind"] == "stop"
    assert lines.line() == b""


def test_a_client_that_does_not_read_is_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock_door, "MAX_UNSENT", 100_000)
    deaf = host.connect()

    def flood() -> bool:
        deaf.stream.sendall(b'{"op": "board"}\n' * 100)
        return False

    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        eventually(lambda: flood() and False, 20)
    assert said(host.connect(), {"op": "board"})["ok"]


def test_a_client_that_says_nothing_is_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock_door, "PATIENCE", 0.2)
    silent, listens = host.connect(), host.connect()
    said(listens, {"op": "events"})
    assert silent.line() == b""
    (host.folder / "events").write_text('{"seq": 1, "kind": "stop"}\n')
    assert json.loads(listens.line())["kind"] == "stop"


def test_there_is_room_for_a_new_client_always(host: Host) -> None:
    old = [host.connect() for _ in range(3 * vsock_door.MAX_LINKS)]
    assert said(old[-1], {"op": "board"})["ok"]
    assert old[0].line() == b""
    assert eventually(lambda: len(host.door.links) <= vsock_door.MAX_LINKS)


# --- the host's client --------------------------------------------------------------------------------------------------------
def firecracker(path: Path, port: int, answers: list[bytes]) -> None:
    """A socket that speaks Firecracker's convention for one port of a guest, which answers each line with the next of these."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(4)

    def serve() -> None:
        while True:
            stream, _ = listener.accept()
            lines = vsock_client.Lines(stream)
            if lines.line() == f"CONNECT {port}".encode():
                stream.sendall(b"OK 1073741824\n")
                while lines.line() and answers:
                    stream.sendall(answers.pop(0) + b"\n")
            stream.close()

    threading.Thread(target=serve, daemon=True).start()


def test_firecrackers_convention(tmp_path: Path) -> None:
    firecracker(tmp_path / "v.sock", 1024, [b'{"ok": [1]}', b'{"error": "no"}'])
    address = f"{tmp_path}/v.sock:1024"
    assert vsock_client.ask(address, "stats") == [1]
    with pytest.raises(vsock_client.GuestError, match="no"):
        vsock_client.ask(address, "stats")
    with pytest.raises(vsock_client.GuestError, match="nobody listens"):
        vsock_client.ask(f"{tmp_path}/v.sock:7", "stats")
    with pytest.raises(vsock_client.GuestError, match="cannot be reached"):
        vsock_client.ask(f"{tmp_path}/none:7", "stats")
    with pytest.raises(vsock_client.GuestError, match="neither vsock:CID:PORT"):
        vsock_client.ask("nonsense", "stats")


def test_firecrackers_way_from_the_guest_to_the_host(tmp_path: Path) -> None:
    """The monitor connects to PATH_PORT when the guest connects to the host's port."""
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.extend(vsock_client.reports(f"{tmp_path}/v.sock:1025")))
    thread.start()
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    eventually((tmp_path / "v.sock_1025").exists)

    def connect() -> bool:
        guest.connect(str(tmp_path / "v.sock_1025"))
        return True

    eventually(connect)
    guest.sendall(b'{"kind": "started"}\n{"kind": "exit", "status": 3}\n')
    guest.close()
    thread.join(10)
    assert [one["kind"] for one in heard] == ["started", "exit"]


def test_the_consoles_lines_go_the_same_way(tmp_path: Path) -> None:
    """pid1/inside.py's requests: open, line, answer, close; what it answers is in its own tests."""
    answers = [
        {"ok": {"session": "s", "prompt": ">>> ", "output": ""}},
        {"ok": {"prompt": ">>> ", "output": "2\n"}},
        {"ok": {"ask": "stop one? ", "prompt": ">>> ", "output": ""}},
        {"ok": {"prompt": ">>> ", "output": "stopped\n"}},
        {"ok": {}},
    ]
    firecracker(tmp_path / "v.sock", 1024, [json.dumps(one).encode() for one in answers])
    typed = iter(["1 + 1", "services.one.stop()", "y"])
    asked: list[str] = []
    printed: list[str] = []

    def read(prompt: str) -> str:
        asked.append(prompt)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    vsock_client.console(f"{tmp_path}/v.sock:1024", read, printed.append)
    assert "".join(printed) == "2\nstopped\n"
    assert asked == [">>> ", ">>> ", "stop one? ", ">>> "]


def test_a_console_may_be_silent_and_a_blank_line_interrupts_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PID 1 in the place of a socket that answers only when something else comes: as it does for Ctrl-C."""
    control = stdlib.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0)
    control.bind(str(tmp_path / "control"))
    control.listen(1)
    monkeypatch.setenv("STACK_CONTROL", str(tmp_path / "control"))
    ours, theirs = stdlib.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 0)
    link = vsock_door.Link(theirs)
    ours.send(b'{"op": "console", "do": "line"}\n')
    link.read()
    fd, _ = control._accept()  # type: ignore[attr-defined]
    pid1 = socket.socket(fileno=fd)
    assert json.loads(pid1.recv(1000)) == {"op": "console", "do": "line"}
    ours.send(b"\n")
    link.read()
    assert pid1.recv(10) == b"\n"
    pid1.send(b'{"ok": {"output": "KeyboardInterrupt"}}')
    link.reply()
    assert b"KeyboardInterrupt" in ours.recv(1000)
    assert not link.late(link.since + 1000)
    link.close()
    pid1.close()
