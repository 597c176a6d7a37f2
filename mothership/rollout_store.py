"""Releases, groups and roll-outs in the database: what rollouts.py decides is read and written here."""

from __future__ import annotations

import math
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import rollouts
from boards import PROMISE, a_dictionary
from rollouts import DONE, PAUSED, RUNNING, STOPPED, Board, Rollout, Step, Target
from store import Store

BEFORE = 7 * 86400.0  # seconds before the word whose crashes are compared with those since
MOST_CRASHES = 1000  # records of crashes that are looked at, of one board
MOST_RECORDS = 50  # and of updates
LONGEST_REASON = 300  # characters
LONGEST_URL = 1024
LONGEST_ID = 48  # characters of a roll-out's id: a command's id with "rollout." before it has at most 64


class Release(NamedTuple):
    """A row of `releases`."""

    name: str
    version: str
    url: str
    sha256: str
    fits: str
    added: float


def release(store: Store, name: str) -> Release:
    """A release by its name; ValueError, a sentence, where there is none."""
    rows = releases(store)
    found = next((row for row in rows if row.name == name), None)
    if found is None:
        raise ValueError(f"there is no release {name!r}; there are {', '.join(row.name for row in rows) or 'none'}")
    return found


def releases(store: Store) -> list[Release]:
    query = "SELECT name, version, url, sha256, fits, added FROM releases ORDER BY added, name"
    return [Release(*row) for row in store.database.execute(query).fetchall()]


def add_release(store: Store, new: Release) -> bool:
    """Add a release; False where the same is there. ValueError where another has this name: boards may know it."""
    with store.database.transaction():
        old = next((row for row in releases(store) if row.name == new.name), None)
        if old and old._replace(added=0.0) != new._replace(added=0.0):
            raise ValueError(f"there is another release {new.name!r} ({old.version}, {old.url}): give the new one another name")
        if old is None:
            store.database.execute("INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?)", new)
    return old is None


# --- groups ------------------------------------------------------------------------------------------------------------
def members(store: Store, group: str) -> tuple[list[str], list[str]]:
    """Boards and patterns of a group."""
    rows = store.database.execute("SELECT kind, board FROM member WHERE fleet = ? ORDER BY board", (group,)).fetchall()
    return [name for kind, name in rows if kind == "board"], [name for kind, name in rows if kind == "pattern"]


def in_group(name: str, named: list[str], patterns: list[str]) -> bool:
    return name in named or any(fnmatchcase(name, pattern) for pattern in patterns)


# --- facts -------------------------------------------------------------------------------------------------------------
def known(store: Store, group: str, fits: str, now: float) -> dict[str, Board]:
    """The boards of a group that a release fits, as they are now; without their crashes."""
    named, patterns = members(store, group)
    found = {}
    query = "SELECT name, seen, state, state_since, info FROM board ORDER BY name"
    for name, seen, state, since, info in store.database.execute(query).fetchall():
        told = a_dictionary(info)
        kinds = [text for text in (told.get("board"), told.get("model")) if isinstance(text, str)]
        if not in_group(name, named, patterns) or not any(
            fnmatchcase(kind, fits) for kind in (*kinds, "") if kind or fits == "*"
        ):
            continue
        runs, heard = told.get("release"), max(seen, since or 0.0)
        runs = runs if isinstance(runs, str) and runs else None
        there = state in ("init", "ready") and now - heard <= PROMISE
        says = told["update"] or "none" if "update" in told else None
        found[name] = Board(runs, str(told.get("boot") or ""), heard, there, since=since or 0.0, update=says)
    return found


def with_records(store: Store, board: Board, target: Target, version: str, now: float) -> Board:
    """A board's facts with what its records say since it was told."""
    if target.told is None:
        return board
    ended = ended_of(store, target, version, now)
    return board._replace(crashes=new_crashes(store, target, now), ended=ended)


def ended_of(store: Store, target: Target, version: str, now: float) -> tuple[str, str]:
    """Result and reason of a board's last record of an update to this version since it was told; empty where there is none.

    Where its service `update` has crashed (it was killed, such as for its memory), nobody was left to make that record.
    """
    query = """SELECT body FROM record WHERE board = ? AND kind = 'update' AND received > ? AND received <= ?
               ORDER BY received DESC, seq DESC LIMIT ?"""
    for (body,) in store.database.execute(query, (target.board, target.told, now, MOST_RECORDS)).fetchall():
        data = a_dictionary(body).get("data")
        if isinstance(data, dict) and data.get("version") == version and isinstance(data.get("result"), str):
            return data["result"][:64], str(data.get("reason"))[:LONGEST_REASON]
    if target.accepted and target.updated is None and target.told and crashes(store, target.board, target.told, now)["update"]:
        return "crashed", "its service update has crashed"
    return "", ""


def new_crashes(store: Store, target: Target, now: float) -> tuple[str, ...]:
    """Services of a board that has updated which have crashed more often since the word than in the week before it.

    Not since the update: a crash can come in before, or with, the board's word that it runs the release.
    """
    if target.updated is None or target.told is None:
        return ()
    since = max(target.told, now - BEFORE)
    before, after = crashes(store, target.board, target.told - BEFORE, target.told), crashes(store, target.board, since, now)
    return tuple(sorted(name for name, count in after.items() if count > before[name]))


