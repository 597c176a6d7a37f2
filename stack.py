#!/usr/bin/python3 -ESB
"""PID 1: mount, start, wait, reap, tear down, reboot. `stack.py --plan` prints what a boot would do.

Read from the end: main() is the life of a board. Standard library only (-S makes anything else an ImportError).
"""

from __future__ import annotations

import gc
import os
import sys
import time

import _log
from base.files import read_file
from base.stdlib import TYPE_CHECKING, signal, socket
from base.syscalls import Reboot, interface_up, mount, mount_options, reboot
from onboard import boot_ends, clock, events, to_pid1
from onboard.mounts import make_device, make_directory, mount_row, write_sysctl
from onboard.to_pid1 import SVError
from pid1.control import Control, page
from pid1.life import Life
from pid1.loop import trace
from pid1.rescue import Rescue
from pid1.spawn import Spawner
from pid1.teardown import tear_down
from pid1.watchdog import Watchdog
from sv import SV
from tables import load as tables_module
from tables.rows import Directory
from tables.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# As busybox has them. SIGINT is what the kernel sends for ctrl-alt-del; SIGHUP re-reads the tables.
ON_SIGNAL: dict[int, int] = {
    signal.SIGTERM: Reboot.RESTART,
    signal.SIGINT: Reboot.RESTART,
    signal.SIGUSR1: Reboot.HALT,
    signal.SIGUSR2: Reboot.POWER_OFF,
}

FACTS = ("storage", "bootfiles")  # what services have found out about the board: /run/stack/NAME.json is NAME of board()


