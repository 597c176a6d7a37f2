"""A zygote: a service that has imported what many apps need, and forks them for PID 1: `zygote.py MODULE...`.

A row whose column `forked_by` names this service is forked here (pid1/forks.py asks), so it starts without importing these
modules again, and shares their memory. What the row says of a process is set by the same code as in PID 1's own forks
(pid1/child.py). The child is PID 1's: it is forked twice, and the kernel gives the orphan to PID 1.

This program holds nothing of any app: one socket, one thread, no connection. It ends when a module that it has imported is
another one on the disk, and PID 1 starts it again.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

from base.stdlib import TYPE_CHECKING, json, signal, socket
from base.syscalls import receive
from base.title import set_title
from onboard.to_pid1 import notify
from pid1.child import GO, HERE, NEVER, NO, ZYGOTES, Child, run_script
from tables.accounts import Account
from tables.plain import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LARGEST = 1024 * 1024  # bytes of a request; tables/check_services.py allows argv and environment 120,000
BACKLOG = 64


def main(modules: list[str]) -> None:
    """Import, say that we are ready, and fork on PID 1's request."""
    gc.disable()  # a child switches it on; what is freed before a fork would leave holes that are written to later
    listener = listen(f"{ZYGOTES}/{os.environ.get('STACK_SERVICE', 'zygote')}")
    for name in modules:
        try:
            warm_up = getattr(import_module(name), "warm_up", None)
            if warm_up:
                warm_up(ZYGOTES)
        except BaseException as error:  # whatever a module does: the others are worth having
            say(4, f"{name} is not imported: {type(error).__name__}: {error}")
    why = unfit()
    if why:
        say(4, f"forks nobody: {why}")
    imported = dict(stamps())
    gc.freeze()
    notify("READY=1")
    while True:
        serve(listener, imported, why)


def say(level: int, text: str) -> None:
    """A line for our log (`man 3 syslog` has the levels)."""
    os.write(2, f"<{level}>{text}\n".encode("utf-8", "backslashreplace"))


def listen(path: str) -> socket.socket:
    """The socket that PID 1 connects to."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0)
    mask = os.umask(0o177)
    listener.bind(path)
    os.umask(mask)
    listener.listen(BACKLOG)
    return listener


def unfit() -> str:
    """Why children of this process would not be sound; empty where they are."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"a module that it imports has started {threads - 1} threads, whose locks a child would never get"
    return ""


def stamps() -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Inode, size (bytes) and time of change (ns) of each file that has been imported, but for Python's own library."""
    library = os.path.dirname(os.__file__) + "/"
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None) or ""
        if path and (not path.startswith(library) or path.startswith((f"{library}site-", f"{library}dist-"))):
            yield path, stamp(path)


def stamp(path: str) -> tuple[int, int, int]:
    """Zeros for a file that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


def serve(listener: socket.socket, imported: dict[str, tuple[int, int, int]], why: str) -> None:
    """One connection: one request of PID 1, with the descriptors of its child."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
    try:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[:4], sys.byteorder) != os.getppid():  # another process of root's: it gets no child
            return
        message = receive(connection, LARGEST)
    finally:
        connection.close()
    if len(message.fds) < 2:  # PID 1 has gone back on it
        close(message.fds)
        return
    changed = next((path for path, before in imported.items() if stamp(path) != before), "")
    if changed:
        say(6, f"{changed} has changed: starting again")
        os.write(message.fds[0], NO + f"{changed} has changed".encode("utf-8", "replace"))
        sys.exit(0)
    if why:
        os.write(message.fds[0], NEVER + why.encode("utf-8", "replace"))
        close(message.fds)
        return
    fork(json.loads(message.data), message.fds)


def close(fds: list[int]) -> None:
    """All of these."""
    for fd in fds:
        os.close(fd)


def fork(request: dict[str, Any], fds: list[int]) -> None:
    """Fork twice. The child begins when the process between has gone: PID 1 is its parent then."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        between = os.fork()
        if between == 0:
            try:
                if os.fork() == 0:
                    os.close(writer)
                    os.read(reader, 1)  # until nobody has the other end: the one between has been reaped
                    be(request, fds)
            except OSError as error:
                os.write(fds[0], NO + f"fork: {error.strerror}".encode())
            finally:
                os._exit(0)
        os.waitpid(between, 0)
    except OSError as error:
        os.write(fds[0], NO + f"fork: {error.strerror}".encode())
    finally:
        close([reader, writer, *fds])


def be(request: dict[str, Any], fds: list[int]) -> None:
    """The child: ask PID 1, and become the app. It never returns."""
    gate = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fds[0])
    try:
        row, account = unpack(request["row"]), account_of(request["account"])
        child = Child(fds[1], request["limits"])
        child.leave(row)
        set_title(row.argv, request["environment"])  # before it gives up the right to
        gate.send(HERE)
        if gate.recv(16) != GO:  # PID 1 does not want it any more
            os._exit(0)
    except BaseException as error:
        gate.send(NEVER + f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    log = fds[2] if len(fds) > 2 else None
    child.run(row, account, (log, log, None), request["cgroup"], lambda: run_script(row, request["environment"], 3))


def account_of(words: list[Any]) -> Account:
    """An account from JSON, which has no tuples."""
    uid, gid, groups, mapped, home, shell = words
    return Account(uid, gid, tuple(groups), mapped, home, shell)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    main(sys.argv[1:])