def crashes(store: Store, board: str, begin: float, end: float) -> Counter[str]:
    """How often each service of a board crashed in a time, by when the records came."""
    query = """SELECT body FROM record WHERE board = ? AND kind = 'crash' AND received > ? AND received <= ?
               ORDER BY received DESC LIMIT ?"""
    names: Counter[str] = Counter()
    for (body,) in store.database.execute(query, (board, begin, end, MOST_CRASHES)).fetchall():
        data = a_dictionary(body).get("data")
        if isinstance(data, dict) and isinstance(data.get("name"), str):
            names[data["name"][:64]] += 1
    return names


def hears(store: Store, now: float) -> bool:
    """Whether any board was heard lately. Where none was, the receiver or the broker is at fault, not the boards."""
    row = store.database.execute("SELECT max(seen), max(state_since) FROM board").fetchone()
    return now - max(row[0] or 0.0, row[1] or 0.0) <= PROMISE


# --- roll-outs ---------------------------------------------------------------------------------------------------------
class Stored(NamedTuple):
    """A roll-out with what only the database needs."""

    rollout: Rollout
    release: Release
    group: str
    started: float


def every(store: Store) -> list[Stored]:
    """All roll-outs, the newest first."""
    query = """SELECT id, of_release, fleet, waves, pause, most_bad, started, state, why, wave, healthy FROM rollout
               ORDER BY started DESC, id"""
    by_name = {row.name: row for row in releases(store)}
    found = []
    for name, of, group, waves, pause, most_bad, started, *rest in store.database.execute(query).fetchall():
        state = Rollout(name, by_name[of].version, tuple(waves.split(",")), pause, most_bad, *rest)
        found.append(Stored(state, by_name[of], group, started))
    return found


def one(store: Store, name: str) -> Stored:
    """A roll-out by its id; ValueError, a sentence, where there is none."""
    rows = every(store)
    found = next((row for row in rows if row.rollout.id == name), None)
    if found is None:
        raise ValueError(f"there is no roll-out {name!r}; there are {', '.join(row.rollout.id for row in rows[:20]) or 'none'}")
    return found


def start(store: Store, new: Rollout, of: str, group: str, now: float) -> bool:
    """Begin a roll-out; False where it has begun before. ValueError where this id was begun with other words."""
    with store.database.transaction():
        chosen = release(store, of)
        old = next((row for row in every(store) if row.rollout.id == new.id), None)
        if old:
            same = (old.release.name, old.group, old.rollout.waves, old.rollout.pause) == (of, group, new.waves, new.pause)
            if same and old.rollout.state in (RUNNING, PAUSED, DONE):
                return False
            what = f"is {old.rollout.state}" if same else "was begun with another release, group, --wave or --pause"
            raise ValueError(f"roll-out {new.id!r} {what}: begin a new one with --id")
        if not any(members(store, group)):
            raise ValueError(f"there is no group {group!r}: `mothership group add` makes one")
        boards = known(store, group, chosen.fits, now)
        if not boards:
            raise ValueError(f"no known board of group {group!r} fits {chosen.fits!r}, by its kind or its model")
        targets = rollouts.assign(new.id, new.waves, boards)
        row = (new.id, of, group, ",".join(new.waves), new.pause, new.most_bad, now, new.state, new.why, new.wave, new.healthy)
        store.database.execute(f"INSERT INTO rollout VALUES ({', '.join('?' * len(row))})", row)
        save_targets(store, new.id, targets)
    return True


def targets_of(store: Store, name: str) -> list[Target]:
    """The boards of a roll-out, in the order of its waves."""
    query = """SELECT board, wave, told, asked, boot, accepted, answer, updated, bad, waits FROM target
               WHERE rollout = ? ORDER BY wave, board"""
    rows = [Target(*row) for row in store.database.execute(query, (name,)).fetchall()]
    return [row._replace(accepted=None if row.accepted is None else bool(row.accepted)) for row in rows]


def save_targets(store: Store, name: str, targets: list[Target]) -> None:
    change = """INSERT INTO target (rollout, board, wave, told, asked, boot, accepted, answer, updated, bad, waits)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rollout, board) DO UPDATE SET
                told = excluded.told, asked = excluded.asked, boot = excluded.boot, accepted = excluded.accepted,
                answer = excluded.answer, updated = excluded.updated, bad = excluded.bad, waits = excluded.waits"""
    rows = [(name, *row._replace(accepted=None if row.accepted is None else int(row.accepted))) for row in targets]  # type: ignore[arg-type]
    store.database.executemany(change, rows)


def save_state(store: Store, new: Rollout) -> None:
    change = "UPDATE rollout SET state = ?, why = ?, wave = ?, healthy = ?, most_bad = ? WHERE id = ?"
    store.database.execute(change, (new.state, new.why, new.wave, new.healthy, new.most_bad, new.id))


