"""How a child of PID 1 starts: clean signals, its own session, and only what its row gives it.

Every process on the board passes through `Spawner.spawn`. A plain row goes through posix_spawn(3), which shares the
parent's memory until exec and costs half of a fork; a row that asks for a user, limits or a terminal is forked, and so is
whatever has a control group.
"""

from __future__ import annotations

import gc
import os
import sys
from errno import EACCES, EINVAL, ENOENT, EPERM
from fcntl import ioctl

import _log
from base.native import close_from
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import (
    CAPABILITIES,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    TIOCSCTTY,
    capset,
    limit_descriptors,
    prctl,
)
from base.terminal import make_sane
from tables.accounts import Account
from tables.rows import Service

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Descriptors = tuple[int | None, int | None, int | None]  # what becomes 1, 2 and 3; None: /dev/null, and no 3

MARK = "STACK_SERVICE"  # in the environment of all that a service starts: how its double-forked relatives are known

EXEC_FAILED = 126  # exit status of a child that never came to its exec, as shells have it


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
        self.reports, self._report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # posix_spawn(3) takes no descriptor from beyond the limit that the child shall have: what becomes 0 to 3 passes through
        # these low numbers. The first is /dev/null, once there is a /dev.
        self._low = [os.dup(self._report) for _ in range(4)]
        self._null = False

    def spawn(
        self, row: Service, account: Account, extra: dict[str, str], log: int | None = None, channel: int | None = None,
        cgroup: str = "",
    ) -> int:  # fmt: skip
        """Start a row's program and return its pid; OSError where it is already clear that it cannot start.

        `extra` are environment variables, `log` is the descriptor for stdout and stderr (None: /dev/null), `channel` one
        that the program gets as descriptor 3, `cgroup` the folder of its control group.
        """
        of_all = self.own.get(row.name, self.environment)
        environment = of_all | of_user(row, account) | dict(row.env) | {MARK: row.name} | extra
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
        # Until its exec the child runs our handlers, which would write into PID 1's wake-up pipe: a TERM meant for the
        # child would reboot the board. So no signal is delivered between fork and the child's reset.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.valid)
        try:
            pid = os.fork()
            if pid == 0:
                self._child(program, row, account, environment, descriptors, cgroup)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def _child(
        self, program: str, row: Service, account: Account, environment: dict[str, str], descriptors: Descriptors, cgroup: str
    ) -> None:
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for one in self.valid - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(one, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            _open_stdio(row.tty, account.uid if account.mapped else 0, descriptors)
            if cgroup:  # by itself, before it forks: nothing escapes, and PID 1 does not wait while the kernel moves it
                self._try(row, lambda: _write(f"{cgroup}/cgroup.procs", "0"), "its control group and its limits")
            self._limits(row)
            if row.module:
                self._try(row, lambda: _write("/proc/self/comm", row.name), "its name")
            _become(row, account)
            os.chdir(row.cwd)
            if row.module:
                _run_module(row, environment, 3 if descriptors[2] is None else 4)
            os.execve(program, row.argv, environment)
        except BaseException as error:  # this is the child: whatever it is, it must not return into PID 1's code
            try:
                number = error.errno if isinstance(error, OSError) and error.errno else EINVAL
                where = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
                words = f"{error.strerror}{where}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                self._report_to_pid_1(str(number), words)
            finally:
                os._exit(EXEC_FAILED)

    def _limits(self, row: Service) -> None:
        os.umask(row.umask)
        if row.nice:
            self._try(row, lambda: os.setpriority(os.PRIO_PROCESS, 0, row.nice), f"nice {row.nice}")
        if row.oom_score:
            self._try(row, lambda: _write("/proc/self/oom_score_adj", str(row.oom_score)), f"oom_score_adj {row.oom_score}")
        limit_descriptors(self.descriptors)  # PID 1's own is higher
        if row.rlimits:
            import resource

            for name, value in row.rlimits:
                resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))

    def _try(self, row: Service, step: Callable[[], object], what: str) -> None:
        """Tuning that the kernel may refuse (in a user namespace, say) is no reason not to start; PID 1's log says so."""
        try:
            step()
        except OSError as error:
            self._report_to_pid_1(f"-{error.errno}", f"{row.name}: starts without {what}, {error.strerror}")

    def _report_to_pid_1(self, number: str, text: str) -> None:
        """The child: why it cannot start, or, with a negative number, what it starts without."""
        os.write(self._report, f"{os.getpid()} {number} {text}".replace("\n", " ").encode("utf-8", "replace")[:500] + b"\n")

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


def _run_module(row: Service, environment: dict[str, str], first: int) -> None:
    """Be this module instead of a program, with descriptors below `first` alone. Never returns into PID 1's code."""
    status = 1
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it: a reader that is gone is an OSError
        close_from(first)  # what an exec would close
        gc.freeze()  # the collector would write to the pages that we share
        gc.enable()
        os.environ.clear()
        os.environ.update(environment)
        __import__(row.module)
        sys.modules[row.module].main(list(row.argv[1:]))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        os.write(2, f"<3>{type(error).__name__}: {error}\n".encode())
    finally:
        if sys.stdout:
            sys.stdout.flush()
        os._exit(status)


def _open_stdio(tty: str, uid: int, descriptors: Descriptors) -> None:
    """Descriptor 0 from /dev/null and the given ones as 1, 2 and 3, or all of 0, 1 and 2 from a terminal of its own."""
    fd = os.open(tty or "/dev/null", os.O_RDWR)
    if tty:
        try:  # it is this user's now, who may open its own /dev/stdout and /dev/tty; nobody else's any more
            os.fchown(fd, uid, -1)
            os.fchmod(fd, 0o600)
        except OSError:  # of another user namespace
            pass
        ioctl(fd, TIOCSCTTY, 0)  # /dev/console never becomes controlling just by being opened
        make_sane(fd)
        descriptors = (fd, fd, descriptors[2])
    os.dup2(fd, 0)
    for target, source in enumerate(descriptors, 1):
        if source is not None or target < 3:
            os.dup2(source or 0, target)


def _become(row: Service, account: Account) -> None:
    """Drop to the row's user, groups and capabilities; each step must come before the right to do it is gone."""
    wanted = None if row.capabilities is None else [CAPABILITIES.index(name) for name in row.capabilities]
    if not account.mapped and wanted is None:
        wanted = []  # this namespace does not have this user, but root's capabilities can still be dropped
    other = account.mapped and (account.uid != 0 or bool(account.groups))
    if other:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
    if wanted is not None:
        wanted = [number for number in wanted if prctl(PR_CAPBSET_READ, number)]
        for number in range(len(CAPABILITIES)):
            if number not in wanted:
                _drop_from_bounding_set(number)
        prctl(PR_SET_KEEPCAPS, 1)
    if other:
        os.setresuid(account.uid, account.uid, account.uid)
    if wanted is not None:
        mask = sum(1 << number for number in wanted)
        capset(mask, mask, mask)
        for number in wanted:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
    if row.no_new_privs:
        prctl(PR_SET_NO_NEW_PRIVS, 1)


def _drop_from_bounding_set(number: int) -> None:
    try:
        prctl(PR_CAPBSET_DROP, number)
    except OSError as error:
        if error.errno != EINVAL:  # a capability that this kernel does not know yet
            raise


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)
