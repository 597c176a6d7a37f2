"""Who belongs to a service beyond its main process: all of its control group.

Where there are no control groups: process groups, and orphans that PID 1 has adopted, by their mark in /proc.
"""

from __future__ import annotations

import os

import _log
from base.files import read_file
from base.stdlib import TYPE_CHECKING, signal
from pid1.spawn import MARK
from tables.accounts import Account

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from pid1.cgroup import Cgroups
    from pid1.loop import Loop
    from pid1.process import Process


class Relatives:
    """All processes of all services: main processes by pid, their process groups, and strays that left them."""

    def __init__(self, cgroups: Cgroups, loop: Loop) -> None:
        self.cgroups = cgroups
        self._loop = loop
        self.by_pid: dict[int, Process] = {}
        self.groups: dict[str, set[int]] = {}  # process groups that belong to a service
        self.pidfds: dict[int, int] = {}  # of main processes that are not our children: nobody else says when they die
        self.strays_count = True  # not at the end of the board: kill(-1) ends them all

    def born(self, process: Process, pid: int) -> None:
        """A service has a new main process, the leader of a new group."""
        self.by_pid[pid] = process
        self.groups[process.row.name] = {pid}

    def owner(self, pid: int) -> Process | None:
        """The service that ends with the death of this child, if it was one's main process.

        None if the service has named another MAINPID that is our child by now.
        """
        process = self.by_pid.get(pid)
        if process is None or process.pid is None or process.pid == pid:
            return process
        if process.pid in self.pidfds:
            return None  # that one lives, whoever its parent is
        # Otherwise the one that it named has died before this one: nobody else will tell us.
        return None if parent_of(process.pid) == os.getpid() else process

    def reaped(self, pid: int) -> None:
        """The death of this child has been dealt with; its number may become somebody else's."""
        process = self.by_pid.pop(pid, None)
        self.close_pidfd(pid)
        if process is not None and process.pid is None:
            self.by_pid = {other: owner for other, owner in self.by_pid.items() if owner is not process}

    def close_pidfd(self, pid: int) -> None:
        """It has said that this one is dead."""
        if (fd := self.pidfds.pop(pid, None)) is not None:
            self._loop.unwatch(fd)
            os.close(fd)

    def knows(self, process: Process, pid: int) -> bool:
        """Whether this process, alive now, is one of a service's: of its control group, or by the signs in /proc."""
        if pid <= 1:
            return False
        name = process.row.name
        if pid == process.pid or group_of(pid) in self.groups.get(name, ()):
            return True
        if self.cgroups.folder(name):
            return pid in self.cgroups.pids(name)
        return mark_of(name) in environment_of(pid)

    def kill(self, process: Process, number: int) -> None:
        """Signal all of a service, or what its row says."""
        name = process.row.name
        if process.row.kill == "main" or (process.row.kill == "mixed" and number != signal.SIGKILL):
            self.signal_main(process, number)
            return
        others = self._others(name) if self.cgroups.folder(name) else [*self._others(name), *self._outside(process)]
        for group in self.groups.get(name, set()):
            if not send(os.killpg, group, number) and group == process.pid:
                send(os.kill, group, number)  # forked, but not yet the leader of its session
        if number == signal.SIGKILL and self.cgroups.folder(name):
            self.cgroups.kill(name)
            return
        if process.pid in self.pidfds and group_of(process.pid) not in self.groups.get(name, ()):
            self.signal_main(process, number)
        for pid in others:
            send(os.kill, pid, number)

    def signal_main(self, process: Process, number: int) -> bool:
        """Signal its main process alone; whether there was one. Not whoever has its number when it has died."""
        if process.pid is None:
            return False
        if process.pid in self.pidfds:
            return send(signal.pidfd_send_signal, self.pidfds[process.pid], number)
        return send(os.kill, process.pid, number)

    def linger(self, process: Process) -> bool:
        """Whether anything of a service is alive, apart from a main process already reaped."""
        self.prune(process)
        name = process.row.name
        if process.row.kill == "main":
            return False
        if self.cgroups.folder(name) and self.cgroups.populated(name):
            return True
        return bool(self.groups.get(name)) or bool(self._others(name))

    def prune(self, process: Process) -> None:
        """Forget groups that are empty: from now on the number may become somebody else's."""
        for group in list(self.groups.get(process.row.name, ())):
            if group != process.pid and not send(os.killpg, group, 0):
                self.groups[process.row.name].discard(group)

    def _others(self, name: str) -> list[int]:
        """What has left a service's process groups."""
        if not self.cgroups.folder(name):
            return self._strays(name)
        groups = self.groups.get(name, ())
        return [pid for pid in self.cgroups.pids(name) if group_of(pid) not in groups]

    def _outside(self, process: Process) -> list[int]:
        """Descendants of its main process that have left its process groups, such as a child in a session of its own."""
        groups = self.groups.get(process.row.name, ())
        return [pid for pid in (descendants(process.pid) if process.pid else []) if group_of(pid) not in groups]

    def _strays(self, name: str) -> list[int]:
        """Relatives that forked twice and left the group: children that we adopted, with the service's mark on them."""
        if not self.strays_count:
            return []
        return [pid for pid in adopted(self.by_pid) if mark_of(name) in environment_of(pid)]

    def adopt(self, process: Process, main: str, account: Account, died: Callable[[Process, int, float], None]) -> None:
        """MAINPID=: a service that forks says which process is it. Only a process of its own user will do.

        `died` is called when it dies; a child of ours is reaped as well.
        """
        pid = int(main) if main.isascii() and main.isdigit() and len(main) < 10 else -1
        if pid == process.pid:
            return
        fd = pidfd_of(pid)
        try:
            owner, group = os.stat(f"/proc/{pid}").st_uid, os.getpgid(pid)
        except OSError:
            owner = group = -1
        foreign = (account.mapped and owner != account.uid) or self._is_of_another(process, pid, group)
        # The pidfd was opened first: if it is alive still, what we have looked at was this process.
        alive = fd < 0 or send(signal.pidfd_send_signal, fd, 0)
        if pid <= 1 or process.pid is None or pid in self.by_pid or foreign or not alive or not is_process(pid):
            _log.warning(f"{process.row.name}: MAINPID={main[:20]} is not a process of its own; ignored")
            if fd >= 0:
                os.close(fd)
            return
        process.pid = pid
        self.by_pid[pid] = process
        if fd >= 0:
            self.pidfds[pid] = fd
            self._loop.watch(fd, lambda now: died(process, pid, now))
        if group > 1:
            self.groups[process.row.name].add(group)

    def _is_of_another(self, process: Process, pid: int, group: int) -> bool:
        """Whether a process belongs to another service: a stop of this one would end it."""
        name = process.row.name
        if any(group in groups for other, groups in self.groups.items() if other != name):
            return True
        if not self.cgroups.folder(name):
            return False
        where = read_file(f"/proc/{pid}/cgroup").rpartition("::/")[2].strip().split("/")[0]
        return where != name and where in self.groups

    def forget(self, name: str) -> None:
        """A service that has gone."""
        self.groups.pop(name, None)


