#!/usr/bin/python3 -ESB
"""PID 1: mount, start, wait, reap, tear down, reboot. `stack.py --plan` prints what a boot would do.

Read from the end: main() is a board's boot, run and end. Standard library only (-S makes anything else an ImportError).
"""

from __future__ import annotations

import gc
import os
import sys
import time

import _log
from base.stdlib import TYPE_CHECKING, signal, socket
from base.syscalls import Reboot, interface_up, limit_descriptors, mount, mount_options, reboot
from onboard import board_table, boot_ends, clock, events, to_pid1
from onboard.mounts import make_device, make_directory, mount_row, mounted, write_sysctl
from onboard.to_pid1 import SVError
from pid1 import anew
from pid1.control import Control
from pid1.life import Life
from pid1.loop import trace
from pid1.options import kernel_words, parse_options
from pid1.relatives import reap
from pid1.requests import Requests
from pid1.rescue import Rescue
from pid1.teardown import at_least, tear_down
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
# Ctrl-alt-del so many times in so many seconds ends the wait for services, as systemd does it.
IMPATIENT_TIMES, IMPATIENT = 7, 2.0


class Init(Life):
    """PID 1: the boot's steps in their order, the loop, the end."""

    def __init__(self, arguments: list[str], began: float = 0.0) -> None:
        super().__init__(arguments, began)
        self.wakeup = self.waker = -1  # a pipe: a signal wakes the loop
        self.asked: list[float] = []  # when signals have asked for the end, not long ago
        self.incomplete = False
        self.sv: SV = SV(self)  # of an empty table: boot is a reload from nothing
        self.events.hold()
        self.loop.timers += [(self.next_reap, self.reap), (self.sv.next_deadline, self.sv.tick)]
        self.rescue = Rescue(self, self.open_control)
        self.watchdog = Watchdog(self)
        self.requests = Requests(self, self.watchdog)
        self.sv.escalate = self.watchdog.escalate

    # --- boot -------------------------------------------------------------------------------------------------------
    def boot(self) -> None:
        """Each step is on its own: one that raises is logged and shown in board(), the next one is taken, and a rescue
        prompt opens beside what does start."""
        for step in (
            self.set_defaults, self.open_log, self.catch_signals, self.read_options, self.load_tables,
            self.disable_ctrl_alt_del, self.mount_all, self.release_events, self.open_kmsg, self.open_watchdog,
            self.open_cgroups, self.set_clock, self.make_devices, self.make_directories, self.write_sysctls,
            self.set_hostname, self.raise_loopback, self.set_environment, self.write_table, self.open_control,
            self.start_services, self.check_boot,
        ):  # fmt: skip
            started = time.monotonic()
            try:
                step()
            except Exception as error:
                self.fault(f"boot: {step.__name__}: {trace(error)}", error)
                self.incomplete = True
            self.steps.append((step.__name__, started, time.monotonic() - started))
        self.booted = True

    def set_defaults(self) -> None:
        """What children inherit without asking, whatever the kernel or an initramfs has left; base/native.py has closed what
        was open. PID 1 takes all descriptors that it may have: two for each service's log and more."""
        os.umask(0o022)
        os.chdir("/")
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except OSError as error:  # in a user namespace nobody may take back what a launcher was given
            _log.debug(f"nice: {error.strerror}")
        soft, hard = limit_descriptors()
        self.sv.world.spawner.descriptors = (soft, hard)
        limit_descriptors((hard, hard))

    def open_log(self) -> None:
        """Our own log goes to logd too, through a pipe that keeps the first lines until logd runs."""
        _log.sink.pipe = self.sv.world.pipes.write_end("stack", "memory", time.monotonic())
        os.set_blocking(_log.sink.pipe, False)

    def catch_signals(self) -> None:
        """Handlers do nothing: the byte in the pipe is the event. Before the first child, or its death passes unseen."""
        if self.wakeup < 0:  # after an upgrade it is there
            self.wakeup, self.waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGCHLD, signal.SIGHUP, *ON_SIGNAL):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what was blocked before us comes now
        self.loop.watch(self.wakeup, self.on_signals)

    def read_options(self) -> None:
        """`stack.` words of the kernel command line, and of our own arguments where a launcher gives them."""
        self.options = parse_options(self.arguments)
        if not os.path.exists("/proc/cmdline"):
            os.makedirs("/proc", exist_ok=True)
            mount("proc", "/proc", "proc", *mount_options("nosuid,nodev,noexec"))
        with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
            words = kernel_words(file.read())
        self.options = parse_options([*words, *self.arguments])
        if "stack.debug" in self.options:
            _log.sink.level = _log.sink.console_level = _log.DEBUG
        if "stack.tracemalloc" in self.options:
            self.requests.memory("start")

    def load_tables(self) -> None:
        self.tables = tables_module.load(self.options, meanwhile=self.feed_watchdog)
        if "stack.debug" not in self.options:
            _log.sink.console_level = self.tables.CONSOLE_LEVEL

    def disable_ctrl_alt_del(self) -> None:
        """The kernel shall send SIGINT instead of rebooting at once. In a PID namespace it refuses: EINVAL."""
        try:
            reboot(Reboot.CAD_OFF)
        except OSError as error:
            _log.debug(f"reboot(CAD_OFF): {error}")

    def mount_all(self) -> None:
        there = (
            {target for _, target in mounted()} if boot_ends.started_anew() else ()
        )  # by the PID 1 before this one (pid1/again.py)
        for row in self.tables.MOUNTS:
            if row.target in there and "remount" not in row.options:
                continue
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
        """Events of the boot so far were kept in memory, because there was no /run: write them now."""
        self.best_effort(events.FILE, self.events.release)

    def open_kmsg(self) -> None:
        """Log to /dev/kmsg: there is a /dev now. What was logged before went to stderr."""
        _log.setup(console=self.tables.CONSOLE)
        for text in self.tables.rejected:
            _log.error(text)

    def set_clock(self) -> None:
        """Set the clock forward: a board without a battery starts in 1970."""
        if text := clock.boot():
            _log.info(text)

    def open_watchdog(self) -> None:
        """As early as there is a /dev: from here on a boot that hangs is reset."""
        self.watchdog.open(time.monotonic())

    def open_cgroups(self) -> None:
        for row in self.tables.MOUNTS:
            if row.fstype == "cgroup2":
                self.best_effort(row.target, self.sv.world.cgroups.open, row.target)

    def make_devices(self) -> None:
        for row in self.tables.DEVICES:
            self.best_effort(row.path, make_device, row)

    def make_directories(self) -> None:
        for row in (Directory(self.tables.LOG), *self.tables.DIRECTORIES):
            self.best_effort(row.path, make_directory, row, self.tables)

    def write_sysctls(self) -> None:
        for name, value in self.tables.SYSCTLS:
            self.best_effort(name, write_sysctl, name, value)

    def set_hostname(self) -> None:
        socket.sethostname(self.tables.HOSTNAME)

    def raise_loopback(self) -> None:
        self.best_effort("lo", interface_up, "lo")

    def set_environment(self) -> None:
        """Replace the environment that the kernel gave us: it has no PATH, and the rest of it is not for our children."""
        self.sv.world.spawner.environment = self.tables.environment

    def write_table(self) -> None:
        """Write the table to /run/stack: services start after this and read it."""
        board_table.write(self.tables)

    def feed_watchdog(self) -> None:
        """Reset the watchdog's timer while a profile is evaluated, which has a time limit of its own."""
        self.watchdog.feed(time.monotonic())

    def open_control(self, at: str | socket.socket = to_pid1.SOCKET) -> None:
        self.control = Control(self.loop, at, self.requests.handle, self.requests.permits, self.sv.world.closer)

    def start_services(self) -> None:
        now = time.monotonic()
        if "stack.rescue" in self.options:
            self.rescue.boot_waits = True
            self.rescue.open("stack.rescue is on the kernel command line", now)
            return
        self.sv.reload(now)
        self.sv.settle(now)

    def check_boot(self) -> None:
        """Open the rescue prompt if nothing was started: the loop would sleep for ever."""
        now = time.monotonic()
        if self.rescue.process is None and (self.incomplete or self.sv.hopeless(now)):
            self.rescue.open("the boot was not complete", now)
        self.timeline.note(now, "board", "", "booted")
        facts = {"profile": self.tables.profiles, "rejected": self.tables.rejected, "seconds": round(now - self.began, 3)}
        self.tell("up", facts, now)

    # --- what happens ----------------------------------------------------------------------------------------------
    def on_signals(self, now: float) -> None:
        for number in os.read(self.wakeup, 65536):
            if number in ON_SIGNAL:
                self.shut_down(ON_SIGNAL[number], f"signal {number}", now)
                self.asked = [*(at for at in self.asked if now - at <= IMPATIENT), now]
                if len(self.asked) >= IMPATIENT_TIMES:
                    self.sv.hurry(now)
            elif number == signal.SIGHUP:
                try:
                    self.reload(now)
                except SVError as error:
                    _log.error(f"reload: {error}")

    def next_reap(self) -> float | None:
        """None: SIGCHLD wakes the loop. If its pipe could not be made, look for dead children once a second."""
        return time.monotonic() + 1.0 if self.wakeup < 0 else None

    def reap(self, now: float) -> None:
        """Take all children that have ended, each turn: one SIGCHLD may stand for many. SV looks at them in the same turn."""
        self.sv.deaths.update(reap())

    def reload(self, now: float) -> dict[str, list[str]]:
        """Take new tables. A file that cannot be read as a whole changes nothing: a typo must not stop the board.

        Mounts, the watchdog and the console are as they were at boot.
        """
        if self.command is not None:
            raise SVError("the board is shutting down")
        tables = tables_module.load(self.options, meanwhile=self.feed_watchdog)
        if tables.broken:
            raise SVError(f"nothing was changed: {'; '.join(tables.rejected)}")
        try:
            board_table.write(tables)  # the last thing that may fail: what follows is only taken
        except (OSError, ValueError) as error:
            raise SVError(f"nothing was changed: the services' copy of the table cannot be written: {error}") from None
        for text in tables.rejected:
            _log.error(text)
        old, self.tables = self.tables, tables
        again = {"HOSTNAME": self.set_hostname, "SYSCTLS": self.write_sysctls, "DEVICES": self.make_devices,
                 "DIRECTORIES": self.make_directories}  # fmt: skip
        for name, step in again.items():
            if getattr(tables, name) != getattr(old, name):
                self.best_effort(name, step)
        before = self.sv.world.spawner.environment
        self.set_environment()
        changes = self.sv.reload(now, everything=self.sv.world.spawner.environment != before)
        self.timeline.note(now, "board", "", "reload")
        _log.info("reload: " + "; ".join(f"{what} {', '.join(names)}" for what, names in changes.items() if names))
        del old
        gc.collect()  # modules refer to themselves: the settings before would stay until the collector comes by itself
        return changes

    def execute_anew(self, command: int) -> None:
        """All processes have ended: become another PID 1, where there is a reason; come back where there is none."""
        if self.into and command == Reboot.RESTART:
            from pid1 import again

            again.execute(self.into, self.line)
        anew.execute(command, self.tables, self.watchdog)

    # --- run and end ------------------------------------------------------------------------------------------------
    def run(self) -> int:
        """Boot, and run until the services are down; the command for reboot(2)."""
        self.boot()
        return self.serve()

    def serve(self) -> int:
        """Run until the services are down."""
        gc.freeze()  # what boot has made stays: the collector, off until here to save time, need not look at it
        gc.enable()
        while True:
            try:
                self.loop.turn()
            except Exception as error:
                self.fault(f"loop: {trace(error)}", error)
                time.sleep(0.1)
            stopping = self.sv.stopping
            if self.command is not None and stopping is not None and (self.sv.down or time.monotonic() >= stopping):
                return self.command