class Init(Life):
    """PID 1: the boot's steps in their order, the loop, the end."""

    def __init__(self, arguments: list[str], began: float = 0.0) -> None:
        super().__init__()
        self.arguments = arguments
        self.began = began or self.born  # our first line, before the imports
        self.options: dict[str, str] = {}
        self.deaths: list[tuple[int, int]] = []  # reaped, not yet handled
        self.steps: list[tuple[str, float, float]] = []  # name, start, seconds
        self.wakeup = -1
        self.sv = SV(self.tables, self.loop, Spawner({}))  # of an empty table: boot is a reload from nothing
        self.sv.tell = self.tell
        self.events.hold()
        self.incomplete = False
        self.loop.timers += [(self.next_reap, self.reap), (self.sv.next_deadline, self.sv.tick)]
        self.rescue = Rescue(self, self.open_control)
        self.watchdog = Watchdog(self)

    # --- boot -------------------------------------------------------------------------------------------------------
    def boot(self) -> None:
        """Each step is on its own: one that raises is logged and shown in board(), the next one is taken, and a rescue
        prompt opens beside what does start."""
        for step in (
            self.set_defaults, self.open_log, self.catch_signals, self.read_options, self.load_tables,
            self.disable_ctrl_alt_del, self.mount_all, self.release_events, self.open_kmsg, self.open_watchdog,
            self.open_cgroups, self.set_clock, self.make_devices, self.make_directories, self.write_sysctls,
            self.set_hostname, self.raise_loopback, self.raise_limits, self.set_environment, self.open_control,
            self.start_services, self.check_boot,
        ):  # fmt: skip
            started = time.monotonic()
            try:
                step()
            except Exception as error:
                self.fault(f"boot: {step.__name__}: {trace(error)}")
                self.incomplete = True
            self.steps.append((step.__name__, started, time.monotonic() - started))
        self.booted = True

    def set_defaults(self) -> None:
        """What children inherit without asking."""
        os.umask(0o022)
        os.chdir("/")

    def open_log(self) -> None:
        """Our own log goes to logd too, through a pipe that keeps the first lines until logd runs."""
        _log.sink.pipe = self.sv.pipes.write_end("stack", "memory", time.monotonic())
        os.set_blocking(_log.sink.pipe, False)

    def catch_signals(self) -> None:
        """Handlers do nothing: the byte in the pipe is the event. Before the first child, or its death passes unseen."""
        self.wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGCHLD, signal.SIGHUP, *ON_SIGNAL):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.loop.watch(self.wakeup, self.on_signals)

    def read_options(self) -> None:
        """`stack.` words of the kernel command line, and of our own arguments where a launcher gives them."""
        self.options = parse_options(self.arguments)
        if not os.path.exists("/proc/cmdline"):
            os.makedirs("/proc", exist_ok=True)
            mount("proc", "/proc", "proc", *mount_options("nosuid,nodev,noexec"))
        with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
            words = file.read().split()
        self.options = parse_options([*words, *self.arguments])
        if "stack.debug" in self.options:
            _log.sink.level = _log.sink.console_level = _log.DEBUG

    def load_tables(self) -> None:
        self.tables = tables_module.load(self.options)
        if "stack.debug" not in self.options:
            _log.sink.console_level = self.tables.CONSOLE_LEVEL

    def disable_ctrl_alt_del(self) -> None:
        """The kernel shall send SIGINT instead of rebooting at once. In a PID namespace it refuses: EINVAL."""
        try:
            reboot(Reboot.CAD_OFF)
        except OSError as error:
            _log.debug(f"reboot(CAD_OFF): {error}")

    def mount_all(self) -> None:
        for row in self.tables.MOUNTS:
            try:
                mount_row(row)
            except OSError as error:
                text = f"mount {row.source} on {row.target}: {error.strerror}"
                if row.required:
                    self.fault(text)
                    self.incomplete = True  # the rescue prompt opens beside what does start
                else:
                    _log.warning(text)

    def release_events(self) -> None:
        """What went wrong until here was told before there was a /run."""
        self.best_effort(events.FILE, self.events.release)

    def open_kmsg(self) -> None:
        """/dev is there now. What was logged before went to stderr."""
        _log.setup(console=self.tables.CONSOLE)
        for text in self.tables.rejected:
            _log.error(text)

    def set_clock(self) -> None:
        """A board without a battery starts in 1970."""
        if text := clock.boot():
            _log.info(text)

    def open_watchdog(self) -> None:
        """As early as there is a /dev: from here on a boot that hangs is reset."""
        self.watchdog.open(time.monotonic())

    def open_cgroups(self) -> None:
        for row in self.tables.MOUNTS:
            if row.fstype == "cgroup2":
                self.best_effort(row.target, self.sv.cgroups.open, row.target)

    def make_devices(self) -> None:
        for row in self.tables.DEVICES:
            self.best_effort(row.path, make_device, row)

    def make_directories(self) -> None:
        for row in (Directory(self.tables.LOG), *self.tables.DIRECTORIES):
            self.best_effort(row.path, make_directory, row, self.tables)

    def write_sysctls(self) -> None:
        for name, value in self.tables.SYSCTLS:
            self.best_effort(name, write_sysctl, name, value)

    def best_effort(self, what: str, step: Callable[..., object], *arguments: object) -> None:
        """A step whose refusal by the kernel is worth a warning, not a fault."""
        try:
            step(*arguments)
        except OSError as error:
            _log.warning(f"{what}: {error.strerror}")
        except ValueError as error:  # such as a NUL in a name: no reload may end half-way for it
            _log.warning(f"{what}: {error}")

    def set_hostname(self) -> None:
        socket.sethostname(self.tables.HOSTNAME)

    def raise_loopback(self) -> None:
        self.best_effort("lo", interface_up, "lo")

    def raise_limits(self) -> None:
        """Two descriptors a service for its log: past some 450 services the usual 1,024 do not do."""
        if len(self.tables.services) > 400:
            import resource

            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def set_environment(self) -> None:
        """The kernel gives init no PATH, and what else it gives is not for our children."""
        environment = {name: self.tables.expand(value) for name, value in self.tables.ENVIRONMENT}
        self.sv.spawner.environment = {**environment, "PATH": self.tables.PATH}
        self.sv.escalate = self.watchdog.escalate

    def open_control(self) -> None:
        Control(self.loop, to_pid1.SOCKET, self.handle, self.sv.permits)

    def start_services(self) -> None:
        now = time.monotonic()
        if "stack.rescue" in self.options:
            self.rescue.boot_waits = True
            self.rescue.open("stack.rescue is on the kernel command line", now)
            return
        self.sv.reload(self.tables, now)

    def check_boot(self) -> None:
        """The loop sleeps until something happens; where nothing was started, nothing will."""
        now = time.monotonic()
        if self.rescue.process is None and (self.incomplete or self.sv.hopeless(now)):
            self.rescue.open("the boot was not complete", now)
        facts = {"profile": self.tables.profiles, "rejected": self.tables.rejected, "seconds": round(now - self.began, 3)}
        self.tell("up", facts, now)

    # --- what happens ----------------------------------------------------------------------------------------------
    def on_signals(self, now: float) -> None:
        for number in os.read(self.wakeup, 65536):
            if number in ON_SIGNAL:
                self.shut_down(ON_SIGNAL[number], f"signal {number}", now)
            elif number == signal.SIGHUP:
                try:
                    self.reload(now)
                except SVError as error:
                    _log.error(f"reload: {error}")

    def next_reap(self) -> float | None:
        """Nothing to wait for but SIGCHLD; without its pipe we have to look ourselves."""
        return time.monotonic() + 1.0 if self.wakeup < 0 or self.deaths else None

    def reap(self, now: float) -> None:
        """SIGCHLD does not count: as many deaths as there are, every turn."""
        self.deaths += reap()
        if self.deaths:
            self.sv.reaped(self.deaths, now)

    def reload(self, now: float) -> dict[str, list[str]]:
        """Take new tables. A file that cannot be read as a whole changes nothing: a typo must not stop the board.

        Mounts, the watchdog and the console are as they were at boot.
        """
        if self.command is not None:
            raise SVError("the board is shutting down")
        tables = tables_module.load(self.options)
        if tables.broken:
            raise SVError(f"nothing was changed: {'; '.join(tables.rejected)}")
        for text in tables.rejected:
            _log.error(text)
        old, self.tables = self.tables, tables
        again = {"HOSTNAME": self.set_hostname, "SYSCTLS": self.write_sysctls, "DEVICES": self.make_devices,
                 "DIRECTORIES": self.make_directories}  # fmt: skip
        for name, step in again.items():
            if getattr(tables, name) != getattr(old, name):
                self.best_effort(name, step)
        before = self.sv.spawner.environment
        self.set_environment()
        changes = self.sv.reload(tables, now, everything=self.sv.spawner.environment != before)
        _log.info("reload: " + "; ".join(f"{what} {', '.join(names)}" for what, names in changes.items() if names))
        return changes

    # --- requests ---------------------------------------------------------------------------------------------------
    def handle(self, request: dict[str, Any], uid: int, now: float) -> Any:
        """One request of the control socket."""
        op = request["op"]
        commands = {name: command for command, name in Reboot.NAMES.items()}
        if op == "board":
            return self.board(now)
        if op == "bootchart":
            rows = [["imports", "python", self.began, self.born], *([n, "step", at, at + s] for n, at, s in self.steps)]
            return page([*rows, *self.sv.chart()], request)
        if op not in commands and op not in ("reload", "snooze"):
            return self.sv.handle(request, uid, now)
        if uid != 0:
            raise SVError(f"only root may {op} the board; you are uid {uid}")
        if op == "snooze":
            if not isinstance(minutes := request.get("minutes"), (int, float)) or not minutes >= 0:
                raise SVError(f"snooze for how many minutes? {minutes!r} is no such number")
            return self.watchdog.snooze(minutes, now)
        if op == "reload":
            return {**self.reload(now), "rejected": self.tables.rejected}
        self.shut_down(commands[op], f"asked by uid {uid}", now)
        return f"{op} has begun"

    def board(self, now: float) -> dict[str, Any]:
        """What is known about the board and about PID 1 itself."""
        times = os.times()
        return {
            "hostname": os.uname().nodename, "boot_id": read_file("/proc/sys/kernel/random/boot_id"),
            "uptime": round(now - self.born, 3), "kernel": os.uname().release, "python": sys.version.split()[0],
            "profile": self.tables.profiles or ["default"], "options": self.options,
            "log_folder": self.tables.LOG, "rejected": self.tables.rejected, "faults": self.faults,
            "state": "stopping" if self.command is not None else "running",
            "complete": self.sv.complete, "services": len(self.sv.processes),
            "loop": {
                "turns": self.loop.turns, "wakeups": self.loop.wakeups, "errors": self.loop.errors,
                "longest_turn_ms": round(self.loop.longest * 1e3, 3), "cpu_s": round(times.user + times.system, 3),
            },
            "watchdog": self.watchdog.facts(now),
            "log": {**_log.counts, "dropped": _log.sink.dropped},
            **{name: facts for name in FACTS if (facts := boot_ends.read(f"/run/stack/{name}.json"))},
            "boot_ms": {name: round(seconds * 1e3, 3) for name, _, seconds in self.steps},
        }  # fmt: skip

    # --- life and end -----------------------------------------------------------------------------------------------
    def run(self) -> int:
        """Boot, and live until the services are down; the command for reboot(2)."""
        self.boot()
        gc.freeze()  # what boot has made stays: the collector, off until here to save time, need not look at it
        gc.enable()
        while True:
            try:
                self.loop.turn()
            except Exception as error:
                self.fault(f"loop: {trace(error)}")
                time.sleep(0.1)
            stopping = self.sv.stopping
            if self.command is not None and stopping is not None and (self.sv.down or time.monotonic() >= stopping):
                return self.command


