"""Control groups on real kernels: fork bombs, memory hogs and daemons that run away, and who is still quick beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import eventually, machines

DAEMON = """#!/usr/bin/python3
# Forks twice, leaves session and group, clears its environment and ignores TERM.
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execve("/bin/sleep", ["sleep", "7654321"], {})
time.sleep(1000)
"""
PYTHON_BOMB = """#!/usr/bin/python3
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(1)
"""
FILES = {"sbin/daemon": DAEMON, "sbin/python-bomb": PYTHON_BOMB}
PROFILE = """
BACKOFF_MAX = 0.2  # a bomb that was killed is back at once
SERVICES = (
    *(row for row in SERVICES if row.name in ("modules", "logd", "syslogd", "dropbear", "console", "network")),
    Service("limited", ("sleep", "1000"), memory_max="32M", pids_max=20, cpu_weight=50),
    Service("daemon", ("/sbin/daemon",), stop_timeout=1.0),
    Service("shell-bomb", ("sh", "-c", "while [ ! -e /run/go-shell ]; do sleep 1; done; b() { b | b & }; b; sleep 1000")),
    Service("python-bomb", ("sh", "-c", "while [ ! -e /run/go-python ]; do sleep 1; done; exec /sbin/python-bomb"),
            pids_max=100, memory_max="64M"),
    Service("hog", ("sh", "-c", "while [ ! -e /run/go-hog ]; do sleep 1; done; rm /run/go-hog; sleep 1000 & "
                                "python3 -c 'x = bytearray(200 << 20)'; sleep 1000"), memory_max="32M"),
    Service("busy", ("sh", "-c", "while [ ! -e /run/go-busy ]; do sleep 1; done; "
                                 "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; sleep 1000"), cpu_weight=1),
)
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for start in machines(tmp_path_factory.mktemp("cgroup")):
        yield start("x86_64", PROFILE, files=FILES).up(240)


def act(board: Any, call: str) -> Any:
    """A function of the prompt."""
    return board.python(f"import sv; result = sv.{call}")


def stats(board: Any, name: str) -> dict[str, Any]:
    return dict(act(board, f"stats_process({name!r})")[0])


def pids(board: Any, name: str) -> list[str]:
    return list(board.python(f"result = open('/sys/fs/cgroup/{name}/cgroup.procs').read().split()"))


def log_in(board: Any) -> float:
    """Seconds that a new ssh connection takes to say what it is asked."""
    started = time.monotonic()
    persistent, board.folder = board.folder, board.folder / str(started)  # where ssh keeps the way to the old one
    board.folder.mkdir()
    try:
        assert board.ssh("echo 1", seconds=120) == "1\n"
    finally:
        board.folder = persistent
    return time.monotonic() - started


def answers(board: Any, seconds: float) -> list[float]:
    """How long PID 1 takes to answer, asked again and again for so long."""
    code = f"""
import sv
result, end = [], time.monotonic() + {seconds}
while time.monotonic() < end:
    started = time.monotonic()
    sv.board()
    result.append(time.monotonic() - started)
    time.sleep(0.1)
"""
    return list(board.python(code, seconds=300))


def go(board: Any, what: str) -> None:
    """Let loose what waits in the profile."""
    board.python(f"open('/run/go-{what}', 'w').close()")


def others(board: Any) -> dict[str, Any]:
    """Who must not suffer: their pids."""
    names = ("logd", "syslogd", "dropbear", "limited", "network")
    return {row["name"]: row["pid"] for row in act(board, "stats_process()") if row["name"] in names}


