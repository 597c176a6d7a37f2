"""The control socket: garbage, floods and silence meet one loop in this process; the namespace ring meets PID 1."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onboard import to_pid1
from onboard.to_pid1 import SVError
from pid1 import control
from pid1.control import Control
from pid1.loop import Loop


class Server:
    """A Control on a Loop that turns when the test says so."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.later = control.Later()
        self.control = Control(self.loop, path, self.handle)

    def handle(self, request: dict[str, Any], uid: int, now: float) -> Any:
        if request["op"] == "fail":
            raise RuntimeError("on purpose")
        if request["op"] == "refuse":
            raise SVError("no")
        if request["op"] == "later":
            return self.later
        if request["op"] == "big":
            return "x" * int(request["size"])
        return {"uid": uid}

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self.path)
        client.settimeout(5)
        return client

    def turns(self, count: int = 3) -> None:
        self.loop.timers.append((lambda: 0.0, lambda now: None))  # do not sleep
        for _ in range(count):
            self.loop.turn()
        self.loop.timers.pop()

    def ask(self, message: bytes) -> Any:
        client = self.client()
        client.send(message)
        self.turns()
        answer = client.recv(4_000_000)
        client.close()
        return json.loads(answer)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield Server(str(tmp_path / "s"))


def test_one_request_one_reply_and_the_kernel_vouches_for_the_uid(server: Server) -> None:
    assert server.ask(b'{"op": "who"}') == {"ok": {"uid": os.getuid()}}


@pytest.mark.parametrize("message", [b"{", b"[]", b'"op"', b'{"op": 5}', b"{}", b"\xff\xfe", b"[" * 60000, b"\0" * 100, b"nul"])
def test_garbage_gets_a_sentence(server: Server, message: bytes) -> None:
    assert "the request is not" in server.ask(message)["error"]


def test_failures_of_a_request_are_answers(server: Server) -> None:
    assert server.ask(b'{"op": "refuse"}') == {"error": "no"}
    assert server.ask(b'{"op": "fail"}')["error"] == "PID 1 failed on this request: RuntimeError: on purpose"
    assert server.loop.errors == 1


def test_a_request_that_is_too_long_is_refused(server: Server) -> None:
    client = server.client()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
    client.send(b" " * 150_000)
    server.turns()
    assert "longer than 65536" in json.loads(client.recv(1000))["error"]


def test_big_replies_arrive_whole_and_impossible_ones_cost_only_their_client(server: Server) -> None:
    assert len(server.ask(b'{"op": "big", "size": 150000}')["ok"]) == 150_000
    client = server.client()
    client.send(b'{"op": "big", "size": 30000000}')
    server.turns()
    assert client.recv(100) == b""
    assert server.ask(b'{"op": "who"}')["ok"]


def test_silent_clients_do_not_keep_others_waiting(server: Server) -> None:
    silent = [server.client() for _ in range(120)]
    assert server.ask(b'{"op": "who"}')["ok"]
    assert len(server.control._clients) <= control.MAX_CLIENTS
    server.turns(5)
    assert len(server.control._clients) <= control.MAX_CLIENTS
    for client in silent:
        client.close()
    server.turns(5)
    assert not server.control._clients


def test_patience_ends(server: Server) -> None:
    client = server.client()
    server.turns()
    deadline = server.control.next_deadline()
    assert deadline is not None
    server.control.tick(deadline - 0.1)
    assert server.control._clients
    server.control.tick(deadline)
    assert not server.control._clients
    assert client.recv(10) == b""


def test_clients_that_vanish_before_their_reply(server: Server) -> None:
    for _ in range(50):
        client = server.client()
        client.send(b'{"op": "big", "size": 100000}')
        client.close()
    server.turns(10)
    assert not server.control._clients
    assert server.ask(b'{"op": "who"}')["ok"]
    assert server.loop.errors == 0


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzz(server: Server, messages: list[bytes]) -> None:
    for message in messages:
        client = server.client()
        client.send(message)
        server.turns(2)
        assert set(json.loads(client.recv(100_000))) <= {"ok", "error"}
        client.close()
    server.turns(2)
    assert server.loop.errors <= sum(b"fail" in message for message in messages)


def test_ask_explains_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SVError, match=r"cannot reach PID 1 at .*; is this the board"):
        to_pid1.ask(str(tmp_path / "nobody"), {"op": "board"})


def test_who_does_not_wait_for_a_late_answer_is_no_error_of_pid_1(tmp_path: Path) -> None:
    server = Server(str(tmp_path / "control"))
    client = server.client()
    client.send(b'{"op": "later"}')
    server.turns()
    client.close()
    server.control.answer(server.later.fd, {"ok": 1})
    assert server.loop.errors == 0
    assert server.ask(b'{"op": "x"}') == {"ok": {"uid": os.getuid()}}


def test_the_uid_of_a_client_is_what_the_kernel_says() -> None:
    """struct ucred is pid, uid, gid (`man 7 unix`): for root the last two are the same, and a mistake would not show."""

    class Kernel:
        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("3i", 7, 8, 9)

    assert control.peer(Kernel()) == (7, 8)  # type: ignore[arg-type]


def test_no_rule_is_asked_about_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer", lambda _: (1234, 0))
    server = Server(str(tmp_path / "control"))
    server.control._permits = lambda *_: pytest.fail("asked")
    assert server.ask(b'{"op": "x"}') == {"ok": {"uid": 0}}
