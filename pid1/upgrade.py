"""A live upgrade, as the PID 1 sees it that may be replaced: check the new code in a child, then execute it, on trial.

`upgrade` of the prompt asks for it. The child (pid1/guard.py) compiles the new code, loads its tables, runs its self-test and
reads our state. Then PID 1 executes the guard, which is our own code, and that starts the new code and executes us again if it
fails. The client that has asked stays connected all the while: whoever is PID 1 at the end answers it.
"""

from __future__ import annotations

import os
import sys
import time

import _log
from base.stdlib import TYPE_CHECKING, json, signal
from onboard.to_pid1 import SVError
from pid1 import guard, handover
from pid1.closer import fork
from pid1.control import Later
from tables.tables import LIB

if TYPE_CHECKING:
    from typing import Any

    from pid1.life import Life

# Runs pid1/guard.py from an open bundle: descriptor, where the code stands, its size.
CODE = (
    "import marshal, os, sys; n = {'__name__': 'guard'}; fd, at, size = map(int, sys.argv[1:4]); "
    "exec(marshal.loads(os.pread(fd, size, at)), n); n['main'](sys.argv[1:])"
)
PATCHES = "/run/stack/patch"  # sources of modules that were tried in this boot
CHECK = 60.0  # seconds for the check of new code
TRIAL = 10.0  # seconds in which it has to prove itself, where nobody says otherwise
SHORTEST, LONGEST = 0.2, 600.0  # ...and what may be said
LARGEST = 64 * 1024  # bytes of what the check may print


def begin(life: Life, request: dict[str, Any], now: float) -> Later:
    """Start the check; SVError where it is clear already that there will be no upgrade."""
    if life.upgrading:
        raise SVError("an upgrade is under way; its outcome is answered to whoever asked for it")
    if life.command is not None or not life.booted or life.control is None:
        raise SVError("the board is shutting down" if life.command is not None else "the boot is not over")
    bundle: Any = sys.meta_path[0]
    if not hasattr(bundle, "place"):
        raise SVError(
            "PID 1 was not started from pid1.bundle, from which it could come back; make install writes it, a reboot uses it"
        )
    if bundle.edited:
        raise SVError(
            f"{', '.join(bundle.edited)} of PID 1 was edited after make install: the old code could not come back as it is; "
            "make install and a reboot put it into pid1.bundle"
        )
    seconds, module, source = request.get("seconds", TRIAL), request.get("module", ""), request.get("source", "")
    if type(seconds) not in (int, float) or not SHORTEST <= seconds <= LONGEST:
        raise SVError(f"seconds is {seconds!r}; the new code has {SHORTEST:g} to {LONGEST:g} s to prove itself")
    told = {"lib": path_of(request.get("path") or LIB), "seconds": str(seconds)}
    if module:
        told |= patch(bundle, module, source)
    upgrade = Upgrade(life, told, now)
    upgrade.check()
    return upgrade.client


