"""A profile is somebody's program: it runs in a process of its own, and what it has made comes back as plain data.

Whatever it does, PID 1 waits no longer than it was told to. Where the kernel has PID namespaces the profile is process 1 of
its own: it reaches no other process, the kernel ignores what it sends to itself, and all that it has started ends with it
(`man 7 pid_namespaces`).
"""

from __future__ import annotations

import os
import select
import sys
import time

from base.stdlib import TYPE_CHECKING, json, signal
from base.syscalls import PR_SET_PDEATHSIG, libc, prctl
from tables.plain import pack, plain, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import SourceFileLoader
    from typing import Any
else:
    from _frozen_importlib_external import SourceFileLoader  # importlib.machinery, without the rest of importlib

LARGEST = 1024 * 1024  # bytes of all that a profile makes, as JSON
MEMORY = 512 * 1024 * 1024  # bytes of address space, of which a copy of PID 1 has some 50 MiB
GRACE = 0.1  # seconds to wait for a child that has sent nothing, so that the message can say how it ended
PAUSE = 0.2  # seconds between two calls of `meanwhile`
REAP = 0.5  # seconds for a killed process to end; one that the kernel holds is left to PID 1's reaper
_exit = os._exit  # a profile may put something else in its place
CLONE_NEWPID = 0x20000000  # linux/sched.h


class Fault(Exception):
    """Why a profile has made nothing; the text is a sentence for people."""


def evaluate(
    path: str, names: dict[str, Any], seconds: float, meanwhile: Callable[[], object], notes: list[str] | None = None
) -> dict[str, Any]:
    """The settings that a file makes on top of `names`; Fault where it fails or takes more than `seconds`.

    `meanwhile` is called a few times a second: PID 1 has a watchdog to feed. `notes` takes what was left out of its rows.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # as in pid1/spawn.py: no handler of ours there
    try:
        pid = os.fork()
        if pid == 0:
            _child(path, names, writer)
    except OSError as error:
        os.close(reader)
        raise Fault(f"no process could be made to read it: {error.strerror}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
    answer: bytes | None = None
    try:
        answer = _receive(reader, time.monotonic() + seconds, meanwhile)
    finally:
        os.close(reader)
        status = _end(pid, GRACE if answer == b"" else 0.0)
    if answer is None:
        raise Fault(f"took more than {seconds:g} s")
    return _settings(answer, status, notes)


def _receive(reader: int, deadline: float, meanwhile: Callable[[], object]) -> bytes | None:
    """All that comes up to the line's end or the pipe's; None where neither comes in time."""
    os.set_blocking(reader, False)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    answer = b""
    while (left := deadline - time.monotonic()) > 0:
        if not poll.poll(min(left, PAUSE) * 1000):
            meanwhile()
            continue
        block = os.read(reader, 65536)
        answer += block
        if not block or block.endswith(b"\n") or len(answer) > 2 * LARGEST:
            return answer
    return None


def _end(pid: int, grace: float) -> int | None:
    """Take the child's status, and kill it and its group if it does not end within `grace`; None where not even that helps."""
    status = _wait(pid, grace)
    for kill in (os.killpg, os.kill) if status is None else ():
        try:
            kill(pid, signal.SIGKILL)
        except OSError:  # it has no group yet
            pass
    return _wait(pid, REAP) if status is None else status


def _wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        died, status = os.waitpid(pid, os.WNOHANG)
        if died or time.monotonic() >= until:
            return status if died else None
        time.sleep(0.0005)


def _settings(answer: bytes, status: int | None, notes: list[str] | None) -> dict[str, Any]:
    try:
        facts = json.loads(answer)
        if "fault" in facts:
            raise Fault(str(facts["fault"]))
        if notes is not None:
            notes += [str(note) for note in facts["notes"]]
        return {str(name): unpack(value) for name, value in facts["settings"].items()}
    except Fault:
        raise
    except Exception:
        code = 0 if status is None else os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        raise Fault(f"it ends the process that reads it ({how})") from None


# --- in the child -----------------------------------------------------------------------------------------------------
def _child(path: str, names: dict[str, Any], writer: int) -> None:
    """Run the profile and send what it made. Never returns into the code of the process that forked."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for one in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(one, signal.SIG_IGN if one == signal.SIGPIPE else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        writer = _alone(writer)
        _limit_memory()
        notes: list[str] = []
        answer = json.dumps({"settings": _run(path, names, notes), "notes": notes})
        if len(answer) > LARGEST:
            answer = json.dumps({"fault": f"it makes more than {LARGEST} bytes of settings"})
    except BaseException as error:
        answer = json.dumps({"fault": _words(error)})
    try:
        data = answer.encode() + b"\n"
        while data:
            data = data[os.write(writer, data) :]
    finally:
        _exit(0)


def _alone(writer: int) -> int:
    """Without PID 1's descriptors, and in a PID namespace where there are any: there the number 1 is the profile's own.

    A process is in its namespace from its birth: the first child waits, and its child goes on.
    """
    os.dup2(writer, 3, inheritable=False)
    os.closerange(4, min(os.sysconf("SC_OPEN_MAX"), 65536))
    if libc.unshare(CLONE_NEWPID) == 0:
        pid = os.fork()
        if pid:
            os.close(3)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code < 0:
                os.kill(os.getpid(), -code)
            _exit(code % 256)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()  # kill(0, SIGKILL) of a profile shall not reach the process that waits for it
    return 3


def _limit_memory() -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _run(path: str, names: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The settings that differ after running a file on top of `names`. Its byte code is used where it is up to date."""
    from tables import newer

    newer.forgive(notes)
    code = SourceFileLoader("profile", path).get_code("profile")
    if code and "rows" in code.co_names:  # files of owners from before there were folders import it so
        sys.modules["rows"] = sys.modules["tables.rows"]
    if code and "settings_debian" in code.co_names:
        import profiles.debian

        sys.modules["settings_debian"] = profiles.debian
    known: Any = __builtins__
    known = known if type(known) is dict else vars(known)
    made = {"app": newer.forgiving(names["app"], notes)} if "app" in names else {}
    there = newer.Names({**names, **made, "__name__": "profile", "__file__": path, "__builtins__": __builtins__}, known)
    exec(code or "", there)
    return {
        name: pack(plain(value))
        for name, value in there.items()
        if type(name) is str and name.isupper() and not name.startswith("_") and value is not names.get(name, there)
    }


def _words(error: BaseException) -> str:
    """An exception as one line: where in the profile, which, and what it says of itself."""
    try:
        where = f"line {error.lineno}: " if isinstance(error, SyntaxError) else line_of(error, "profile")
        return f"{where}{type(error).__name__}: {error}"[:500]
    except BaseException:  # a class of its own, whose text is its own code
        return "it raises an exception that cannot be shown"


def line_of(error: BaseException, module: str) -> str:
    """The line of this module that an exception has passed last: "line 3: "."""
    trace, line = error.__traceback__, ""
    while trace:
        if trace.tb_frame.f_globals.get("__name__") == module:
            line = f"line {trace.tb_lineno}: "
        trace = trace.tb_next
    return line
