"""What a service does to the world, for real: the one seam between PID 1's decisions and the kernel.

process.py and sv.py decide; everything that forks, kills or opens something for a service passes through here.
"""

from __future__ import annotations

import os
import time
from errno import ECHILD

import _log
from base.stdlib import TYPE_CHECKING, signal, socket
from base.syscalls import limit_descriptors, limit_memory
from pid1.cgroup import Cgroups
from pid1.closer import Closer
from pid1.log_pipes import LogPipes
from pid1.process import Actions, Process, State
from pid1.readiness import NotifySockets, PathWatch
from pid1.relatives import Relatives, parent_of
from pid1.spawn import EXEC_FAILED, Spawner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from pid1.forks import Forks
    from pid1.life import Life
    from pid1.readiness import Notification
    from tables.accounts import Account
    from tables.rows import Service

    T = TypeVar("T")

UNKNOWN = 1 << 8  # a wait status that is no success
RESERVE = 16  # descriptors that PID 1 keeps for itself, and for the requests of root, when services have used up all others


class World(Actions):
    """Starts and signals services, hears what they say, and knows which processes are theirs."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self.life = life
        self.spawner = Spawner({})
        life.loop.watch(self.spawner.reports, self.spawner.hear)
        self.cgroups = Cgroups(life.loop)
        self.relatives = Relatives(self.cgroups, life.loop)
        self.pipes = LogPipes(life.loop)
        self.closer = Closer()
        self.notify = NotifySockets(life.loop, self.closer)
        self.forks: Forks | None = None  # from the first service on that a zygote forks
        self.paths = PathWatch(life.loop, Process.became_ready)
        self._refused: set[str] = set()  # services that wanted PID 1 to keep descriptors: said once
        self.logs_are_read = False  # there is a log daemon
        self.logs_in_memory = False  # nothing is to be written to the disk in the mode that the board is in

    def spawn(self, process: Process) -> int:
        return self._with_reserve(lambda: self._spawn(process))

    def _with_reserve(self, step: Callable[[], T]) -> T:
        """Do this so that no service gets the last descriptors, or a limit of the console's."""
        memory = limit_memory(self.life.address_space) if self.life.address_space else None
        soft, hard = limit_descriptors()
        limit_descriptors((max(0, soft - RESERVE), hard))
        try:
            return step()
        finally:
            limit_descriptors((soft, hard))
            if memory:
                limit_memory(memory)

    def prepared(self, process: Process, now: float) -> bool:
        """Whether it can be launched now. One that a zygote is to fork waits for its child, which is asked for here."""
        if not process.row.forked_by:
            return True
        if self.forks is None:
            from pid1.forks import Forks

            self.forks = Forks(self.life, self, self.spawner, self.prepare)
        forks = self.forks
        return self._with_reserve(lambda: forks.prepared(process, now))

    def _spawn(self, process: Process) -> int:
        row = process.row
        process.first_start = process.first_start or time.monotonic()  # at boot many are started in one turn
        if row.ready.startswith("/"):
            self.paths.expect(process)
        pid = self.forks.take(process) if self.forks else 0
        if not pid:
            account, extra, log = self.prepare(process)
            channel: socket.socket | None = self.pipes.connect() if row.logger else None
            try:
                pid = self.spawner.spawn(row, account, extra, log, channel.fileno() if channel else None, process.cgroup)
            finally:
                if channel:
                    channel.close()
            if channel:
                self.pipes.flush(process.since)
        self.relatives.born(process, pid)
        return pid

    def prepare(self, process: Process) -> tuple[Account, dict[str, str], int | None]:
        """What its child is given: an account, what this start adds to the environment, its log's pipe. And a control group."""
        row = process.row
        account = self.life.tables.account(row)
        if not account.mapped:
            _log.info(f"{row.name}: no user {row.user} in this user namespace; runs as root without capabilities")
        extra = self._ways_to_speak(process)
        log = None
        if row.log != "none" and self.logs_are_read:
            log = self.pipes.write_end(row.name, self.log_policy(row), process.since)
            if account.mapped:
                os.fchown(log, account.uid, account.gid)  # so that it may open its own /dev/stderr
        process.cgroup = self.cgroups.prepare(row)
        return account, extra, log

    def _ways_to_speak(self, process: Process) -> dict[str, str]:
        """What it needs to say that it is ready and alive, as environment variables."""
        row = process.row
        extra: dict[str, str] = {}
        if row.ready == "notify" or row.watchdog:
            try:
                extra["NOTIFY_SOCKET"] = self.notify.prepare(process, self._notified)
            except OSError as error:  # a /run that cannot be written must not keep the rescue prompt from starting
                _log.warning(f"{row.name}: no notify socket, {error}")
        if row.watchdog:
            extra["WATCHDOG_USEC"] = str(int(row.watchdog * 1e6))
        return extra

    def _notified(self, process: Process, said: Notification, now: float) -> None:
        row = process.row
        account = self.life.tables.account(row)
        own_user = said.uid == 0 or (account.mapped and said.uid == account.uid)
        if not own_user and not self.relatives.knows(process, said.pid):  # it may have given up its user by now
            _log.warning(f"{row.name}: a message of pid {said.pid}, uid {said.uid}, which is none of its own; ignored")
            return
        if main := said.words.get("MAINPID", ""):
            self.relatives.adopt(process, main, account, self._main_died)
        if "FDSTORE" in said.words and row.name not in self._refused:
            self._refused.add(row.name)
            _log.info(f"{row.name}: asks PID 1 to keep descriptors (FDSTORE=1), which it does for nobody; they are closed")
        process.notified(said.words, now)

    def _main_died(self, process: Process, pid: int, now: float) -> None:
        """A main process that has been named, and need not be our child. If it is, its status comes with the others' in this
        turn; another one's goes to its parent."""
        if parent_of(pid) != os.getpid() and process.pid == pid:
            process.exited(UNKNOWN, now, OSError(ECHILD, "ended, and only its parent knows how"))
        if process.pid == pid:
            self.relatives.close_pidfd(pid)
        else:
            self.relatives.reaped(pid)

    def signal(self, process: Process, number: int) -> bool:
        return self.relatives.signal_main(process, number)

    def kill(self, process: Process, number: int) -> None:
        self.relatives.kill(process, number)

    def lingers(self, process: Process) -> bool:
        return self.relatives.linger(process)

    def entered(self, process: Process, before: str) -> None:
        super().entered(process, before)
        if before != process.state:
            why = (process.last_exit or "") if process.state == State.BACKOFF else ""
            self.life.timeline.note(process.since, process.row.name, before, process.state, why)
        if process.state != State.STARTING:
            self.paths.cancel(process)
        if self.forks:
            self.forks.entered(process)

    def failed(self, process: Process, now: float) -> None:
        row = process.row
        data = {"name": row.name, "exit": process.last_exit, "ran": round(process.ran, 3), "restart": process.restarts}
        self.life.tell("crash", data, now)

    def died(self, process: Process, status: int) -> tuple[OSError | None, str]:
        """A main process has been reaped: why it never came to its exec, and what is known about its death besides."""
        failed = os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXEC_FAILED and process.pid is not None
        failure = self.spawner.failure(process.pid) if failed and process.pid else None
        if process.row.logger:
            self.pipes.disconnect()
        killed = status == signal.SIGKILL and not process.asked
        return failure, self.cgroups.cause(process.row) if killed else ""

    def log_policy(self, row: Service) -> str:
        """Where its log goes now: in some of the board's modes nothing is written to the disk."""
        return "memory" if row.log == "disk" and self.logs_in_memory else row.log

    def keep_logs_in_memory(self, yes: bool, rows: Iterable[Service], now: float) -> None:
        """A mode has changed: from now on the logs of these services go to the disk, or no more."""
        self.logs_in_memory = yes
        for row in rows:
            if row.log == "disk" and self.logs_are_read:
                self.pipes.write_end(row.name, self.log_policy(row), now)

    def adjust(self, old: Service, row: Service, now: float) -> bool:
        """Whether a row that differs in columns of changes.py's LIMITS and OURS is in force without a restart."""
        if old.log != row.log and self.logs_are_read:
            self.pipes.write_end(row.name, self.log_policy(row), now)
        return self.cgroups.adjust(row)

    def forget(self, name: str) -> None:
        """A service that has gone."""
        self.relatives.forget(name)
        self.cgroups.forget(name)
        self.notify.forget(name)
        self.pipes.forget(name)
