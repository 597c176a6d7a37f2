"""The console inside PID 1: Python typed by root, line by line, run on PID 1's own objects between two turns of its loop.

A request is `{"op": "console", "do": ...}`: open, line, answer, complete, drop, close. prompt/inside_pid1.py is the client.
Each request but open names its session. A statement that is complete runs at once, under the limits of pid1/interrupt.py; the
reply has its output. This module is loaded by the first request.
"""

from __future__ import annotations

import builtins
import codeop
import os
import sys
import time

import _log
from base.stdlib import TYPE_CHECKING
from base.syscalls import limit_memory
from onboard.to_pid1 import SVError
from pid1 import tracebacks
from pid1.closer import peek
from pid1.interrupt import Interrupted, TimeLimit
from pid1.typed import TRIED, TRY, acting, compiles, completions
from pid1.watchdog import FEEDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType
    from typing import Any

    from pid1.control import Client
    from pid1.life import Life
    from pid1.watchdog import Watchdog

SECONDS, MOST_SECONDS = 5.0, 60.0  # for a statement
LINE, STATEMENT = 8 * 1024, 16 * 1024  # characters
OUTPUT = 64 * 1024  # characters of a statement's output
SESSIONS, IDLE = 4, 3600.0  # one more, and the one that has been silent for longest ends; seconds of silence that end one
COMPLETIONS, SOURCES = 200, 50


class Output:
    """sys.stdout and sys.stderr of a statement: keeps so many characters, and counts the rest."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.room = OUTPUT
        self.lost = 0
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        """As a text file's; a child that a statement has started writes to the real one."""
        if os.getpid() != self._pid:
            os.write(1, text.encode(errors="backslashreplace"))
            return len(text)
        kept = str(text)[: self.room]
        self.room -= len(kept)
        self.lost += len(text) - len(kept)
        self.parts.append(kept)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""

    def isatty(self) -> bool:
        """No terminal."""
        return False


class Nothing:
    """sys.stdin of a statement: it is at its end. PID 1 reads from nobody."""

    encoding = "utf-8"

    def readline(self, *_: object) -> str:
        """The end of the file."""
        return ""

    read = readline


class Session:
    """One client's: its names, the lines of a statement that is not complete, the debugger."""

    def __init__(self, seconds: float, names: dict[str, Any]) -> None:
        self.seconds = seconds
        self.names = names
        self.lines: list[str] = []
        self.waits: CodeType | None = None  # for an answer, because it acts
        self.number = 0
        self.used = 0.0
        self.trace: TracebackType | None = None  # of its last exception
        self.pdb: Any = None