def reap() -> Iterator[tuple[int, int]]:
    """Pid and wait status of every child that has died: the only waitpid(2) for services."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def send(call: Callable[[int, int], None], target: int, number: int) -> bool:
    """kill(2) or killpg(3); whether there was somebody to send to."""
    try:
        call(target, number)
    except OSError:  # ESRCH
        return False
    return True


def mark_of(name: str) -> bytes:
    """What the environment of all that a service starts has in it."""
    return f"{MARK}={name}\0".encode()


def adopted(known: Container[int]) -> list[int]:
    """Our children that we did not start: orphans that the kernel gave to PID 1."""
    return [pid for pid in children_of(os.getpid()) if pid not in known]


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on; at most so many as one service may have."""
    found = children_of(pid)
    for one in found:  # the list grows meanwhile
        if len(found) < 10_000:
            found += children_of(one)
    return found


def pidfd_of(pid: int) -> int:
    """A descriptor that becomes readable when this process dies (`man 2 pidfd_open`); -1 without it, or before Linux 5.3."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def children_of(parent: int) -> list[int]:
    """Children of all threads of a process."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_of(pid) == parent]
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):
            children += map(int, read_file(f"/proc/{parent}/task/{thread}/children").split())
    except FileNotFoundError:  # it has gone
        pass
    return children


def parent_of(pid: int) -> int:
    return int(_stat(pid)[1])


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def is_process(pid: int) -> bool:
    """Whether it is one: a thread's number has a folder in /proc too, a process group, and whatever else we look at."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return f"\nTgid:\t{pid}\n" in file.read()
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """State, parent and the rest of /proc/PID/stat (`man 5 proc`); a process that has gone is an orphan of nobody."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def environment_of(pid: int) -> bytes:
    if _stat(pid)[0] == "D":
        return b""  # it may hold the lock that reading its memory waits for
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read() + b"\0"
    except OSError:
        return b""
