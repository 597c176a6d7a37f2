"""The server of the control socket: one JSON request, one JSON reply, over Unix SEQPACKET. onboard/to_pid1.py is the client.

A request is an object with "op" and what the operation needs; the reply is {"ok": ...} or {"error": "a sentence"}.
The kernel frames messages and says who sent them (SO_PEERCRED, `man 7 unix`). pid1/requests.py says who may ask what.
"""

from __future__ import annotations

import os
import sys

import _log
from base.stdlib import TYPE_CHECKING, NamedTuple, json, socket
from base.syscalls import limit_descriptors, refuse_rights
from onboard.to_pid1 import LONGEST_REPLY, SVError
from pid1.closer import CREDENTIALS_SPACE, Closer, peek

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pid1.loop import Loop

    Handler = Callable[[dict[str, Any], int, float], Any]
    Permits = Callable[[int, dict[str, Any], float], bool]

MAX_REQUEST = 64 * 1024
MAX_CLIENTS = 64  # connections of root that say nothing yet; one more, and the one that has been silent for longest is dropped
MAX_STRANGERS = 64  # of all others together...
A_STRANGER = 16  # ...and of one user
ANSWERS = 16  # to others than root, in one turn
BACKLOG = 128  # all of it is accepted in one turn
PATIENCE = 10.0  # seconds for a client that has connected and says nothing
RESERVE = 8  # descriptors that others than root do not get


class Client(NamedTuple):
    """One connection."""

    socket: socket.socket
    pid: int
    uid: int
    since: float


class Later:
    """What a handler returns whose answer comes later: by `Control.answer`, on the connection with this descriptor."""

    fd = -1