class Inside:
    """All sessions; one statement at a time."""

    def __init__(
        self, life: Life, watchdog: Watchdog, ask: Callable[[dict[str, Any], int, float], Any], memory: Callable[..., Any]
    ) -> None:
        """`ask(request, uid, now)` answers a request of the control socket, `memory(what)` is the function of that name."""
        self.life, self.watchdog, self.ask, self.memory = life, watchdog, ask, memory
        self.sessions: dict[str, Session] = {}  # the longest silent first
        self.sources: dict[str, str] = {}  # the last statements, for tracebacks that pass them
        self.limit = TimeLimit()
        self.life.loop.timers.append((self.next_deadline, self.tick))
        # What PID 1 cannot do without: an attribute that a statement deletes is put back.
        owners: tuple[Any, ...] = (life, life.sv, life.loop, watchdog, builtins, os, sys, time)
        self._needed = [(owner, dict(vars(owner))) for owner in owners]

    def next_deadline(self) -> float | None:
        """When the session that has been silent for longest ends."""
        return next((session.used + IDLE for session in self.sessions.values()), None)

    def tick(self, now: float) -> None:
        """End sessions whose clients have not been heard of for long."""
        for name, session in list(self.sessions.items()):
            if session.used + IDLE <= now:
                del self.sessions[name]

    def handle(self, request: dict[str, Any], now: float) -> dict[str, Any]:
        """One request of root."""
        if self.limit.busy:
            raise SVError("a statement of the console is running")
        match request:
            case {"do": "open"}:
                return self._open(request.get("limit", SECONDS), now)
            case {"session": str(name), "do": str(do)} if name in self.sessions:
                session = self.sessions[name] = self.sessions.pop(name)
                session.used = now
            case {"session": str()}:
                raise SVError("this session has ended; its names are gone. Open another one")
            case _:
                raise SVError(f"no such request of the console: {str(request)[:200]}")
        match request:
            case {"do": "line", "line": str(line)}:
                return self._line(name, session, line)
            case {"do": "answer", "yes": bool(yes)}:
                code, session.waits = session.waits, None
                return self._run(session, lambda: exec(code, session.names)) if code and yes else self._reply(session)
            case {"do": "complete", "text": str(text)}:
                return self._complete(session, text[:LINE])
            case {"do": "drop"}:
                session.lines, session.waits = [], None
                return self._reply(session)
            case {"do": "close"}:
                del self.sessions[name]
                return {}
        raise SVError(f"no such request of the console: {do[:64]!r}")

    def _open(self, seconds: Any, now: float) -> dict[str, Any]:
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= MOST_SECONDS:
            raise SVError(f"a statement may take more than 0 and at most {MOST_SECONDS:g} s, not {str(seconds)[:32]}")
        while len(self.sessions) >= SESSIONS:
            del self.sessions[next(iter(self.sessions))]
        name = os.urandom(8).hex()
        session = self.sessions[name] = Session(float(seconds), {"__name__": "__console__", "__builtins__": builtins})
        session.used = now
        self._give_names(session)
        _log.info(f"console {name[:4]}: opened by {self._who()}; a statement may take {seconds:g} s")
        listed = [one for one in session.names if not one.startswith("_")]
        return {"session": name, "limit": seconds, "names": listed, **self._reply(session)}

    def _who(self) -> str:
        client: Client | None = self.life.loop.client
        return f"pid {client.pid}" if client else "root"

    def _give_names(self, session: Session) -> None:
        """PID 1's objects as they are now: a reload replaces the tables."""
        life, ask = self.life, self.ask

        def act(op: str) -> Callable[..., Any]:
            return lambda name="": ask({"op": op, "name": name} if name else {"op": op}, 0, time.monotonic())

        session.names.update(
            init=life, sv=life.sv, services=life.sv.processes, loop=life.loop, settings=life.tables, now=time.monotonic,
            crashes=life.crash_list, memory=self.memory, debug=lambda crash=False: self._debug(session, crash=crash),
            **{op: act(op) for op in ("start", "stop", "restart", "reload", "reboot", "halt", "poweroff")},
        )  # fmt: skip

    # --- a line -----------------------------------------------------------------------------------------------------------
    def _line(self, name: str, session: Session, line: str) -> dict[str, Any]:
        line = line.rstrip("\n")
        if len(line) > LINE or sum(map(len, session.lines)) + len(line) > STATEMENT:
            session.lines = []
            raise SVError(f"a line has at most {LINE} characters, and a statement {STATEMENT}")
        for at in range(0, max(1, len(line)), 600):
            _log.info(f"console {name[:4]}: {line[at : at + 600]}")
        self.life.tell("console", {"session": name[:4], "line": line[:600]}, time.monotonic())
        session.waits = None
        if session.pdb:
            return self._run(session, lambda: self._pdb_line(session, line))
        session.lines.append(line)
        source = "\n".join(session.lines)
        if len(source) > TRIED and not compiles(source):
            session.lines = []
            raise SVError(f"compiling this ends the interpreter, or takes more than {TRY:g} s")
        session.number += 1
        file = f"<console {name[:4]}:{session.number}>"
        try:
            code = codeop.compile_command(source, file, "single")
        except Exception as error:
            session.lines = []
            return {**self._reply(session), "output": tracebacks.text(error, None)}
        if code is None:
            return self._reply(session)
        session.lines = []
        self._remember(file, source)
        if words := acting(code):
            session.waits = code
            return {**self._reply(session), "ask": f"{', '.join(words)}: this may end, stop or start something. Do it? [y/N] "}
        ready = code
        return self._run(session, lambda: exec(ready, session.names))

    def _remember(self, file: str, source: str) -> None:
        self.sources[file] = source
        while len(self.sources) > SOURCES:
            del self.sources[next(iter(self.sources))]

    def _reply(self, session: Session) -> dict[str, Any]:
        return {"output": "", "prompt": "(Pdb) " if session.pdb else "... " if session.lines else ">>> "}

    def _run(self, session: Session, call: Callable[[], object], seconds: float = 0.0) -> dict[str, Any]:
        """Run it under all limits, and answer with what it printed."""
        output, began = Output(), time.monotonic()
        self._give_names(session)

        def display(value: object) -> None:
            if value is not None:
                session.names["_"] = value
                output.write(repr(value) + "\n")

        def guarded() -> None:  # an exception's text is the code's own: it is made within the limits too
            try:
                call()
            except Interrupted:
                raise
            except BaseException as error:
                session.trace = error.__traceback__
                output.write(tracebacks.text(error, __file__, self.sources))

        self.life.address_space = limit_memory()
        kept = sys.stdin, sys.stdout, sys.stderr, sys.displayhook
        sys.stdin, sys.stdout, sys.stderr, sys.displayhook = Nothing(), output, output, display
        try:
            mended = self.limit.run(guarded, seconds or session.seconds, self._meanwhile)
        except BaseException as error:  # Interrupted, or a failure of the limits themselves
            session.trace = error.__traceback__
            output.write("\n" + tracebacks.text(error, __file__, self.sources))
            mended = []
        sys.stdin, sys.stdout, sys.stderr, sys.displayhook = kept
        self.life.address_space = None
        mended += self._put_back()
        self.life.loop.excused += time.monotonic() - began
        text = "".join(output.parts)
        if output.lost:
            text += f"\n... and {output.lost} characters more: {OUTPUT} are shown\n"
        return {**self._reply(session), "output": text + "".join(f"PID 1: {one}\n" for one in mended)}

    def _meanwhile(self, now: float) -> str:
        """While a statement runs: the hardware's watchdog is fed, and a client that says something or has gone ends it."""
        dog = self.watchdog
        if dog.device and dog.due is not None and now >= dog.due:
            dog.due = now + dog.timeout / FEEDS
            try:
                dog.feed(now)
            except Exception as error:
                _log.warning(f"console: the watchdog is not fed: {error}")
        client: Client | None = self.life.loop.client
        try:
            if client is None:
                return ""
            there, with_rights = peek(client.socket)
            if there and not with_rights:
                client.socket.recvmsg(16)  # the client would lose its answer if this were never read (ECONNRESET)
            return "Ctrl-C" if there else "its client has gone"
        except BlockingIOError:
            return ""
        except OSError:
            return "its client has gone"

    def _put_back(self) -> list[str]:
        mended = []
        for owner, names in self._needed:
            for name in names.keys() - vars(owner).keys():
                setattr(owner, name, names[name])
                mended.append(f"{name} was deleted, and is there again")
        return mended

    # --- the debugger -----------------------------------------------------------------------------------------------------
    def _debug(self, session: Session, *, crash: bool) -> None:
        """pdb on the session's last exception, or on PID 1's own last one: a line is a command from now on, q ends it."""
        trace = self.life.last_trace if crash else session.trace
        if trace is None:
            raise SVError("there is no exception to look at")
        hidden = sys.modules.get("readline")
        sys.modules["readline"] = None  # type: ignore[assignment]  # it would set up a terminal for PID 1
        try:
            import linecache
            import pdb

            linecache.cache.update(
                {file: (len(text), None, text.splitlines(True), file) for file, text in self.sources.items()}
            )
            session.pdb = pdb.Pdb(stdin=sys.stdin, stdout=sys.stdout, nosigint=True, readrc=False)
        finally:
            del sys.modules["readline"]
            if hidden:
                sys.modules["readline"] = hidden
        session.pdb.reset()
        session.pdb.setup(None, trace)
        session.pdb.print_stack_entry(session.pdb.stack[session.pdb.curindex])

    def _pdb_line(self, session: Session, line: str) -> None:
        """One command. There is nothing to step through: what would go on ends the debugger."""
        session.pdb.stdout = sys.stdout
        try:
            ends = session.pdb.onecmd(line)
        finally:
            sys.settrace(None)
        if ends or line.strip() == "EOF":
            session.pdb = None

    # --- completion -------------------------------------------------------------------------------------------------------
    def _complete(self, session: Session, text: str) -> dict[str, Any]:
        """Names that begin with this one, such as `loop.tur`; a key of a dict after `services["`. Properties run under the
        limits too."""
        found: list[str] = []
        self._run(session, lambda: found.extend(completions(text, session.names)), 0.5)
        return {"names": [name[:200] for name in found[:COMPLETIONS]]}
