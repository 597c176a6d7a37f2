"""The trial of a new slot, as a service: commit it when the board is healthy, leave it when it is not in time.

On the slot from which an update was begun it says how the trial ended. It does nothing where there are no slots and no trial.
A crash, a hang, a panic or a power cut needs nothing of this: the firmware starts the old slot.
"""

from __future__ import annotations

import os
import select
import sys
import time

from base.files import open_folder, read_file, write_atomically
from base.stdlib import TYPE_CHECKING, json, signal
from onboard import boot_ends, to_pid1
from onboard.board_table import board_table
from updates import health, ledger, slots
from updates.slots import SlotError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from updates.slots import Slots

LOOK = 1.0  # seconds between two looks
GREETING = 15.0  # seconds between two greetings of ssh that are asked for, once it has answered
WORDS_EVERY = 30.0  # seconds between two copies of the last words to the disk
RECORD_TIME = 3.0  # seconds for the uplink to take the verdict, before the reboot
RELEASE = "/etc/stack-release"  # "BOARD VERSION", by the image's build
WORDS = "last_words.txt"  # in KEEP/update
PID1_LOG, LOG_TAIL, MOST_LOGS = 16 * 1024, 4 * 1024, 24  # bytes of PID 1's log and of each other one; how many
TOLD = 2000  # characters of the last words in the record for the mothership
ON_TRIAL, GOOD, BAD = "on trial", "good", "bad"


# --- pure -----------------------------------------------------------------------------------------------------------------
class Judge:
    """Good: nothing has been missing for `steady` seconds. Bad: the boot is `deadline` seconds old, and not good."""

    def __init__(self, steady: float, deadline: float) -> None:
        self.steady = steady
        self.deadline = max(deadline, 2 * steady)
        self.since: float | None = None  # since when nothing has been missing
        self.missing = ["nothing has been looked at yet"]

    def turn(self, missing: list[str], age: float) -> str:
        """One look at a boot of this age."""
        if missing:
            self.since, self.missing = None, missing
        else:
            self.since = age if self.since is None else self.since
            if age - self.since >= self.steady:
                self.missing = []
                return GOOD
            self.missing = [f"all is well; it has to stay so for {self.steady:g} s"]
        return BAD if age >= self.deadline else ON_TRIAL


def fate(trial: dict[str, Any], end: dict[str, Any]) -> tuple[str, str]:
    """How a trial ended, seen from the slot that it was begun from: (result, why). `end`: of the boot before this one.

    The new slot may have said so itself; else the record of boots tells, whose last boot was the new slot's, or, where that
    did not come so far, still the old one's.
    """
    cause, reason = end.get("cause"), end.get("reason")
    if trial.get("verdict"):
        return "fell back", str(trial["verdict"])
    if trial.get("tried") and end.get("boot_id") == trial["tried"]:
        return "fell back", f"its boot ended on trial: {cause}: {reason}"
    if trial.get("tried"):
        return "fell back", "it was started and not committed; how it ended is not known"
    if cause == "panic":
        return "fell back", f"a kernel panicked before any of its services left a word: {reason}"
    if end and end.get("boot_id") == trial.get("boot") and cause not in ("reboot", "critical", "watchdog"):
        return "not tried", f"the boot that wrote it did not end by reboot(): {cause}: {reason}"
    return "fell back", "it came back before any of its services left a word: its kernel or its root does not start"


