"""The program that runs new code as PID 1, on trial, and executes the old code again if that fails.

It is of the old version, from the old bundle, and uses nothing of either: no module of ours stays loaded when the new code
comes. PID 1 executes it by pid1/upgrade.py's CODE. It is also the child that checks the new code first. What both versions have
to agree on is little: a bundle's format (base/bundle.py), `stack.succeed` with the names in `handed`, and a
state that both can read (pid1/handover.py).

New code that raises ends up in `on_trial`. New code that hangs, or makes the processor fault, is interrupted by a signal whose
handler is a C function of ctypes: it runs at once, within a loop of C code too, and calls execve(2). It does not run while the
kernel holds the process in an uninterruptible wait, nor on a stack that has overflowed: then the hardware's watchdog resets
the board, for only a loop that goes round feeds it.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
from _frozen_importlib_external import MAGIC_NUMBER

TYPE_CHECKING = False  # base/stdlib.py would stay loaded, and the new code has its own
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any, NoReturn
else:
    import _signal as signal

FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
HEARD = (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # they wait meanwhile


def main(words: list[str]) -> None:
    """`words`: the bundle's descriptor, where this file's code stands in it, and KEY=VALUE of what is to be done."""
    gc.disable()
    inherited = open_descriptors()
    told = dict(word.split("=", 1) for word in words[3:])
    if told["mode"] == "check":
        from_check(words, told)
    open("/proc/self/comm", "w").write("stack.py")
    rest = on_trial(words, told, inherited) if told["mode"] == "try" else start(int(words[0]), told, inherited)
    sys.exit(rest())


def execute(code: str, words: list[str], told: dict[str, str]) -> None:
    """Become another PID 1: what is open stays so, what comes is blocked until that one listens. OSError where it fails."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    for fd in open_descriptors():
        os.set_inheritable(fd, True)
    line = [sys.executable, "-ESBP", "-c", code, *words[:3], *(f"{name}={value}" for name, value in told.items())]
    os.execve(line[0], line, os.environ)


def open_descriptors() -> list[int]:
    """All but 0 to 2, and the one that has listed them."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            os.get_inheritable(fd)
        except OSError:
            continue
        found.append(fd)
    return [fd for fd in found if fd > 2]


# --- code from a bundle -------------------------------------------------------------------------------------------------
def finder(fd: int) -> Any:
    """What imports modules from an open bundle, whatever has become of their sources."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    if data[:4] != MAGIC_NUMBER:
        raise ImportError("the bundle is of another version of Python")
    code, rows = marshal.loads(data[4:])
    names = {"__name__": "bundle"}
    exec(marshal.loads(code), names)
    found: Any = names["Finder"](rows, 0, fd, trusted=True)  # type: ignore[operator]
    found.held = tuple(open_descriptors())
    return found


def start(fd: int, told: dict[str, str], inherited: list[int]) -> Callable[[], int]:
    """Load this bundle's stack.py and give it what was handed over."""
    modules = finder(fd)
    sys.meta_path.insert(0, modules)
    sys.path.insert(0, told["lib"])
    modules.load()
    succeed: Callable[[dict[str, Any]], Callable[[], int]] = __import__("stack").succeed
    return succeed({**told, "bundle": fd, "inherited": inherited})


def c_handler(on_signal: Callable[[int], None]) -> tuple[Any, Any]:
    """signal(3) of the C library, and a C function that calls this one: Python's own handlers wait until the code that is
    interrupted gives way. By the module underneath ctypes, as base/native.py does, which would stay loaded."""
    from _ctypes import FUNCFLAG_CDECL, CFuncPtr, _SimpleCData, dlopen

    class _Int(_SimpleCData):  # type: ignore[type-arg]
        _type_ = "i"

    class _Handler(CFuncPtr):
        _flags_, _argtypes_, _restype_ = FUNCFLAG_CDECL, (_Int,), None

    class _Function(CFuncPtr):
        _flags_, _restype_ = FUNCFLAG_CDECL, _Int

    class _Library:
        _handle = dlopen(None, 0)  # type: ignore[arg-type]

    return _Function(("signal", _Library)), _Handler(on_signal)  # type: ignore[arg-type]


