"""The Python prompt on a terminal: what the rows "console", "rescue" and the laptop's "prompt" run."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty

from base.terminal import make_sane
from onboard.to_pid1 import notify
from prompt.board_facts import halt

NO_RESTART = 125  # an exit status: PID 1 shall not start us again


def rescue() -> None:
    """The rescue prompt: wait for a key, tell PID 1 that somebody is there, become a Python prompt."""
    print("\nrescue: press Enter, or any other key, for a Python prompt on this board", flush=True)
    wait_for_key(sys.stdin.fileno())
    notify("READY=1\nSTATUS=somebody is typing")
    os.execve(*interactive())


def wait_for_key(fd: int) -> None:
    """Wait until somebody types. Input that was there before, and a line that hangs up, do not count."""
    try:
        termios.tcflush(fd, termios.TCIFLUSH)
        tty.setraw(fd, termios.TCSANOW)
    except termios.error:  # not a terminal: wait for a whole line
        pass
    try:
        typed = os.read(fd, 4096)
    except OSError:  # it has been hung up
        typed = b""
    make_sane(fd)
    if not typed:
        sys.exit("rescue: nobody can type on this console: it is at its end")


def login(kind: str) -> None:
    """What a console offers: "password" (getty and login), "prompt" (Python at once, as root) or "off"."""
    if kind == "prompt":
        os.execve(*interactive())
    if kind == "password":
        term = os.environ.get("TERM", "linux")  # our terminal, at its present speed
        with contextlib.suppress(FileNotFoundError):  # util-linux's refuses the 0 that keeps the speed for busybox's
            os.execvp("agetty", ["agetty", "-L", "--keep-baud", "-", term])
        os.execvp("getty", ["getty", "-L", "0", "-", term])
    if kind != "off":
        print(f'CONSOLE_LOGIN = {kind!r} is not "password", "prompt" or "off": this console stays off', file=sys.stderr)
    sys.exit(NO_RESTART)


def interactive() -> tuple[str, list[str], dict[str, str]]:
    """Program, arguments and environment of the prompt, for execve(2). A Python started from it finds `sv` and `bus`."""
    library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": f"{library}/names"}
    return sys.executable, [sys.executable, "-P", f"{library}/prompt/repl.py"], environment


def prompt() -> None:
    """The laptop's board: the Python prompt on this terminal; leaving it halts the board."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the prompt alone; with SIG_IGN the prompt would inherit that
    os.spawnve(os.P_WAIT, *interactive())
    halt()
    select.select([], [], [])  # wait for PID 1 to stop us: if we ended, it would start the prompt again


def main(arguments: list[str]) -> None:
    """Run the part that the row names."""
    match arguments:
        case ["login", kind]:
            login(kind)
        case ["rescue"]:
            rescue()
        case ["prompt"]:
            prompt()
        case _:
            sys.exit("console.py: login KIND, rescue or prompt?")


if __name__ == "__main__":
    main(sys.argv[1:])