def path_of(path: Any) -> str:
    """A folder with our modules that root alone can write; SVError where it is none."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise SVError(f"path is {path!r}; it is the absolute path of a folder, such as {LIB}")
    folder: str = os.path.normpath(path)
    ours = {0, os.stat(sys.executable).st_uid}  # whoever may change the Python that PID 1 runs
    for one in (folder, *(f"{folder}/{name}" for name in ("stack.py", "pid1", "base/bundle.py"))):
        try:
            status = os.stat(one)
        except OSError as error:
            raise SVError(f"{one}: {error.strerror}; make install PREFIX=... makes a folder with all modules") from None
        if status.st_uid not in ours or status.st_mode & 0o022:
            raise SVError(f"{one} can be changed by others than root: what it holds is not run as PID 1")
    return folder


def patch(bundle: Any, module: Any, source: Any) -> dict[str, str]:
    """Write a module's new source into a folder of root's in memory; SVError where PID 1 has no such module."""
    name: str = module.removesuffix(".py").replace("/", ".") if isinstance(module, str) else ""
    if name not in bundle.names:
        raise SVError(f"module is {module!r}, which PID 1 does not have; such as pid1/loop.py, sv.py or tables/check.py")
    if not isinstance(source, str) or not source.strip():
        raise SVError("source is empty; it is the new text of the module")
    path = f"{PATCHES}/{name.replace('.', '/')}.py"
    try:
        os.makedirs(PATCHES, 0o700, exist_ok=True)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(source)
    except (OSError, ValueError) as error:
        raise SVError(f"{path} cannot be written: {error}") from None
    return {"module": name, "source": path}


class Upgrade:
    """One that is under way: until the check has answered, and PID 1 executes the new code."""

    def __init__(self, life: Life, told: dict[str, str], now: float) -> None:
        self.life = life
        self.told = told
        self.client = Later()
        self.deadline = now + CHECK
        self.timer = (lambda: self.deadline, self.tick)
        self.pid = self.reader = -1
        self.printed = b""
        self.saver = handover.Saver(life)
        self.answer: dict[str, Any] | None = None
        self.state = self.out = self.new = -1  # two memfds: our state, and a bundle made by the check; the new one's file

    # --- the check --------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Start it. SVError, and nothing has happened, where it cannot start."""
        try:
            self.state, self.out = os.memfd_create("state"), os.memfd_create(guard.__name__)
            for slot, version in enumerate(range(handover.VERSION, handover.OLDEST - 1, -1)):
                if slot < handover.SLOTS:
                    handover.store(self.state, slot, version, self.saver.save(version))
            if "module" not in self.told:
                try:
                    self.new = os.open(f"{self.told['lib']}/pid1.bundle", os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    pass
            self.told |= {"state": str(self.state), "out": str(self.out), "new": str(self.new)}
            self.reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self.pid = fork(lambda: self._child(writer))
            finally:
                os.close(writer)
        except (OSError, MemoryError, TypeError) as error:
            self._close()
            raise SVError(f"the check of the new code cannot start: {error}") from None
        self.life.upgrading = self
        self.life.loop.watch(self.reader, self.heard)
        self.life.loop.timers.append(self.timer)
        _log.info(f"upgrade: {self.what()} is being checked, by pid {self.pid}")

    def _child(self, writer: int) -> None:
        os.set_blocking(writer, True)
        null = os.open("/dev/null", os.O_RDWR)
        for target, fd in enumerate((null, writer, writer)):
            os.dup2(fd, target)
        guard.execute(CODE, self._words(), {**self.told, "mode": "check"})

    def _words(self) -> list[str]:
        bundle: Any = sys.meta_path[0]
        return [str(number) for number in (bundle.fd, *bundle.place("pid1.guard"))]

    def what(self) -> str:
        """What is to be the next PID 1."""
        return f"{self.told['module']} of {self.told['source']}" if "module" in self.told else self.told["lib"]

    def heard(self, now: float) -> None:
        """The check prints something, or has ended."""
        block = os.read(self.reader, LARGEST)
        self.printed = (self.printed + block)[-LARGEST:]
        if block:
            return
        self.life.loop.unwatch(self.reader)
        last = self.printed.decode(errors="replace").strip().rpartition("\n")[2]
        try:
            self.answer = json.loads(last)
        except ValueError:
            self.answer = {"error": f"the check ended without an answer: {last[-300:]}"}
        self.deadline = 0.0  # at the end of this turn, when all that happens in it has been done

    def tick(self, now: float) -> None:
        """The check has taken too long, or is over."""
        if now < self.deadline:
            return
        if self.answer is None:
            os.kill(self.pid, signal.SIGKILL)
            self.life.loop.unwatch(self.reader)
            self.answer = {"error": f"the check took more than {CHECK:g} s"}
        if "error" in self.answer:
            self.fail(f"nothing was changed: {self.answer['error']}")
        elif self.life.command is not None:
            self.fail("nothing was changed: the board is shutting down")
        else:
            self.execute(self.answer["version"])

    # --- and then ---------------------------------------------------------------------------------------------------
    def execute(self, version: int) -> None:
        """Become the guard, and with it the new code; come back where that cannot be, with all as it was."""
        life: Any = self.life
        now = time.monotonic()
        seconds = float(self.told["seconds"])
        if life.watchdog.device:  # it is not fed while new code hangs, and shall not end what the guard can
            life.watchdog.feed(now)
            seconds = min(seconds, life.watchdog.timeout / 2)
        if os.fstat(self.out).st_size:
            self.new, self.out = self.out, self.new
        about = {"mode": "try", "seconds": str(seconds), "old": LIB, "client": str(self.client.fd), "what": self.what()}
        told = {**self.told, **about, "new": str(self.new)}
        _log.info(f"upgrade: PID 1 executes {self.what()}, which has {seconds:g} s to prove itself")
        try:
            for slot in range(handover.SLOTS):
                os.pwrite(self.state, bytes(16), slot * handover.SLOT)
            handover.store(self.state, 0, 1, self.saver.save(version))
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
            guard.execute(CODE, self._words(), told)
        except (OSError, TypeError) as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for fd in guard.open_descriptors():
                os.set_inheritable(fd, False)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self.fail(f"nothing was changed: {error}")

    def fail(self, text: str) -> None:
        """It is over, and nothing has happened."""
        _log.warning(f"upgrade: {text}")
        self.life.loop.timers.remove(self.timer)
        self.life.upgrading = None
        if self.life.control:
            self.life.control.answer(self.client.fd, {"error": text})
        self._close()

    def _close(self) -> None:
        for fd in (self.state, self.out, self.new, self.reader):
            if fd >= 0:
                os.close(fd)
