"""The prompt for people, and root's shell for programs: shapes, sentences, keys, logs, and ssh with real clients."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_NAMESPACES, PYTHON, ROOT, Board
from test_board import Terminal, plain

import sv
from onboard.to_pid1 import SVError
from prompt import asking, command, functions, hooks, repl, shapes, top

Boot = Callable[..., Board]
needs_namespaces = pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)


def stats(name: str, **more: Any) -> dict[str, Any]:
    """What PID 1 says of a service."""
    return {
        "name": name, "cmd": [name], "alive": True, "state": "running", "pid": None, "runtime": 1.0, "total_runtime": 1.0,
        "restart": 0, "exit": None, "since": 1.0, "next_restart": None, "ready": True, "status": "", "user": "root",
        "wanted": True, "after": [], "cgroup": None, "when": None, "met": True, **more,
    }  # fmt: skip


@pytest.fixture
def pid1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A PID 1 that knows these services, and whose logs are in a folder of the test's own."""
    rows = {name: stats(name) for name in ("broker", "fakegps", "wifi_scan", "gps@ttyUSB0")}

    def ask(_path: str, request: dict[str, Any]) -> Any:
        if request["op"] == "board":
            return {"log_folder": str(tmp_path), "hostname": "test", "uptime": 1.0, "state": "running"}
        if "name" in request and request["name"] not in rows:
            raise SVError(f"there is no service {request['name']!r}; there are {', '.join(rows)}")
        if "name" in request:
            one = rows[request["name"]]
            return [dict(one)] if request["op"] == "stats" else dict(one)
        return [dict(row) for row in list(rows.values())[request.get("first", 0) :]]

    monkeypatch.setattr("onboard.to_pid1.ask", ask)
    return rows


# --- one list -----------------------------------------------------------------------------------------------------------
def test_a_function_is_listed_once() -> None:
    listed = [name for name in vars(functions) if not name.startswith("_")]
    assert sv.__all__ == listed
    names: dict[str, object] = {}
    exec("from sv import *", names)
    assert set(listed) <= names.keys()
    called = {function.__name__ for function in command.commands().values()}
    assert called == set(listed) - {"SVError"}
    assert set(repl.namespace()) == {*listed, "__name__"}
    for name in called:
        assert (getattr(functions, name).__doc__ or "").strip(), f"{name} says nothing to help()"