# --- on trial -----------------------------------------------------------------------------------------------------------
def on_trial(words: list[str], told: dict[str, str], inherited: list[int]) -> Callable[[], int]:
    """Start the new code; the old one again if it fails, else what is left to do when it has proven itself."""

    def back(why: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        execute(sys.orig_argv[3], words, {**told, "mode": "back", "lib": told["old"], "why": why[:500]})

    def on_signal(number: int) -> None:
        try:
            seconds = float(told["seconds"])
            back(f"not healthy within {seconds:g} s" if number == signal.SIGALRM else f"it died of signal {number}")
        finally:  # execve(2) has failed
            set_handler(number, None)

    set_handler, handler = c_handler(on_signal)
    real_exit = os._exit

    def exit_of_a_child(status: int) -> NoReturn:
        if os.getpid() == 1:
            back(f"it called os._exit({status})")
        real_exit(status)

    os._exit = exit_of_a_child
    for number in (signal.SIGALRM, *FAULTS):
        set_handler(number, handler)
    try:
        rest = start(int(told["new"]), told, inherited)
    except BaseException as error:
        back(said(error))
        raise
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGALRM, *FAULTS):
        set_handler(number, None)
    os._exit = real_exit
    return rest


def said(error: BaseException) -> str:
    """An exception and where it comes from."""
    step, where = error.__traceback__, ""
    while step:
        where = f"{step.tb_frame.f_code.co_filename.rpartition('/')[2]}:{step.tb_lineno}"
        step = step.tb_next
    return f"{type(error).__name__}: {error} ({where})"


# --- the check ----------------------------------------------------------------------------------------------------------
def from_check(words: list[str], told: dict[str, str]) -> NoReturn:
    """Print what speaks against the new code, or what it can do, as JSON; in a process that only does this."""
    import json

    try:
        fd = new_bundle(int(words[0]), told)
        sys.meta_path.insert(0, finder(fd))
        sys.path.insert(0, told["lib"])
        answer = __import__("stack").succeed({**told, "bundle": fd})
    except BaseException as error:
        answer = {"error": said(error)}
    os.write(1, b"\n" + json.dumps(answer).encode() + b"\n")
    os._exit(0)


def new_bundle(own: int, told: dict[str, str]) -> int:
    """The new code's bundle: its file, if that is up to date; otherwise one of its sources, in the memfd `out`."""
    out, lib = int(told["out"]), told["lib"]
    if patched := told.get("module"):
        os.write(out, with_patch(own, patched, told["source"]))
        return out
    new = int(told["new"])
    if new >= 0 and is_fresh(new, lib):
        return new
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            with open(f"{lib}/base/bundle.py", encoding="utf-8") as file:
                names: dict[str, Any] = {"__name__": "bundle"}
                exec(compile(file.read(), f"{lib}/base/bundle.py", "exec"), names)
            os.write(out, names["build"](lib, lib))
        except BaseException as error:
            os.write(writer, f"{said(error)}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    if why := os.read(reader, 1000).decode().strip():
        raise ImportError(f"it cannot be compiled: {why}")
    return out


def is_fresh(fd: int, lib: str) -> bool:
    """Whether this bundle was made of the sources that are in `lib` now."""
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        _, rows = marshal.loads(data[4:])
        was = os.path.dirname(rows["stack"][0])
        made = int(os.fstat(fd).st_mtime)
        for source, _, seconds, size, _ in rows.values():
            status = os.stat(lib + source[len(was) :])
            if status.st_size != size or int(status.st_mtime) not in (seconds, made):
                return False
        return data[:4] == MAGIC_NUMBER
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return False


def with_patch(own: int, module: str, source: str) -> bytes:
    """The running PID 1's bundle with another source in the place of one module."""
    data = os.pread(own, os.fstat(own).st_size, 0)
    code, rows = marshal.loads(data[4:])
    with open(source, encoding="utf-8") as file:
        new = marshal.dumps(compile(file.read(), source, "exec", dont_inherit=True, optimize=2))
    late = {name: (*row[:4], os.pread(own, row[4][1], row[4][0])) for name, row in rows.items() if type(row[4]) is tuple}
    for table in (late, rows):
        if module in table:
            table[module] = (*table[module][:4], new)
    names: dict[str, Any] = {"__name__": "bundle"}
    exec(marshal.loads(code), names)
    joined: bytes = names["joined"](code, {name: row for name, row in rows.items() if name not in late}, late)
    return joined
