"""Children that a zygote forks for PID 1 (pid1/zygote.py): PID 1 asks, the answer comes as an event, and PID 1 never waits.

For each child there is a socket of its own, the gate. A child that has been forked says so there and waits; the kernel says
which pid it is. Only when PID 1 answers does it become the app. So whatever happens (no answer in time, a zygote that dies, a
service that is stopped meanwhile), PID 1 closes the gate, the child exits, and no service runs twice. Where there is no child,
the service is executed as any other.

Nothing of this outlives a PID 1 that executes itself anew: gates are closed by exec, so that a child that waits exits, and
its service is still in WAITING and is started again. Connections to a zygote last for one message.
"""

from __future__ import annotations

import os
import sys
from errno import EPERM

import _log
from base.printable import printable
from base.stdlib import TYPE_CHECKING, json, signal, socket
from base.syscalls import receive
from pid1.child import GO, HERE, NEVER, ZYGOTES, script_at
from pid1.process import State
from tables.plain import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from pid1.life import Life
    from pid1.process import Actions, Process
    from pid1.spawn import Spawner
    from tables.accounts import Account

    Prepare = Callable[[Process], tuple[Account, dict[str, str], int | None]]

TIME_LIMIT = 5.0  # seconds for an answer; a zygote that takes longer is killed, and started again as any service is
AT_ONCE = 16  # children that are asked for and have not answered
# What an interpreter, or the loader of programs, reads when it starts: where it differs, a fork would not have it.
AT_EXEC = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG")


class Birth:
    """One child that was asked for."""

    def __init__(self, process: Process, zygote: Process, gate: socket.socket, deadline: float) -> None:
        self.process = process
        self.zygote = zygote
        self.mother = zygote.pid
        self.gate = gate
        self.deadline = deadline
        self.pid = 0  # once it has answered


