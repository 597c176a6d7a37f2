"""A live upgrade, as the new PID 1 sees it: it is checked, takes the state over, and proves itself. Or the old one comes back.

pid1/guard.py calls `begin`, by way of stack.py: in a child of the PID 1 before, as PID 1 for new code that is on trial, and as
PID 1 for the old code if that has failed.
"""

from __future__ import annotations

import os
import sys
import time

import _log
from base.files import read_file
from base.stdlib import TYPE_CHECKING, json, socket
from onboard import to_pid1
from pid1 import handover
from pid1.control import new_socket
from pid1.loop import trace
from pid1.process import State
from pid1.relatives import children_of, environment_of, group_of, mark_of
from pid1.world import UNKNOWN
from tables import load as tables_module
from tables.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import SourceFileLoader
    from typing import Any
else:
    from _frozen_importlib_external import SourceFileLoader

PROVEN = 0.5  # of the time that it has: after so much without a fault the new code is taken


class Unproven(Exception):
    """Why this code should not be PID 1."""


def begin(make: Callable[[], Any], live: Callable[[Any], int], handed: dict[str, Any]) -> Any:
    """The answer of a check; otherwise, when this code has proven itself, what is left to do: all the rest of PID 1's life."""
    if handed["mode"] == "check":
        return probe(make, handed)
    init = take_over(make, handed)
    return lambda: live(init)


# --- the check ----------------------------------------------------------------------------------------------------------
def probe(make: Callable[[], Any], handed: dict[str, Any]) -> dict[str, Any]:
    """Whether this code can go on from a state, in a process that is not PID 1; the state's version. Raises where it cannot."""
    from pid1 import selftest

    compile_all(handed["lib"])
    document = readable(handover.stored(int(handed["state"])))
    before = Tables()
    handover.take_tables(before, document)
    tables = tables_module.load(before.options)
    if faults := [text for text in tables.rejected if text not in before.rejected]:
        raise Unproven(f"its tables do not validate: {'; '.join(faults)}")
    selftest.run()
    handover.take(make(), document)
    return {"version": document["given"]}


def readable(texts: list[str]) -> dict[str, Any]:
    """The first of these states that this code can read."""
    why = ""
    for text in texts:
        try:
            return handover.read(text)
        except ValueError as error:
            why = why or str(error)
    raise Unproven(why or "there is no state")


def compile_all(lib: str) -> None:
    """Every module of ours, not only PID 1's, from its byte code where that is up to date."""
    for folder, folders, files in os.walk(lib):
        folders[:] = [name for name in folders if name not in ("__pycache__", "data")]
        for file in files:
            if file.endswith(".py"):
                SourceFileLoader(file, f"{folder}/{file}").get_code(file)


# --- PID 1 --------------------------------------------------------------------------------------------------------------
def take_over(make: Callable[[], Any], handed: dict[str, Any]) -> Any:
    """An Init with the state of the one before it, after it has proven itself where it is on trial."""
    state, trial = int(handed["state"]), handed["mode"] == "try"
    init, document = restored(make, handed, handover.stored(state))
    now = time.monotonic()
    init.events.early = None if init.booted else init.events.early
    if not trial:
        reconcile(init, now)
    init.catch_signals()
    if init.watchdog.device:
        init.watchdog.feed(now)
    outcome = Outcome(init, handed, document["at"])
    if trial:
        prove(init, handed, document["given"], outcome)
    init.loop.timers.append(outcome.timer)
    return init


def restored(make: Callable[[], Any], handed: dict[str, Any], texts: list[str]) -> tuple[Any, dict[str, Any]]:
    """An Init, and the state that it was made of: the newest one that can be used."""
    kept = {int(handed[name]) for name in ("state", "bundle", "client", "new", "out")}
    documents = []
    for text in texts:
        try:
            documents.append(handover.read(text))
        except ValueError as error:
            _log.warning(f"upgrade: {error}")
    mine = {int(sys.argv[1])}
    known = kept.union(mine, *(document["fds"] for document in documents))
    for fd in handed["inherited"]:
        if fd in known:
            os.set_inheritable(fd, False)
        else:
            os.close(fd)
    for number, document in enumerate(documents, 1):
        try:
            init = make()
            handover.take(init, document)
            return init, document
        except Exception as error:
            _log.error(f"upgrade: the state cannot be taken over: {trace(error)}")
            if number == len(documents):
                raise
    raise Unproven("there is no state")


