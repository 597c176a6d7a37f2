"""A control group for each service (`man 7 cgroups`, version 2): limits for all of its processes, from which none escapes.

A group is a folder under the place where the table mounts cgroup2. Where there is none (a namespace, an old kernel)
limits have no effect, and relatives.py knows a service's processes by other signs.
"""

from __future__ import annotations

import os
import sys
from errno import EACCES

import _log
from base.files import read_file
from base.stdlib import TYPE_CHECKING, NamedTuple, signal
from base.syscalls import IN_MODIFY, inotify_add_watch, inotify_init, inotify_rm_watch
from onboard.cgroup_files import field
from tables.values import memory_bytes

if TYPE_CHECKING:
    from pid1.loop import Loop
    from tables.rows import Service

CONTROLLERS = {  # and what a service goes without where the kernel lacks one
    "memory": "memory_max has no effect; cgroup_enable=memory on the kernel's command line may help",
    "pids": "pids_max has no effect",
    "cpu": "cpu_weight has no effect",
}
KILL_ROUNDS = 10
MOST_GROUPS = 1000


class Met(NamedTuple):
    """How often a group has met its limits, ever."""

    memory: int
    pids: int


class Cgroups:
    """The groups of all services, ROOT/NAME each; PID 1 itself stays in the root group.

    A group stays while its service is known, and is used again: one that is removed lives on in the kernel for as long as
    memory is charged to it, files that were read included. A service that keeps dying would leave thousands.
    """

    def __init__(self, loop: Loop) -> None:
        self.root = ""  # empty: there are none
        self.controllers: list[str] = []
        self._loop = loop
        self._limits: dict[str, dict[str, str]] = {}  # of each group: file and what we have written there
        self._met: dict[str, Met] = {}  # when the service was started
        self._events = -1  # inotify(7)
        self._watches: dict[int, str] = {}  # inotify's number and the service's name

    def open(self, root: str) -> None:
        """Take the hierarchy at `root` into use, each controller on its own: a kernel may lack one."""
        with open(f"{root}/cgroup.controllers", encoding="ascii") as file:
            there = file.read().split()
        if not os.access(f"{root}/cgroup.subtree_control", os.W_OK):
            raise PermissionError(EACCES, "these control groups are somebody else's")
        self.root = root
        for name, without in CONTROLLERS.items():
            try:
                if name not in there:
                    raise OSError(0, "the kernel has none")
                _write(f"{root}/cgroup.subtree_control", f"+{name}")
                self.controllers.append(name)
            except OSError as error:
                _log.warning(f"no {name} controller, {error.strerror}: {without}")
        if "pids" in self.controllers:
            self._events = inotify_init()
            self._loop.watch(self._events, self._fork_refused)

    def resume(self) -> None:
        """After an upgrade: hear again when a group meets its limit."""
        if self._events >= 0:
            self._loop.watch(self._events, self._fork_refused)

    # --- one service ------------------------------------------------------------------------------------------------
    def folder(self, name: str) -> str:
        """A service's group; empty where it has none."""
        return f"{self.root}/{name}" if name in self._limits else ""

    def prepare(self, row: Service) -> str:
        """The group of a service that is about to start, with the limits of its row; empty where it cannot be had."""
        if not self.root:
            return ""
        try:
            folder = f"{self.root}/{row.name}"
            if row.name not in self._limits:
                os.makedirs(folder, exist_ok=True)
                self._limits[row.name] = {}
                _bound(folder)
                if self._events >= 0:
                    self._watches[inotify_add_watch(self._events, f"{folder}/pids.events", IN_MODIFY)] = row.name
            self.limit(row)
            self._met[row.name] = met(folder)
            self._unite(row.name)
            return folder
        except OSError as error:
            self.forget(row.name)
            _log.warning(f"{row.name}: runs without a control group, {error}")
            return ""

    def limit(self, row: Service) -> None:
        """Write what the files of its group do not say yet."""
        written = self._limits[row.name]
        for file, value in limits(row).items():
            if written.get(file) != value and file.partition(".")[0] in self.controllers:
                _write(f"{self.root}/{row.name}/{file}", value)
                written[file] = value

    def adjust(self, row: Service) -> bool:
        """Whether the limits of a changed row are in force. Not where the kernel refuses; and without a group there are none.

        memory_max is not changed so: to get below it, the kernel would have PID 1 look for memory to free.
        """
        if row.name not in self._limits:
            return not self.root
        try:
            self.limit(row)
        except OSError as error:
            _log.warning(f"{row.name}: limits as before, {error}")
            return False
        return True

    def pids(self, name: str) -> list[int]:
        """Its processes, those in groups of its own making too. 0 stands for one of another PID namespace, and for kill(2) it
        would be our own group; 1 is us."""
        folder = f"{self.root}/{name}"
        words = [word for group in (*groups_in(folder), folder) for word in read_file(f"{group}/cgroup.procs").split()]
        return [pid for pid in map(int, words) if pid > 1]

    def _unite(self, name: str) -> None:
        """A service may divide its group among containers or sessions. Its next process cannot join a divided group: only
        the leaves of the tree have processes (`man 7 cgroups`, "no internal processes")."""
        folder = f"{self.root}/{name}"
        try:
            for group in groups_in(folder):
                os.rmdir(group)
            if divided := read_file(f"{folder}/cgroup.subtree_control").split():
                _write(f"{folder}/cgroup.subtree_control", " ".join(f"-{controller}" for controller in divided))
        except OSError as error:  # processes are left in it, such as those that a row's kill="main" leaves alone
            _log.warning(f"{name}: its control group stays divided, {error}")

    def populated(self, name: str) -> bool:
        """Whether any of its processes is alive."""
        return "populated 1" in read_file(f"{self.root}/{name}/cgroup.events")

    def kill(self, name: str) -> None:
        """All of it at once: no fork is faster. Before Linux 5.14 one by one, and a fork may be: KILL comes again."""
        try:
            _write(f"{self.root}/{name}/cgroup.kill", "1")
        except OSError:
            for _ in range(KILL_ROUNDS):
                for pid in self.pids(name):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass

    def cause(self, row: Service) -> str:
        """Why it was killed, for its exit text; empty where it has reached none of its limits since its start."""
        if row.name not in self._met:
            return ""
        before, now = self._met[row.name], met(self.folder(row.name))
        if now.pids > before.pids:
            return f", out of processes (pids_max {row.pids_max})"
        limit = f" (memory_max {row.memory_max})" if row.memory_max else ""
        return f", out of memory{limit}" if now.memory > before.memory else ""

    def forget(self, name: str) -> None:
        """Remove the group of a service that has left the table."""
        self._met.pop(name, None)
        if self._limits.pop(name, None) is None:
            return
        try:
            for number in [number for number, watched in self._watches.items() if watched == name]:
                del self._watches[number]
                inotify_rm_watch(self._events, number)
            self._unite(name)
            os.rmdir(f"{self.root}/{name}")
        except OSError as error:
            _log.debug(f"{name}: its control group stays, {error.strerror}")

    def _fork_refused(self, now: float) -> None:
        """Kill a service that has reached its pids_max, as a whole, and start it again: it seldom recovers by itself."""
        events = os.read(self._events, 65536)  # struct inotify_event, without names: 16 bytes
        numbers = {int.from_bytes(events[at : at + 4], sys.byteorder) for at in range(0, len(events), 16)}
        for name in [self._watches[number] for number in numbers if number in self._watches]:
            if met(self.folder(name)).pids > self._met[name].pids:
                _log.error(f"{name}: has reached its pids_max; killed with all of its processes")
                self.kill(name)


def groups_in(folder: str) -> list[str]:
    """Groups below this one, the innermost first."""
    return [path for path, _, _ in os.walk(folder, topdown=False) if path != folder]


def _bound(folder: str) -> None:
    """So many groups may a service make in its own, all of which PID 1 has to look at (not before Linux 4.14)."""
    try:
        _write(f"{folder}/cgroup.max.descendants", str(MOST_GROUPS))
    except OSError:
        pass


def limits(row: Service) -> dict[str, str]:
    """What the files of a row's group shall say. Where a stop ends all of a service, want of memory does too."""
    return {
        "memory.max": str(memory_bytes(row.memory_max) or "max"), "memory.oom.group": str(int(row.kill != "main")),
        "pids.max": str(row.pids_max or "max"), "cpu.weight": str(row.cpu_weight),
    }  # fmt: skip


def met(folder: str) -> Met:
    """How often this group has met its limits."""
    return Met(field(f"{folder}/memory.events", "oom_kill") or 0, field(f"{folder}/pids.events", "max") or 0)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # since Linux 6.15 memory.max does not wait then for memory to be freed
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