class Forks:
    """All children that are on their way, by the name of their service."""

    def __init__(self, life: Life, actions: Actions, spawner: Spawner, prepare: Prepare) -> None:
        """`prepare` makes what a service's child is given: its account, what is added to its environment, its log's pipe."""
        self._life = life
        self._loop = life.loop
        self._actions = actions
        self._spawner = spawner
        self._prepare = prepare
        self._births: dict[str, Birth] = {}
        self._queue: dict[str, Process] = {}  # that wait until their zygote is ready, or until there are fewer on their way
        self._failed: set[str] = set()  # services whose child did not come: executed this time
        self._useless: set[int | None] = set()  # pids of zygotes that have said they fork nobody
        self._loop.timers.append((self.next_deadline, self.tick))

    def next_deadline(self) -> float | None:
        """When an answer is overdue."""
        return min((birth.deadline for birth in self._births.values() if not birth.pid), default=None)

    def tick(self, now: float) -> None:
        """Give up zygotes that have not answered in time."""
        for birth in [one for one in self._births.values() if not one.pid and one.deadline <= now]:
            if birth.zygote.pid == birth.mother:
                _log.error(f"{birth.zygote.row.name}: has not forked {birth.process.row.name} in {TIME_LIMIT:g} s, killed")
                self._actions.kill(birth.zygote, signal.SIGKILL)
            self._end(birth)

    def zygote_of(self, process: Process) -> Process | None:
        """The service that forks it; None where it is to be executed."""
        row, zygote = process.row, self._life.sv.processes.get(process.row.forked_by)
        if zygote is None or not zygote.wanted or row.argv[0] != zygote.row.argv[0] or not script_at(row.argv):
            return None
        if not zygote.ready and (zygote.first_ready or zygote.late or zygote.failed):
            return None  # it has been there, or has had its time: nobody waits for it
        account = self._life.tables.account
        ours, theirs = (at_exec(self._spawner.environment_of(one, account(one))) for one in (row, zygote.row))
        return zygote if ours == theirs and zygote.pid not in self._useless else None

    def prepared(self, process: Process, now: float) -> bool:
        """Whether it can be launched: its child is there, or there will be none. Otherwise its zygote is asked, and `changed`
        has the service again as soon as there is an answer."""
        name = process.row.name
        birth = self._births.get(name)
        if birth or name in self._failed:
            return birth is None or bool(birth.pid)
        zygote = self.zygote_of(process)
        if zygote is None:
            return True
        if not zygote.ready or len(self._births) >= AT_ONCE:
            self._queue[name] = process
            return False
        try:
            self._ask(process, zygote, now)
        except (OSError, ValueError) as error:
            _log.warning(f"{name}: is executed, {zygote.row.name} cannot be asked: {error}")
            return True
        return False

    def _ask(self, process: Process, zygote: Process, now: float) -> None:
        account, extra, log = self._prepare(process)
        environment = self._spawner.environment_of(process.row, account) | extra
        request = {
            "row": pack(process.row), "account": list(account), "environment": environment, "cgroup": process.cgroup,
            "limits": list(self._spawner.descriptors),
        }  # fmt: skip
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        gate, childs = socket.socketpair(socket.AF_UNIX, kind)
        client = socket.socket(socket.AF_UNIX, kind, 0)
        try:
            childs.setblocking(True)  # it waits for our word
            gate.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            client.connect(f"{ZYGOTES}/{zygote.row.name}")
            peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if int.from_bytes(peer[:4], sys.byteorder) != zygote.pid:
                raise PermissionError(EPERM, "its socket is another process's")
            fds = [childs.fileno(), self._spawner.report, *([] if log is None else [log])]
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
            client.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except BaseException:
            gate.close()
            raise
        finally:
            childs.close()
            client.close()
        birth = self._births[process.row.name] = Birth(process, zygote, gate, now + TIME_LIMIT)
        self._loop.watch(gate.fileno(), lambda now: self._answered(birth))

    def _answered(self, birth: Birth) -> None:
        try:
            message = receive(birth.gate, 1024)
        except OSError:
            return
        for fd in message.fds:  # a child has none to send
            os.close(fd)
        if message.data == HERE and not birth.pid and message.pid > 1:
            birth.pid = message.pid
            self._loop.unwatch(birth.gate.fileno())  # when it is let in, that is seen
            self._look_again(birth.process)
            return
        if message.data:
            said = printable(message.data.decode("utf-8", "replace").partition(" ")[2])
            _log.warning(f"{birth.process.row.name}: is executed, {birth.zygote.row.name} does not fork it: {said}")
        if message.data.startswith(NEVER):
            self._useless = {birth.mother}
        self._end(birth)

    def _end(self, birth: Birth) -> None:
        """There will be no child of it: the service is executed."""
        self._failed.add(birth.process.row.name)
        self.cancel(birth.process.row.name)
        self._look_again(birth.process)

    def _look_again(self, *processes: Process) -> None:
        """SV shall try to start these, and whoever has waited for it to be their turn."""
        self._actions.changed.extend((*processes, *self._queue.values()))
        self._queue.clear()

    def take(self, process: Process) -> int:
        """The pid of its child, which becomes the app now; 0 where there is none."""
        name = process.row.name
        self._failed.discard(name)
        self._queue.pop(name, None)
        birth = self._births.get(name)
        pid = birth.pid if birth else 0
        try:
            if birth and pid:
                birth.gate.send(GO)
        except OSError:  # it has died meanwhile
            pid = 0
        self.cancel(name)
        return pid

    def entered(self, process: Process) -> None:
        """A service is in another state: it may have been stopped while its child was on the way, or be a zygote itself."""
        name = process.row.name
        if process.state != State.WAITING and (name in self._births or name in self._queue or name in self._failed):
            self.cancel(name)
            self._queue.pop(name, None)
            self._failed.discard(name)
        if any(one.row.forked_by == name for one in self._queue.values()):
            self._look_again()

    def cancel(self, name: str) -> None:
        """Close the gate: a child behind it exits."""
        birth = self._births.pop(name, None)
        if birth:
            self._loop.unwatch(birth.gate.fileno())
            birth.gate.close()


def at_exec(environment: dict[str, str]) -> dict[str, str]:
    """What of an environment counts when a program is executed."""
    return {name: value for name, value in environment.items() if name.startswith(AT_EXEC)}