def tail(path: str, size: int) -> str:
    """The end of a log, from a whole line on."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            text = file.read(size).decode(errors="replace")
    except OSError:
        return ""
    return text if len(text) < size else text.partition("\n")[2]


def last_words(logs: str, facts: dict[str, Any], board: dict[str, Any]) -> str:
    """What is kept of a slot on trial: what it lacked, PID 1's facts, the ends of the logs, PID 1's at the end. Bounded."""
    parts = [
        json.dumps(facts),
        "--- board",
        json.dumps(board)[: 64 * 1024],
        "--- boot",
        read_file(boot_ends.RECORD)[: 16 * 1024],
    ]
    names = sorted(name for name in (os.listdir(logs) if os.path.isdir(logs) else ()) if name.endswith(".log"))
    for name in [name for name in names if name != "stack.log"][:MOST_LOGS]:
        parts += [f"--- {name}", tail(f"{logs}/{name}", LOG_TAIL)]
    return "\n".join([*parts, "--- stack.log", tail(f"{logs}/stack.log", PID1_LOG)])


# --- the service ------------------------------------------------------------------------------------------------------------
class Trial:
    """The slot that runs is on trial."""

    def __init__(self, folder: str, board: Slots, judge: Judge, logs: str) -> None:
        self.folder, self.slots, self.judge, self.logs = folder, board, judge, logs
        self.slot = board.current()
        self.facts: dict[str, Any] = ledger.ledger(folder).get("trial") or {}  # none where the data partition is not there
        self.seen: dict[str, Any] = {}
        self.words_due = 0.0
        self._told: dict[str, Any] = {}

    def begin(self) -> None:
        """Note that this boot is the trial: the old slot can tell its end from another one's."""
        self.facts["tried"] = read_file("/proc/sys/kernel/random/boot_id")
        self._note(trial=self.facts)

    def turn(self, seen: health.Seen, age: float) -> str:
        """One look: ON_TRIAL, or the verdict, which has been carried out but for the reboot."""
        self.seen = seen.board
        try:
            if self.slots.default() == self.slot:  # commit() at the prompt
                self._end("committed", str((ledger.ledger(self.folder).get(self.slot) or {}).get("reason", "by hand")))
                return GOOD
            missing = health.missing(seen, self.facts, self.judge.steady)
        except SlotError as error:
            missing = [str(error)]
        verdict = self.judge.turn(missing, age)
        if verdict == GOOD:
            verdict = self._commit(age)
        if verdict == BAD and not (seen.board.get("watchdog") or {}).get("snooze"):
            self._give_up()
            return BAD
        if verdict == GOOD:
            return GOOD
        self._tell({"state": ON_TRIAL, **self._what(), "missing": self.judge.missing, "until": self.judge.deadline})
        if age >= self.words_due:
            self.words_due = age + WORDS_EVERY
            self.keep_words()
        return ON_TRIAL

    def _commit(self, age: float) -> str:
        why = f"healthy for {self.judge.steady:g} s"
        try:
            ledger.commit(self.folder, self.slots, why)
        except (OSError, SlotError) as error:
            return self.judge.turn([f"the slot cannot be committed: {error}"], age)
        self._end("committed", why)
        return GOOD

    def _give_up(self) -> None:
        why = f"not healthy after {self.judge.deadline:g} s: {'; '.join(self.judge.missing)}"[:1000]
        try:
            self.slots.mark_bad(why)
        except (OSError, SlotError) as error:
            say(f"slot {self.slot} cannot be marked bad ({error}); the firmware forgets a slot that is not committed")
        self.keep_words()
        known = ledger.ledger(self.folder).get(self.slot) or {}
        self._note(**{self.slot: {**known, "state": "bad", "reason": why}}, trial={**self.facts, "verdict": why}, word=None)
        verdict = self._verdict("failed", why, words=read_file(f"{self.folder}/{WORDS}")[-TOLD:])
        self._tell({"state": "failed", **self._what(), "missing": self.judge.missing, "reason": why, "verdict": verdict})
        say(f"slot {self.slot} is given up: {why}", 3)

    def _end(self, result: str, why: str) -> None:
        verdict = self._verdict(result, why)
        self._note(trial=None, last=verdict, word=None)
        self._tell({"state": result, **self._what(), "reason": why, "verdict": verdict})
        try:
            os.unlink(f"{self.folder}/{WORDS}")
        except OSError:
            pass
        say(f"slot {self.slot} is committed: {why}", 5)

    def keep_words(self) -> None:
        """The last words so far are on the disk when this returns, where there is one."""
        text = last_words(self.logs, {**self._what(), "missing": self.judge.missing}, self.seen)
        try:
            os.close(open_folder(self.folder, 0o700))
            write_atomically(f"{self.folder}/{WORDS}", text, 0o600)
        except OSError as error:
            say(f"the last words of slot {self.slot} are not kept: {error}")

    def _what(self) -> dict[str, Any]:
        return {"slot": self.slot, "version": self.facts.get("version"), "from": self.facts.get("from")}

    def _verdict(self, result: str, why: str, **more: str) -> dict[str, Any]:
        return verdict_of(result, why, self._what(), more)

    def _tell(self, facts: dict[str, Any]) -> None:
        if facts != self._told:
            self._told = facts
            boot_ends.tell(boot_ends.UPDATE, facts)

    def _note(self, **facts: Any) -> None:
        try:
            os.close(open_folder(self.folder, 0o700))
            ledger.note(self.folder, **facts)
        except OSError as error:
            say(f"{self.folder} takes nothing: {error}")