# --- steps that need no board ---------------------------------------------------------------------------------------
def parse_options(words: list[str]) -> dict[str, str]:
    """`stack.name=value` and `stack.name` words; the last one wins, but what is to be skipped adds up."""
    options: dict[str, str] = {}
    for name, equals, value in (word.partition("=") for word in words if word.startswith("stack.")):
        if name == "stack.skip" and name in options:
            value = f"{options[name]},{value}"
        options[name] = value if equals else "1"
    return options


def reap() -> Any:
    """Pid and wait status of every child that has died: the only waitpid(2) of the board."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


# --- the beginning --------------------------------------------------------------------------------------------------
def main(arguments: list[str], began: float = 0.0) -> int:
    """The life of a board."""
    if "--plan" in arguments:
        from tables.plan import plan

        return plan(parse_options(arguments))
    if os.getpid() != 1:
        print("stack.py is the init of a board and runs only as PID 1; `make run` boots it in namespaces.", file=sys.stderr)
        return 2
    init, command = None, Reboot.RESTART
    try:
        init = Init(arguments, began)
        command = init.run()
    except BaseException as error:  # leaving main() would panic the kernel without a trace
        reason = f"PID 1 failed, rebooting: {trace(error)}"
        _log.error(reason)
        if init:
            init.loop.guard("end", lambda now: init.shut_down(Reboot.RESTART, reason, now, "critical"), time.monotonic())
    try:
        if init:
            tear_down(command, init.tables, init.watchdog.wait, init.watchdog.disarm)
        else:
            tear_down(command, Tables())
    except BaseException as error:
        _log.error(f"tear-down failed: {trace(error)}")
        reboot(command)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
