"""The plan of a reload: old rows and new tables go in, what happens to each service comes out. Nothing runs here."""

from __future__ import annotations

from typing import Any

import pytest
from test_process import World, run

from pid1.changes import WHAT, Change, plan
from pid1.process import Process
from tables.load import load
from tables.rows import Condition, Service
from tables.tables import Tables


def service(name: str, **columns: Any) -> Service:
    return Service(name, ("true",), **columns)


def running(row: Service, *, transient: bool = False) -> Process:
    process = Process(row, World(), load({}).delays())
    run(process, 1.0)
    process.transient = transient
    return process


def tables(*rows: Service, bad: tuple[str, ...] = ()) -> Tables:
    one = load({})
    one.services = {row.name: row for row in rows if not row.name.endswith("@")}
    one.templates = {row.name: row for row in rows if row.name.endswith("@")}
    one.order = list(one.services)
    one.bad_names = set(bad)
    return one


def happens(processes: list[Process], new: Tables, **how: Any) -> list[tuple[str, str]]:
    return [(change.name, change.what) for change in plan(processes, new, **how)]


def test_at_boot_everything_is_new_and_in_start_order() -> None:
    new = tables(service("a"), service("b"))
    new.order = ["b", "a"]
    assert plan([], new) == [Change("b", "started", service("b")), Change("a", "started", service("a"))]


def test_what_vanished_stops_what_changed_restarts_the_rest_is_left_alone() -> None:
    there = [running(service("same")), running(service("changed")), running(service("gone"))]
    new = tables(service("same"), service("changed", nice=1), service("new"))
    assert happens(there, new) == [("gone", "stopped"), ("changed", "restarted"), ("new", "started")]
    assert plan(there, new)[0].row is None
    assert [process.state for process in there] == ["running"] * 3, "a plan does nothing"


def test_a_row_that_has_become_bad_leaves_its_service_alone() -> None:
    assert happens([running(service("typo"))], tables(bad=("typo",))) == []


def test_what_is_not_to_run_takes_its_row_and_stays_as_it_is() -> None:
    process = running(service("off"))
    process.stop(2.0)
    process.exited(0, 2.0)
    assert happens([process], tables(service("off", nice=1))) == [("off", "taken")]
    job = running(service("job", ready="exit"))
    job.exited(0, 2.0)
    assert job.done
    assert happens([job], tables(service("job", ready="exit", nice=1))) == [("job", "restarted")], "a job runs again"


def test_limits_alone_are_adjusted() -> None:
    process = running(service("a"))
    assert happens([process], tables(service("a", pids_max=7, cpu_weight=70))) == [("a", "adjusted")]
    assert happens([process], tables(service("a", pids_max=7, memory_max="1G"))) == [("a", "restarted")]


@pytest.mark.parametrize(
    "columns",
    [
        {"after": ("x",)}, {"ready_timeout": 1.0}, {"restart": "never"}, {"stop_signal": "INT"}, {"stop_timeout": 9.0},
        {"kill": "main"}, {"critical": True}, {"may": "COMMANDS"}, {"enabled": "FAKE_GPS"}, {"log": "disk"}, {"cpu_weight": 7},
        {"publishes": ("x",)}, {"hears": ("x",)}, {"tells": ("x",)}, {"when": Condition("b.online", "")},
    ],
    ids=lambda columns: next(iter(columns)),
)  # fmt: skip
def test_what_pid_1_alone_reads_changes_without_a_restart(columns: dict[str, Any]) -> None:
    assert happens([running(service("a"))], tables(service("a", **columns))) == [("a", "adjusted")]
    assert happens([running(service("a", **columns))], tables(service("a"))) == [("a", "adjusted")]


@pytest.mark.parametrize(
    "columns",
    [
        {"argv": ("false",)}, {"ready": "notify"}, {"user": "x"}, {"groups": ("x",)}, {"capabilities": ()}, {"no_new_privs": True},
        {"rlimits": (("core", 0),)}, {"nice": 1}, {"oom_score": 1}, {"memory_max": 1}, {"umask": 0}, {"cwd": "/tmp"},
        {"env": (("A", "b"),)}, {"tty": "/dev/tty1"}, {"log": "none"}, {"watchdog": 1.0}, {"logger": True}, {"module": "x"},
        {"forked_by": "x"},
    ],
    ids=lambda columns: next(iter(columns)),
)  # fmt: skip
def test_what_the_program_has_been_given_changes_with_a_restart(columns: dict[str, Any]) -> None:
    new = service("a")._replace(**columns)
    assert happens([running(service("a"))], tables(new)) == [("a", "restarted")]
    assert happens([running(new)], tables(service("a"))) == [("a", "restarted")]


def test_every_column_has_its_place() -> None:
    """A new column must be thought about: it is in one of the lists above, or the name."""
    tested = {"name"}
    for test in (
        test_what_pid_1_alone_reads_changes_without_a_restart,
        test_what_the_program_has_been_given_changes_with_a_restart,
    ):
        for mark in test.pytestmark:
            tested |= {name for columns in mark.args[1] for name in columns}
    assert tested | {"pids_max"} == set(Service._fields)


def test_a_new_environment_restarts_all_of_the_table() -> None:
    there = [running(service("a")), running(service("gps@x"), transient=True), running(service("sleep"), transient=True)]
    new = tables(service("a"), service("gps@"))
    assert happens(there, new, everything=True) == [("gps@x", "restarted"), ("a", "restarted")], "not what the prompt ran"


def test_a_name_that_was_a_command_becomes_the_tables() -> None:
    assert happens([running(service("a"), transient=True)], tables(service("a"))) == [("a", "restarted")]
    back = running(service("b"))
    back.removed = True
    back.stop(2.0)
    assert happens([back], tables(service("b"))) == [("b", "restarted")], "it had left, and is on its way out"


@pytest.mark.parametrize(
    ("template", "bad", "expected"),
    [
        (service("gps@"), (), []),
        (service("gps@", nice=1), (), [("gps@x", "restarted")]),
        (None, (), [("gps@x", "stopped")]),
        (None, ("gps@",), []),
    ],
)
def test_an_instance_follows_its_template(template: Service | None, bad: tuple[str, ...], expected: list[Any]) -> None:
    there = [running(service("gps@x"), transient=True)]
    assert happens(there, tables(*[template] if template else [], bad=bad)) == expected
    assert {what for _, what in expected} <= set(WHAT)
