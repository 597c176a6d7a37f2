"""Why a service runs or not, what is known of the board, and what has happened on it lately."""

from __future__ import annotations

import os
import time
from typing import Any

from onboard.to_pid1 import SVError
from prompt.asking import ask, service_names
from prompt.logs import all_lines
from prompt.shapes import Shape, Stats, Table, duration

names = service_names  # what Tab completes in this file's functions
LAST_LINES = 5  # that a service printed before each of its deaths


class Reason(Shape, dict[str, Any]):
    """All that explain() knows; it shows itself as sentences."""

    def text(self, width: int = 0, *, colour: bool = False) -> str:
        lines = [self["why"]]
        lines += [f"  {_of_condition(use)}" for use in (self["condition"] or {"uses": ()})["uses"]]
        for one in self["waits_for"]:
            lines.append(f"  {'  ' * (one['steps'] - 1)}{one['for']} waits for {one['name']}, {_of_link(one)}")
        for one in reversed(self["exits"]):
            asked = ", as asked" if one["asked"] else ""
            lines.append(f"  {duration(one['ago'])} ago: {one['exit']} after {duration(one['ran'])}{asked}")
            lines += [f"    {line}" for line in one["lines"]]
        if self["needed_by"]:
            lines.append(f"  needed by {', '.join(self['needed_by'])}")
        return "\n".join(line[:width] if width else line for line in lines)


def explain(name: str) -> Reason:
    """Why a service runs or not: a sentence, and the data behind it.

    why (the sentence), state, since (s), wanted, condition (when, met, since, error, uses: what it asked for, the deciding
    thing last), exits (its last deaths: exit, ago, ran, asked: it was stopped, lines: the last that it printed), next_restart
    (s from now), waits_for (services, over how many steps), starts_anyway (s from now: it waits no longer), needed_by.
    """
    found: Stats = ask("explain", name=name)
    log = all_lines(name) if found["exits"] else []
    begins = [one["at"] - one["ran"] for one in found["exits"]]
    ends = [*begins[1:], found["started"] if found["started"] > found["exits"][-1]["at"] else found["mono"]] if begins else []
    for one, begin, end in zip(found["exits"], begins, ends, strict=True):  # logd reads a line a moment after it was printed
        one["lines"] = [line.words for line in log if begin <= line.mono < end][-LAST_LINES:]
    return Reason({"why": sentence(found), **found})


def sentence(row: Stats) -> str:
    """The reason in one sentence."""
    name, state, since = row["name"], row["state"], duration(row["since"])
    last = row["exits"][-1]["exit"] if row["exits"] else ""
    if row["stopping_board"]:
        return f"{name} is {state}: the board is shutting down."
    if state == "running":
        ready = "" if row["ready"] else ", though it has not said that it is ready" if row["late"] else ", and is not ready"
        return f"{name} runs since {since}, pid {row['pid']}{ready}{_why_it_may(row)}."
    if state == "starting":
        return f"{name} was started {since} ago, pid {row['pid']}, and has not said yet that it is ready."
    if state == "unmet":
        return f"{name} does not run: {_unmet(row)}."
    if state == "waiting":
        others = " and ".join(one["name"] for one in row["waits_for"] if one["steps"] == 1) or "its turn"
        steps = max((one["steps"] for one in row["waits_for"]), default=0)
        far = f", over {steps} steps" if steps > 1 else ""
        anyway = row["starts_anyway"]
        return f"{name} waits for {others}{far} since {since}; in {duration(anyway or 0.0)} it starts without."
    if state == "backoff":
        again = duration(row["next_restart"] or 0.0)
        why = f"its last process ended with {last}" if last else "its condition has been true for a short time only"
        return f"{name} does not run: {why}; it is started again in {again}."
    if state == "stopping":
        left = " and its processes are being stopped" if row["pid"] is None else ""
        return f"{name} is being stopped since {since}{left}{'' if row['wanted'] else ', as somebody asked'}."
    if row["done"]:
        return f"{name} has done its work: it ended with success {since} ago, and runs once."
    if row["asked"] or not row["exits"]:
        return f"{name} is stopped since {since}: somebody asked for it, and nobody has started it again."
    rule = "status 125 means: do not restart me" if last == "exit 125" else f"its row has restart={row['restart']!r}"
    return f"{name} is stopped since {since}: it ended with {last}, and {rule}."