class Control:
    """PID 1's end. It never waits for a client: what cannot be read or sent at once is dropped with its connection.

    Root is answered as soon as it is accepted. Others are answered a few in each turn, and a user that floods the socket
    drops its own connections, not root's.
    """

    def __init__(
        self, loop: Loop, at: str | socket.socket, handler: Handler, permits: Permits = lambda *_: False,
        closer: Closer | None = None,
    ) -> None:  # fmt: skip
        """`handler(request, uid, now)`; uid is 0 too where `permits(pid, request, since)` says that this process may ask this,
        which connected at that time. `at` is the socket's path, or, after an upgrade, the socket."""
        self._loop = loop
        self._handler = handler
        self._permits = permits
        self._clients: dict[int, Client] = {}  # by descriptor, the longest silent first
        self._later: dict[int, Client] = {}  # they wait for an answer that takes time
        self._answers = 0  # to others than root, in this turn
        self._closer = closer or Closer()
        self._listener = at if isinstance(at, socket.socket) else new_socket()
        self._takes_rights = not refuse_rights(self._listener)
        if isinstance(at, str):
            listen(self._listener, at)
        loop.watch(self._listener.fileno(), self._accept)
        loop.timers.append((self.next_deadline, self.tick))

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._listener.fileno()

    def resume(self) -> None:
        """After an upgrade: hear the connections that there are."""
        for fd in self._clients:
            self._watch(fd)

    def next_deadline(self) -> float | None:
        return next((client.since + PATIENCE for client in self._clients.values()), None)

    def tick(self, now: float) -> None:
        """Once a turn: drop those that connected and stay silent."""
        self._answers = 0
        while self._clients:
            fd, client = next(iter(self._clients.items()))
            if client.since + PATIENCE > now:
                return
            self._drop(fd)

    def _accept(self, now: float) -> None:
        for _ in range(BACKLOG):
            try:
                one = accept(self._listener)
            except BlockingIOError:
                return
            except OSError as error:  # EMFILE
                _log.warning(f"control socket: {error.strerror}")
                if not self._clients:
                    raise
                self._drop(next(iter(self._clients)))
                continue
            one.setblocking(False)
            fd = one.fileno()
            client = self._clients[fd] = Client(one, *peer(one), now)
            if client.uid != 0 and fd >= limit_descriptors()[0] - RESERVE:  # the last ones are for root, and for PID 1 itself
                self._drop(fd)
                continue
            if client.uid != 0 or self._serve(fd, now):  # root has spoken already, most of the time
                self._watch(fd)
                self._keep_few(client.uid)

    def _watch(self, fd: int) -> None:
        self._loop.watch(fd, lambda now: self._serve(fd, now))

    def _keep_few(self, uid: int) -> None:
        """Drop the oldest connection of this user, or of the user that has most, if there are too many."""
        users = [client.uid for client in self._clients.values()]
        strangers = [one for one in users if one != 0]
        if users.count(uid) > (A_STRANGER if uid else MAX_CLIENTS):
            self._drop_oldest(uid)
        elif len(strangers) > MAX_STRANGERS:
            self._drop_oldest(max(strangers, key=strangers.count))

    def _drop_oldest(self, uid: int) -> None:
        self._drop(next(fd for fd, client in self._clients.items() if client.uid == uid))

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._loop.unwatch(fd)
        if self._takes_rights:
            self._closer.close_socket(client.socket)
        else:
            client.socket.close()

    def _serve(self, fd: int, now: float) -> bool:
        """Answer a client and end its connection; whether it stays, because it has not said anything yet or must wait."""
        client = self._clients[fd]
        if client.uid != 0:
            self._answers += 1
            if self._answers > ANSWERS:
                return True
        try:
            if self._readable(client, now):
                self._later[fd] = self._clients.pop(fd)
                self._loop.unwatch(fd)
                return False
        except BlockingIOError:
            return True
        except Exception as error:  # it has vanished, or does not take its reply: its own loss
            _log.debug(f"control client: {error}")
        self._drop(fd)
        return False

    def answer(self, fd: int, reply: dict[str, Any]) -> None:
        """Send the answer that a handler has put off, and end the connection. Nothing happens where it is gone."""
        if client := self._later.pop(fd, None):
            self._clients[fd] = client
            self._loop.guard("answer", lambda now: self._send_late(client, reply), client.since)
            self._drop(fd)

    def _send_late(self, client: Client, reply: dict[str, Any]) -> None:
        try:
            _send(client.socket, reply)
        except OSError as error:  # it has not waited
            _log.debug(f"control client: {error}")

    def _readable(self, client: Client, now: float) -> bool:
        """Whether the answer comes later."""
        one = client.socket
        if self._takes_rights and peek(one)[1]:  # they stay in its queue, and go where the connection goes
            _send(one, {"error": "PID 1 takes no descriptors"})
            return False
        message, _, flags, _ = one.recvmsg(MAX_REQUEST, CREDENTIALS_SPACE)
        if flags & socket.MSG_TRUNC:
            _send(one, {"error": f"the request is longer than {MAX_REQUEST} bytes"})
        elif message:
            reply = self._answer(client, message, now)
            if isinstance(later := reply.get("ok"), Later):
                later.fd = one.fileno()
                return True
            _send(one, reply)
        return False

    def _answer(self, client: Client, message: bytes, now: float) -> dict[str, Any]:
        try:
            request = json.loads(message)
        except (ValueError, RecursionError) as error:
            return {"error": f"the request is not JSON: {error}"}
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            return {"error": 'the request is not an object with an "op", such as {"op": "stats"}'}
        try:
            self._loop.client = client
            may = client.uid == 0 or self._permits(client.pid, request, client.since)
            return {"ok": self._handler(request, 0 if may else client.uid, now)}
        except SVError as error:
            return {"error": str(error)}
        except Exception as error:  # one request must not touch the others
            self._loop.errors += 1
            _log.error(f"control request {str(request)[:100]}: {type(error).__name__}: {error}")
            self._loop.on_error("a control request", error)
            return {"error": f"PID 1 failed on this request: {type(error).__name__}: {error}"}
        finally:
            self._loop.client = None


def new_socket() -> socket.socket:
    """One whose messages say who has sent them."""
    kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    one = socket.socket(socket.AF_UNIX, kind, 0)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return one


def listen(listener: socket.socket, path: str) -> None:
    """Bind a socket to this path, for everybody; what was there goes."""
    if os.path.lexists(path):
        os.unlink(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(BACKLOG)


def accept(listener: socket.socket) -> socket.socket:
    """One connection of a non-blocking listener, from the `socket` module or from the C module under it."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)


def peer(client: socket.socket) -> tuple[int, int]:
    """Pid and uid at the other end, when it connected (struct ucred: pid, uid, gid)."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder), int.from_bytes(credentials[4:8], sys.byteorder)


def _send(client: socket.socket, reply: dict[str, Any]) -> None:
    message = json.dumps(reply).encode()
    if len(message) > 100_000:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST_REPLY)
    try:
        client.send(message)
    except BlockingIOError as error:  # its buffer is full: it never reads
        raise OSError(error.errno, "does not take its reply") from None