# --- the beginning --------------------------------------------------------------------------------------------------
def main(arguments: list[str], began: float = 0.0) -> int:
    """Boot, run, tear down, reboot."""
    if os.getpid() != 1:
        from tables.plan import command_line

        return command_line(arguments, parse_options(arguments))
    return live(lambda: Init(arguments, began), Init.run)


def succeed(handed: dict[str, Any]) -> Any:
    """A live upgrade (pid1/guard.py) has this code go on from the state of another PID 1, or checks whether it could."""
    from pid1 import succession

    return succession.begin(lambda: Init([]), lambda init: live(lambda: init, Init.serve), handed)


def live(begin: Callable[[], Init], run: Callable[[Init], int]) -> int:
    """A life of PID 1 and its end."""
    init, command = None, Reboot.RESTART
    try:
        init = begin()
        command = run(init)
    except BaseException as error:  # leaving main() would panic the kernel without a trace
        reason = f"PID 1 failed, rebooting: {trace(error)}"
        _log.error(reason)
        if init:
            init.loop.guard("end", lambda now: init.shut_down(Reboot.RESTART, reason, now, "critical"), time.monotonic())
    try:
        if init:
            last = init
            tear_down(
                command, init.tables, init.watchdog.wait, init.watchdog.disarm,
                lambda: last.execute_anew(command),
            )  # fmt: skip
        else:
            tear_down(command, Tables())
    except BaseException as error:
        try:
            _log.error(f"tear-down failed: {trace(error)}")
        finally:  # memory may be out
            at_least(command)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