def _why_it_may(row: Stats) -> str:
    condition = row["condition"]
    return f", as long as {condition['when']}" if condition else ""


def _unmet(row: Stats) -> str:
    condition = row["condition"] or {"when": "", "since": None, "error": "", "uses": []}
    since = "" if condition["since"] is None else f" since {duration(condition['since'])}"
    if condition["error"]:
        return f"its condition {condition['when']} fails{since} and counts as false: {condition['error']}"
    decides = f" ({_of_condition(condition['uses'][-1])})" if condition["uses"] else ""
    return f"its condition {condition['when']} is not true{since}{decides}"


def _of_condition(use: Stats) -> str:
    """What is known of one thing that a condition has asked for."""
    if use["since"] is None:
        return f"{use['name']} is not known: nobody has told it"
    if use["value"] is None:
        return f"{use['name']} is not known any more since {duration(use['since'])}: {use['note']}"
    note = f"; {use['note']}" if use["note"] else ""
    by = f", says {use['by']}" if use["by"] and use["by"] != "PID 1" else ""
    return f"{use['name']} is {use['value']} since {duration(use['since'])}{by}{note}"


def _of_link(one: Stats) -> str:
    """What a service is doing for which others wait."""
    words = f"which is {one['state']} since {duration(one['since'])}"
    if one["exit"] and one["state"] in ("backoff", "waiting", "starting"):
        words += f", after {one['exit']}"
    if one["state"] == "backoff" and one["due"] is not None:
        words += f", again in {duration(one['due'])}"
    if one["state"] == "starting":
        words += ", until it ends" if one["ready"] == "exit" else ", until it says that it is ready"
    return words


class Facts(Table):
    """What is known of the board."""

    columns = ("name", "value", "since", "by", "note")
    spare = ("note", "by", "since")


def facts() -> Table:
    """What PID 1 has been told of the board, and the modes that the board is in: what conditions of the table ask for.

    name (a mode is "mode NAME"), value (None: not known any more), since (s), by (the service that has told it), note (why it
    is not known any more; or for how long it is believed yet, since its teller has ended or has told it for some seconds only).
    """
    return Facts(ask("facts"))


def tell(name: str, value: bool | float | str | None, seconds: float = 60.0) -> None:
    """Say a fact of the board by hand, for some seconds: what do the conditions of the table do about it? Root only.

    It goes before what a service tells, which counts again after these seconds, or at once with None. Text that reads as a
    number, true, false or none is one: `sv tell voltage 10.5`.
    """
    ask("fact", name=name, value=_read(value) if isinstance(value, str) else value, seconds=seconds, by=_me())


def _read(text: str) -> bool | float | str | None:
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def _me() -> str:
    """Who types, as facts() names it."""
    return f"{os.environ.get('USER') or f'uid {os.getuid()}'} by hand"


class Timeline(Table):
    """Transitions."""

    columns = ("at", "what", "before", "after", "why")
    spare = ("why",)


def timeline(name: str | None = None, lines: int | None = None) -> Table:
    """The last 500 transitions of the board, the newest at the end: of services, of its modes, of what is known of it.

    number, at (s since the kernel's start, as in logs()), ago (s), what (a service, "mode NAME", "fact NAME", "board"), before,
    after, why. With a `name` those of one of them; the last `lines`.
    """
    if lines is not None and lines < 0:
        raise SVError(f"how many lines? {lines} is no such number")
    rows: list[list[Any]] = []
    while page := ask("timeline", first=rows[-1][0] + 1 if rows else 0):
        rows += page
    now = time.monotonic()
    keys = ("number", "at", "what", "before", "after", "why")
    found = [dict(zip(keys, row, strict=True)) | {"ago": round(now - row[1], 3)} for row in rows]
    wanted = [row for row in found if name is None or row["what"] in (name, f"mode {name}", f"fact {name}")]
    return Timeline(wanted if lines is None else wanted[len(wanted) - min(lines, len(wanted)) :])
