"""Closes what strangers have sent to PID 1, in a process of its own, because the last close of a file may take minutes.

Whoever closes the last descriptor of a deleted file frees its blocks, and whoever closes a socket with SO_LINGER waits for
its peer. A process can send both over a Unix socket (SCM_RIGHTS, `man 7 unix`), and leave more of them in the queue of a
connection that PID 1 closes. So PID 1 hands such descriptors on, gives up its own, and only then says that they may go.
"""

from __future__ import annotations

import os
import sys

from base.native import close_from
from base.stdlib import TYPE_CHECKING, signal, socket

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 253  # descriptors in one message (SCM_MAX_FD)
RIGHTS_SPACE = 4 * MOST + 32  # and their header
CREDENTIALS_SPACE = 32  # CMSG_SPACE(sizeof(struct ucred)): room for this, and for no descriptor beside it


class Closer:
    """A child that exists as soon as it is needed; one that hangs is killed, and another one takes its place."""

    def __init__(self) -> None:
        self.pid = 0
        self._channel: socket.socket | None = None

    def close(self, fds: list[int]) -> None:
        """Close these descriptors of PID 1, without being the last one to do so. A pipe is closed at once: it costs nothing."""
        for at in range(0, len(fds), MOST):
            self._close([fd for fd in fds[at : at + MOST] if not closed_pipe(fd)])

    def _close(self, fds: list[int]) -> None:
        if not fds:
            return
        if not self._hand_over(fds):  # none yet, or it hangs in an earlier one
            self._start()
            self._hand_over(fds)
        for fd in fds:
            os.close(fd)
        if self._channel:
            try:
                self._channel.send(b"let go")
            except OSError:  # it lets go with the next ones, or when it is replaced
                pass

    def _hand_over(self, fds: list[int]) -> bool:
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        try:
            if self._channel:
                self._channel.sendmsg([b"hold"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError:
            return False
        return self._channel is not None

    def _start(self) -> None:
        if self._channel:
            self._channel.close()
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        self.pid = fork(lambda: hold_and_let_go(theirs))
        theirs.close()
        self._channel = ours

    def close_socket(self, one: socket.socket) -> None:
        """Close our end of a connection, or a socket, that has SO_PASSCRED; descriptors may wait in its queue."""
        try:
            one.shutdown(socket.SHUT_RD)  # nothing more comes
        except OSError:  # ENOTCONN
            pass
        try:
            while True:
                there, with_rights = peek(one)
                if with_rights:
                    self.close([one.detach()])
                    return
                if not there:
                    break
                one.recvmsg(1)
        except OSError:  # EAGAIN: that was all
            pass
        one.close()


def peek(source: socket.socket) -> tuple[bool, bool]:
    """Whether a message waits in a socket that has SO_PASSCRED, and whether descriptors came with it. It stays there."""
    _, about, flags, _ = source.recvmsg(1, CREDENTIALS_SPACE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return bool(about), bool(flags & socket.MSG_CTRUNC)


def closed_pipe(fd: int) -> bool:
    """Close it if it is a pipe. Its name says so; fstat(2) would ask its file system, which may be anybody's."""
    try:
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:["):
            return False
    except OSError:
        return False
    os.close(fd)
    return True


def fork(child: Callable[[], object]) -> int:
    """A copy of PID 1 that runs this and ends. No signal is delivered before its handlers are gone: they are PID 1's."""
    valid = signal.valid_signals()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, valid)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for one in valid - {signal.SIGKILL, signal.SIGSTOP}:
                    signal.signal(one, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                child()
            finally:
                os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def hold_and_let_go(channel: socket.socket) -> None:
    """The child: hold what comes, and close it when PID 1 has closed its own. Ends with PID 1's end of the channel."""
    fd = os.dup2(channel.detach(), 3)
    close_from(4)
    channel = socket.socket(fileno=fd)
    channel.setblocking(True)
    held: list[int] = []
    while message := channel.recvmsg(16, RIGHTS_SPACE):
        for _, _, data in message[1]:
            held += [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data) - 3, 4)]
        if message[0] == b"let go":
            for one in held:
                os.close(one)
            held = []
        elif not message[0]:
            return
