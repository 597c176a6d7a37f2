"""Roll-outs as a state machine: facts of the boards and the time in, what changed and whom to tell out. No clock, no database.

A roll-out brings one release to the boards of a group, wave after wave. A wave opens when the one before is healthy and the
pause has passed. It stops by itself when more boards than `most_bad` went bad.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

WAVES = 32  # at most
PATIENCE = 6 * 3600.0  # seconds from the word to the release: a slow download is no failure before
GRACE = 900.0  # seconds for a board that has started again to say how its update ended, or that it goes on with it
REPEAT = 60.0  # seconds until a board that has not answered is told again
WAITING = 3600.0  # seconds until one that waits for its hours, or for a cheap network, is told again without having asked
WAITS = 25 * 3600.0  # seconds for which a wave waits for such a board; then it is one that comes late
NAMED = 5  # boards that a sentence names at most
RUNNING, PAUSED, STOPPED, ABORTED, DONE = "running", "paused", "stopped", "aborted", "done"
# What a board says of an update (updates/trial.py, pid1/update_word.py): in info, and in its records.
ON_TRIAL, COMMITTED = "on trial", "committed"
UNDER_WAY = ("waiting", "under way", "written", ON_TRIAL)
ENDED = {
    "failed": "falls back", "fell back": "fell back", "not tried": "has not tried it", "not written": "could not update",
    "crashed": "could not update",
}  # fmt: skip


class Board(NamedTuple):
    """What the mothership knows of a board now; times are seconds since 1970."""

    release: str | None  # version that it runs, by its own word
    boot: str  # id of the boot in which it said so
    heard: float  # when it was last heard of
    there: bool  # whether it can be told now
    crashes: tuple[str, ...] = ()  # services that crash more than on this board before
    since: float = 0.0  # since when it is in this state and boot
    update: str | None = None  # what it says of an update: "on trial", "committed"...; None: its software does not say
    ended: tuple[str, str] = ("", "")  # its last record of an update to the release since the word: result and reason


class Target(NamedTuple):
    """A board of a roll-out."""

    board: str
    wave: int
    told: float | None = None  # first
    asked: float = 0.0  # last
    boot: str = ""  # in which it was asked
    accepted: bool | None = None  # its answer; None: none yet
    answer: str = ""
    updated: float | None = None  # since when it runs the release
    bad: str = ""  # why it counts as bad
    waits: str = ""  # what it waits for before it begins, by its own word

    @property
    def pending(self) -> bool:
        """Whether the wave waits for it. Who refuses, and who was not there to be told, is left out."""
        return self.told is not None and self.accepted is not False and self.updated is None and not self.bad


class Rollout(NamedTuple):
    """A roll-out, as it is in the database."""

    id: str
    version: str
    waves: tuple[str, ...]
    pause: float
    most_bad: int
    state: str = RUNNING
    why: str = ""
    wave: int = 0  # the newest that is open
    healthy: float | None = None  # since when that one is


class Step(NamedTuple):
    """What one look at the facts gives."""

    rollout: Rollout
    targets: list[Target]
    tell: list[str]  # boards to be told now
    said: list[str]  # what has changed, as sentences


def parse_waves(text: str) -> tuple[str, ...]:
    """`1,5%,25%,100%`: boards in all after each wave, as a number or a share. ValueError, a sentence."""
    waves = tuple(part.strip() for part in text.split(","))
    if len(waves) > WAVES:
        raise ValueError(f"--wave has {len(waves)} waves; it takes at most {WAVES}")
    for wave in waves:
        number = wave.removesuffix("%")
        if (
            not (number.isascii() and number.isdecimal())
            or len(number) > 9
            or int(number) == 0
            or (wave.endswith("%") and int(number) > 100)
        ):
            raise ValueError(f"--wave: {wave[:20]!r} is neither a number of boards nor a share such as 5%")
    if waves[-1] != "100%":
        raise ValueError("--wave ends with 100%: a roll-out that is to stay small is paused")
    return waves


def sizes(waves: tuple[str, ...], boards: int) -> list[int]:
    """How many boards have been told after each wave; a share is rounded up. ValueError where one is smaller than before."""
    found = [min(boards, math.ceil(boards * int(w[:-1]) / 100) if w.endswith("%") else int(w)) for w in waves]
    for before, after, wave in zip(found, found[1:], waves[1:], strict=False):
        if after < before:
            raise ValueError(f"--wave: {wave} of {boards} boards is less than the wave before it")
    return found


def assign(rollout: str, waves: tuple[str, ...], boards: Mapping[str, Board]) -> list[Target]:
    """Who is in which wave. Boards that are not there come last: a wave of them would prove nothing.

    Else the order is by a hash of roll-out and name, so that not always the same boards come first.
    """
    order = sorted(boards, key=lambda name: (not boards[name].there, hashlib.sha256(f"{rollout} {name}".encode()).digest()))
    ends = sizes(waves, len(boards))
    return [Target(name, next(i for i, end in enumerate(ends) if place < end)) for place, name in enumerate(order)]


def keeps(target: Target, version: str, board: Board) -> bool:
    """Whether a board runs the release for good: it has committed it, or it had it before anybody told it to update."""
    if board.release != version or board.update == ON_TRIAL:
        return False
    return board.update is not None or board.ended[0] == COMMITTED or target.told is None or target.updated is not None


def judge(target: Target, version: str, board: Board | None, now: float, promise: float) -> Target:
    """A target as the facts of now show it: updated, bad or neither. A release on trial is no update yet."""
    if board is None:
        return target
    if keeps(target, version, board):
        target = target._replace(updated=target.updated or now, bad="")
    return target if target.told is None else target._replace(bad=fault(target, version, board, now, promise))


def fault(target: Target, version: str, board: Board, now: float, promise: float) -> str:
    """Why a board that was told is bad; empty where it is not. What it says of itself comes first."""
    assert target.told is not None
    runs = f"it runs {board.release}" if board.release else "it does not say what it runs"
    result, reason = board.ended
    silent, begun = now - max(board.heard, target.told), target.asked if target.accepted else target.told
    if result in ENDED and target.accepted is not False:
        return f"{ENDED[result]}: {reason}"
    if target.updated is not None and board.release != version:
        return f"fell back: {runs}"
    again = target.accepted and board.boot != target.boot and board.release != version and board.update not in UNDER_WAY
    if target.updated is None and again and now - board.since > GRACE:
        return f"fell back: it has started again, and {runs}"
    if silent > promise and target.accepted is not False and not target.waits:
        return f"is missing for {silent / 3600:.1f} h"
    if target.updated is not None and board.crashes:
        return f"has new crashes of {', '.join(board.crashes[:NAMED])}"
    if target.pending and not target.waits and now - begun > PATIENCE:
        what = (
            ("has not committed it" if board.release == version else "has not updated")
            if target.accepted
            else "has not answered"
        )
        return f"{what} within {PATIENCE / 3600:g} h: {runs}"
    return ""


def step(
    rollout: Rollout,
    targets: list[Target],
    boards: Mapping[str, Board],
    now: float,
    promise: float,
    repeat: float = REPEAT,
) -> Step:
    """Look once. A roll-out that is paused, stopped or aborted changes nothing and tells nobody.

    One that is done tells the boards that come late; it judges no more. `boards` are those that it may speak to.
    """
    if rollout.state not in (RUNNING, DONE):
        return Step(rollout, targets, [], [])
    said: list[str] = []
    if rollout.state == RUNNING:
        targets = [judge(target, rollout.version, boards.get(target.board), now, promise) for target in targets]
        if why := too_many_bad(rollout, targets):
            return Step(rollout._replace(state=STOPPED, why=why), targets, [], [f"{rollout.id}: {why}"])
        before = rollout
        rollout = advance(rollout, targets, now)
        if rollout.wave > before.wave:
            said.append(f"{rollout.id}: wave {rollout.wave + 1} of {len(rollout.waves)} ({rollout.waves[rollout.wave]}) opens")
        if rollout.state == DONE:
            said.append(f"{rollout.id}: done: {rollout.why}")
    tell = [target.board for target in targets if due(rollout, target, boards.get(target.board), now, repeat)]
    chosen = set(tell)
    if any(target.board in chosen and target.told is None for target in targets):
        rollout = rollout._replace(healthy=None)
    targets = [asked(target, boards[target.board], now) if target.board in chosen else target for target in targets]
    return Step(rollout, targets, tell, said)


def too_many_bad(rollout: Rollout, targets: list[Target]) -> str:
    """Why the roll-out stops, as a sentence; empty where it goes on."""
    bad = [target for target in targets if target.bad]
    if len(bad) <= rollout.most_bad:
        return ""
    named = ", ".join(f"{target.board} {target.bad}" for target in bad[:NAMED])
    more = f", and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    one = "board is" if len(bad) == 1 else "boards are"
    return f"stopped in wave {rollout.wave + 1}: {len(bad)} {one} bad, more than {rollout.most_bad}: {named}{more}"


def advance(rollout: Rollout, targets: list[Target], now: float) -> Rollout:
    """Open the next wave, or end, where the open one is healthy for as long as the pause."""
    opened = [target for target in targets if target.wave <= rollout.wave]
    here = [target for target in opened if target.wave == rollout.wave]
    good = [target for target in here if target.updated is not None and not target.bad]
    if any(held(target, now) for target in opened) or (here and not good):
        return rollout._replace(healthy=None)  # nobody updated: that proves nothing for the next wave
    since = now if rollout.healthy is None else rollout.healthy
    if now - since < rollout.pause and here:
        return rollout._replace(healthy=since)
    if rollout.wave + 1 < len(rollout.waves):
        return rollout._replace(wave=rollout.wave + 1, healthy=None)
    return rollout._replace(state=DONE, healthy=since, why=summary(targets))


def held(target: Target, now: float) -> bool:
    """Whether the wave waits for a board; not for ever where that waits for hours or for a network which do not come."""
    return target.pending and not (target.waits and target.told is not None and now - target.told > WAITS)


def due(rollout: Rollout, target: Target, board: Board | None, now: float, repeat: float) -> bool:
    """Whether a board is told now: its wave is open, it is there, and it neither has the release nor has answered.

    One that waits asks when it suits; it has forgotten that if it has started again.
    """
    if board is None or not board.there or target.wave > rollout.wave or target.bad:
        return False
    if board.release is None or board.release == rollout.version or target.updated is not None:
        return False
    waits = target.waits and board.boot == target.boot
    return target.accepted is None and now - target.asked >= (WAITING if waits else repeat)


def asked(target: Target, board: Board, now: float) -> Target:
    """The target that is told now."""
    return target._replace(told=now if target.told is None else target.told, asked=now, boot=board.boot)


def summary(targets: list[Target]) -> str:
    """How many boards are how far: `47 updated, 2 late, 1 refused`."""
    counts = {
        "updated": sum(target.updated is not None and not target.bad for target in targets),
        "bad": sum(bool(target.bad) for target in targets),
        "under way": sum(target.pending and not target.waits for target in targets),
        "waiting": sum(target.pending and bool(target.waits) for target in targets),
        "refused": sum(target.accepted is False and target.updated is None and not target.bad for target in targets),
        "not told": sum(target.told is None and target.updated is None for target in targets),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no board"