def verdict_of(result: str, why: str, what: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The record for the mothership. `id` tells two of them apart."""
    boot = read_file("/proc/sys/kernel/random/boot_id")
    return {"id": f"{boot} {result}", "result": result, **what, "reason": why, **more}


def in_short(verdict: dict[str, Any]) -> dict[str, Any]:
    """How a trial ended, for board(): what it was, why, and the record for the mothership."""
    short = {name: verdict.get(name) for name in ("slot", "version", "from", "reason")}
    return {"state": verdict.get("result"), **short, "verdict": verdict}


def report(folder: str, current: str, default: str) -> None:
    """No slot is on trial: say how the last trial ended, once as a record, and in board() until the next one."""
    known = ledger.ledger(folder)
    trial = known.get("trial")
    if not trial:
        if last := known.get("last"):
            boot_ends.tell(boot_ends.UPDATE, in_short(last))
        return
    if trial.get("boot") == read_file("/proc/sys/kernel/random/boot_id"):
        return  # it waits for reboot(); update() has said so
    slot = trial.get("slot")
    what = {name: trial.get(name) for name in ("slot", "version", "from")}
    if slot == current == default:
        verdict = verdict_of("committed", "a power cut came between its commit and the note of it", what, {})
        changes = {"state": "good", "reason": verdict["reason"]}
    else:
        end = boot_ends.read(boot_ends.RECORD).get("last_end") or {}
        result, why = fate(trial, end)
        more = {name: end[name][:TOLD] for name in ("stack", "panic") if result == "fell back" and end.get(name)}
        if trial.get("tried"):
            more["words"] = read_file(f"{folder}/{WORDS}")[-TOLD:]
        verdict = verdict_of(result, f"slot {slot} ({trial.get('version')}): {why}"[:1000], what, more)
        changes = {"state": "written" if result == "not tried" else "bad", "reason": why}
    word = known.get("word") if verdict["result"] == "not tried" else None  # that is begun again
    ledger.note(folder, **{str(slot): {**(known.get(slot) or {}), **changes}}, trial=None, last=verdict, word=word)
    short = in_short(verdict)
    if word:
        del short["verdict"]  # no end yet: the mothership need not hear of it
    boot_ends.tell(boot_ends.UPDATE, short)
    say(f"update: {verdict['result']}: {verdict['reason']}", 4)


def go_on(folder: str) -> None:
    """Have PID 1 begin an update again that the mothership has asked for, and a power cut has interrupted."""
    known = ledger.ledger(folder)
    word, version = known.get("word"), (*read_file(RELEASE).split(), "", "")[1]
    if not isinstance(word, dict) or word.get("version") == version or known.get("trial"):
        return
    try:
        to_pid1.ask(control(), {"op": "update", "url": word.get("url"), "version": word.get("version")})
    except to_pid1.SVError as error:
        say(f"the update to {word.get('version')}, which was interrupted, does not go on: {error}")


def say(text: str, level: int = 4) -> None:
    print(f"<{level}>{text}", file=sys.stderr, flush=True)


def wait(wakeup: int, seconds: float) -> bool:
    """Whether a signal came within so many seconds."""
    return bool(select.select([wakeup], [], [], seconds)[0])


def attend(trial: Trial, look: Callable[[], health.Seen], wakeup: int) -> None:
    """Look until there is a verdict, or the board ends; a bad one reboots the board."""
    born: float | None = None
    started = time.monotonic()
    while True:
        now = time.monotonic()
        seen = look()
        if born is None and seen.board:
            born = now - seen.board["uptime"]
        verdict = trial.turn(seen, now - (started if born is None else born))
        if verdict == GOOD:
            return
        if verdict == BAD:
            wait(wakeup, RECORD_TIME)
            to_pid1.ask(control(), {"op": "reboot"})
            wait(wakeup, 60.0)
            return
        if wait(wakeup, LOOK):
            trial.keep_words()
            return


def control() -> str:
    return os.environ.get("STACK_CONTROL", to_pid1.SOCKET)


def looker(network: str, critical: tuple[str, ...], port: int) -> Callable[[], health.Seen]:
    """A function that looks at the board. ssh is asked again and again until it answers, then now and then."""
    due, heard = 0.0, ""

    def look() -> health.Seen:
        nonlocal due, heard
        if port and (heard or time.monotonic() >= due):
            heard, due = health.greeting(port), time.monotonic() + GREETING
        return health.look(control(), network)._replace(critical=critical, ssh=heard)

    return look


def main(arguments: list[str]) -> None:
    """`trial`, as a service with `module="updates.trial"`."""
    wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer)
    tables = board_table()
    values = tables.values
    folder = f"{values['KEEP']}/update"
    try:
        board = slots.slots(tables.options)
        current, default = board.current(), board.default()
    except SlotError:
        return  # such as a card with one root
    if board.kind == slots.UBoot.kind:
        return  # its own tools mark its slots
    if current == default:
        try:
            report(folder, current, default)
            go_on(folder)
        except Exception as error:  # the row is critical because of trials: nothing here may reboot a board
            say(f"how the last update ended is not reported: {type(error).__name__}: {error}")
        return
    critical = tuple(row.name for row in tables.services.values() if row.critical and row.module != __name__)
    one = Trial(folder, board, Judge(values["UPDATE_STEADY"], values["UPDATE_DEADLINE"]), values["LOG"])
    one.begin()
    attend(one, looker(values["NETWORK_STATE"], critical, health.ssh_port(tables)), wakeup)
