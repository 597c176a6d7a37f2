"""The pipes between services and the log daemon. PID 1 holds both ends and never reads.

So a service keeps its pipe when the log daemon is restarted, the log daemon finds what was written meanwhile, and a
service that comes back writes where its predecessor wrote.

A log daemon that hangs does harm as soon as somebody prints. So PID 1 looks whether anything is in the pipes, and asks the
daemon for a sign of life then, at most once in QUIET seconds: on a board where nobody prints neither of them wakes.
"""

from __future__ import annotations

import os
import select
import sys
from fcntl import fcntl

from base.stdlib import TYPE_CHECKING, socket
from pid1.loop import WRITE

if TYPE_CHECKING:
    from pid1.loop import Callback, Loop

BATCH = 100  # descriptors in one message; the kernel takes 253 (SCM_MAX_FD)
PIPE_SIZE = 256 * 1024  # bytes that a service can print while the log daemon is away (`man 2 fcntl`, F_SETPIPE_SZ)
F_SETPIPE_SZ = 1031
QUIET = 10.0  # seconds between two questions
QUESTION = b"?\n"  # without descriptors: services/logd.py answers it by WATCHDOG=1


class LogPipes:
    """One pipe for each service, and the socket that hands their read ends to the log daemon (SCM_RIGHTS)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pipes: dict[str, tuple[int, int, str]] = {}
        self._channel: socket.socket | None = None
        self._unsent: list[str] = []
        self._written = select.epoll()  # readable while something is in a pipe
        self._again: float | None = None  # when to look for that again
        self.on_question: Callback = lambda now: None
        loop.watch(self._written.fileno(), self._ask)
        loop.timers.append((lambda: self._again, self._look_again))

    def _ask(self, now: float) -> None:
        """Somebody has printed: the daemon takes it, if it is alive."""
        self._loop.unwatch(self._written.fileno())
        self._again = now + QUIET
        if self._channel:
            try:
                self._channel.send(QUESTION)
            except OSError:  # it is full, or the daemon has died
                pass
            self.on_question(now)

    def _look_again(self, now: float) -> None:
        if self._again is not None and now >= self._again:
            self._again = None
            self._loop.watch(self._written.fileno(), self._ask)

    def resume(self, now: float) -> None:
        """After an upgrade: look at the pipes that there are, and hand over what is not sent yet."""
        for reader, _, _ in self._pipes.values():
            self._written.register(reader, select.EPOLLIN)
        self.flush(now)

    def write_end(self, name: str, policy: str, now: float) -> int:
        """The descriptor that a service prints to; `policy` is the row's `log`."""
        if name not in self._pipes:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)  # for logd: the service, which may open its own pipe, cannot make it wait
            try:
                fcntl(writer, F_SETPIPE_SZ, PIPE_SIZE)
            except OSError:  # over the user's limit (`man 7 pipe`, pipe-user-pages-soft): 64 KiB will do
                pass
            self._pipes[name] = (reader, writer, policy)
            self._written.register(reader, select.EPOLLIN)
            self._unsent.append(name)
            self.flush(now)
        elif self._pipes[name][2] != policy:
            self._pipes[name] = (*self._pipes[name][:2], policy)
            self._unsent.append(name)
            self.flush(now)
        return self._pipes[name][1]

    def connect(self) -> socket.socket:
        """The end of a new channel for a log daemon that is about to start; it gets all pipes."""
        self.disconnect()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._channel = ours
        self._unsent = list(self._pipes)
        return theirs

    def disconnect(self) -> None:
        """The log daemon is gone: its successor gets a channel of its own."""
        if self._channel:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def forget(self, name: str) -> None:
        """A service that left the table: the log daemon reads what is left, then sees the end of the file."""
        if pipe := self._pipes.pop(name, None):
            self._written.unregister(pipe[0])  # the daemon's descriptor would keep it there
            os.close(pipe[0])
            os.close(pipe[1])

    def flush(self, now: float) -> None:
        """Send what the channel takes; the rest when it takes more."""
        if not self._channel:
            return
        fd = self._channel.fileno()
        while self._unsent:
            names = [name for name in self._unsent[:BATCH] if name in self._pipes]
            text = "".join(f"{name} {self._pipes[name][2]}\n" for name in names)
            rights = b"".join(self._pipes[name][0].to_bytes(4, sys.byteorder) for name in names)
            try:
                if names:
                    self._channel.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            except BlockingIOError:
                self._loop.watch(fd, self.flush, WRITE)
                return
            except OSError:  # it died; SV tells us and starts the next one
                self.disconnect()
                return
            del self._unsent[:BATCH]
        self._loop.unwatch(fd)
