"""Records a session at the prompt of a real board, for README.md and the first page of the site, as text.

Boots the laptop's board in namespaces through the launcher (`make run` has installed what it needs), types on its
console, and writes what came back between the markers of both pages. Ctrl-D at the end halts the board.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = (ROOT / "README.md", DOCS / "index.md")
BEGIN = "<!-- recorded by docs/record.py: begin -->"
END = "<!-- recorded by docs/record.py: end -->"
COMMANDS = (
    "stats_process()",
    "stop_process('fakegps')['exit']",
    "start_process('fakegps')['state']",
    "logs('stack', lines=2)",
)
SETTLE = 12.0  # seconds of run time before the first command: every service has started by then
PATIENCE = 60.0  # seconds for the boot, and for each answer
WIDTH, HEIGHT = 104, 40  # of the terminal
PROMPT = ">>> "
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Terminal:
    """The launcher on a terminal of ours."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
            os.execv(command[0], command)

    def until_prompt(self) -> str:
        """What comes until the next prompt, without it."""
        text, deadline = "", time.monotonic() + PATIENCE
        while not plain(text).endswith(PROMPT):
            if time.monotonic() > deadline or not select.select([self.fd], [], [], PATIENCE)[0]:
                raise SystemExit(f"no prompt within {PATIENCE:g} s; so far:\n{plain(text)}")
            text += os.read(self.fd, 65536).decode(errors="replace")
        return plain(text).removesuffix(PROMPT)

    def type(self, line: str) -> str:
        """Type a line; it, and what it printed."""
        os.write(self.fd, f"{line}\r".encode())
        return self.until_prompt()

    def end(self) -> int:
        """Ctrl-D halts the board; the launcher's exit status."""
        os.write(self.fd, b"\x04")
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:  # the launcher has closed the terminal (EIO)
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def plain(text: str) -> str:
    """Without the escapes of a terminal, and with one kind of line end."""
    return ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "")


def record(python: str) -> str:
    """One session: each command behind its prompt, and what it printed."""
    terminal = Terminal([python, str(ROOT / "laptop" / "launcher.py")])
    terminal.until_prompt()
    time.sleep(SETTLE)
    found = ""
    for command in COMMANDS:
        answer = terminal.type(command)
        found += PROMPT + command + "\n" + answer.partition("\n")[2]
    if status := terminal.end():
        raise SystemExit(f"the board did not end well: exit status {status}")
    return found.rstrip()


def written(page: str, screen: str) -> str:
    """A page with this screen between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"a page without the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n```text\n{screen}\n```\n{END}{after}"


def main(arguments: list[str]) -> None:
    python = arguments[0] if arguments else str(ROOT / ".venv" / "bin" / "python")
    screen = record(python)
    for path in PAGES:
        path.write_text(written(path.read_text(encoding="utf-8"), screen), encoding="utf-8")
    print(screen)


if __name__ == "__main__":
    main(sys.argv[1:])
