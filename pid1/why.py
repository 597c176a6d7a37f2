"""Why a service runs or not, as data: its state, its condition, its last deaths, and the chain of services that it waits for.

And what has happened lately, what is known of the board, and who may tell it.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from onboard.to_pid1 import A_REPLY, SVError
from pid1.process import Process, State
from pid1.tellers import owners_of, until
from pid1.timeline import page

if TYPE_CHECKING:
    from typing import Any

    from pid1.conditions import Conditions
    from pid1.life import Life, Supervisor

LONGEST_CHAIN = 100  # services


def answer(life: Life, request: dict[str, Any], uid: int, now: float) -> Any:
    """The answer to one request: explain, timeline, facts, or fact, which tells one."""
    sv, name = life.sv, request.get("name")
    match request:
        case {"op": "explain", "name": str()} if name in sv.processes:
            return explain(life, sv.processes[name], now)
        case {"op": "explain"}:
            raise SVError(f"there is no service {str(name)[:64]!r}; there are {', '.join(sv.processes) or 'none'}")
        case {"op": "timeline"}:
            return life.timeline.page(request.get("first"), A_REPLY)
        case {"op": "bootchart"}:
            return page(chart(life), request)
        case {"op": "facts"}:
            return facts(sv, now)
        case {"op": "fact", "name": str(name), "value": value} if uid == 0:
            return tell(life, request, name, value, now)
        case {"op": "fact", "name": str(name), "value": _}:
            raise SVError(
                f"only root may tell the fact {name[:64]!r}, or a service whose row names it in `tells`; you are uid {uid}"
            )
    raise SVError("which fact? A name and a value are needed")


def tell(life: Life, request: dict[str, Any], name: str, value: Any, now: float) -> dict[str, bool]:
    """Take a fact from whoever may tell it; whether a condition asks for it."""
    conditions: Conditions = life.sv.conditions_of_board()
    by, owners = request.get("by"), owners_of(life, conditions.world.relatives.by_pid, request)
    if owners is None and not name.startswith("mode/"):
        return {"asked": conditions.asks_for(name)}
    said = owners[0][0] if owners else by[:64] if isinstance(by, str) and by.isprintable() else ""
    told = conditions.tell(name, value, said, now, owners or (), until(request, owners or (), now))
    life.sv.settle(now)
    return told


def explain(life: Life, process: Process, now: float) -> dict[str, Any]:
    """What PID 1 knows of the reason. Times are in seconds: `since` and `ago` back from now, `next_restart` and
    `starts_anyway` from now on."""
    sv, state = life.sv, process.state
    due = None if process.deadline is None else round(max(0.0, process.deadline - now), 3)
    return {
        "name": process.row.name, "state": state, "since": round(now - process.since, 3), "wanted": process.wanted,
        "ready": process.ready, "pid": process.pid, "status": process.status, "asked": process.asked, "done": process.done,
        "late": process.late, "restart": process.row.restart, "restarts": process.restarts,
        "stopping_board": sv.stopping is not None, "started": round(process.started, 6), "mono": round(now, 6),
        "condition": condition(sv, process, now),
        "exits": [
            {"exit": how, "at": round(at, 6), "ago": round(now - at, 3), "ran": round(ran, 3), "asked": asked}
            for at, how, ran, asked in process.exits
        ],
        "next_restart": due if state == State.BACKOFF else None,
        "starts_anyway": due if state == State.WAITING else None,
        "waits_for": chain(sv, process, now) if state == State.WAITING else [],
        "after": list(process.row.after), "needed_by": list(sv.dependents.get(process.row.name, ())),
    }  # fmt: skip


def condition(sv: Supervisor, process: Process, now: float) -> dict[str, Any] | None:
    """What the row's `when` says, whether it is true and since when, and what it has asked for, the deciding thing last."""
    when = process.row.when
    if when is None:
        return None
    verdict = sv.conditions.verdicts.get(process.row.name) if sv.conditions else None
    return {
        "when": getattr(when, "text", ""), "met": process.met,
        "since": None if verdict is None else round(now - verdict.since, 3),
        "error": verdict.error if verdict else "",
        "uses": [known(sv, name, now) for name in verdict.used] if verdict else [],
    }  # fmt: skip


