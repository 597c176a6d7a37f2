"""What is known of the board, the modes that it is in, and which services' conditions are true because of that.

Services tell facts by a request; PID 1 looks at nothing by itself. Conditions are judged when a fact, a mode or a service's
state has changed, and never by the clock, but for a mode whose condition must hold for some time, and for a fact whose teller
has ended (pid1/tellers.py). All that is kept is plain data, which an upgrade hands over (pid1/handover.py).
"""

from __future__ import annotations

import _log
from base.stdlib import TYPE_CHECKING, NamedTuple
from onboard.to_pid1 import SVError
from tables.check_modes import is_fact
from tables.when import FACTS, Board, codes, compiled, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from pid1.life import Life
    from pid1.process import Process
    from pid1.tellers import Owners
    from pid1.world import World
    from tables.rows import Condition, Mode
    from tables.tables import Tables

MOST_FACTS = 256
LONGEST = 128  # characters of a fact that is text
MOST_DEVICES, LONGEST_DEVICE = 2000, 64


class Fact(NamedTuple):
    """What a service has told."""

    value: Any
    since: float  # when it began to be so, monotonic
    by: str
    owners: tuple[tuple[str, float], ...] = ()  # services that have to live for it, and when each was started
    until: float | None = None  # then it lapses, monotonic
    gone: str = ""  # which of its owners has ended; `until` is when it lapses because of that

    @property
    def by_hand(self) -> bool:
        """Whether no service has told it, but somebody for some seconds."""
        return not self.owners and not self.gone and self.until is not None


class Lost(NamedTuple):
    """What was a fact, and has lapsed."""

    since: float
    by: str
    why: str


class Verdict(NamedTuple):
    """What came of a condition."""

    met: bool
    since: float
    error: str = ""  # what it raised: then it is false
    used: tuple[str, ...] = ()  # what of the board it has asked for, the last one at the end


