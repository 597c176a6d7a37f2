"""How a child of PID 1 starts: clean signals, its own session, and only what its row gives it.

Every process on the board passes through `Spawner.spawn`. A plain row goes through posix_spawn(3), which shares the
parent's memory until exec and costs half of a fork; a row that asks for a user, limits or a terminal is forked, and so is
whatever has a control group.
"""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, EPERM

import _log
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import EXEC_FAILED as EXEC_FAILED
from base.syscalls import limit_descriptors
from tables.accounts import Account
from tables.rows import Service

if TYPE_CHECKING:
    from typing import Any

    from pid1.child import Descriptors

MARK = "STACK_SERVICE"  # in the environment of all that a service starts: how its double-forked relatives are known


def find(program: str, path: str, cwd: str = "/") -> str:
    """The file that execvp(3) would run from this folder; FileNotFoundError or PermissionError where there is none."""
    folders = [""] if "/" in program else path.split(":")
    candidates = [os.path.join(cwd, folder, program) for folder in folders]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    if any(os.path.exists(candidate) for candidate in candidates):
        raise PermissionError(EACCES, "not an executable file", program)
    raise FileNotFoundError(ENOENT, "no such program", program)


class Spawner:
    """Starts children; remembers why those failed that died before exec."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.own: dict[str, dict[str, str]] = {}  # by service: its environment, where it is not that of all
        self.failures: dict[int, OSError] = {}
        self.descriptors = limit_descriptors()  # of children: the limits that PID 1 was started with
        # Children inherit what is ignored (Python itself ignores SIGPIPE and SIGXFSZ); handlers end with exec.
        self.ignored = [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
        self.valid = signal.valid_signals()
        # One pipe for all: a child that fails before exec writes one record, shorter than PIPE_BUF and so in one piece.
        self.reports, self.report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # posix_spawn(3) takes no descriptor from beyond the limit that the child shall have: what becomes 0 to 3 passes through
        # these low numbers. The first is /dev/null, once there is a /dev.
        self._low = [os.dup(self.report) for _ in range(4)]
        self._null = False

    def spawn(
        self, row: Service, account: Account, extra: dict[str, str], log: int | None = None, channel: int | None = None,
        cgroup: str = "",
    ) -> int:  # fmt: skip
        """Start a row's program and return its pid; OSError where it is already clear that it cannot start.

        `extra` are environment variables, `log` is the descriptor for stdout and stderr (None: /dev/null), `channel` one
        that the program gets as descriptor 3, `cgroup` the folder of its control group.
        """
        environment = self.environment_of(row, account) | extra
        program = row.argv[0] if row.module else find(row.argv[0], environment.get("PATH", os.defpath), row.cwd)
        descriptors = (log, log, channel)
        if is_plain(row) and not cgroup:
            try:
                return self._posix_spawn(program, row, environment, descriptors)
            except NotImplementedError:  # this libc's posix_spawn has no POSIX_SPAWN_SETSID
                pass
        return self._fork(program, row, account, environment, descriptors, cgroup)

    def _posix_spawn(self, program: str, row: Service, environment: dict[str, str], descriptors: Descriptors) -> int:
        if not self._null:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, self._low[0], inheritable=False)
            os.close(null)
            self._null = True
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, self._low[0], 0)]
        for target, source in enumerate(descriptors, 1):
            if source is not None:
                os.dup2(source, self._low[target], inheritable=False)
                actions.append((os.POSIX_SPAWN_DUP2, self._low[target], target))
            elif target < 3:
                actions.append((os.POSIX_SPAWN_DUP2, 0, target))
        ours = limit_descriptors(self.descriptors)  # posix_spawn(3) has no attribute for it: the child inherits it
        try:
            return os.posix_spawn(
                program, row.argv, environment, file_actions=actions, setsid=True, setsigmask=(), setsigdef=self.ignored
            )
        finally:
            limit_descriptors(ours)
            for target, source in enumerate(descriptors, 1):
                if source is not None:  # nothing of it stays here: its reader shall see its end
                    os.dup2(self._low[0], self._low[target], inheritable=False)

    def _fork(
        self, program: str, row: Service, account: Account, environment: dict[str, str], descriptors: Descriptors, cgroup: str
    ) -> int:
        from pid1.child import Child

        child = Child(self.report, self.descriptors)
        # Until its exec the child runs our handlers, which would write into PID 1's wake-up pipe: a TERM meant for the
        # child would reboot the board. So no signal is delivered between fork and the child's reset.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.valid)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    child.leave(row)
                    first = 3 if descriptors[2] is None else 4
                    child.run(row, account, descriptors, cgroup, lambda: _be(program, row, environment, first))
                finally:
                    os._exit(EXEC_FAILED)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def environment_of(self, row: Service, account: Account) -> dict[str, str]:
        """The environment of a row's program, without what this one start adds to it."""
        of_all = self.own.get(row.name, self.environment)
        return of_all | of_user(row, account) | dict(row.env) | {MARK: row.name}

    def hear(self, now: float = 0.0) -> None:
        """Children have reported something: why they failed, for `failure`, or what PID 1 shall warn of."""
        try:
            while block := os.read(self.reports, 65536):
                for line in block.decode(errors="replace").splitlines():
                    died, _, reason = line.partition(" ")
                    number, _, text = reason.partition(" ")
                    if number in (f"-{EPERM}", f"-{EACCES}"):  # as in all namespaces of a user
                        _log.info(text)
                    elif number[:1] == "-":
                        _log.warning(text)
                    elif died.isdigit() and number.isdigit():
                        self.failures[int(died)] = OSError(int(number), text)
        except BlockingIOError:
            pass

    def failure(self, pid: int) -> OSError | None:
        """Why `pid` died before exec, or None if it did not."""
        self.hear()
        return self.failures.pop(pid, None)


def of_user(row: Service, account: Account) -> dict[str, str]:
    """What the environment says of a row's user, as login(1) has it; a row without one has what settings.ENVIRONMENT says."""
    if not row.user:
        return {}
    return {"HOME": account.home, "USER": row.user, "LOGNAME": row.user, "SHELL": account.shell}


def is_plain(row: Service) -> bool:
    """Whether posix_spawn(3) can give this row all that it asks for."""
    asks = (row.module, row.user, row.groups, row.rlimits, row.tty, row.nice, row.oom_score, row.no_new_privs)
    return not any(asks) and row.capabilities is None and row.umask == 0o022 and row.cwd == "/"


def _be(program: str, row: Service, environment: dict[str, str], first: int) -> None:
    """The child becomes its program, or its module."""
    if row.module:
        from pid1.child import run_module

        run_module(row, environment, first)
    os.execve(program, row.argv, environment)