def known(sv: Supervisor, name: str, now: float) -> dict[str, Any]:
    """What is known of a fact, a mode ("mode power") or a service ("service broker"), since when, and by whom.

    `note` says why it is not known any more, or that it will not be: None is its value then, and `since` is when it lapsed."""
    what, _, rest = name.partition(" ")
    conditions = sv.conditions
    if what == "mode" and conditions and rest in conditions.modes:
        return {
            "name": name,
            "value": conditions.modes[rest],
            "since": round(now - conditions.mode_since[rest], 3),
            "by": "PID 1",
            "note": "",
        }
    if what == "service" and rest:
        other = sv.processes.get(rest)
        since = round(now - other.since, 3) if other else None
        return {"name": name, "value": _state(other) if other else "no such service", "since": since, "by": "PID 1", "note": ""}
    if conditions and (lost := conditions.lost.get(name)):
        return {"name": name, "value": None, "since": round(now - lost.since, 3), "by": lost.by, "note": lost.why}
    fact = conditions.facts.get(name) if conditions else None
    if fact is None:
        return {"name": name, "value": None, "since": None, "by": "", "note": ""}
    value = fact.value if not isinstance(fact.value, list) else f"{len(fact.value)} names"
    left = "" if fact.until is None else f"for {max(0.0, fact.until - now):.1f}s more"
    note = f"{fact.gone} has ended: believed {left}" if fact.gone else left
    return {"name": name, "value": value, "since": round(now - fact.since, 3), "by": fact.by, "note": note}


def facts(sv: Supervisor, now: float) -> list[dict[str, Any]]:
    """All that is known of the board or was, and its modes."""
    if sv.conditions is None:
        return []
    names = [*(f"mode {name}" for name in sv.conditions.modes), *sorted({*sv.conditions.facts, *sv.conditions.lost})]
    return [known(sv, name, now) for name in names]


def chain(sv: Supervisor, process: Process, now: float) -> list[dict[str, Any]]:
    """Services that it waits for, and those that these wait for, each once: how many steps away, and what each is doing."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [(process, 1)]
    while waiting and len(found) < LONGEST_CHAIN:
        one, steps = waiting.pop(0)
        for name in one.row.after:
            other = sv.processes.get(name)
            if other is None or other.settled or name in found:
                continue
            due = None if other.deadline is None else round(max(0.0, other.deadline - now), 3)
            found[name] = {
                "name": name, "steps": steps, "for": one.row.name, "state": _state(other), "since": round(now - other.since, 3),
                "exit": other.last_exit, "due": due, "ready": other.row.ready,
            }  # fmt: skip
            if other.state == State.WAITING:
                waiting.append((other, steps + 1))
    return list(found.values())


def _state(process: Process) -> str:
    return process.state + (", not ready" if process.state == State.RUNNING and not process.ready else "")


def chart(life: Life) -> list[list[Any]]:
    """For bootchart(), rows of name, kind, start, and when ready or None: our imports, the steps of the boot, then the
    services of the table by their first start."""
    rows: list[list[Any]] = [["imports", "python", life.began, life.born]]
    rows += [[name, "step", at, at + seconds] for name, at, seconds in life.steps]
    chosen = [process for process in life.sv.processes.values() if process.first_start and not process.transient]
    chosen.sort(key=lambda process: process.first_start)
    ready = [max(p.first_ready, p.first_start) if p.first_ready else None for p in chosen]
    return rows + [[p.row.name, "service", p.first_start, end] for p, end in zip(chosen, ready, strict=True)]