# --- what a row says ---------------------------------------------------------------------------------------------------
def test_a_service_is_in_its_group_with_the_limits_of_its_row(board: Any) -> None:
    row = stats(board, "limited")
    assert pids(board, "limited") == [str(row["pid"])]
    names = ("memory.max", "memory.oom.group", "pids.max", "cpu.weight")
    code = f"result = [open('/sys/fs/cgroup/limited/' + name).read().strip() for name in {names}]"
    assert board.python(code) == [str(32 << 20), "1", "20", "50"]
    assert board.python("result = open('/proc/1/cgroup').read()") == "0::/\n", "PID 1 is under no limit"
    facts = act(board, "board()")
    assert (facts["rejected"], facts["faults"], facts["log"]["warning"]) == ([], [], 0), board.ssh("cat /run/log/stack.log")


def test_a_reload_adjusts_limits_of_what_runs(board: Any) -> None:
    code = """
import sv
path = "/usr/lib/stack/settings_test.py"
subprocess.run(["mount", "-o", "remount,rw", "/"], check=True)
text = open(path).read()
before = sv.stats_process("limited")[0]["pid"]
open(path, "w").write(text.replace("pids_max=20, cpu_weight=50", "pids_max=30, cpu_weight=60"))
changes = sv.reload()
result = [changes["adjusted"], changes["restarted"], sv.stats_process("limited")[0]["pid"] == before,
          open("/sys/fs/cgroup/limited/pids.max").read(), open("/sys/fs/cgroup/limited/cpu.weight").read()]
open(path, "w").write(text)
sv.reload()
"""
    assert board.python(code) == [["limited"], [], True, "30\n", "60\n"]


def test_figures(board: Any) -> None:
    rows = {row["name"]: row for row in act(board, "stats_process()")}
    assert {row["cgroup"] for row in rows.values()} == {f"/sys/fs/cgroup/{name}" for name in rows}
    row = rows["limited"]
    assert 0 < row["memory_current"] <= row["memory_peak"] < 32 << 20
    assert row["pids_current"] == 1
    assert 0 < row["cpu_usage"] < 60
    assert rows["dropbear"]["pids_current"] > 1, "sessions count"
    assert len({tuple(row) for row in rows.values()}) == 1
    top = board.ssh("from sv import *; top()")
    assert "CPU_USAGE" in top
    assert "MEMORY_CURRENT" in top


def test_a_command_of_the_prompt_takes_its_group_with_it(board: Any) -> None:
    code = """
import sv
for turn in range(23):
    sv.start_process(f"sh -c 'sleep {turn + 1000}'")
names = [row["name"] for row in sv.stats_process() if row["name"].startswith("sh") and row["cmd"].startswith("sh -c 'sleep")]
both = [os.path.isdir("/sys/fs/cgroup/" + name) for name in names]
for name in names:
    sv.stop_process(name)
left = [name for name in names if os.path.isdir("/sys/fs/cgroup/" + name)]
known = [row["name"] for row in sv.stats_process()]
result = [len(names), all(both), len(left), sorted(left) == sorted(set(names) & set(known))]
"""
    assert board.python(code, seconds=120) == [23, True, 20, True]


# --- nothing escapes ---------------------------------------------------------------------------------------------------
def runaways(board: Any) -> int:
    return int(board.python("result = int(subprocess.getoutput(\"pgrep -f -x 'sleep 7654321' | wc -l\"))"))


def test_a_daemon_that_runs_away_is_ended_by_stop(board: Any) -> None:
    eventually(lambda: runaways(board) == 1, 30)
    row = act(board, "stop_process('daemon')")
    assert row["exit"] == "signal TERM"
    assert (runaways(board), pids(board, "daemon")) == (0, [])


def test_what_a_dead_service_left_goes_before_its_successor_comes(board: Any) -> None:
    act(board, "start_process('daemon')")
    eventually(lambda: runaways(board) == 1, 30)
    old = set(pids(board, "daemon"))
    act(board, "signal_process('daemon', 'KILL')")
    eventually(lambda: stats(board, "daemon")["state"] == "running" and runaways(board) == 1, 30)
    assert not old & set(pids(board, "daemon"))
    assert "left processes behind" in board.ssh("from sv import *; print(logs('stack', 200))")