def set_state(store: Store, name: str, state: str, most_bad: int | None = None) -> Rollout:
    """Pause, resume or abort. ValueError where a roll-out in its state cannot."""
    allowed = {
        PAUSED: (RUNNING, PAUSED),
        RUNNING: (PAUSED, STOPPED, RUNNING),
        rollouts.ABORTED: (RUNNING, PAUSED, STOPPED, DONE),
    }
    with store.database.transaction():
        store.database.execute("SELECT id FROM rollout WHERE id = ?" + store.database.lock, (name,)).fetchall()
        old = one(store, name).rollout
        if old.state not in (*allowed[state], state):
            raise ValueError(f"roll-out {name} is {old.state}, and cannot become {state}")
        new = old._replace(
            state=state, why="" if state != DONE else old.why, most_bad=old.most_bad if most_bad is None else most_bad
        )
        if state == RUNNING and (why := rollouts.too_many_bad(new, targets_of(store, name))):
            raise ValueError(f"roll-out {name} would be {why}. With --most-bad it goes on in spite of them")
        save_state(store, new)
    return new


def look(store: Store, name: str, now: float, *, deaf: bool = False, repeat: float = rollouts.REPEAT) -> Step:
    """Take one step of a roll-out; what it decides is committed when this returns. While deaf, no board counts as missing."""
    with store.database.transaction():
        store.database.execute("SELECT id FROM rollout WHERE id = ?" + store.database.lock, (name,)).fetchall()
        rows = every(store)
        stored = next(row for row in rows if row.rollout.id == name)
        if stored.rollout.state not in (RUNNING, DONE):
            return Step(stored.rollout, [], [], [])
        boards = known(store, stored.group, stored.release.fits, now)
        before = targets_of(store, name)
        newer = claimed(store, rows, stored, now)
        have = {target.board for target in before}
        late = [Target(board, len(stored.rollout.waves) - 1) for board in boards if board not in have and board not in newer]
        targets = [superseded(target, newer) for target in (*before, *late)]
        for target in targets:
            if target.board in boards and stored.rollout.state == RUNNING:
                board = boards[target.board]
                boards[target.board] = with_records(store, board, target, stored.rollout.version, now)
        ours = {board: fact for board, fact in boards.items() if board not in newer}
        found = rollouts.step(stored.rollout, targets, ours, now, math.inf if deaf else PROMISE, repeat)
        old = {target.board: target for target in before}
        save_targets(store, name, [target for target in found.targets if old.get(target.board) != target])
        if found.rollout != stored.rollout:
            save_state(store, found.rollout)
    return found


def claimed(store: Store, rows: list[Stored], mine: Stored, now: float) -> dict[str, str]:
    """Boards that a newer roll-out has or will have, and its id: a board joins the newest release."""
    found: dict[str, str] = {}
    for row in rows[: rows.index(mine)]:
        if row.rollout.state in (RUNNING, PAUSED, DONE):
            boards = {target.board for target in targets_of(store, row.rollout.id)}
            for board in boards | known(store, row.group, row.release.fits, now).keys():
                found.setdefault(board, row.rollout.id)
    return found


def superseded(target: Target, newer: dict[str, str]) -> Target:
    """A board that a newer roll-out has is left out of this one."""
    if target.board not in newer or not (target.pending or (target.told is None and target.accepted is None)):
        return target
    return target._replace(accepted=False, answer=f"roll-out {newer[target.board]} has this board now")


def answered(store: Store, name: str, board: str, accepted: bool, answer: str) -> None:
    """Keep a board's answer. A later one does not replace it."""
    change = """UPDATE target SET accepted = ?, answer = ?, waits = ''
                WHERE rollout = ? AND board = ? AND told IS NOT NULL AND accepted IS NULL"""
    with store.database.transaction():
        store.database.execute(change, (int(accepted), answer[:LONGEST_REASON], name, board))


def waiting(store: Store, name: str, board: str, what: str) -> None:
    """Keep what a board waits for before it begins."""
    change = "UPDATE target SET waits = ? WHERE rollout = ? AND board = ? AND told IS NOT NULL AND accepted IS NULL"
    with store.database.transaction():
        store.database.execute(change, (what[:LONGEST_REASON] or "for a better time", name, board))


def asking(store: Store, name: str, board: str) -> None:
    """A board that was waiting asks whether it may begin: it is told with the next step, if the roll-out still runs then."""
    change = "UPDATE target SET asked = 0 WHERE rollout = ? AND board = ? AND waits <> '' AND accepted IS NULL"
    with store.database.transaction():
        store.database.execute(change, (name, board))


def status(stored: Stored, targets: list[Target]) -> dict[str, Any]:
    """A roll-out for people and programs."""
    state = stored.rollout
    return {
        "id": state.id, "release": stored.release.name, "version": state.version, "group": stored.group, "state": state.state,
        "why": state.why or None, "wave": state.wave + 1, "waves": list(state.waves), "healthy_since": state.healthy,
        "pause": state.pause, "most_bad": state.most_bad, "started": stored.started, "boards": rollouts.summary(targets),
        "targets": [target._asdict() for target in targets],
    }  # fmt: skip