class Conditions:
    """Facts, modes and verdicts of the board."""

    def __init__(self, life: Life, world: World) -> None:
        self.life, self.world = life, world
        self.facts: dict[str, Fact] = {}
        self.under: dict[str, Fact] = {}  # what services tell of a fact that somebody has told by hand, for some seconds
        self.lost: dict[str, Lost] = {}  # facts that have lapsed, and were not told again
        self.values: dict[str, Any] = {}  # of the facts
        self.modes: dict[str, str] = {}  # the state of each
        self.mode_since: dict[str, float] = {}
        self.verdicts: dict[str, Verdict] = {}  # by service
        self.pending: dict[str, tuple[str, float]] = {}  # modes whose next state's condition holds, and since when
        self.rows: dict[str, Mode] = {}
        self.stale = True  # something has changed since they were judged
        self._functions: dict[Condition, Callable[[Board], object] | str] = {}
        self._said: set[str] = set()  # what conditions have raised: each is logged once

    # --- what comes in ----------------------------------------------------------------------------------------------
    def take(self, tables: Tables, now: float) -> None:
        """New tables: modes that stay keep their state."""
        self.rows = {row.name: row for row in tables.MODES}
        self._functions.clear()
        self._said.clear()
        self.modes = {name: self._kept(name, row) for name, row in self.rows.items()}
        self.mode_since = {name: self.mode_since.get(name, now) for name in self.modes}
        self.pending = {name: one for name, one in self.pending.items() if name in self.modes}
        self.verdicts = {name: one for name, one in self.verdicts.items() if name in self.life.sv.processes}
        self.stale = True

    def _kept(self, name: str, row: Mode) -> str:
        return self.modes[name] if self.modes.get(name) in row.states else row.states[0]

    def tell(
        self, name: str, value: Any, by: str, now: float, owners: Owners = (), until: float | None = None
    ) -> dict[str, bool]:
        """Take a fact; whether any condition asks for it. None: it is not known any more. SVError where it cannot be."""
        if fault := fact_fault(name, value):
            raise SVError(f"the fact {name[:64]!r} {fault}")
        if name.startswith("mode/"):
            return self._tell_mode(name.removeprefix("mode/"), value, by, now)
        before = self.facts.get(name)
        if value is not None and before is None and len(self.facts) >= MOST_FACTS:
            raise SVError(f"the fact {name!r} is one too many: PID 1 keeps {MOST_FACTS} facts")
        same = before is not None and before.value == value
        if value is None and before and before.owners and not owners:
            raise SVError(f"the fact {name!r} is what {before.by} tells; say another value, which counts for some seconds")
        fact = None if value is None else Fact(value, before.since if before and same else now, by, owners, until)
        if before and before.by_hand and owners:
            self._put_under(name, fact)
        elif before and owners == () and not before.by_hand and not before.gone and fact:
            self.under[name] = before
            self._put(name, fact, now)
        else:
            self._put(name, fact or (self.under.pop(name, None) if not owners else None), now)
        return {"asked": self.asks_for(name)}

    def _put_under(self, name: str, fact: Fact | None) -> None:
        """A service tells something while what somebody has told by hand counts."""
        self.under.pop(name, None)
        if fact:
            self.under[name] = fact

    def _put(self, name: str, fact: Fact | None, now: float) -> None:
        """From now on this is so, or not known."""
        before = self.facts.pop(name, None)
        self.lost.pop(name, None)
        if fact:
            self.facts[name] = fact
        value, was = (one.value if one else None for one in (fact, before))
        if value == was:
            return
        self.values = {name: fact.value for name, fact in self.facts.items()}
        self.stale = True
        if fact and isinstance(value, (bool, str)):
            self.life.timeline.note(
                now, f"fact {name}", "" if was is None else str(was), str(value), f"says {fact.by}" if fact.by else ""
            )

    def _lapse(self, now: float) -> None:
        """A fact whose teller has ended lapses in FACT_GRACE seconds, unless it is told again; others in time."""
        from pid1.tellers import lives

        for name, fact in list(self.facts.items()):
            gone = next((owner for owner, started in fact.owners if not lives(self.life.sv, owner, started)), "")
            if gone:
                until = now + self.life.tables.FACT_GRACE
                fact = self.facts[name] = fact._replace(owners=(), gone=gone, until=min(until, fact.until or until))
            if fact.until is not None and fact.until <= now:
                self._lose(name, fact, now)
        for name, fact in list(self.under.items()):
            if not all(lives(self.life.sv, owner, started) for owner, started in fact.owners):
                del self.under[name]

    def _lose(self, name: str, fact: Fact, now: float) -> None:
        """It is not known any more, or what a service tells of it counts again."""
        why = f"{fact.gone} has ended, which told it" if fact.gone else f"{fact.by or 'somebody'} told it for some time only"
        if other := self.under.pop(name, None):
            _log.info(f"fact {name} is {other.value} again, says {other.by}: {why}")
            self._put(name, other, now)
            return
        self._put(name, None, now)
        self.lost[name] = Lost(now, fact.by, why)
        for oldest in list(self.lost)[:-MOST_FACTS]:
            del self.lost[oldest]
        what = f"{len(fact.value)} names" if isinstance(fact.value, list) else str(fact.value)
        self.life.timeline.note(now, f"fact {name}", what, "", why)
        _log.info(f"fact {name} is not known any more: {why}")

    def _tell_mode(self, name: str, state: Any, by: str, now: float) -> dict[str, bool]:
        row = self.rows.get(name)
        if row is None:
            raise SVError(f"there is no mode {name!r}; there are {', '.join(self.rows) or 'none'}")
        if row.enter:
            raise SVError(f"the mode {name} follows its conditions; nobody can tell it")
        if state not in row.states:
            raise SVError(f"the mode {name} has no state {str(state)[:64]!r}; it has {', '.join(row.states)}")
        if self.modes[name] != state:
            self._enter(row, str(state), now, f"says {by}" if by else "")
        return {"asked": self.asks_for(f"mode {name}")}

    def asks_for(self, name: str) -> bool:
        """Whether a condition of the table mentions a fact: it may stand behind an `and`, so its code is looked at."""
        conditions = [process.row.when for process in self.life.sv.processes.values() if process.row.when is not None]
        conditions += [condition for row in self.rows.values() for _, condition in row.enter]
        names = {"clock": ("clock", "synchronised"), "devices": ("devices", "device")}.get(name, (name,))
        return any(one in names for condition in conditions for one in mentioned(self._function(condition)))

    def asked(self) -> list[str]:
        """Which facts conditions mention: who measures them looks more often then."""
        return [name for name in {**FACTS, **self.facts} if self.asks_for(name)]

    # --- once a turn ------------------------------------------------------------------------------------------------
    def due(self, changed: Iterable[Process], now: float) -> bool:
        """Whether there is something to judge: a service, a fact or a mode has changed, or a mode has waited for its time."""
        deadline = self.next_deadline()
        return self.stale or bool(changed) or (deadline is not None and deadline <= now)

    def next_deadline(self) -> float | None:
        if self.stale:
            return 0.0
        due = [since + self.rows[name].hold for name, (_, since) in self.pending.items()]
        return min([*due, *(fact.until for fact in self.facts.values() if fact.until is not None)], default=None)

    def judge(self, now: float) -> None:
        """Judge the modes, and then the conditions of all services; those that changed start or stop."""
        if self.facts:
            self._lapse(now)
        for _ in self.rows:  # a mode's condition may ask for another mode
            if not [name for name, row in self.rows.items() if self._step(row, now)]:
                break
        self.stale = False
        in_memory = any(self.modes[name] in row.memory for name, row in self.rows.items())
        if in_memory != self.world.logs_in_memory:
            self.world.keep_logs_in_memory(in_memory, [one.row for one in self.life.sv.processes.values()], now)
        for process in list(self.life.sv.processes.values()):
            if process.row.when is not None:
                self._judge_service(process, process.row.when, now)
            elif not process.met:  # a reload has taken its condition away
                process.condition(True, now)

    def _judge_service(self, process: Process, condition: Any, now: float) -> None:
        name = process.row.name
        met, error, used = self._ask(condition, f"{name}: its condition")
        before = self.verdicts.get(name)
        since = before.since if before and before.met == met else now
        self.verdicts[name] = Verdict(met, since, error, used)
        if met != process.met:
            if process.wanted:
                _log.info(f"{name}: its condition is {'true' if met else 'no longer true'}: {condition.text}")
            process.condition(met, now)

    def _step(self, row: Mode, now: float) -> bool:
        """Let a mode go to the first state whose condition is true, and has been for `hold` seconds."""
        state = next((to for to, condition in row.enter if self._ask(condition, f"mode {row.name}")[0]), None)
        if state is None or state == self.modes[row.name]:
            self.pending.pop(row.name, None)
            return False
        if self.pending.get(row.name, ("", 0.0))[0] != state:
            self.pending[row.name] = (state, now)
        if now < self.pending[row.name][1] + row.hold:
            return False
        del self.pending[row.name]
        self._enter(row, state, now, "")
        return True

    def _enter(self, row: Mode, state: str, now: float, why: str) -> None:
        before, self.modes[row.name] = self.modes[row.name], state
        self.mode_since[row.name] = now
        self.stale = True
        self.life.timeline.note(now, f"mode {row.name}", before, state, why)
        _log.info(f"mode {row.name}: {before} -> {state}{', ' if why else ''}{why}")

    def _ask(self, condition: Any, what: str) -> tuple[bool, str, tuple[str, ...]]:
        """Whether a condition is true, what it raised, and what it has asked for."""
        function = self._function(condition)
        board = Board(self.values, self.modes, self._is_ready)
        met, error = (False, function) if isinstance(function, str) else judge(function, board)
        if error and what not in self._said:
            self._said.add(what)
            _log.warning(f"{what} counts as false: {error} (in: {condition.text})")
        return met, error, tuple(board.used)

    def _function(self, condition: Any) -> Callable[[Board], object] | str:
        """The condition as a function, or why it is none."""
        if condition not in self._functions:
            try:
                self._functions[condition] = compiled(condition)
            except Exception as error:
                self._functions[condition] = f"it cannot be read: {type(error).__name__}"
        return self._functions[condition]

    def _is_ready(self, name: str) -> bool:
        return name in self.life.sv.processes and self.life.sv.processes[name].ready


def mentioned(function: Any) -> tuple[str, ...]:
    """Names and texts in a condition's code: b.voltage and b.fact("doors") are among them."""
    if isinstance(function, str):
        return ()
    found: list[str] = []
    for code in codes(function):
        found += (*code.co_names, *(one for one in code.co_consts if isinstance(one, str)))
    return tuple(found)


def fact_fault(name: str, value: Any) -> str:
    """Why this cannot be a fact; empty where it can."""
    if not is_fact(name):
        return "has a name that is not letters, digits and _-./@, at most 64 of them"
    kinds = FACTS[name][0] if name in FACTS else (bool, int, float, str)
    if value is not None and type(value) not in kinds:
        return f"is {type(value).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}"
    if isinstance(value, str) and (len(value) > LONGEST or not value.isprintable()):
        return f"is not a text of at most {LONGEST} characters in one line"
    if isinstance(value, (int, float)) and not -1e300 < value < 1e300:
        return "is not a number that can be compared"
    if isinstance(value, list):
        good = len(value) <= MOST_DEVICES and all(type(one) is str and len(one) <= LONGEST_DEVICE for one in value)
        return "" if good else f"is not a list of at most {MOST_DEVICES} names of at most {LONGEST_DEVICE} characters"
    return ""
