"""The state of PID 1 as plain data: what one PID 1 hands over to the next one in an upgrade.

Each part of PID 1 is a row of `HANDED`: the attributes that the next one gets, and, under `ANEW`, those that it makes again. A
test compares both with the attributes that there are: whoever gives a part another one has to say here what becomes of it.
`:fd` marks what holds descriptors: those stay open over execve(2), whatever else is open is closed.

An attribute that the other side does not know is left out, one that it misses keeps the value of a start. So only a change of
meaning needs a new VERSION, with a pair of functions in STEPS that lead to it and back.
"""

from __future__ import annotations

import os
import time

import _log
from base.stdlib import TYPE_CHECKING, json, socket
from pid1.cgroup import Met
from pid1.conditions import Fact, Lost, Verdict
from pid1.control import Client
from pid1.process import Process, State
from pid1.watchdog import Device
from tables.accounts import Account
from tables.check_settings import CHECKS
from tables.plain import ROWS, Foreign

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Document = dict[str, Any]
    Step = tuple[Callable[[Document], Document], Callable[[Document], Document]]

VERSION = 1
STEPS: dict[int, Step] = {}  # to this version from the one before, and back
OLDEST = VERSION - len(STEPS)
SLOTS, SLOT = 3, 16 * 1024 * 1024  # bytes of the memfd, which takes no memory for what is not written

HANDED = {
    "init": "arguments line born began options steps command faults crashes booted into wakeup:fd waker:fd asked incomplete",
    "loop": "turns wakeups longest limit slow errors",
    "events": "path number boot_id early",
    "watchdog": "device:fd error asked timeout fed due pause snoozed ending refused report:fd",
    "rescue": "process until displaced boot_waits",
    "sv": "processes stopping deaths",
    "world": "changed _refused logs_are_read logs_in_memory",
    "timeline": "rows count",
    "conditions": "facts under lost values modes mode_since verdicts pending _said",
    "spawner": "environment own failures descriptors reports:fd report:fd",
    "cgroups": "root controllers _limits _met _events:fd _watches",
    "relatives": "by_pid groups pidfds:fd strays_count",
    "pipes": "_pipes:fd _channel:fd _unsent",
    "closer": "pid _channel:fd",
    "notify": "_folder _sockets:fd",
    "paths": "_waiting _fd:fd",
    "control": "_clients:fd _later:fd",
    "sink": "kmsg:fd console:fd pipe:fd level console_level dropped",
    "tables": "options rejected broken bad_names skipped profiles values environment accounts group_ids owners user_faults "
    "services templates zygotes order hints slow_conditions defaults default_rows",
}
ANEW = {
    "init": "last_trace address_space tables loop events timeline at_end sv rescue watchdog requests control upgrading",
    "loop": "excused client on_error _epoll _callbacks _failures _resting timers",
    "watchdog": "life open_device",
    "rescue": "life open_control",
    "sv": "life loop world dependents loggers escalate delays conditions",
    "world": "life spawner cgroups relatives pipes closer notify paths forks",
    "spawner": "ignored valid _low _null",
    "cgroups": "_loop",
    "relatives": "cgroups _loop",
    "pipes": "_loop _written _again on_question",
    "notify": "_loop _closer",
    "paths": "_loop _appeared",
    "control": "_loop _handler _permits _closer _answers _listener _takes_rights",
    "tables": "names",
    "conditions": "life world rows stale _functions",
    "process": "row actions delays jitter",  # and all that it has besides is handed over
}
TUPLES: dict[str, Any] = {**ROWS, **{kind.__name__: kind for kind in (Account, Met, Client, Foreign, Fact, Lost, Verdict)}}
SIMPLE = frozenset((type(None), bool, int, float, str))


def parts(init: Any) -> dict[str, Any]:
    """The objects that PID 1 consists of, by their names in the tables above; a board may lack control and conditions."""
    world = init.sv.world
    found = {
        "init": init, "loop": init.loop, "events": init.events, "watchdog": init.watchdog, "rescue": init.rescue, "sv": init.sv,
        "world": world, "spawner": world.spawner, "cgroups": world.cgroups, "relatives": world.relatives, "pipes": world.pipes,
        "closer": world.closer, "notify": world.notify, "paths": world.paths, "control": init.control, "sink": _log.sink,
        "tables": init.tables, "timeline": init.timeline, "conditions": init.sv.conditions,
    }  # fmt: skip
    return {name: part for name, part in found.items() if part is not None}


class Packer:
    """Values as JSON holds them, the processes that they speak of, and the descriptors in them."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self._numbers: dict[int, int] = {}  # by id()
        self.fds: set[int] = set()
        self.columns: dict[str, tuple[str, ...]] = {}  # of the kinds of rows that there are

    def number(self, process: Process) -> int:
        if id(process) not in self._numbers:
            self._numbers[id(process)] = len(self.processes)
            self.processes.append(process)
        return self._numbers[id(process)]

    def pack(self, value: Any) -> Any:
        """TypeError for what cannot be handed over."""
        kind = type(value)
        if kind in SIMPLE:
            return value
        if kind is tuple:
            return [one if type(one) in SIMPLE else self.pack(one) for one in value]
        if isinstance(value, dict):
            return {"dict": [[self.pack(key), self.pack(one)] for key, one in value.items()]}
        if isinstance(value, tuple) and kind.__name__ in TUPLES:  # tables/rows.py has a Device too
            self.columns[kind.__name__] = kind._fields
            return {"row": kind.__name__, "cells": [one if type(one) in SIMPLE else self.pack(one) for one in value]}
        if kind is list or kind is set:
            return {kind.__name__: [self.pack(one) for one in value]}
        if kind is Process:
            return {"process": self.number(value)}
        if kind is bytes:
            return {"bytes": value.hex()}
        if isinstance(value, OSError):
            return {"error": [value.errno, value.strerror]}
        if kind is Device:
            return {"device": value.fd}
        if kind is socket.socket:
            return {"socket": value.fileno()}
        raise TypeError(f"{kind.__name__} {str(value)[:80]}")

    def hold(self, value: Any) -> None:
        """Note the descriptors in a value; the keys of a dict are none."""
        if type(value) is int and value > 2:
            self.fds.add(value)
        elif isinstance(value, (socket.socket, Device)):
            self.hold(value.fd if isinstance(value, Device) else value.fileno())
        elif type(value) is Client:
            self.hold(value.socket)
        elif isinstance(value, (dict, tuple, list)):
            for one in value.values() if isinstance(value, dict) else value:
                self.hold(one)


def words(row: str) -> list[tuple[str, bool]]:
    """Attributes of a row of HANDED or ANEW, and whether each holds descriptors."""
    return [(word.removesuffix(":fd"), word.endswith(":fd")) for word in row.split()]


class Saver:
    """Writes the state of an Init, again and again; its tables, most of it, only once."""

    def __init__(self, init: Any) -> None:
        self.init = init
        self._tables: Any = None  # of which...
        self._packed: tuple[Document, dict[str, tuple[str, ...]]] = ({}, {})  # ...this is the packed form, and its columns

    def tables(self) -> tuple[Document, dict[str, tuple[str, ...]]]:
        """The tables as they are, which a reload replaces as a whole."""
        if self._tables is not self.init.tables:
            self._tables, packer = self.init.tables, Packer()
            packed = {attribute: packer.pack(getattr(self._tables, attribute)) for attribute, _ in words(HANDED["tables"])}
            self._packed = (packed, packer.columns)
        return self._packed

    def save(self, version: int = VERSION) -> str:
        """All of the state as JSON, in this version of the format. TypeError where something in it cannot be handed over."""
        packer, init = Packer(), self.init
        tables, columns = self.tables()
        document: Document = {"version": VERSION, "at": time.monotonic(), "counts": dict(_log.counts)}
        found = document["parts"] = {"tables": tables}
        for name, part in parts(init).items():
            if name != "tables":
                found[name] = self._part(packer, part, HANDED[name])
        if init.control:
            document["listener"] = init.control.fileno()
            packer.hold(init.control.fileno())
        anew = ANEW["process"].split()
        document["processes"] = [
            {"row": self._row(packer, one)}
            | {name: packer.pack(value) for name, value in vars(one).items() if name not in anew}
            for one in packer.processes
        ]
        document["fds"], document["columns"] = sorted(packer.fds), {**columns, **packer.columns}
        for step in range(VERSION, version, -1):
            document = STEPS[step][1](document)
        return json.dumps({**document, "version": version})

    def _row(self, packer: Packer, process: Process) -> Any:
        """A row, or the name of the table's where it is the same."""
        name = process.row.name
        return name if self.init.tables.services.get(name) is process.row else packer.pack(process.row)

    @staticmethod
    def _part(packer: Packer, part: Any, row: str) -> Document:
        for attribute, holds in words(row):
            if holds:
                packer.hold(getattr(part, attribute))
        return {attribute: packer.pack(getattr(part, attribute)) for attribute, _ in words(row)}


def read(text: str) -> Document:
    """A document of this or an older version; ValueError where it is one of another format."""
    document: Document = json.loads(text)
    version = document["version"]
    if not OLDEST <= version <= VERSION:
        raise ValueError(f"the state has version {version}; this code reads {OLDEST} to {VERSION}")
    for step in range(version + 1, VERSION + 1):
        document = STEPS[step][0](document)
    return {**document, "given": version}


# --- where it is kept -----------------------------------------------------------------------------------------------------
def store(fd: int, slot: int, number: int, text: str) -> None:
    """Write a state into one of three slots of a memfd. Its number comes last: what has one is complete."""
    data = text.encode()
    os.pwrite(fd, bytes(16), slot * SLOT)
    os.pwrite(fd, data, slot * SLOT + 16)
    os.pwrite(fd, number.to_bytes(8, "little") + len(data).to_bytes(8, "little"), slot * SLOT)


def stored(fd: int) -> list[str]:
    """The states in a memfd, the highest number first."""
    heads = []
    for slot in range(SLOTS):
        head = os.pread(fd, 16, slot * SLOT)
        heads.append((int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little"), slot))
    return [os.pread(fd, size, slot * SLOT + 16).decode() for number, size, slot in sorted(heads)[::-1] if number]


# --- the other side -----------------------------------------------------------------------------------------------------
class Taker:
    """Makes values of what `Packer` has packed."""

    def __init__(self, init: Any, document: Document) -> None:
        self.columns: dict[str, list[str]] = document["columns"]
        self.processes = [
            Process(
                init.tables.services[one["row"]] if isinstance(one["row"], str) else self.unpack(one["row"]),
                init.sv.world, init.tables.delays(),
            )
            for one in document["processes"]
        ]  # fmt: skip
        for process, one in zip(self.processes, document["processes"], strict=True):
            for name, value in one.items():
                if name != "row" and name in vars(process):
                    setattr(process, name, self.unpack(value))

    def unpack(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple([self.unpack(one) if type(one) in (list, dict) else one for one in value])
        if not isinstance(value, dict):
            return value
        kind = next(iter(value))
        inner = value[kind]
        return getattr(self, f"_{kind}")(value if kind == "row" else inner)

    def _dict(self, pairs: list[Any]) -> dict[Any, Any]:
        return {self.unpack(key): self.unpack(one) for key, one in pairs}

    def _row(self, value: dict[str, Any]) -> Any:
        """A column that this version does not know is left out; one that it misses has its default."""
        kind, columns = TUPLES[value["row"]], self.columns[value["row"]]
        cells = self.unpack(value["cells"])
        if columns == list(kind._fields):
            return tuple.__new__(kind, cells)
        return kind(**{name: cell for name, cell in zip(columns, cells, strict=True) if name in kind._fields})

    def _list(self, items: list[Any]) -> list[Any]:
        return [self.unpack(one) for one in items]

    def _set(self, items: list[Any]) -> set[Any]:
        return {self.unpack(one) for one in items}

    def _process(self, number: int) -> Process:
        return self.processes[number]

    def _bytes(self, text: str) -> bytes:
        return bytes.fromhex(text)

    def _error(self, words: list[Any]) -> OSError:
        return OSError(*words)

    def _device(self, fd: int) -> Device:
        device = Device.__new__(Device)  # it is open: opening it again would be refused
        device.fd = fd
        return device

    def _socket(self, fd: int) -> socket.socket:
        found = socket.socket(fileno=fd)
        found.setblocking(False)
        return found


def take(init: Any, document: Document) -> None:
    """Give an Init that has done nothing yet the state of the one before it."""
    take_tables(init.tables, document)
    taker = Taker(init, document)
    listener = taker.unpack({"socket": document["listener"]}) if "listener" in document else None
    spawner = init.sv.world.spawner
    init.loop.unwatch(spawner.reports)
    for fd in (spawner.reports, spawner.report):
        os.close(fd)
    if listener is not None:
        init.open_control(listener)
    if "conditions" in document["parts"]:
        init.sv.conditions_of_board()
    for name, part in parts(init).items():
        handed = document["parts"].get(name, {})
        for attribute, _ in words(HANDED[name]):
            if attribute in handed and name != "tables":
                setattr(part, attribute, taker.unpack(handed[attribute]))
    for level in _log.counts:
        _log.counts[level] = document["counts"].get(level, 0)
    resume(init)


def take_tables(tables: Any, document: Document) -> None:
    """The tables as they were: settings that are new have the value of settings.py, those that are no more are left out."""
    handed = document["parts"]["tables"]
    unpack = Taker(None, {"processes": [], "columns": document["columns"]}).unpack
    for attribute, _ in words(HANDED["tables"]):
        if attribute in handed and attribute != "values":
            setattr(tables, attribute, unpack(handed[attribute]))
    values = unpack(handed["values"])
    if missing := CHECKS.keys() - values.keys():
        from tables.load import load

        usual = load(tables.options)
        values |= {name: usual.values[name] for name in missing}
    tables.values |= {name: value for name, value in values.items() if name in CHECKS}


def resume(init: Any) -> None:
    """Watch what is open, and go on. Signals that came meanwhile are blocked still; `catch_signals` lets them come."""
    world, loop, now = init.sv.world, init.loop, time.monotonic()
    loop.watch(world.spawner.reports, world.spawner.hear)
    world.cgroups.resume()
    for pid, fd in world.relatives.pidfds.items():
        process = world.relatives.by_pid[pid]
        loop.watch(fd, lambda now, process=process, pid=pid: world._main_died(process, pid, now))
    world.pipes.resume(now)
    for name in world.notify._sockets.keys() & init.sv.processes.keys():
        world.notify.resume(init.sv.processes[name], world._notified)
    if world.paths._fd >= 0:
        loop.watch(world.paths._fd, world.paths.check)
    if init.control:
        init.control.resume()
    init.sv.delays = init.tables.delays()
    init.sv._link()
    world.changed += [one for one in init.sv.processes.values() if one.state == State.WAITING]  # what they wait for may be here