def test_pid_1_does_not_load_the_prompt_by_mistake() -> None:
    """Python itself asks a module for names such as __path__."""
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}; import sv; from sv import SV; hasattr(sv, '__path__'); print(*sys.modules)"
    )
    done = subprocess.run([PYTHON, "-ESB", "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.startswith("prompt")]


def test_a_login_does_not_wait_for_what_it_may_not_need() -> None:
    """On a slow board each of these costs a tenth of a second and more. Python 3.14's own `code` loads two of them."""
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; import code; its = set(sys.modules); import prompt.repl; print(*set(sys.modules) - its)"
    loaded = set(subprocess.run([PYTHON, "-SB", "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {
        "argparse",
        "ast",
        "ctypes",
        "datetime",
        "difflib",
        "inspect",
        "paho",
        "bus",
        "rlcompleter",
        "subprocess",
    }


# --- on a board's own Python ----------------------------------------------------------------------------------------------
OURS = ("base", "onboard", "pid1", "profiles", "prompt", "services", "tables", "network", "uplink")
THEIRS = (*OURS, "control", "board", "functions", "logs", "rows")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make install` for a Python whose site-packages have modules of the names of ours. The Python, and LIB beside it."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    site = next((folder / "venv/lib").glob("python3*")) / "site-packages"
    for name in THEIRS:
        (site / f"{name}.py").write_text(f"THEIRS = {name!r}\n")
    import paho

    (site / "paho").symlink_to(next(iter(paho.__path__)))
    words = [f"PREFIX={folder}", f"SBINDIR={folder}/sbin", f"SITEDIR={site}", f"TARGET_PYTHON={PYTHON}", "DESTDIR="]
    subprocess.run(["make", "-s", "install", *words], cwd=ROOT, check=True)
    return folder


def python_of(installed: Path, code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [installed / "venv/bin/python", "-P", "-c", code], capture_output=True, text=True, check=False, timeout=30, cwd="/",
        env={**clean, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_modules_of_our_names_do_not_break_the_prompt(installed: Path) -> None:
    assert python_of(installed, "from sv import *; print(stats_process)").startswith("<function stats_process")
    assert python_of(installed, "from bus import Bus; print(Bus)") == "<class 'bus.Bus'>\n"
    assert python_of(installed, "import settings; print(settings.LIB)") == f"{installed}/lib/stack\n"
    assert python_of(installed, "import sv, bus; print(sv.__file__)") == f"{installed}/lib/stack/sv.py\n"
    sentence = "import sv\ntry: sv.stats_process()\nexcept sv.SVError as error: print(error)"
    assert "cannot reach PID 1" in python_of(installed, sentence, STACK_CONTROL="/nowhere")


def test_our_modules_do_not_hide_installed_ones(installed: Path) -> None:
    for name in THEIRS:
        assert python_of(installed, f"import {name}; print({name}.THEIRS)") == f"{name}\n"


def test_a_service_imports_ours_whatever_else_is_installed(installed: Path) -> None:
    """Its row puts LIB on Python's path; the .pth file has put the names before it."""
    library = f"{installed}/lib/stack"
    for code in ("from bus import Bus; print(Bus)", "import tables.rows, sv, bus; print(bus.Bus)"):
        assert python_of(installed, code, PYTHONPATH=library) == "<class 'bus.Bus'>\n"


# --- sentences ----------------------------------------------------------------------------------------------------------
def test_the_nearest_name_is_offered(pid1: dict[str, Any]) -> None:
    for call in (sv.stop_process, sv.stats_process, sv.restart_process, sv.status):
        with pytest.raises(SVError, match=r"no service 'fakgps'.*; did you mean fakegps\?$"):
            call("fakgps")
    with pytest.raises(SVError, match=r"wifi_scan, gps@ttyUSB0$"):  # nothing is near
        sv.stop_process("zzz")


def test_a_start_is_waited_for_while_a_zygote_forks(pid1: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """PID 1 answers before there is a process; one that waits for another service is not waited for."""
    looks: list[str] = []

    def started(_: float) -> None:
        looks.append(pid1["fakegps"]["state"])
        if len(looks) == 3:
            pid1["fakegps"]["state"] = "running"

    monkeypatch.setattr("time.sleep", started)
    pid1["fakegps"]["state"] = "waiting"
    assert (sv.start_process("fakegps")["state"], len(looks)) == ("running", 3)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("prompt.processes.FORKED", 0.05)
    pid1["broker"]["state"] = "waiting"
    assert sv.start_process("broker")["state"] == "waiting"


def test_an_error_is_a_sentence(pid1: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        sv.stop_process("nobody")
    except SVError:
        hooks.complain(*sys.exc_info())
    assert re.fullmatch(r"SVError: there is no service 'nobody'.*\n", capsys.readouterr().err)
    console = repl.Prompt(repl.namespace())
    console.push("stop_process('nobody')")
    assert "Traceback" not in capsys.readouterr().err
    console.push("1/0")
    trace = capsys.readouterr().err
    assert "ZeroDivisionError" in trace
    assert "code.py" not in trace, "the console's own frames are nobody's business"
    console.push("foo)")
    trace = capsys.readouterr().err
    assert "SyntaxError: unmatched ')'" in trace
    assert "codeop.py" not in trace


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stats_process(5)", "stats_process: name is 5, and takes a text;"),
        ("stats_process(['broker'])", "name is ['broker'], and takes a text"),
        ("stats_process(stats_process)", "name is <function stats_process"),
        ("stats_process('broker', 3)", "it takes 1 argument, and 2 were given"),
        ("board(1)", "it takes no arguments, and 1 were given"),
        ("stats_process(nme='broker')", "it has no argument 'nme'; there are name; did you mean name?"),
        ("stop_process()", "stop_process: it needs name; help(stop_process) says more"),
        ("stop_process('broker', name='broker')", "name was given twice"),
        ("stop_process('broker', 'x')", "timeout is 'x', and takes a number"),
        ("stop_process('broker', float('nan'))", "timeout is no number"),
        ("stop_process('broker', True)", "timeout is True, and takes a number"),
        ("restart_process(b'broker')", "name is b'broker', and takes a text"),
        ("start_process(None)", "name is None, and takes a text"),
        ("signal_process('broker', 1.5)", "signum is 1.5, and takes a whole number or a text"),
        ("logs(5)", "name is 5"),
        ("logs('x' * 100 + 'y', 'z' * 100)", "lines is 'zzzzzz"),
        ("logs(lines=1.5)", "lines is 1.5, and takes a whole number"),
        ("logs(lines=-3)", "how many lines? -3 is no such number"),
        ("logs(grep=5)", "grep is 5, and takes a text"),
        ("logs(follow=1)", "follow is 1, and takes True or False"),
        ("top('x')", "every is 'x', and takes a number"),
        ("watch(5)", "topic is 5, and takes a text"),
        ("watch('a#')", "'a#' is no topic"),
        ("watch('a/#/b')", "'a/#/b' is no topic"),
        ("watch('a+/b')", "'a+/b' is no topic"),
        ("watch('')", "'' is no topic"),
        ("watch('x' * 70000)", "is no topic"),
        ("watch('gps', -1)", "watch how many messages? -1 is no such number"),
        ("stats_process(broker)", "broker is a service: type its name in quotes, 'broker'"),
    ],
)  # fmt: skip
def test_wrong_arguments_get_a_sentence(pid1: dict[str, Any], capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    repl.Prompt(repl.namespace()).push(line)
    error = capsys.readouterr().err
    assert said in error
    assert ("Traceback" not in error, error.count("\n")) == (True, 1), error


def test_right_arguments_are_taken_as_they_are(pid1: dict[str, Any]) -> None:
    class Name(str):
        __slots__ = ()

    assert functions.stats_process(name=Name("broker"))[0]["name"] == "broker"
    pid1["broker"]["state"] = "stopped"
    assert functions.stop_process("broker", timeout=5)["name"] == "broker"
    assert functions.logs(lines=None) == []


def test_a_function_without_its_brackets_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("network", "halt", "board"):
        hooks.display(getattr(functions, name))
        assert capsys.readouterr().out.startswith(f"type {name}() to call it: ")
    hooks.display(functions.stop_process)
    assert capsys.readouterr().out.startswith("type stop_process(NAME) to call it: Stop a service")
    hooks.display("text")
    hooks.display(7)
    hooks.display(None)
    assert capsys.readouterr().out == "'text'\n7\n"


def test_no_network_service(pid1: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(asking.tables().values, "NETWORK_STATE", str(tmp_path / "state.json"))
    with pytest.raises(SVError, match="no network service runs here"):
        sv.network()
    pid1["network"] = stats("network", state="backoff")
    with pytest.raises(SVError, match="the network service is backoff"):
        sv.network()
    pid1["network"] = stats("network")
    with pytest.raises(SVError, match="has written nothing yet"):
        sv.network()
    row = {"name": "eth0", "state": "local", "since": time.monotonic(), "addresses": [], "gateway": [], "metric": 1,
           "ssid": None, "signal": None, "rung": 0}  # fmt: skip
    (tmp_path / "state.json").write_text(json.dumps({"pid": os.getpid(), "interfaces": [row, {**row, "name": "usb0"}]}))
    assert len(sv.network()) == 2
    one: Any = sv.network("usb0")
    assert (one["name"], one[0]["state"]) == ("usb0", "local")
    with pytest.raises(SVError, match=r"no interface 'eth1' in INTERFACES; there are eth0, usb0; did you mean eth0\?"):
        sv.network("eth1")


def test_a_plain_python_gets_the_same_sentences(tmp_path: Path) -> None:
    """The one that Debian gives to a board's owner: python3, and then `from sv import *`."""
    terminal = Terminal(["/usr/bin/env", f"PYTHONPATH={ROOT}", "PYTHON_BASIC_REPL=1", "STACK_CONTROL=/nowhere", PYTHON, "-q"])
    terminal.expect(">>> ")
    terminal.type("from sv import *\n")
    terminal.expect(">>> ")
    terminal.type("stats_process()\n")
    terminal.expect("SVError: cannot reach PID 1 at /nowhere")
    terminal.expect(">>> ")
    assert "Traceback" not in terminal.seen
    terminal.type("halt\n")
    terminal.expect("type halt() to call it")
    terminal.type("exit()\n")
    terminal.wait()


# --- shapes -------------------------------------------------------------------------------------------------------------
def test_one_service_has_one_shape(pid1: dict[str, Any]) -> None:
    pid1["broker"]["state"] = "stopped"
    looked, stopped = sv.stats_process("broker"), sv.stop_process("broker")
    assert type(looked) is type(stopped)
    assert looked.text() == stopped.text()
    for row in (looked, stopped):
        assert isinstance(row, shapes.One)
        assert (row["state"], row[0]["state"], len(row)) == ("stopped", "stopped", 1)
        assert json.loads(json.dumps(row))[0]["state"] == "stopped"


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 30])
def test_a_table_fits(width: int) -> None:
    long = f"{sys.executable} -P {ROOT}/uplink/service.py mothership.example:8883 board-with-a-long-name"
    rows = shapes.Table(
        stats(name, cmd=long, memory=2**24, cpu=71.5, restart=3, exit="signal KILL", runtime=90061.0)
        for name in ("uplink", "b")
    )
    lines = rows.text(width).split("\n")
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("NAME    STATE")
    assert "running" in lines[1]
    assert str(ROOT) not in rows.text(width), "the part that all programs of ours share goes first"
    assert ("uplink/service.py" in lines[1]) == (width >= 120)
    assert "16.0M" in lines[1], "what a service holds is the last to go"
    assert long not in rows.text()
    assert "uplink/service.py mothership.example:8883 board-with-a-long-name" in rows.text(), "a pipe gets all of it"


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shapes.Table([{**stats("a", state="backoff"), "memory": None, "cpu": None}])
    assert "\033[31mbackoff\033[m" in rows.text(colour=True)
    assert "\033" not in rows.text()
    monkeypatch.setattr(shapes, "_on_a_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shapes.colour_wanted()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not shapes.colour_wanted()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not shapes.colour_wanted()
    monkeypatch.undo()
    assert not shapes.colour_wanted(), "pytest's stdout is no terminal"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0s"), (59.94, "59.9s"), (192.0, "3m12s"), (18180.0, "5h03m"), (1051200.0, "12d4h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert shapes.duration(seconds) == text


def test_status_is_all_about_one_service(pid1: dict[str, Any], tmp_path: Path) -> None:
    from onboard import events

    told = events.Events()
    for number in range(7):
        told.tell("crash", {"name": "broker", "exit": f"exit {number}", "ran": 2.0, "restart": number}, 1.0)
    told.tell("crash", {"name": "other", "exit": "exit 99", "ran": 2.0, "restart": 1}, 1.0)
    (tmp_path / "broker.log").write_text("".join(f"2026-05-01T00:00:00.000Z {n}.0 line {n}\n" for n in range(30)))
    pid1["broker"] |= {"restart": 7, "exit": "exit 6", "status": "its own words", "state": "backoff", "next_restart": 3.2}
    facts: Any = sv.status("broker")
    assert [one["exit"] for one in facts["exits"]] == ["exit 2", "exit 3", "exit 4", "exit 5", "exit 6"]
    assert len(facts["log"]) == 10
    text = facts.text(80)
    for words in (
        "backoff for 1.0s, again in 3.2s",
        "its own words",
        "7, the last time because of: exit 6",
        "exit 2 after 2.0s",
        "line 29",
    ):
        assert words in text
    assert "line 19" not in text
    assert sv.status("fakegps")["log"] == [], "it has printed nothing"  # type: ignore[index]
    assert isinstance(sv.status(), shapes.Table)


# --- logs ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def printed(pid1: dict[str, Any], tmp_path: Path) -> Callable[..., list[str]]:
    """Three services' logs; the words of the lines that `logs()` returns."""
    now = time.monotonic()
    (tmp_path / "a.log").write_text(
        f"2026-05-01T10:00:00.000Z {now - 7200:.3f} old\n2026-05-01T12:00:00.000Z {now - 30:.3f} error: broken\n"
        f"2026-05-01T12:00:01.500Z {now - 29:.3f} fine\n"
    )
    (tmp_path / "b.log").write_text(f"2026-05-01T12:00:01.000Z {now - 29.5:.3f} warning: nearly\n")
    (tmp_path / "empty.log").write_text("")

    def words(*arguments: Any, **options: Any) -> list[str]:
        return [line.split(": ", 1)[1] for line in sv.logs(*arguments, **options)]

    return words


def test_an_empty_log_is_empty(printed: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert sv.logs("empty") == []
    assert command.main(["logs", "empty"]) == 0
    assert capsys.readouterr().out == ""


def test_logs_of_a_time(printed: Callable[..., list[str]]) -> None:
    everything = ["old", "error: broken", "warning: nearly", "fine"]
    assert printed() == everything
    assert printed(lines=2) == everything[2:]
    for since in ("1m", 60, "60", "60s ago", "0.1h", "2026-05-01T11:00", "2026-05-01 11:00:00"):
        assert printed(since=since) == everything[1:], since
    assert printed(since="2026-05-01T12:00:01") == everything[2:]
    assert printed(since="2026-05-01") == everything
    assert printed(until="1h") == ["old"]
    assert printed(since="1d", until="2026-05-01T12:00:01") == everything[:2]
    for wrong in ("yesterday", "25:00", "-3m", ""):
        with pytest.raises(SVError, match=r"since .* is no time: "):
            sv.logs(since=wrong)


def test_a_time_of_another_zone_is_put_into_utc(printed: Callable[..., list[str]]) -> None:
    assert printed(since="2026-05-01T14:00:01+02:00") == ["warning: nearly", "fine"]
    assert printed(until="2026-05-01T13:00+02:00") == ["old"]
    assert printed(since="0001-01-01") == printed(since="0999-12-31") == printed(), "a year has four digits"
    with pytest.raises(SVError, match="is no time"):
        sv.logs(since="0001-01-01T00:00+02:00")


def test_a_log_that_is_renamed_meanwhile_is_no_error(
    printed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt.logs._log_names", lambda _folder, _name: ["b", "gone"])
    assert printed() == ["warning: nearly"]


def test_logs_that_say_something(printed: Callable[..., list[str]]) -> None:
    assert printed(level="error") == ["error: broken"]
    assert printed(level="warning") == ["error: broken", "warning: nearly"]
    assert printed(grep="ear|ol") == ["old", "warning: nearly"]
    assert printed("a", grep="^fine$") == ["fine"]
    with pytest.raises(SVError, match=r"grep '\(' is no regular expression"):
        sv.logs(grep="(")
    with pytest.raises(SVError, match="level 'loud' is none of error, warning, info"):
        sv.logs(level="loud")
    with pytest.raises(SVError, match=r"no log of 'emty'; there are a, b, empty; did you mean empty\?"):
        sv.logs("emty")


@pytest.mark.parametrize("words", [("logs", "-f", "-n", "0"), ("watch",)])
def test_live_lines_end_when_their_reader_has_gone(tmp_path: Path, words: tuple[str, ...], broker: Any) -> None:
    """`sv watch | head -1`, on a bus where nothing passes any more."""
    (tmp_path / "x.log").write_text("2026-05-01T10:00:00.000Z 1.0 a line\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from prompt import logs, command, watch;"
        f"logs._folder = lambda: {str(tmp_path)!r}; sys.exit(command.main({list(words)!r}))"
    )
    broker.start()
    reader, writer = os.pipe()
    environment = {**os.environ, "BUS": broker.path, "STACK_CONTROL": "/nowhere"}
    running = subprocess.Popen([PYTHON, "-P", "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    os.close(reader)
    assert running.communicate(timeout=20)[1] == ""
    assert running.returncode == 0


def test_a_full_disk_is_a_sentence() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from prompt import command, functions; functions.board = lambda: 'x'\n"
    )
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [PYTHON, "-P", "-c", code + "sys.exit(command.main(['board']))"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "sv: stdout: No space left on device\n")


def test_a_filter_reads_more_than_the_usual_lines(pid1: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("".join(f"2026-05-01T10:00:00.000Z {n}.0 line {n}\n" for n in range(400)))
    assert len(sv.logs("a")) == 50
    assert len(sv.logs("a", grep="line")) == 400
    assert [line.rpartition(" ")[2] for line in sv.logs("a", lines=2, grep="7$")] == ["387", "397"]


# --- top ----------------------------------------------------------------------------------------------------------------
def test_top_is_in_per_cent_of_the_last_seconds() -> None:
    def row(name: str, group: float | None, main: float) -> dict[str, Any]:
        return {**stats(name), "cpu": main, "cpu_usage": group, "memory": 5, "memory_current": None, "pids_current": None}

    rows = shapes.Table([row("idle", 50.0, 1.0), row("busy", 12.0, 1.0), row("plain", None, 3.0), row("new", 0.5, 0.5)])
    found = top.busiest(rows, {"idle": 50.0, "busy": 11.0, "plain": 2.5, "new": 9.0}, 2.0)
    assert [(one["name"], one["percent"]) for one in found] == [("busy", 50.0), ("plain", 25.0), ("new", 25.0), ("idle", 0.0)]
    assert "50.0%" in found.text()
    assert "12.0s" in found.text()


# --- keys ---------------------------------------------------------------------------------------------------------------
def test_tab_knows_names(pid1: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stack.log").write_text("")
    assert repl.completions('stop_process("fa', "fa") == ["fakegps"]
    assert repl.completions("x = status('", "") == list(pid1)
    assert repl.completions('restart_process("gps@tty', "tty") == ["ttyUSB0"], "readline's word begins behind the @"
    assert repl.completions("stop_process(", "") == [f'"{name}"' for name in pid1]
    assert repl.completions('logs("st', "st") == ["stack"]
    monkeypatch.setattr("prompt.interfaces.names", lambda: ["eth0", "wlan0"])
    assert repl.completions('network("w', "w") == ["wlan0"]
    assert repl.completions('print("fa', "fa") is None
    assert repl.completions("board(", "") is None
    assert repl.completions("sto", "sto") is None, "Python's own names are Python's own completer's"


# --- at a terminal ------------------------------------------------------------------------------------------------------
@needs_namespaces
def test_somebody_at_the_prompt(terminal: Terminal) -> None:
    terminal.type('stop_process("fak\t)\n')
    terminal.expect("stopped")
    terminal.type('stop_process("fakgps")\n')
    terminal.expect("did you mean fakegps?")
    terminal.expect(">>> ")
    assert "Traceback" not in terminal.seen
    terminal.type("network()\n")
    terminal.expect("no network service runs here")
    terminal.type("network\n")
    terminal.expect("type network() to call it")
    terminal.type("import os; os.environ['TERM']\n")
    terminal.expect("'dumb'\n")
    terminal.type("watch('diag', 1)\n")
    terminal.expect(' diag {"')
    terminal.expect(">>> ")
    terminal.type("top(0.3)\n")
    terminal.expect("Ctrl-C ends")
    terminal.expect("PERCENT")
    terminal.seen = ""
    terminal.expect("Ctrl-C ends")  # again...
    assert "\033[H" in terminal.seen, "...in the same place"
    terminal.type("\x03")
    terminal.expect(">>> ")
    assert "KeyboardInterrupt" not in plain(terminal.seen)


@needs_namespaces
def test_who_sits_on_a_console_is_asked_before_it_is_stopped(terminal: Terminal) -> None:
    terminal.type("stop_process('prompt')\n")
    terminal.expect("Do it? [y/N] ")
    terminal.type("\n")
    terminal.expect("SVError: prompt was left as it is")
    terminal.expect(">>> ")
    terminal.type("stats_process('prompt')['state']\n")
    terminal.expect("'running'\n")
    terminal.type("restart_process('prompt')\n")
    terminal.expect("Do it? [y/N] ")
    terminal.type("y\n")
    terminal.expect("functions: ")
    terminal.expect(">>> ")


@needs_namespaces
def test_lines_typed_before_come_back(terminal: Terminal) -> None:
    terminal.type("'a line to' + ' remember'\n")
    terminal.expect("'a line to remember'\n")
    terminal.type("import os; oct(os.stat('/var/lib/stack/prompt_history').st_mode)\n")
    terminal.expect("'0o100600'\n")
    terminal.type("print(open('/var/lib/stack/prompt_history').read())\n")
    terminal.expect("'a line to' + ' remember'\n")
