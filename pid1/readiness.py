"""How a service says that it is ready: a datagram on its own notify socket, or a path that appears."""

from __future__ import annotations

import os
import time

import _log
from base.stdlib import TYPE_CHECKING, NamedTuple, socket
from base.syscalls import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_MOVED_TO,
    IN_ONLYDIR,
    Message,
    inotify_add_watch,
    inotify_init,
    receive,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pid1.closer import Closer
    from pid1.loop import Loop
    from pid1.process import Process


FOLDER = "/run/stack/notify"
LONGEST = 4096  # bytes of a message: a longer one has been cut, and half of a number is another number
MOST = 64  # messages of one service that are taken in one turn


class NotifySockets:
    """The sd_notify protocol (`man 3 sd_notify`) on a socket for each service.

    With one socket for all, a message would have to be traced from its sender's pid to a service, which fails for a sender
    that has died since. Every user can write to a socket here, for a daemon may have given up root before it is ready; but only
    its own service knows the name, which nobody can guess or list, and the kernel says who sent each message.
    """

    def __init__(self, loop: Loop, closer: Closer, folder: str = FOLDER) -> None:
        self._loop = loop
        self._closer = closer
        self._folder = folder
        self._sockets: dict[str, tuple[socket.socket, str]] = {}

    def prepare(self, process: Process, deliver: Callable[[Process, Notification, float], None]) -> str:
        """Make (or empty, for a new start of the service) its socket, and return its path for $NOTIFY_SOCKET."""
        name = process.row.name
        if name in self._sockets and not os.path.exists(self._sockets[name][1]):  # somebody has emptied /run
            self.forget(name)
        if name in self._sockets:
            listener, path = self._sockets[name]
            self._take(listener, most=1000)  # words of the predecessor
            return path
        os.makedirs(self._folder, exist_ok=True)
        os.chmod(self._folder, 0o711)  # to be passed through, not to be listed
        path = f"{self._folder}/{name}.{secret()}"
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        listener = socket.socket(socket.AF_UNIX, kind, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(path)
        os.chmod(path, 0o666)
        self._sockets[name] = (listener, path)
        self.resume(process, deliver)
        return path

    def resume(self, process: Process, deliver: Callable[[Process, Notification, float], None]) -> None:
        """Hear its socket, from now on or, after an upgrade, again."""
        listener, _ = self._sockets[process.row.name]

        def readable(now: float) -> None:
            for message in self._take(listener, MOST):
                deliver(process, Notification(parse_notification(message.data), message.pid, message.uid), now)

        self._loop.watch(listener.fileno(), readable)

    def _take(self, listener: socket.socket, most: int) -> list[Message]:
        """What has come; the descriptor of a BARRIER=1 is closed, which tells its sender that we have read so far."""
        messages: list[Message] = []
        try:
            while len(messages) < most:
                message = receive(listener, LONGEST + 1)
                self._closer.close(message.fds)
                messages.append(message._replace(data=message.data if len(message.data) <= LONGEST else b""))
        except BlockingIOError:
            pass
        return messages

    def forget(self, name: str) -> None:
        """The service left the table."""
        listener, path = self._sockets.pop(name, (None, ""))
        if listener:
            self._loop.unwatch(listener.fileno())
            self._closer.close_socket(listener)
            try:
                os.unlink(path)
            except OSError as error:  # it has gone
                _log.debug(f"{name}: {error}")


class Notification(NamedTuple):
    """What a service has said, and who it was."""

    words: dict[str, str]
    pid: int
    uid: int


def secret() -> str:
    """What nobody guesses; early in a boot, when the kernel has no randomness yet, what nobody guesses easily."""
    try:
        return os.getrandom(8, os.GRND_NONBLOCK).hex()
    except BlockingIOError:
        return f"{time.monotonic_ns():x}"


def parse_notification(message: bytes) -> dict[str, str]:
    """`KEY=value` lines; what is not one is left out."""
    pairs = (line.partition("=") for line in message.decode("utf-8", "replace").split("\n"))
    return {key: value for key, equals, value in pairs if equals}


class PathWatch:
    """Services that are ready when a path appears. inotify(7) runs only while somebody waits."""

    def __init__(self, loop: Loop, appeared: Callable[[Process, float], None]) -> None:
        self._loop = loop
        self._appeared = appeared
        self._waiting: dict[str, tuple[Process, tuple[int, int] | None]] = {}
        self._fd = -1

    def expect(self, process: Process) -> None:
        """Just before the start: a path that its predecessor left behind does not count."""
        self._waiting[process.row.name] = (process, _identity(process.row.ready))
        try:
            if self._fd < 0:
                self._fd = inotify_init()
                self._loop.watch(self._fd, self.check)
            self._arm(process.row.ready)
        except OSError as error:
            _log.warning(f"{process.row.name}: cannot watch {process.row.ready}, {error}; it counts as ready when late")

    def cancel(self, process: Process) -> None:
        """It is ready, late or dead."""
        self._waiting.pop(process.row.name, None)
        if not self._waiting and self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def check(self, now: float) -> None:
        """Something changed in a folder on the way to a path."""
        try:
            while self._fd >= 0 and os.read(self._fd, 65536):
                pass
        except BlockingIOError:
            pass
        for process, before in list(self._waiting.values()):
            try:
                self._arm(process.row.ready)
            except OSError as error:  # a folder has gone meanwhile, or there are too many watches; the others go on
                _log.debug(f"{process.row.name}: cannot watch {process.row.ready}, {error}")
            if _identity(process.row.ready) not in (None, before):
                self.cancel(process)
                self._appeared(process, now)

    def _arm(self, path: str) -> None:
        folder = os.path.dirname(path)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        inotify_add_watch(self._fd, folder, IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE | IN_ONLYDIR)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns
