"""The server of the control socket: one JSON request, one JSON reply, over Unix SEQPACKET. onboard/to_pid1.py is the client.

A request is an object with "op" and what the operation needs; the reply is {"ok": ...} or {"error": "a sentence"}.
The kernel frames messages and vouches for the peer (SO_PEERCRED, `man 7 unix`): anyone reads, root acts, and so may a
service as far as its row says: a pid that we have not reaped is nobody else's, and who connected before it began is not it.
"""

from __future__ import annotations

import os
import sys

import _log
from base.stdlib import TYPE_CHECKING, json, socket
from base.syscalls import refuse_rights
from onboard.to_pid1 import LONGEST_REPLY, SVError
from pid1.closer import CREDENTIALS_SPACE, Closer, peek

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pid1.loop import Loop

    Handler = Callable[[dict[str, Any], int, float], Any]
    Permits = Callable[[int, dict[str, Any], float], bool]

MAX_REQUEST = 64 * 1024
MAX_CLIENTS = 64  # more, and the one that has been silent for longest is dropped
BACKLOG = 128  # all of it is accepted in one turn
PATIENCE = 10.0  # seconds for a client that has connected and says nothing


class Control:
    """PID 1's end. It never waits for a client: what cannot be read or sent at once is dropped with its connection."""

    def __init__(
        self, loop: Loop, path: str, handler: Handler, permits: Permits = lambda *_: False, closer: Closer | None = None
    ) -> None:
        """`handler(request, uid, now)`; uid is 0 too where `permits(pid, request, since)` says that this process may ask this,
        which connected at that time."""
        self._loop = loop
        self._handler = handler
        self._permits = permits
        self._clients: dict[int, tuple[socket.socket, float]] = {}  # by descriptor, the longest silent first
        if os.path.lexists(path):
            os.unlink(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._listener = socket.socket(socket.AF_UNIX, kind, 0)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._closer = closer or Closer()
        self._takes_rights = not refuse_rights(self._listener)
        self._listener.bind(path)
        os.chmod(path, 0o666)
        self._listener.listen(BACKLOG)
        loop.watch(self._listener.fileno(), self._accept)
        loop.timers.append((self.next_deadline, self.tick))

    def next_deadline(self) -> float | None:
        return next((deadline for _, deadline in self._clients.values()), None)

    def tick(self, now: float) -> None:
        """Drop those that connected and stay silent."""
        while self._clients:
            fd, (_, deadline) = next(iter(self._clients.items()))
            if deadline > now:
                return
            self._drop(fd)

    def _accept(self, now: float) -> None:
        for _ in range(BACKLOG):
            if len(self._clients) >= MAX_CLIENTS:
                self._drop(next(iter(self._clients)))
            try:
                client = accept(self._listener)
            except BlockingIOError:
                return
            except OSError as error:  # EMFILE: those who are silent give theirs back
                _log.warning(f"control socket: {error.strerror}")
                if not self._clients:
                    raise
                self._drop(next(iter(self._clients)))
                return
            client.setblocking(False)
            fd = client.fileno()
            self._clients[fd] = (client, now + PATIENCE)
            if self._serve(fd, now):  # most have spoken already
                self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._loop.watch(fd, lambda now: self._serve(fd, now))

    def _drop(self, fd: int) -> None:
        client, _ = self._clients.pop(fd)
        self._loop.unwatch(fd)
        if self._takes_rights:
            self._closer.close_socket(client)
        else:
            client.close()

    def _serve(self, fd: int, now: float) -> bool:
        """Answer a client and end its connection; whether it has not said anything yet."""
        try:
            self._readable(*self._clients[fd], now)
        except BlockingIOError:
            return True
        except Exception as error:  # it has vanished, or does not take its reply: its own loss
            _log.debug(f"control client: {error}")
        self._drop(fd)
        return False

    def _readable(self, client: socket.socket, deadline: float, now: float) -> None:
        if self._takes_rights and peek(client)[1]:  # they stay in its queue, and go where the connection goes
            _send(client, {"error": "PID 1 takes no descriptors"})
            return
        message, _, flags, _ = client.recvmsg(MAX_REQUEST, CREDENTIALS_SPACE)
        if flags & socket.MSG_TRUNC:
            _send(client, {"error": f"the request is longer than {MAX_REQUEST} bytes"})
        elif message:
            _send(client, self._answer(client, message, deadline - PATIENCE, now))

    def _answer(self, client: socket.socket, message: bytes, since: float, now: float) -> dict[str, Any]:
        try:
            request = json.loads(message)
        except (ValueError, RecursionError) as error:
            return {"error": f"the request is not JSON: {error}"}
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            return {"error": 'the request is not an object with an "op", such as {"op": "stats"}'}
        try:
            pid, uid = peer(client)
            return {"ok": self._handler(request, 0 if uid and self._permits(pid, request, since) else uid, now)}
        except SVError as error:
            return {"error": str(error)}
        except Exception as error:  # one request must not touch the others
            self._loop.errors += 1
            _log.error(f"control request {str(request)[:100]}: {type(error).__name__}: {error}")
            return {"error": f"PID 1 failed on this request: {type(error).__name__}: {error}"}


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