# --- limits ------------------------------------------------------------------------------------------------------------
def test_want_of_memory_hits_the_service_alone(board: Any) -> None:
    before = others(board)
    go(board, "hog")
    row = eventually(lambda: next(row for row in [stats(board, "hog")] if row["exit"] and row["state"] == "running"), 60)
    assert row["exit"] == "signal KILL, out of memory (memory_max 32M)"
    assert row["restart"] == 1
    assert not [
        row for row in board.python("result = subprocess.getoutput('ps -o args').splitlines()") if row == "sleep 1000 &"
    ]
    assert others(board) == before


@pytest.mark.parametrize("kind", ["shell", "python"])
def test_a_fork_bomb_leaves_pid_1_and_ssh_usable(board: Any, kind: str, record_property: Callable[..., None]) -> None:
    before, name = others(board), f"{kind}-bomb"
    go(board, kind)
    eventually(lambda: stats(board, name)["restart"] > 0, 120)
    took = answers(board, 10)
    login = log_in(board)
    row = act(board, f"stop_process({name!r})")
    assert row["restart"] > 1, "it has gone on all the time"
    assert f"{name}: died, signal KILL, out of processes" in board.ssh("from sv import *; print(logs('stack', 300))")
    assert (row["state"], pids(board, name)) == ("stopped", [])
    assert others(board) == before
    assert max(took) < 2
    record_property("figure", f"beside a {kind} fork bomb of {row['restart']} lives PID 1 answers within {max(took) * 1e3:.0f} ms "
                              f"and ssh logs in within {login:.1f} s")  # fmt: skip


def test_busy_loops_of_little_weight_leave_ssh_quick(board: Any, record_property: Callable[..., None]) -> None:
    """Eight of them on one processor: without groups, a ninth process would get a ninth of it."""
    share = """
used, end = time.process_time(), time.monotonic() + 3
while time.monotonic() < end: pass
result = (time.process_time() - used) / 3
"""
    go(board, "busy")
    eventually(lambda: stats(board, "busy")["pids_current"] == 9, 30)
    mine, login = float(board.python(share)), log_in(board)
    act(board, "stop_process('busy')")
    assert mine > 0.7
    record_property("figure", f"beside eight busy loops of cpu_weight=1 a session gets {mine:.0%} of the processor, "
                              f"and ssh logs in within {login:.1f} s")  # fmt: skip


# --- ssh ---------------------------------------------------------------------------------------------------------------
def test_a_session_survives_the_restart_of_its_daemon(board: Any) -> None:
    old, new = board.python("""
import sv
old = sv.stats_process("dropbear")[0]["pid"]
result = [old, sv.restart_process("dropbear")["pid"]]
""")
    assert old != new
    assert board.python("result = os.getppid()") > 0, "the connection of before"
    log_in(board)


def test_a_memory_hog_over_ssh_dies_alone(board: Any) -> None:
    before = others(board)
    code = "result = subprocess.run(['python3', '-c', 'x = bytearray(450 << 20)']).returncode"
    assert board.python(code) == -9
    assert others(board) == before


def test_a_fork_bomb_over_ssh_does_not_lock_everybody_out(board: Any) -> None:
    before = others(board)
    board.python("subprocess.Popen(['sh', '-c', 'sleep 1; b() { b | b & }; b'], start_new_session=True)")
    eventually(lambda: stats(board, "dropbear")["pid"] not in (None, before["dropbear"]), 90)
    assert stats(board, "dropbear")["exit"] == "signal KILL, out of processes (pids_max 512)"
    assert {**others(board), "dropbear": 0} == {**before, "dropbear": 0}


# --- ARM ---------------------------------------------------------------------------------------------------------------
def test_control_groups_on_arm(machine: Callable[..., Any]) -> None:
    one = machine("virt-arm64", PROFILE, files=FILES).up(240)
    test_a_service_is_in_its_group_with_the_limits_of_its_row(one)
    test_a_daemon_that_runs_away_is_ended_by_stop(one)
