"""One boot: PID 1 in its namespaces, the process that waits for it, and the board's console."""

from __future__ import annotations

import argparse
import os
import pty
import select
import signal
import socket
import sys
import termios
import time
from fcntl import ioctl

from base.syscalls import PR_SET_PDEATHSIG, prctl
from laptop import forward
from laptop.live import Live
from laptop.namespaces import FOREIGN_ROOT, enter_namespaces
from laptop.root import make_root

ESCAPE = b"\x1d"  # Ctrl-]: shuts the board down, also when its console is stuck
GRACE = 40.0  # seconds for a teardown that we asked for; its own deadlines are shorter


def become_init(options: argparse.Namespace, console: str, words: list[str]) -> None:
    """In the first process of the new PID namespace: make the root view and become stack.py."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    folders = (
        {"stack": options.installed}
        | ({"test": options.files} if options.files else {})
        | ({"+data": options.data} if options.data else {})
    )
    files = {}
    if options.profile:
        with open(options.profile, "rb") as file:
            files["profile.py"] = file.read()
    if options.mothership:
        files["mothership.py"] = forward.profile(options.name).encode()
    devices = {os.path.basename(path): path for path in options.device} | {"console": console}
    make_root(folders, options.python, files, devices, options.root)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # setresuid(2) has cleared PR_SET_PDEATHSIG
    fd = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    for target in (0, 1, 2):
        os.dup2(fd, target)
    os.closerange(3, 1024)
    base = os.path.realpath("/python/bin/python")
    os.execve(
        base, [base, *options.flags, *options.init, *words], {"PATH": os.defpath, "TERM": os.environ.get("TERM", "linux")}
    )


class Board:
    """One boot: a keeper process, which is PID 1's parent, and the board's console."""

    def __init__(self, options: argparse.Namespace, words: list[str], *, interactive: bool) -> None:
        self.master, slave = pty.openpty()
        console = os.ttyname(slave)
        if os.getuid() == 0:
            os.fchown(slave, FOREIGN_ROOT, FOREIGN_ROOT)
        if interactive:
            _copy_size(self.master)
        else:
            attributes = termios.tcgetattr(slave)
            attributes[1] &= ~termios.OPOST
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
        reader, writer = os.pipe()
        ours, theirs = socket.socketpair()
        self.forwarder = 0
        self.keeper = os.fork()
        if self.keeper == 0:
            os.close(reader)
            ours.close()
            self._keep(options, console, words, writer, theirs)
        os.close(writer)
        theirs.close()
        os.close(slave)
        self.status: int | None = None
        self.asked: float | None = None  # monotonic time at which somebody asked the board to shut down
        self._reader = reader
        first = os.read(reader, 4096).decode()
        if not first.startswith("pid "):
            os.waitpid(self.keeper, 0)
            raise SystemExit(f"the board does not start: {first or 'no reason given'}")
        self.pid = int(first.split()[1])
        if options.mothership:
            self.forwarder = forward.start(ours, options.mothership)
        ours.close()

    def _keep(self, options: argparse.Namespace, console: str, words: list[str], writer: int, channel: socket.socket) -> None:
        """The keeper: write PID 1's pid to the pipe, wait for it, write its wait status."""
        try:
            os.setsid()  # ^C on the terminal is for the board's prompt, not for us
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            enter_namespaces()
            if options.mothership:
                forward.listen(channel)
            channel.close()
            pid = os.fork()
            if pid == 0:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                try:
                    become_init(options, console, words)
                except BaseException as error:
                    os.write(2, f"cannot make the board's root view: {error}\n".encode())
                finally:
                    os._exit(1)
            os.write(writer, f"pid {pid}\n".encode())
            os.write(writer, f"status {os.waitpid(pid, 0)[1]}\n".encode())
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)

    def ended(self) -> None:
        """The keeper has written: PID 1's wait status."""
        last = os.read(self._reader, 64).decode()
        self.status = int(last.split()[1]) if last.startswith("status ") else 256
        os.waitpid(self.keeper, 0)
        if self.forwarder:
            os.kill(self.forwarder, signal.SIGKILL)
            os.waitpid(self.forwarder, 0)

    def signal(self, number: int) -> None:
        """Send PID 1 a signal, from the parent namespace."""
        os.kill(self.pid, number)

    def attend(self, *, interactive: bool, deadline: float | None, wakeup: int, live: Live | None) -> None:
        """Copy bytes between console and terminal, and saved files to the board, until it has ended."""
        poller = select.poll()
        for fd in [self.master, self._reader, wakeup, *([0] if interactive else []), *([live.fd] if live else [])]:
            poller.register(fd, select.POLLIN)
        while self.status is None:
            now = time.monotonic()
            if self.asked is None and deadline is not None and now >= deadline:
                self.asked = now
            if self.asked is not None:
                self._ask_again(now)
            due = deadline if self.asked is None else now + 1.0
            for fd, _ in poller.poll(None if due is None else max(0.0, due - now) * 1000):
                if fd == self.master:
                    _copy(self.master, 1)
                elif fd == 0 and not self._keys():
                    poller.unregister(0)
                elif fd == wakeup:
                    self._on_signals(os.read(wakeup, 64))
                elif fd == self._reader:
                    self.ended()
                elif live:
                    live.changed()
        while select.select([self.master], [], [], 0)[0] and _copy(self.master, 1):
            pass
        os.close(self.master)
        os.close(self._reader)

    def _ask_again(self, now: float) -> None:
        """Send the signal again every second: until PID 1 has installed its handlers, the kernel drops it."""
        if self.asked is not None and now >= self.asked + GRACE:
            print(f"the board did not shut down within {GRACE:g} s; killed", file=sys.stderr)
            self.signal(signal.SIGKILL)
        else:
            self.signal(signal.SIGUSR2)

    def _keys(self) -> bool:
        """Pass typed bytes to the console; False at the end of the input."""
        keys = os.read(0, 65536)
        os.write(self.master, keys)
        if ESCAPE in keys:
            self.asked = self.asked or time.monotonic()
        return bool(keys)

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGWINCH in numbers:
            _copy_size(self.master)
        if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(numbers):
            self.asked = self.asked or time.monotonic()


def _copy(source: int, target: int) -> bool:
    try:
        block = os.read(source, 65536)
    except OSError:  # EIO: the last process has closed the console
        time.sleep(0.01)
        return False
    while block:
        block = block[os.write(target, block) :]
        if not block:
            return True
    return False


def _copy_size(master: int) -> None:
    if sys.stdout.isatty():
        size = ioctl(1, termios.TIOCGWINSZ, b"\0" * 8)
        ioctl(master, termios.TIOCSWINSZ, size)
