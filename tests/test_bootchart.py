"""The boot as bars: rows from PID 1's end, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Board, eventually
from test_process import EXIT_0, World, make, run

import stack
from onboard import to_pid1
from prompt import bootchart
from prompt import functions as prompt

Boot = Callable[..., Board]
LOG = [
    "6,1,100000,-;Linux version 6.1\n",
    "6,300,1200000,-;Run /init as init process\n SUBSYSTEM=x\n",
    "6,301,1900000,-;Run /sbin/stack.py as init process\n",
    "4,302,99000000,-;Run /sbin/other as init process\n",
]


def test_what_came_before_our_first_line() -> None:
    rows = bootchart.before_pid_1(LOG, begun=0.01, first_line=2.5)
    assert rows == [["kernel", "before", 0.0, 1.2], ["initramfs", "before", 1.2, 1.9], ["interpreter", "before", 1.9, 2.5]]
    assert [row[0] for row in bootchart.before_pid_1(LOG[:2], 0.01, 2.5)] == ["kernel", "interpreter"]
    assert bootchart.before_pid_1([], 0.01, 2.5) == [["kernel, interpreter", "before", 0.0, 2.5]]
    # In namespaces the kernel's log is about another init.
    assert bootchart.before_pid_1(LOG, begun=50.0, first_line=50.1) == [["interpreter", "before", 50.0, 50.1]]


def test_a_service_has_its_first_start_and_its_first_readiness() -> None:
    process = make(World(), ready="notify")
    run(process, 3.0)
    assert process.first_ready == 0.0
    process.became_ready(4.5)
    process.became_ready(6.0)
    assert process.first_ready == 4.5
    process.exited(EXIT_0, 20.0)
    run(process, 21.0)
    process.became_ready(22.0)
    assert process.first_ready == 4.5
    job = make(World(), ready="exit")
    run(job, 3.0)
    job.exited(EXIT_0, 3.5)
    assert (job.first_ready, job.ready) == (3.5, True)


def test_rows_come_in_pages_and_in_order() -> None:
    init = stack.Init([], began=1.0)
    init.born = 1.5
    init.steps = [("load", 1.5, 0.25)]
    for number in range(150):
        process = init.sv.processes[str(number)] = make(World())
        process.first_start, process.first_ready = 200.0 - number, 300.0
    init.sv.processes["0"].transient = True
    init.sv.processes["1"].first_start = 0.0  # not started

    def ask(first: object) -> list[list[Any]]:
        rows: list[list[Any]] = init.requests.handle({"op": "bootchart", "first": first}, 1000, 400.0)
        return rows

    rows = ask(0)
    assert rows[:2] == [["imports", "python", 1.0, 1.5], ["load", "step", 1.5, 1.75]]
    assert len(rows) == to_pid1.A_REPLY
    starts = [row[2] for row in (rows + ask(100))[2:]]
    assert len(starts) == 148
    assert starts == sorted(starts)
    assert ask(1000) == ask("x") == ask(-1) == []


def test_bars() -> None:
    rows = [
        ["imports", "python", 1.0, 2.0], ["a", "service", 2.0, 4.0], ["b", "service", 3.0, None], ["c", "service", 999.0, 999.5],
    ]  # fmt: skip
    chart = bootchart.chart(rows, [["kernel", "before", 0.0, 1.0]])
    assert chart[2] == {"name": "a", "kind": "service", "start": 2.0, "end": 4.0}
    lines = repr(chart).splitlines()
    bars = [line[37:] for line in lines]
    assert bars[0] == "=" * 15
    assert bars[1] == " " * 15 + "=" * 15
    assert bars[2] == " " * 30 + "=" * 29 + ">"
    assert bars[3] == " " * 45 + "." * 15
    assert bars[4] == " " * 59 + ">", "what came long after the boot does not shrink it"
    assert repr(bootchart.Chart()) == "(none)"


def test_on_a_board(boot: Boot) -> None:
    rows = (
        "Service('slow', ('sh', '-c', 'sleep 0.5'), ready='exit'), Service('then', ('sleep', '1000'), ('slow',)),"
        "Service('never', ('sleep', '1000'), ready='notify'),"
        "Service('show', ('sh', '-c', '/stack/bin/sv bootchart --json >/run/chart; /stack/bin/sv bootchart >/run/bars'),"
        "        ('then',), ready='exit'),"
    )
    board = boot(rows).up()
    board.wait_state("show", "stopped")
    chart = {row["name"]: row for row in json.loads((board.root / "run/chart").read_text())}
    assert chart["interpreter"]["end"] == chart["imports"]["start"]
    assert (
        chart["imports"]["end"] <= chart["set_defaults"]["start"] <= chart["start_services"]["start"] <= chart["logd"]["start"]
    )
    assert chart["slow"]["end"] - chart["slow"]["start"] >= 0.5
    assert chart["then"]["start"] >= chart["slow"]["end"]
    assert chart["never"]["end"] is None
    assert "=>" in (board.root / "run/bars").read_text()
    board.ask("run", argv=["sleep", "50"])
    eventually(lambda: board.stats("sleep"))
    assert not [row for row in board.ask("bootchart", first=0) if row[0] == "sleep"], "a command of the prompt is no boot"


def test_the_prompt_asks_for_page_after_page(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["imports", "python", 1.0, 2.0], *(["s", "service", 3.0, 4.0] for _ in range(250))]
    asked: list[int] = []

    def ask(_path: str, request: dict[str, Any]) -> object:
        asked.append(request["first"])
        return rows[request["first"] : request["first"] + 100]

    monkeypatch.setattr("onboard.to_pid1.ask", ask)
    found = prompt.bootchart()
    assert isinstance(found, bootchart.Chart)
    assert len([row for row in found if row["kind"] == "service"]) == 250
    assert asked == [0, 100, 200, 251]
