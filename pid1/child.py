"""What a child does between its fork and the program that it becomes: all that its row says of a process is set here.

PID 1's own forks come through here (pid1/spawn.py), and those that a zygote makes for it (pid1/zygote.py). PID 1 loads it
with the first child that it forks.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from errno import EINVAL
from fcntl import ioctl

from base.native import close_from
from base.stdlib import TYPE_CHECKING, signal
from base.syscalls import (
    CAPABILITIES,
    EXEC_FAILED,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    TIOCSCTTY,
    capset,
    limit_descriptors,
    prctl,
)
from base.terminal import make_sane

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from tables.accounts import Account
    from tables.rows import Service

    Descriptors = tuple[int | None, int | None, int | None]  # what becomes 1, 2 and 3; None: /dev/null, and no 3

# Between PID 1 and a zygote: where its socket is (root's alone), and the words on the gate of a child.
ZYGOTES = "/run/stack/zygote"
HERE, GO = b"here", b"go"  # what a child says to PID 1, and what PID 1 answers
NO, NEVER = b"no ", b"never "  # why there is no child: this time; of this zygote


class Child:
    """A process between its fork and its program."""

    def __init__(self, report: int, limits: tuple[int, int]) -> None:
        self._report = report  # the pipe for what PID 1 shall know: why it cannot start, or what it starts without
        self._limits = limits  # of its descriptors: soft and hard

    def leave(self, row: Service) -> None:
        """A session of its own, and signals as a program expects them: none blocked, none handled."""
        os.setsid()
        if row.module or row.forked_by:  # nobody executes a program, whose name this would be
            self._try(row, lambda: _write("/proc/self/comm", row.name), "its name")
        signal.set_wakeup_fd(-1)
        for one in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(one, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def run(
        self, row: Service, account: Account, descriptors: Descriptors, cgroup: str, program: Callable[[], object],
    ) -> NoReturn:  # fmt: skip
        """Become what the row says, then `program()`, which does not return. Whatever fails, PID 1 reads why."""
        try:
            _open_stdio(row.tty, account.uid if account.mapped else 0, descriptors)
            if cgroup:  # by itself, before it forks: nothing escapes, and PID 1 does not wait while the kernel moves it
                self._try(row, lambda: _write(f"{cgroup}/cgroup.procs", "0"), "its control group and its limits")
            self._set_limits(row)
            _become(row, account)
            os.chdir(row.cwd)
            program()
        except BaseException as error:  # this is the child: whatever it is, it must not return into its parent's code
            number = error.errno if isinstance(error, OSError) and error.errno else EINVAL
            where = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
            words = f"{error.strerror}{where}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self._tell_pid_1(str(number), words)
        finally:
            os._exit(EXEC_FAILED)

    def _set_limits(self, row: Service) -> None:
        os.umask(row.umask)
        if row.nice:
            self._try(row, lambda: os.setpriority(os.PRIO_PROCESS, 0, row.nice), f"nice {row.nice}")
        if row.oom_score:
            self._try(row, lambda: _write("/proc/self/oom_score_adj", str(row.oom_score)), f"oom_score_adj {row.oom_score}")
        limit_descriptors(self._limits)  # PID 1's own is higher
        if row.rlimits:
            import resource

            for name, value in row.rlimits:
                resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))

    def _try(self, row: Service, step: Callable[[], object], what: str) -> None:
        """Tuning that the kernel may refuse (in a user namespace, say) is no reason not to start; PID 1's log says so."""
        try:
            step()
        except OSError as error:
            self._tell_pid_1(f"-{error.errno}", f"{row.name}: starts without {what}, {error.strerror}")

    def _tell_pid_1(self, number: str, text: str) -> None:
        """Why it cannot start, or, with a negative number, what it starts without."""
        os.write(self._report, f"{os.getpid()} {number} {text}".replace("\n", " ").encode("utf-8", "replace")[:500] + b"\n")


def run_module(row: Service, environment: dict[str, str], first: int) -> None:
    """Be this module instead of a program, with descriptors below `first` alone."""

    def main() -> None:
        __import__(row.module)
        sys.modules[row.module].main(list(row.argv[1:]))

    _run(main, environment, first, lambda error: os.write(2, f"<3>{type(error).__name__}: {error}\n".encode()))


def run_script(row: Service, environment: dict[str, str], first: int) -> None:
    """Be the script that `argv` names, as `python -P SCRIPT ARGUMENTS` runs it, with descriptors below `first` alone.

    Its file is read now, so that a new version of it counts; its .pyc saves the time to compile it, where there is one.
    """
    from importlib.machinery import SourceFileLoader

    at = script_at(row.argv)
    module: Any = type(sys)("__main__")

    def main() -> None:
        prctl(PR_SET_DUMPABLE, 1)  # as after an exec: its own /proc/self is its own
        prctl(PR_SET_KEEPCAPS, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv, sys.orig_argv = list(row.argv[at:]), list(row.argv)
        module.__file__, module.__builtins__ = row.argv[at], __builtins__
        module.__loader__ = loader = SourceFileLoader("__main__", row.argv[at])
        sys.modules["__main__"] = module
        try:
            code = loader.get_code("__main__")
        except OSError as error:  # in Python's own words, and with its status
            os.write(2, f"{row.argv[0]}: can't open file {error.filename!r}: [Errno {error.errno}] {error.strerror}\n".encode())
            sys.exit(2)
        if code:
            exec(code, module.__dict__)

    def failed(error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        trace = error.__traceback__
        while trace and trace.tb_frame.f_globals is not module.__dict__:  # what stands above the app's own file is ours
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)

    _run(main, environment, first, failed)


def script_at(argv: tuple[str, ...]) -> int:
    """Where in `argv` the script's path is, if this is `python -P SCRIPT ARGUMENTS`; otherwise 0."""
    return 2 if len(argv) > 2 and argv[1] == "-P" and argv[2].endswith(".py") else 0


def _run(main: Callable[[], None], environment: dict[str, str], first: int, failed: Callable[[BaseException], object]) -> None:
    """Call `main` in this environment and exit, as an interpreter of its own would."""
    status = 1
    try:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as Python has it: a reader that is gone is an OSError
            signal.signal(number, signal.SIG_IGN)
        close_from(first)  # what an exec would close
        gc.freeze()  # the collector would write to the pages that we share
        gc.enable()
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        main()
        status = 0
    except SystemExit as end:
        status = _status_of(end.code)
    except BaseException as error:
        failed(error)
    finally:
        try:
            _finish()
        finally:
            os._exit(status)


def _status_of(code: object) -> int:
    """The exit status for what sys.exit() was given; text goes to stderr (Doc/library/sys.rst)."""
    if code is None or isinstance(code, int):
        return (code or 0) & 255
    os.write(2, f"{code}\n".encode("utf-8", "backslashreplace"))
    return 1


def _finish() -> None:
    """What an interpreter does at its end: it waits for threads, calls what atexit(3) was given, and flushes."""
    if threading := sys.modules.get("threading"):
        threading._shutdown()
    if atexit := sys.modules.get("atexit"):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except OSError:
            pass


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
