"""The board on a laptop: boots stack.py as PID 1 of new namespaces, on a terminal or in the background.

The board has a root view of its own: a tmpfs with the host's /usr, /etc and the like bound read-only, its own /dev,
/proc, /run, /tmp and /var, and our modules under /stack. Nothing on the host changes, also as root: the board's root is
nobody outside (`man 7 user_namespaces`), so that not even a table that asks for it can load a module, set the clock or
write a sysctl of the kernel that it shares with the host.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import termios
import time
import tty

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = HERE  # and not this folder, from where Python runs us
from laptop.board import Board  # noqa: E402
from laptop.live import Live  # noqa: E402
from laptop.running import forget, register  # noqa: E402

BOARDS = f"{HERE}/build/boards"  # who runs


def explain(status: int) -> str:
    """Why a board's end was no clean shutdown, for people; "" if it was one."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGINT, signal.SIGHUP):
        return ""
    return f"PID 1 ended with {'signal' if os.WIFSIGNALED(status) else 'exit status'} {os.waitstatus_to_exitcode(status)}: " \
        "a real board would have panicked"  # fmt: skip


def address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as localhost:1883")
    return host.strip("[]"), int(port)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Boot stack.py as PID 1 of new namespaces.")
    parser.add_argument("--seconds", type=float, help="shut down after so long")
    parser.add_argument("--profile", default="", help="a file with names of settings.py, on top of the laptop's")
    parser.add_argument("--python", default=f"{HERE}/.venv/bin/python", help="the board's interpreter")
    parser.add_argument("--root", default=os.environ.get("STACK_ROOT", ""), help="a root file system to take the place of ours")
    parser.add_argument("--device", action="append", default=[], help="a device of this machine that the board may have too")
    parser.add_argument("--installed", default=f"{HERE}/build/root/stack", help="where `make install` has put the modules")
    parser.add_argument("--once", action="store_true", help="end when the board reboots; exit status 3")
    parser.add_argument("--init", nargs="+", default=["/stack/sbin/stack.py"], help="what to run as PID 1, for tests")
    parser.add_argument("--files", help="a folder that the board sees as /test")
    parser.add_argument("--data", help="a folder of its root's that the board sees as /data, and may write")
    parser.add_argument("--live", action="store_true", help="what is saved in the project's folder reaches the board")
    parser.add_argument(
        "--mothership", type=address, metavar="HOST:PORT", help="the mothership's broker, as this machine reaches it"
    )
    parser.add_argument("--name", default="", help="the board's name there; the laptop's where nothing is said")
    parser.add_argument("--pid-file", help="where to write PID 1's pid")
    parser.add_argument("--flags", default="-ESB", help="Python's flags for PID 1")
    parser.add_argument("option", nargs="*", help="words of the kernel command line: stack.debug, stack.skip=NAME")
    options = parser.parse_args(arguments)
    options.flags = options.flags.split()
    if options.seconds is not None and not 0 < options.seconds < 1e9:
        parser.error("--seconds takes a number greater than 0")
    if options.profile and not os.path.isfile(options.profile):
        parser.error(f"there is no profile {options.profile}")
    if options.name and not options.mothership:
        parser.error("--name is the board's name at its mothership: say --mothership too")
    return options


def main(arguments: list[str]) -> int:
    """Boot, attend, and boot again after a reboot; exit status 0 for a clean shutdown."""
    options = parse(arguments)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and options.seconds is None
    profile = "laptop" + ",/mothership.py" * bool(options.mothership) + ",/profile.py" * bool(options.profile)
    words = [f"stack.profile={profile}", f"stack.skip={'observations' if interactive else 'prompt'}", *options.option]
    wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGWINCH):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)
    deadline = None if options.seconds is None else time.monotonic() + options.seconds
    live = Live(HERE, options.installed, options.profile) if options.live else None
    saved = termios.tcgetattr(0) if interactive else None
    try:
        if interactive:
            tty.setraw(0)
        while True:
            board = Board(options, words, interactive=interactive)
            register(BOARDS, board.pid)
            if options.pid_file:
                with open(options.pid_file + ".new", "w", encoding="ascii") as file:
                    file.write(str(board.pid))
                os.rename(options.pid_file + ".new", options.pid_file)
            if live:
                live.board = board.pid
            board.attend(interactive=interactive, deadline=deadline, wakeup=wakeup, live=live)
            forget(BOARDS, board.pid)
            status = board.status or 0
            rebooted = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGHUP
            if options.once or not rebooted:
                break
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
    if complaint := explain(status):
        print(complaint, file=sys.stderr)
        return 1
    return 3 if rebooted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
