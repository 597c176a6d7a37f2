"""The client of the console inside PID 1, and `crashes()` and `memory()`, which show more of it.

pid1/inside.py is the other end. A line is one connection to the control socket, so that Ctrl-C and a client that vanishes are
seen by PID 1 while it runs the line.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from base.printable import printable
from base.stdlib import json, socket
from onboard import to_pid1
from onboard.to_pid1 import SVError, Unreachable
from prompt.asking import ask, tables
from prompt.shapes import Facts, Shape, Stats

try:
    import readline
except ImportError:  # a Python without readline: no keys but those of the terminal
    readline = None  # type: ignore[assignment]

HISTORY = 1000  # lines
MORE = 30.0  # seconds for an answer beyond a statement's own time
WORDS = ("exit()", "quit()", "exit", "quit")


class Crashes(Shape, list[Stats]):
    """Exceptions in PID 1, shown as tracebacks with local values."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        lines = []
        for row in self:
            times = "once" if row["count"] == 1 else f"{row['count']} times, last at {row['last']:.1f} s"
            lines.append(f"{row['what']}: {row['error']} (at {row['first']:.1f} s of the kernel's clock, {times})")
            for frame in row["frames"]:
                lines.append(f"  {frame['file']}:{frame['line']} {frame['function']}")
                lines += [f"    {name} = {value}" for name, value in frame["locals"].items()]
        return "\n".join(printable(line)[: width or None] for line in lines) or "(none)"


class Usage(Facts):
    """PID 1's memory."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        facts = Facts({name: value for name, value in self.items() if name != "grown" and value != ""}).text(width)
        rows = [f"{row['change']:+9} bytes  {row['more']:+5} blocks  {row['file']}:{row['line']}" for row in self["grown"]]
        return "\n".join([facts, *rows])


def crashes() -> list[Stats]:
    """Exceptions in PID 1 since the boot: where each was raised, the values of local names, how often. Secrets are left out.

    what, error, first and last (s of the monotonic clock), count, frames (file, line, function, locals).
    """
    return Crashes(ask("crashes"))


def memory(what: str = "") -> Stats:
    """PID 1's memory in bytes (rss, pss, private, traced), and where it has grown since the last call, by line of code.

    "start" begins to trace allocations and "stop" ends it; the word stack.tracemalloc on the kernel command line begins at
    boot. `grown` has file, line, bytes, change, blocks and more.
    """
    return Usage(ask("memory", what=what))


def console(limit: float = 5.0) -> None:
    """A Python prompt inside PID 1, on its own objects: init, sv, services, loop, settings. Root only; Ctrl-D leaves.

    PID 1 does nothing else while a line runs, so a line is interrupted after `limit` seconds (at most 60), or by Ctrl-C.
    """
    client = Client(limit)
    if sys.stdin.isatty():
        print(f"inside PID 1: {', '.join(client.names)}")
        print(f"Tab completes, Ctrl-C interrupts, Ctrl-D leaves; a statement may take {limit:g} s, and all else waits for it")
        with keys(client) if readline is not None else contextlib.nullcontext():
            talk(client, typed)
    else:
        talk(client, piped)


def talk(client: Client, read: Callable[[str], str | None]) -> None:
    """Read lines until there are no more, and show what PID 1 answers. Without a terminal nobody can be asked: no."""
    try:
        while True:
            try:
                line = read(client.prompt)
                if line is None or (line.strip() in WORDS and client.prompt == ">>> "):
                    break
                client.line(line, read)
            except KeyboardInterrupt:
                print("\nKeyboardInterrupt")
                client.ask("drop")
            except Unreachable:
                raise
            except SVError as error:
                print(f"SVError: {error}", file=sys.stderr)
    finally:
        with contextlib.suppress(SVError):
            client.ask("close")


def typed(prompt: str) -> str | None:
    """A line of the terminal; None at its end."""
    try:
        return input(prompt)
    except EOFError:
        print()
        return None


def piped(prompt: str) -> str | None:
    """A line of what is no terminal."""
    return sys.stdin.readline().rstrip("\n") or None if prompt.endswith("[y/N] ") else next(sys.stdin, None)


class Client:
    """A session in PID 1."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.session = ""
        self.prompt = ">>> "
        opened = self.ask("open", limit=limit)
        self.session, self.names = opened["session"], opened["names"]

    def line(self, line: str, read: Callable[[str], str | None]) -> None:
        """One line: what PID 1 prints of it, and its question where it would act."""
        answer = self.ask("line", line=line.rstrip("\n"))
        if question := answer.get("ask"):
            if sys.stdin.isatty():
                yes = (read(question) or "").strip().lower() in ("y", "yes")
            else:
                print(f"{question}nobody can be asked: not done", file=sys.stderr)
                yes = False
            answer = self.ask("answer", yes=yes)
        print(answer["output"], end="", flush=True)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """One request and its answer. It is sent once: PID 1 may have run it, whatever comes of the connection."""
        request = {"op": "console", "do": do, **({"session": self.session} if self.session else {}), **words}
        path = os.environ.get("STACK_CONTROL", to_pid1.SOCKET)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0)) as connection:
            connection.settimeout(self.limit + MORE)
            try:
                connection.connect(path)
                connection.send(json.dumps(request).encode())
                message = receive(connection)
            except OSError as error:
                raise Unreachable(f"cannot talk to PID 1 at {path}: {error.strerror or error}") from None
        if not message:
            raise Unreachable("PID 1 closed the connection without an answer")
        reply = json.loads(message)
        if "error" in reply:
            raise SVError(reply["error"])
        answer: dict[str, Any] = reply["ok"]
        self.prompt = answer.get("prompt", self.prompt)
        return answer


def receive(connection: socket.socket) -> bytes:
    """The answer; Ctrl-C asks PID 1 to interrupt the statement, and the answer comes all the same."""
    asked = False
    while True:
        try:
            return connection.recv(4 * to_pid1.LONGEST_REPLY)
        except KeyboardInterrupt:
            asked = True
            with contextlib.suppress(OSError):
                connection.send(b"interrupt")
        except ConnectionResetError:  # it had ended, so nobody has read that: the answer comes next
            if not asked:
                raise
            asked = False


@contextlib.contextmanager
def keys(client: Client) -> Iterator[None]:
    """Tab completes by PID 1's names, and lines are kept in a history of their own; the prompt's own come back afterwards."""
    completer, delims = readline.get_completer(), readline.get_completer_delims()
    mine = f"{tables().values['KEEP']}/console_history"
    before = [readline.get_history_item(number + 1) for number in range(readline.get_current_history_length())]
    readline.clear_history()
    with contextlib.suppress(OSError):
        readline.read_history_file(mine)
    readline.set_completer(completer_of(client))
    readline.set_completer_delims(" \t\n()=,;:+-*/%<>!&|^~{}")
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_history_length(HISTORY)
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(mine), exist_ok=True)
            os.close(os.open(mine, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(mine)
        readline.clear_history()
        for line in before:
            readline.add_history(line)
        readline.set_completer(completer)
        readline.set_completer_delims(delims)


def completer_of(client: Client) -> Callable[[str, int], str | None]:
    """For readline: PID 1 is asked once for each word."""
    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        if state == 0:
            found.clear()
            with contextlib.suppress(SVError):
                found.extend(client.ask("complete", text=text)["names"])
        return found[state] if state < len(found) else None

    return complete