def reconcile(init: Any, now: float) -> None:
    """Code that has failed did things after it had last saved its state: children whose end it has seen, others that it has
    started."""
    relatives, deaths = init.sv.world.relatives, init.sv.deaths
    children = set(children_of(os.getpid()))
    for pid in relatives.by_pid.keys() - children - relatives.pidfds.keys() - deaths.keys():
        deaths[pid] = UNKNOWN
    for pid in children - relatives.by_pid.keys() - {init.sv.world.closer.pid}:
        for process in init.sv.processes.values():
            if process.pid is None and group_of(pid) == pid and started(init, process, pid):
                relatives.born(process, pid)
                process.pid, process.started = pid, now
                process._enter(State.STARTING if process.row.ready else State.RUNNING, now, process.row.ready_timeout)
                process.ready = not process.row.ready
                break


def started(init: Any, process: Any, pid: int) -> bool:
    """Whether this child was started as this service's main process."""
    name, cgroups = process.row.name, init.sv.world.cgroups
    if cgroups.folder(name):
        return pid in cgroups.pids(name)
    of_module = process.row.module and read_file(f"/proc/{pid}/comm") == name[:15]
    return bool(of_module) or mark_of(name) in environment_of(pid)


def prove(init: Any, handed: dict[str, Any], version: int, outcome: Outcome) -> None:
    """Run the loop; it must neither fail nor hang, and must answer on the control socket. The state is saved after each turn,
    for the old code."""
    state, until = int(handed["state"]), time.monotonic() + PROVEN * float(handed["seconds"])
    errors, number, answered = init.loop.errors, 1, False
    client = new_socket()

    def failed(what: str, error: Exception) -> None:
        raise Unproven(f"{what}: {trace(error)}")

    saver = handover.Saver(init)
    init.loop._failed = failed
    timer = (lambda: until, lambda now: None)
    init.loop.timers.append(timer)
    client.connect(to_pid1.SOCKET)
    client.send(b'{"op": "board"}')
    while (time.monotonic() < until or not answered) and init.command is None:
        init.loop.turn()
        outcome.supervised()
        if init.loop.errors > errors:
            raise Unproven("a request has failed")
        number += 1
        handover.store(state, 1 + number % 2, number, saver.save(version))
        answered = answered or has_answered(client)
    client.close()
    init.loop.timers.remove(timer)
    del init.loop._failed


def has_answered(client: socket.socket) -> bool:
    try:
        answer = client.recv(to_pid1.LONGEST_REPLY)
    except BlockingIOError:
        return False
    if "ok" not in json.loads(answer):
        raise Unproven(f"it answers board() with {answer[:200]!r}")
    return True


class Outcome:
    """How an upgrade has ended: answered to whoever has asked, once, by whoever is PID 1 then."""

    def __init__(self, init: Any, handed: dict[str, Any], at: float) -> None:
        self.init = init
        self.handed = handed
        self.at = at  # the last turn of the PID 1 before
        self.first = 0.0  # our own first one
        self.timer = (lambda: 0.0, self.tick)

    def supervised(self) -> None:
        """A turn of the loop is over."""
        self.first = self.first or time.monotonic()

    def tick(self, now: float) -> None:
        """Answer, and close what only the upgrade needed."""
        self.supervised()
        init, handed = self.init, self.handed
        init.loop.timers.remove(self.timer)
        facts = {
            "code": handed["what"], "unsupervised_ms": round(1e3 * (self.first - self.at), 1),
            "seconds": round(now - self.at, 3), "state": handover.VERSION,
        }  # fmt: skip
        if handed["mode"] == "try":
            reply: dict[str, Any] = {"ok": facts}
            _log.info(f"upgrade: {handed['what']} is PID 1; {facts['unsupervised_ms']:g} ms without supervision")
            init.tell("upgrade", facts, now)
        else:
            why = f"the new code failed, and the old code is PID 1 again: {handed['why']}"
            reply = {"error": why}
            init.fault(f"upgrade: {handed['what']}: {why}")
        for fd in {int(handed[name]) for name in ("state", "out", "new")} | {int(sys.argv[1])}:
            if fd >= 0 and fd != handed["bundle"]:
                os.close(fd)
        if init.control:
            init.control.answer(int(handed["client"]), reply)
