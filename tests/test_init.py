"""stack.py as a real PID 1 of namespaces: what only a kernel can prove. Runs as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import EMULATED, PATIENCE, Board, eventually

from laptop.namespaces import FOREIGN_ROOT
from onboard import to_pid1
from onboard.to_pid1 import SVError

Boot = Callable[..., Board]
SLEEP = "Service('s', ('sleep', '1000'))"


def sh(name: str, script: str, more: str = "") -> str:
    return f"Service({name!r}, ('sh', '-c', {script!r}), {more}),"


# --- ends -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 3), (signal.SIGINT, 3), (signal.SIGUSR1, 0), (signal.SIGUSR2, 0)]
)
def test_signals_end_the_board_as_busybox_has_them(boot: Boot, number: int, status: int) -> None:
    """The launcher exits with 3 for RESTART (the kernel's SIGHUP to its parent), 0 for HALT and POWER_OFF (SIGINT)."""
    board = boot(f"{SLEEP},").up()
    assert board.end(number) == status
    assert board.console() == ""


@pytest.mark.parametrize(("op", "status"), [("reboot", 3), ("halt", 0), ("poweroff", 0)])
def test_the_prompt_ends_the_board(boot: Boot, op: str, status: int) -> None:
    board = boot(f"{SLEEP},").up()
    assert board.ask(op) == f"{op} has begun"
    assert board.launcher.wait(30) == status


def test_fifty_services_with_one_stuck_end_within_the_global_deadline(boot: Boot) -> None:
    rows = "*(Service(f's{i}', ('sleep', '1000')) for i in range(49)),"
    stuck = sh("stuck", "trap '' TERM; echo up; while :; do sleep 1000; done", "stop_timeout=3600")
    board = boot(rows + stuck, settings="SHUTDOWN_TIMEOUT = 1.0\nKILL_TIMEOUT = 0.5").up()
    eventually(lambda: all(row["pid"] for row in board.all_stats().values()) and "up" in board.log("stuck"))
    started = time.monotonic()
    assert board.end() == 0
    assert 1.0 <= time.monotonic() - started < 10.0 * PATIENCE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_asks_seven_times_in_two_seconds_does_not_wait(boot: Boot, number: int) -> None:
    stuck = sh("stuck", "trap '' TERM; echo up; while :; do sleep 1000; done", "stop_timeout=3600")
    board = boot(stuck, settings="SHUTDOWN_TIMEOUT = 100.0\nKILL_TIMEOUT = 0.2").up()
    eventually(lambda: "up" in board.log("stuck"))

    def asked() -> int:
        return board.log().count(f"reboot: signal {int(number)}")

    for times in range(1, 7):
        os.kill(board.pid, number)
        eventually(lambda times=times: asked() >= times)  # type: ignore[misc]
    assert board.launcher.poll() is None, "six times are not enough"
    os.kill(board.pid, number)
    assert board.launcher.wait(20 * PATIENCE) == 3


def test_dependents_stop_before_what_they_need(boot: Boot) -> None:
    note = "trap 'echo {0} >> /tmp/order; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    rows = sh("a", note.format("a")) + sh("b", note.format("b"), "after=('a',)") + sh("c", note.format("c"), "after=('b',)")
    rows += sh("last", "trap '' TERM; sleep 3", "after=(), stop_timeout=3")
    board = boot(rows).up()
    eventually(lambda: [board.log(name).count("up") for name in "abc"] == [1, 1, 1])
    order = os.open(board.root / "tmp", os.O_PATH)
    os.kill(board.pid, signal.SIGUSR1)
    assert eventually(lambda: (Path(f"/proc/self/fd/{order}") / "order").read_text()) in ("c\n", "c\nb\n", "c\nb\na\n")
    eventually(lambda: (Path(f"/proc/self/fd/{order}") / "order").read_text() == "c\nb\na\n")
    os.close(order)


# --- reaping --------------------------------------------------------------------------------------------------------
ORPHANS = """
import os, sys, time
go, gate = os.pipe()
if os.fork() == 0:
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            os.close(gate)
            os.read(go, 1)
            os._exit(0)
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(0.5)
os.close(gate)
print("released", flush=True)
time.sleep(1000)
"""

BAD_INIT = """
import sys; sys.path.insert(0, "/stack/lib/stack")
import stack
def one_per_signal():
    import os
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    if pid:
        yield pid, status
stack.reap = one_per_signal
sys.exit(stack.main(sys.argv[1:]))
"""


def zombies(board: Board) -> int:
    """Processes of the board that are dead and not reaped."""
    space = os.readlink(f"/proc/{board.pid}/ns/pid")
    count = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
            count += state == "Z" and os.readlink(f"/proc/{entry}/ns/pid") == space
        except OSError:
            pass
    return count


@pytest.fixture
def prepared(boot: Boot, tmp_path: Path) -> Iterator[Boot]:
    """Like boot, with files for the board's /test."""

    def start(services: str, files: dict[str, str], **options: object) -> Board:
        folder = tmp_path / "prepared"
        (folder / "files").mkdir(parents=True)
        for name, text in files.items():
            (folder / "files" / name).write_text(text)
        board = Board(folder, services, **options)  # type: ignore[arg-type]
        boards.append(board)
        return board

    boards: list[Board] = []
    yield start
    for board in boards:
        board.close()


@pytest.mark.timeout(120)
def test_five_thousand_orphans_dying_at_once_leave_no_zombie(prepared: Boot) -> None:
    count = 500 if EMULATED else 5000  # each has an emulator of its own
    board = prepared(f"Service('o', ('python3', '/test/orphans.py', '{count}')),", {"orphans.py": ORPHANS}).up()
    eventually(lambda: "released" in board.log("o"), 60)
    eventually(lambda: zombies(board) == 0, 20)
    assert board.stats("o")["state"] == "running"


@pytest.mark.timeout(120)
def test_the_zombie_test_can_fail(prepared: Boot) -> None:
    """The negative control: an init that reaps one child for each signal, as a predecessor did, is caught."""
    files = {"orphans.py": ORPHANS, "bad_init.py": BAD_INIT}
    board = prepared("Service('o', ('python3', '/test/orphans.py', '500')),", files, init="/test/bad_init.py").up()
    eventually(lambda: "released" in board.log("o"), 60)
    time.sleep(1.0)  # the time in which the right init has long finished
    assert zombies(board) > 0


# --- how a child starts ---------------------------------------------------------------------------------------------
def status_of(board: Board, name: str) -> dict[str, str]:
    pid = board.outside(eventually(lambda: board.stats(name)["pid"]))
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_sleeping(board: Board, name: str) -> Callable[[], bool]:
    return lambda: status_of(board, name)["Name"] == "sleep"


@pytest.mark.parametrize("columns", ["", "nice=1", "user='nobody', capabilities=(), no_new_privs=True"])
def test_children_start_clean(boot: Boot, columns: str) -> None:
    """Empty masks, default dispositions, a session of their own, and no descriptors of PID 1."""
    board = boot(f"Service('s', ('sleep', '1000'), {columns}),").up()
    board.wait_state("s", "running")
    eventually(is_sleeping(board, "s"))
    if EMULATED:
        time.sleep(1.0)  # so it is called while its emulator still loads it
    status = status_of(board, "s")
    ours = ~(3 << 31)  # posix_spawn of glibc leaves its own two signals, 32 and 33, ignored
    keys = ("SigBlk", "SigIgn") if EMULATED else ("SigBlk", "SigIgn", "SigCgt")  # an emulator catches nearly all
    assert [int(status[key], 16) & ours for key in keys] == [0] * len(keys)
    assert status["NSsid"].split()[-1] == status["NSpgid"].split()[-1] == status["NSpid"].split()[-1]
    pid = board.outside(board.stats("s")["pid"])
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_an_unprivileged_service_has_only_what_its_row_names(boot: Boot) -> None:
    board = boot(
        "Service('none', ('sleep', '1000'), user='nobody', capabilities=(), no_new_privs=True),"
        "Service('net', ('sleep', '1000'), user='nobody', capabilities=('net_admin',)),"
        "Service('all', ('sleep', '1000'), user='root', nice=1),"
    ).up()
    for name in ("none", "net", "all"):
        eventually(is_sleeping(board, name))
    none, net, everything = (status_of(board, name) for name in ("none", "net", "all"))
    assert {int(none[key], 16) for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh")} == {0}
    assert none["NoNewPrivs"] == "1"
    assert {int(net[key], 16) for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {1 << 12}
    assert int(everything["CapEff"], 16) != 0
    user = board.stats("none")["user"]
    if user == "nobody":
        assert none["Uid"].split()[0] == str(FOREIGN_ROOT + 65534 if os.getuid() == 0 else 65534)
    else:
        assert os.getuid() != 0, "only a user namespace with one user may keep root's number"


def test_supplementary_groups(boot: Boot) -> None:
    board = boot("Service('s', ('sleep', '1000'), user='nobody', groups=('adm', '20')),").up()
    eventually(is_sleeping(board, "s"))
    if board.stats("s")["user"] != "nobody":
        pytest.skip("a user namespace with one user has no groups to give")
    outside = [FOREIGN_ROOT + number if os.getuid() == 0 else number for number in (4, 20)]
    assert list(map(int, status_of(board, "s")["Groups"].split())) == outside


def test_limits_nice_environment_umask_folder(boot: Boot) -> None:
    script = "ulimit -n; nice; umask; pwd; echo $HELLO; cat /proc/self/oom_score_adj; sleep 1000"
    columns = "rlimits=(('nofile', 77),), nice=3, umask=0o027, cwd='/tmp', env=(('HELLO', 'you'),), oom_score=300"
    board = boot(sh("s", script, columns)).up()
    words = eventually(lambda: [line.split()[-1] for line in board.log("s").splitlines()][:6][5:] and
                       [line.split()[-1] for line in board.log("s").splitlines()])  # fmt: skip
    assert words == ["77", "3", "0027", "/tmp", "you", "300"]


def test_a_terminal_of_its_own(boot: Boot) -> None:
    board = boot(sh("s", "tty=$(ps -o tt= -p $$); echo session $(ps -o sess= -p $$) pid $$; echo hi >/dev/tty; sleep 1000",
                    "tty='/dev/console'")).up()  # fmt: skip
    eventually(lambda: "hi" in board.console())
    words = board.console().split()
    assert words[1] == words[3], "it leads the session that /dev/tty belongs to"


def test_what_cannot_start_is_an_early_death_with_its_reason(boot: Boot, tmp_path: Path) -> None:
    board = boot(
        "Service('missing', ('no-such-program',)), Service('folder', ('/tmp',)), Service('text', ('/stack/lib/stack/settings.py',)),"
        "Service('cwd', ('sleep', '1'), cwd='/no/where'), Service('deep', ('sleep', '1'), cwd='/no', nice=1),"
        "Service('tty', ('sleep', '1'), tty='/dev/none'), Service('good', ('sleep', '1000')),"
    ).up()
    expected = {
        "missing": "ENOENT no such program: no-such-program", "folder": "EACCES not an executable file: /tmp",
        "text": "EACCES not an executable file", "cwd": "ENOENT No such file or directory: /no/where",
        "deep": "ENOENT No such file or directory: /no", "tty": "ENOENT No such file or directory: /dev/none",
    }  # fmt: skip
    for name, reason in expected.items():
        row = board.wait_state(name, "backoff")
        assert reason in row["exit"]
        assert not row["alive"]
    assert board.stats("good")["restart"] == 0
    eventually(lambda: board.stats("missing")["restart"] >= 2)


# --- stopping -------------------------------------------------------------------------------------------------------
RELATIVES = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for kind in ("child", "stopped", "double", "session"):
    if os.fork() == 0:
        if kind in ("double", "session"):
            if kind == "session":
                os.setsid()
            if os.fork():
                os._exit(0)
        if kind == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            time.sleep(1000)
print("ready", flush=True)
while True:
    time.sleep(1000)
"""


def test_a_service_that_ignores_term_dies_at_its_deadline_with_all_its_relatives(prepared: Boot) -> None:
    row = "Service('r', ('python3', '/test/relatives.py'), stop_timeout=0.5), Service('other', ('sleep', '1000')),"
    board = prepared(row, {"relatives.py": RELATIVES}).up()
    eventually(lambda: "ready" in board.log("r"))
    eventually(lambda: sum("relatives" in words for words in board.processes().values()) == 5)
    started = time.monotonic()
    board.ask("stop", name="r")
    board.wait_state("r", "stopped")
    assert 0.5 <= time.monotonic() - started < 5
    assert not [words for words in board.processes().values() if "relatives" in words]
    assert board.stats("r")["exit"] == "signal KILL"
    assert board.stats("other")["restart"] == 0


def test_relatives_of_a_crashed_service_go_before_its_successor_comes(prepared: Boot) -> None:
    board = prepared("Service('r', ('python3', '/test/relatives.py'), stop_timeout=0.2),", {"relatives.py": RELATIVES}).up()
    eventually(lambda: sum("relatives" in words for words in board.processes().values()) == 5)
    before = set(board.processes())
    board.kill("r")
    eventually(lambda: board.stats("r")["restart"] == 1 and "running" in board.stats("r")["state"])
    eventually(lambda: sum("relatives" in words for words in board.processes().values()) == 5)
    assert not {pid for pid, words in board.processes().items() if "relatives" in words} & before


def test_a_stopped_service_obeys(boot: Boot) -> None:
    board = boot(f"{SLEEP},").up()
    board.wait_state("s", "running")
    board.kill("s", signal.SIGSTOP)
    started = time.monotonic()
    board.ask("stop", name="s")
    board.wait_state("s", "stopped")
    assert time.monotonic() - started < 3, "TERM and CONT did it, not the deadline"
    assert board.stats("s")["exit"] == "signal TERM"


# --- restarts -------------------------------------------------------------------------------------------------------
def test_crash_loops_back_off_and_leave_others_alone(boot: Boot) -> None:
    board = boot("Service('bad', ('false',)), Service('good', ('sleep', '1000')),").up()
    pid = board.wait_state("good", "running")["pid"]
    row = eventually(lambda: (row := board.stats("bad"))["restart"] >= 4 and row["state"] == "backoff" and row)
    assert row["exit"] == "exit 1"
    assert 0 <= row["next_restart"] <= 60
    assert board.stats("good")["pid"] == pid


@pytest.mark.parametrize(
    ("script", "policy", "again"),
    [
        ("exit 125", "always", False),
        ("exit 0", "on-failure", False),
        ("exit 3", "on-failure", True),
        ("exit 1", "never", False),
    ],
)
def test_restart_policies(boot: Boot, script: str, policy: str, again: bool) -> None:
    board = boot(sh("s", script, f"restart={policy!r}")).up()
    if again:
        eventually(lambda: board.stats("s")["restart"] >= 2)
    else:
        row = board.wait_state("s", "stopped")
        assert (row["restart"], row["wanted"], row["exit"]) == (0, False, script)


def test_what_ran_for_long_is_restarted_at_once(boot: Boot) -> None:
    board = boot(f"{SLEEP},", settings="SV_COOLDOWN = 0.2\nBACKOFF_FIRST = 30.0").up()
    board.wait_state("s", "running")
    time.sleep(0.3)
    pid = board.stats("s")["pid"]
    board.kill("s")
    eventually(lambda: board.stats("s")["pid"] not in (None, pid), 3)
    assert board.stats("s")["exit"] == "signal KILL"


def test_stats_have_the_same_keys_in_every_state(boot: Boot) -> None:
    board = boot("Service('up', ('sleep', '1000')), Service('bad', ('false',)), Service('off', ('true',), restart='never'),"
                 "Service('slow', ('sleep', '1000'), ready='notify'), Service('last', ('sleep', '9'), after=('slow',)),").up()  # fmt: skip
    states = {"up": "running", "bad": "backoff", "off": "stopped", "slow": "starting", "last": "waiting"}
    rows = [board.wait_state(name, state) for name, state in states.items()]
    assert len({tuple(row) for row in rows}) == 1
    assert list(rows[0])[:14] == [
        "name",
        "cmd",
        "alive",
        "state",
        "pid",
        "runtime",
        "total_runtime",
        "restart",
        "exit",
        "since",
        "next_restart",
        "ready",
        "status",
        "user",
    ]


# --- readiness ------------------------------------------------------------------------------------------------------
NOTIFY = """
import os, socket, sys, threading, time
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for word in sys.argv[1:]:
    if word.replace(".", "").isdigit():
        time.sleep(float(word))
    elif word == "fork":
        if pid := os.fork():
            sender.sendto(f"MAINPID={pid}\\nREADY=1\\nSTATUS=forked".encode(), os.environ["NOTIFY_SOCKET"])
            time.sleep(0.2)
            os._exit(0)
    elif word == "thread":
        thread = threading.Thread(target=time.sleep, args=(1000,))
        thread.start()
        sender.sendto(f"MAINPID={thread.native_id}".encode(), os.environ["NOTIFY_SOCKET"])
    else:
        sender.sendto(word.replace(",", "\\n").encode(), os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""


def test_readiness_gates_those_that_wait(prepared: Boot) -> None:
    rows = (
        "Service('n', ('python3', '/test/notify.py', '0.3', 'STATUS=warming', '0.3', 'READY=1,STATUS=up'), ready='notify'),"
        "Service('p', ('sh', '-c', 'sleep 0.4; mkdir -p /run/a/b; sleep 0.2; touch /run/a/b/c; sleep 1000'), ready='/run/a/b/c'),"
        "Service('e', ('sh', '-c', 'sleep 0.5; exit 0'), ready='exit'),"
        "Service('n2', ('sleep', '1000'), ('n',)), Service('p2', ('sleep', '1000'), ('p',)), Service('e2', ('sleep', '1000'), ('e',)),"
        "Service('free', ('sleep', '1000')),"
    )
    board = prepared(rows, {"notify.py": NOTIFY}).up()
    eventually(lambda: board.stats("n")["status"] == "warming")
    states = {name: row["state"] for name, row in board.all_stats().items()}
    assert (states["n"], states["n2"], states["free"]) == ("starting", "waiting", "running")
    for name in ("n2", "p2", "e2"):
        board.wait_state(name, "running")
    rows_now = board.all_stats()
    assert (rows_now["n"]["status"], rows_now["n"]["ready"]) == ("up", True)
    assert rows_now["p"]["ready"] is True
    assert (rows_now["e"]["state"], rows_now["e"]["ready"]) == ("stopped", True)


def test_a_path_left_behind_does_not_count_as_ready(boot: Boot) -> None:
    script = "test -e /run/flag && sleep 1; touch /run/flag; sleep 1000"
    board = boot(sh("p", script, "ready='/run/flag'")).up()
    board.wait_state("p", "running")
    board.kill("p")
    board.wait_state("p", "starting")
    assert board.stats("p")["ready"] is False
    board.wait_state("p", "running")


def test_ready_timeout_is_logged_and_the_others_go_on(boot: Boot) -> None:
    rows = "Service('n', ('sleep', '1000'), ready='notify', ready_timeout=0.5), Service('n2', ('sleep', '1000'), ('n',)),"
    board = boot(rows).up()
    board.wait_state("n2", "running")
    row = board.stats("n")
    assert (row["state"], row["ready"], row["restart"]) == ("running", False, 0)
    eventually(lambda: "n: not ready after 0.5 s; those that wait for it go on" in board.log())


def test_nobody_waits_for_ever(boot: Boot) -> None:
    board = boot(
        "Service('bad', ('false',), ready='notify'), Service('s', ('sleep', '1000'), ('bad',)),", settings="AFTER_TIMEOUT = 0.7"
    ).up()
    board.wait_state("s", "running")
    eventually(lambda: "s: still waits for bad; starts without" in board.log())


def test_mainpid(prepared: Boot) -> None:
    rows = "Service('d', ('python3', '/test/notify.py', 'fork'), ready='notify'),"
    board = prepared(rows, {"notify.py": NOTIFY}).up()
    first = board.wait_state("d", "running")
    time.sleep(0.5)  # the one that forked has gone by now
    row = board.stats("d")
    assert (row["state"], row["restart"], row["status"]) == ("running", 0, "forked")
    assert row["pid"] == first["pid"]
    board.kill("d")
    eventually(lambda: board.stats("d")["restart"] == 1)
    board.ask("stop", name="d")
    board.wait_state("d", "stopped")
    assert not [words for words in board.processes().values() if "notify" in words]


def test_mainpid_of_somebody_else_is_refused(prepared: Boot) -> None:
    rows = f"{SLEEP}, Service('liar', ('python3', '/test/notify.py', '0.3', 'MAINPID=1', 'MAINPID=2', 'MAINPID=x', 'thread', 'READY=1'), ready='notify'),"
    board = prepared(rows, {"notify.py": NOTIFY}).up()
    row = board.wait_state("liar", "running")
    assert "notify.py" in board.processes()[row["pid"]]
    eventually(lambda: board.log().count("is not a process of its own; ignored") == 4)


def test_a_service_that_stops_answering_its_watchdog_is_killed_and_restarted(prepared: Boot) -> None:
    alive = ", ".join([f"'WATCHDOG=1', '{0.2 * PATIENCE}'"] * 10)
    board = prepared(f"Service('w', ('python3', '/test/notify.py', {alive}), watchdog={PATIENCE}),", {"notify.py": NOTIFY}).up()
    pid = board.wait_state("w", "running")["pid"]
    time.sleep(1.7 * PATIENCE)
    assert board.stats("w")["pid"] == pid, "it answers"
    row = eventually(lambda: (row := board.stats("w"))["restart"] == 1 and row["pid"] and row)
    assert row["exit"] == "signal KILL"
    assert f"w: no WATCHDOG=1 for {PATIENCE:g} s, killed" in board.log()


# --- reload ---------------------------------------------------------------------------------------------------------
def test_sighup_starts_what_is_new_stops_what_vanished_restarts_what_changed(boot: Boot) -> None:
    board = boot(
        "Service('same', ('sleep', '1000')), Service('changed', ('sleep', '1001')), Service('gone', ('sleep', '1002')),"
    ).up()
    before = {name: board.wait_state(name, "running")["pid"] for name in ("same", "changed", "gone")}
    profile = board.root / "profile.py"
    profile.write_text(
        "SERVICES = (LOGD, Service('same', ('sleep', '1000')), Service('changed', ('sleep', '2001')), Service('new', ('sleep', '3')), 5)"
    )
    os.kill(board.pid, signal.SIGHUP)
    eventually(lambda: list(board.all_stats()) == ["logd", "same", "changed", "new"])
    eventually(lambda: board.stats("changed")["pid"] not in (None, before["changed"]))
    row = board.stats("changed")
    assert row["cmd"] == ["sleep", "2001"]
    assert board.stats("same")["pid"] == before["same"]
    assert board.ask("board")["rejected"] == ["SERVICES[4] is a number, not a Service(...) row"]
    assert not [words for words in board.processes().values() if "1002" in words]
    changes = board.ask("reload")
    assert (changes["started"], changes["stopped"], changes["restarted"]) == ([], [], [])
    before = {name: row["pid"] for name, row in board.all_stats().items()}
    profile.write_text("this is no Python")
    with pytest.raises(SVError, match=r"nothing was changed: .*SyntaxError"):
        board.ask("reload")
    os.kill(board.pid, signal.SIGHUP)
    profile.write_text(
        "SERVICES = (LOGD, Service('same', 'oops'), Service('changed', ('sleep', '2001')), Service('new', ('sleep', '3')))"
    )
    assert "argv is text; a comma makes a tuple of it" in board.ask("reload")["rejected"][0]
    assert {name: row["pid"] for name, row in board.all_stats().items()} == before, "a typo stops nothing"


def test_a_reload_takes_what_can_be_taken_while_the_board_runs(boot: Boot) -> None:
    """The host name, folders, device nodes. Not the mounts; and what the kernel refuses stops nothing."""
    board = boot("Service('s', ('sleep', '1000')),").up()
    pid = board.wait_state("s", "running")["pid"]
    profile, rows = board.root / "profile.py", board.root / "run/rows"
    more = "from rows import *\nDIRECTORIES += (Directory('/run/rows/new', 0o700),)\nMOUNTS += (Mount('none', '/run/rows/m', 'tmpfs'),)\n"
    more += "DEVICES += (Device('/run/rows/link', 'link', target='new'),)\n"
    before = profile.read_text()
    profile.write_text(f"{before}{more}HOSTNAME = 'renamed'\n")
    board.ask("reload")
    assert board.ask("board")["hostname"] == "renamed"
    assert (rows / "new").stat().st_mode & 0o7777 == 0o700
    assert os.readlink(rows / "link") == "new"
    assert not (rows / "m").exists()
    profile.write_text(f"{before}{more}HOSTNAME = 'x' * 100\n")
    assert "HOSTNAME = 'xxx" in board.ask("reload")["rejected"][0]
    assert board.ask("board")["hostname"] == "laptop", "the name of the profile below stays"
    assert board.stats("s")["pid"] == pid


def test_a_changed_environment_restarts_what_has_it(boot: Boot) -> None:
    board = boot(sh("s", "echo the zone is $TZ; sleep 1000"), settings="ENVIRONMENT += (('TZ', 'UTC'),)").up()
    eventually(lambda: "the zone is UTC" in board.log("s"))
    profile = board.root / "profile.py"
    profile.write_text(profile.read_text().replace("'UTC'", "'CET'"))
    assert "s" in board.ask("reload")["restarted"]
    eventually(lambda: "the zone is CET" in board.log("s"))


def test_the_logger_cannot_be_stopped_and_a_board_without_one_does_not_block(boot: Boot) -> None:
    board = boot(sh("s", "while :; do echo a line that nobody reads; done"), words=("stack.skip=logd",)).up()
    board.wait_state("s", "running")
    before = board.outside(board.stats("s")["pid"])

    def cpu() -> int:
        return int(Path(f"/proc/{before}/stat").read_text().rpartition(")")[2].split()[11])

    first = cpu()
    eventually(lambda: cpu() > first + 5), "it is not stuck in a full pipe"
    other = boot(f"{SLEEP},").up()
    with pytest.raises(SVError, match="logd reads what all others print"):
        other.ask("stop", name="logd")


def test_a_new_user_takes_over_the_notify_socket(prepared: Boot) -> None:
    rows = "Service('n', ('python3', '/test/notify.py', 'READY=1'), ready='notify', user={!r}),"
    board = prepared(rows.format("root"), {"notify.py": NOTIFY}).up()
    board.wait_state("n", "running")
    profile = board.root / "profile.py"
    profile.write_text(profile.read_text().replace("'root'", "'nobody'"))
    board.ask("reload")
    row = eventually(lambda: board.stats("n")["restart"] == 1 and board.wait_state("n", "running"))
    assert row
    assert board.stats("n")["ready"]


def test_a_bad_profile_and_bad_rows_do_not_stop_the_boot(boot: Boot) -> None:
    board = boot("Service('ok', ('sleep', '1000')), Service('bad', 'sleep 5'), 17,").up()
    assert board.wait_state("ok", "running")
    rejected = board.ask("board")["rejected"]
    assert len(rejected) == 2
    assert "argv is text; a comma makes a tuple of it" in rejected[0]
    eventually(lambda: "SERVICES[3] is a number, not a Service(...) row" in board.log())


# --- the prompt -----------------------------------------------------------------------------------------------------
def test_prompt_functions(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    import sv

    board = boot(f"{SLEEP}, Service('t', ('sleep', '1000'), user='nobody'), Service('job', ('true',), ready='exit'),").up()
    board.wait_state("s", "running")
    with board.as_its_root() as path:
        monkeypatch.setenv("STACK_CONTROL", path)
        use_the_prompt(sv)


def use_the_prompt(sv: ModuleType) -> None:
    names: dict[str, object] = {}
    exec("from sv import *", names)
    assert set(sv.__all__) <= set(names)
    row = sv.stats_process("s")[0]
    assert row["cmd"] == "sleep 1000"
    assert [row["name"] for row in sv.stats_process()] == ["logd", "s", "t", "job"]
    assert "NAME" in repr(sv.stats_process())
    assert sv.stop_process("s")["state"] == "stopped"
    assert sv.start_process("s")["state"] == "running"
    pid = sv.stats_process("s")[0]["pid"]
    again = sv.restart_process("s")
    assert again["pid"] != pid
    assert again["ready"]
    assert sv.restart_process("job")["exit"] == "exit 0"
    assert sv.signal_process("s", "KILL")["name"] == "s"
    eventually(lambda: sv.stats_process("s")[0]["exit"] == "signal KILL")
    made = sv.start_process("sleep 77")
    assert (made["name"], made["state"]) == ("sleep", "running")
    assert sv.start_process("sleep 78")["name"] == "sleep-2"
    assert sv.stop_process("sleep")["state"] == "stopped"
    assert sv.board()["profile"] == ["laptop", "/profile.py"]
    sv.top()
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: sv.stats_process("x"), "there is no service 'x'; there are logd, s, t, job"),
        (lambda: sv.stats_process("."), "there is no service"),
        (lambda: sv.stop_process(""), "there is no service ''"),
        (lambda: sv.start_process("no-such-thing --now"), "neither a service nor a program"),
        (lambda: sv.start_process("'"), "not a command line"),
        (lambda: sv.signal_process("s", "LOUD"), "is not a signal"),
    ]
    for call, words in wrong:
        with pytest.raises(SVError, match=words):
            call()


def test_only_root_acts(boot: Boot) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    board = boot(f"{SLEEP},").up()
    board.wait_state("s", "running")
    folder = os.open(board.root / "run/stack", os.O_PATH)
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(FOREIGN_ROOT + 7, FOREIGN_ROOT + 7, FOREIGN_ROOT + 7)
            near = f"/proc/self/fd/{folder}/control"
            assert to_pid1.ask(near, {"op": "stats"})[1]["name"] == "s"
            for op in ("stop", "start", "restart", "signal", "run", "reload", "reboot", "halt", "poweroff"):
                try:
                    to_pid1.ask(near, {"op": op, "name": "s", "signal": 9, "argv": ["true"]})
                except SVError as error:
                    assert "only root may" in str(error), error
                else:
                    raise AssertionError(op)
            os._exit(0)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert board.stats("s")["restart"] == 0


@pytest.mark.timeout(120)
def test_floods_and_silence_on_the_socket(boot: Boot) -> None:
    """Thousands of connections, silent, garbled, huge or gone: PID 1 answers others all the time."""
    board = boot(f"{SLEEP},").up()
    folder = os.open(board.root / "run/stack", os.O_PATH)
    path = f"/proc/self/fd/{folder}/control"
    worst = 0.0
    silent: list[socket.socket] = []
    for number in range(4000):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.setblocking(False)
        try:
            client.connect(path)
            match number % 4:
                case 0:
                    silent.append(client)
                case 1:
                    client.send(os.urandom(number % 1000 + 1))
                    client.close()
                case 2:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2_000_000)
                    client.send(b"[" * 150_000)
                    silent.append(client)
                case 3:
                    client.send(json.dumps({"op": "stats"}).encode())
                    client.close()
        except BlockingIOError:
            client.close()
        if number % 50 == 0:
            started = time.monotonic()
            assert board.stats("s")["state"] == "running"
            worst = max(worst, time.monotonic() - started)
        if len(silent) > 500:
            silent.pop(0).close()
    assert worst < 5
    facts = board.ask("board")
    assert facts["loop"]["errors"] == 0
    for client in silent:
        client.close()


def test_more_services_than_one_reply_holds(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    import sv

    board = boot("*(Service(f's{i}', ('sleep', '1000'), env=(('X', 'x' * 50),)) for i in range(150)),").up()
    with board.as_its_root() as path:
        monkeypatch.setenv("STACK_CONTROL", path)
        assert len(sv.stats_process()) == 151


RIGHTS = """
import array, os, socket, struct, sys, time
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
path, kind = sys.argv[1], int(sys.argv[2])
for _ in range(2):
    one = socket.create_connection(listener.getsockname())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    one.setblocking(False)
    try:
        while one.send(bytes(65536)):
            pass
    except BlockingIOError:
        pass
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(path)
    try:
        client.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))])
        print("sent", flush=True)
    except PermissionError:
        print("refused", flush=True)
    pid = os.fork()
    if pid == 0:
        os._exit(0)  # an exit does not linger: ours is no longer the last reference
    one.detach()
print("done", flush=True)
os.kill(os.getpid(), 9)
"""


def test_descriptors_sent_to_pid_1_do_not_make_it_wait(prepared: Boot) -> None:
    """A TCP socket with SO_LINGER whose last reference PID 1 drops would hold it for the linger time."""
    board = prepared(
        f"Service('r', ('python3', '/test/rights.py', '{to_pid1.SOCKET}', '5'), restart='never'),", {"rights.py": RIGHTS}
    ).up()
    eventually(lambda: "done" in board.log("r"))
    board.wait_state("r", "stopped")
    assert board.ask("board")["loop"]["longest_turn_ms"] < 2000


def test_without_descriptors_left_the_control_socket_recovers(boot: Boot) -> None:
    board = boot(f"{SLEEP},").up()
    import resource

    old = resource.prlimit(board.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(board.pid, resource.RLIMIT_NOFILE, (3, old[1]))
    time.sleep(0.05)
    folder = os.open(board.root / "run/stack", os.O_PATH)
    waiting = []
    for _ in range(5):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(f"/proc/self/fd/{folder}/control")
        waiting.append(client)
    time.sleep(0.5)
    resource.prlimit(board.pid, resource.RLIMIT_NOFILE, old)
    assert eventually(lambda: board.stats("s")["state"] == "running", 5)
    times = Path(f"/proc/{board.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(times[11]) + int(times[12]) < 200, "and it did not spin meanwhile"


def test_without_a_cool_down_what_cannot_start_does_not_hold_pid_1(boot: Boot) -> None:
    board = boot(f"Service('missing', ('no-such-thing',)), {SLEEP},", settings="SV_COOLDOWN = 0.0").up()
    assert board.wait_state("missing", "backoff")["next_restart"] is not None


NO_STDIO = """
import os, sys
os.closerange(0, 3)
os.execv(sys.executable, [sys.executable, "-ESB", "/stack/sbin/stack.py", *sys.argv[1:]])
"""


def test_pid_1_without_a_console(prepared: Boot) -> None:
    rows = f"{SLEEP}, Service('bad', ('sleep', '1'), cwd='/none'),"
    board = prepared(rows, {"no_stdio.py": NO_STDIO}, init="/test/no_stdio.py").up()
    assert "ENOENT No such file or directory: /none" in board.wait_state("bad", "backoff")["exit"]
    targets = [os.readlink(f"/proc/{board.pid}/fd/{fd}") for fd in (0, 1, 2)]
    assert targets == ["/dev/null"] * 3
    assert board.ask("board")["loop"]["errors"] == 0


def test_commands_of_the_prompt_are_forgotten_in_the_end(boot: Boot) -> None:
    board = boot(f"{SLEEP},").up()
    for _ in range(40):
        board.ask("run", argv=["true"])
    eventually(lambda: len(board.all_stats()) <= 2 + 20)
    assert len(os.listdir(f"/proc/{board.pid}/fd")) < 80


# --- exceptions -----------------------------------------------------------------------------------------------------
BOOT_STEPS = """set_defaults open_log catch_signals read_options load_tables disable_ctrl_alt_del mount_all open_kmsg
open_watchdog open_cgroups set_clock make_devices make_directories write_sysctls set_hostname raise_loopback set_environment write_table open_control
start_services""".split()

INJECT = """
import sys; sys.path.insert(0, "/stack/lib/stack")
import stack
import sv
from pid1 import process
from pid1 import loop
from onboard import to_pid1
from pid1 import control, requests, world
from pid1 import spawn
from pid1 import log_pipes
from pid1 import readiness
from pid1 import rescue
from pid1 import watchdog
from pid1 import relatives
from onboard import boot_ends
target, attribute, limit = {target}, {attribute!r}, {limit}
real, count = getattr(target, attribute), 0
def broken(*arguments, **named):
    global count
    count += 1
    if count <= limit:
        raise RuntimeError("injected into " + attribute)
    return real(*arguments, **named)
broken.__name__ = attribute
setattr(target, attribute, broken)
sys.exit(stack.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("step", BOOT_STEPS)
def test_an_exception_in_a_step_of_boot_does_not_end_pid_1(prepared: Boot, step: str) -> None:
    """PID 1 goes on to the next step, and still ends as it is told to."""
    files = {"inject.py": INJECT.format(target="stack.Init", attribute=step, limit=1)}
    board = prepared(f"{SLEEP},", files, init="/test/inject.py")
    if step in ("open_control", "mount_all"):  # no socket, or no /run to put it in
        eventually(lambda: "sleep 1000" in board.processes().values() or "rescue" in str(board.processes().values()), 20)
    else:
        faults = board.up().ask("board")["faults"]
        assert any(f"boot: {step}: RuntimeError: injected into {step}" in fault for fault in faults)
    assert board.launcher.poll() is None
    if step == "catch_signals":  # it is deaf to signals now, but not to requests
        board.ask("halt")
        assert board.launcher.wait(30) == 0
    else:
        assert board.end() == 0


@pytest.mark.parametrize(
    ("target", "attribute", "limit"),
    [
        ("sv.SV", "bury", 3), ("sv.SV", "tick", 20), ("sv.SV", "next_deadline", 20), ("world.World", "spawn", 3), ("world.World", "kill", 1),
        ("requests.Requests", "handle", 3), ("sv.SV", "settle", 3), ("sv.SV", "_start_next", 3), ("stack.Init", "on_signals", 2), ("stack.Init", "reap", 20),
        ("requests.Requests", "board", 3), ("rescue.Rescue", "tick", 20), ("process.Process", "exited", 2), ("process.Process", "_launch", 2),
        ("process.Process", "start", 1), ("control.Control", "_accept", 3), ("control.Control", "_readable", 3), ("control.Control", "tick", 20),
        ("spawn.Spawner", "spawn", 3), ("spawn.Spawner", "failure", 3), ("log_pipes.LogPipes", "flush", 2),
        ("log_pipes.LogPipes", "connect", 2), ("loop.Loop", "_timeout", 1), ("watchdog.Watchdog", "tick", 20),
        ("watchdog.Watchdog", "next_deadline", 20), ("watchdog.Watchdog", "shut_down", 2), ("relatives.Relatives", "prune", 3),
        ("relatives.Relatives", "linger", 2), ("boot_ends", "tell", 20), ("world.World", "died", 2), ("world.World", "entered", 2),
    ],
)  # fmt: skip
def test_an_exception_in_the_loop_does_not_end_pid_1(prepared: Boot, target: str, attribute: str, limit: int) -> None:
    files = {"inject.py": INJECT.format(target=target, attribute=attribute, limit=limit)}
    rows = f"{SLEEP}, Service('bad', ('sh', '-c', 'sleep 0.1; exit 1')), Service('w', ('sleep', '1000'), after=('bad',)),"
    board = prepared(rows, files, init="/test/inject.py", settings="BACKOFF_MAX = 0.5")
    eventually(lambda: board.ask("board"), 20)
    for _ in range(3):
        try:
            board.ask("stats", name="s")
        except SVError:
            pass
    eventually(lambda: (row := board.stats("s"))["state"] == "running" and row["pid"], 15)
    os.kill(board.pid, signal.SIGHUP)
    eventually(lambda: board.stats("bad")["restart"] >= 1, 15)
    for _ in range(4):  # the first ones may be lost to the fault
        if board.launcher.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(board.pid, signal.SIGUSR1)
            time.sleep(0.1)
    assert board.launcher.wait(40) == 0


@pytest.mark.parametrize("words", [("--help",), ("--plan", "-h"), ("bogus", "-s", "", "\udcff=\udcff", "a" * 4000)])
def test_no_argument_ends_pid_1(boot: Boot, words: tuple[str, ...]) -> None:
    """Leaving main() is a kernel panic; the kernel gives init each word that it does not know."""
    board = boot(f"{SLEEP},", words=words).up()
    board.wait_state("s", "running")
    assert board.ask("board")["faults"] == []
    assert board.end() == 0


def test_a_service_that_has_never_been_ready_is_said(boot: Boot) -> None:
    """One that does not know an option of its row, one that does not say READY=1, and two that are well."""
    rows = (
        f"{SLEEP}, Service('wrong', ('sleep', '--bad')), Service('mute', ('sleep', '1000'), ready='notify', ready_timeout=0.2),"
        "Service('job', ('true',), ready='exit'),"
    )
    board = boot(rows, settings="BACKOFF_FIRST = 0.05").up()
    eventually(lambda: board.ask("board")["never_ready"] == ["wrong", "mute"])


# --- rescue ---------------------------------------------------------------------------------------------------------
def test_nothing_to_run_opens_a_rescue_prompt_and_nobody_typing_ends_in_a_reboot(boot: Boot) -> None:
    board = boot("", base="()", settings="RESCUE_TIMEOUT = 1.5").up()
    eventually(lambda: "rescue: press Enter" in board.console())
    assert any("rescue prompt on /dev/console" in fault for fault in board.ask("board")["faults"])
    assert board.launcher.wait(30) == 3


def test_services_that_all_keep_dying_open_a_rescue_prompt(boot: Boot) -> None:
    board = boot(
        "Service('a', ('false',)), Service('b', ('no-such-thing',)),", base="()", settings="RESCUE_TIMEOUT = 60.0"
    ).up()
    eventually(lambda: "rescue: press Enter" in board.console())
    assert any("no service stays alive" in fault for fault in board.ask("board")["faults"])


def test_those_that_wait_for_the_hopeless_are_hopeless_too(boot: Boot) -> None:
    rows = "Service('a', ('false',), ready='notify'), Service('b', ('sleep', '1000'), ('a',)), Service('c', ('sleep', '1'), ('b',)),"
    board = boot(rows, base="()", settings="RESCUE_TIMEOUT = 60.0").up()
    eventually(lambda: "rescue: press Enter" in board.console())
    assert {board.stats(name)["state"] for name in ("b", "c")} == {"waiting"}


def test_the_rescue_prompt_has_an_environment_of_its_own(boot: Boot) -> None:
    """With this variable no Python starts; and of a row that cannot run, the built-in one takes the place."""
    settings = "ENVIRONMENT = (('PYTHONHOME', '/nowhere'), ('LD_PRELOAD', '/nowhere.so'))\nRESCUE_TIMEOUT = 60.0\n"
    board = boot("", base="()", settings=settings).up()
    eventually(lambda: "rescue: press Enter" in board.console())
    row = "RESCUE = Service('rescue', ('sh', '-c', 'exit 3'), ready='notify')\n"
    board = boot("", base="()", settings=settings + row).up()
    eventually(lambda: "rescue: press Enter" in board.console(), 30)
    assert any("rescue: exit 3, again and again" in fault for fault in board.ask("board")["faults"])


def test_a_board_that_recovers_is_not_rebooted(boot: Boot) -> None:
    script = "test -e /tmp/fourth && sleep 1000; echo x >> /tmp/n; test $(wc -l < /tmp/n) -ge 4 && touch /tmp/fourth; exit 1"
    board = boot(sh("s", script), base="()", settings="RESCUE_TIMEOUT = 3.0\nSV_COOLDOWN = 1.0").up()
    eventually(lambda: "rescue: press Enter" in board.console())
    eventually(lambda: "rescue" not in board.all_stats())
    assert board.stats("s")["state"] == "running"


def test_the_rescue_prompt_takes_the_console_and_gives_it_back(boot: Boot) -> None:
    rows = "Service('getty', ('sleep', '1000'), tty='/dev/console'),"
    settings = "MOUNTS += (Mount('none', '/mnt/x', 'no-such-fs'),)\nRESCUE_TIMEOUT = 2.0"
    board = boot(rows, settings=settings).up()
    eventually(lambda: "rescue: press Enter" in board.console())
    assert board.stats("getty")["state"] in ("stopped", "stopping")
    eventually(lambda: "rescue" not in board.all_stats())
    board.wait_state("getty", "running")
    assert any("mount none on /mnt/x" in fault for fault in board.ask("board")["faults"])


def test_pid_1_sleeps_while_somebody_uses_the_rescue_prompt(prepared: Boot) -> None:
    timeout = 0.5 * PATIENCE**2  # a race with the start of a Python
    rescue = "RESCUE = Service('rescue', ('python3', '/test/notify.py', 'READY=1'), ready='notify')"
    board = prepared("", {"notify.py": NOTIFY}, base="()", settings=f"{rescue}\nRESCUE_TIMEOUT = {timeout}").up()
    board.wait_state("rescue", "running")
    time.sleep(timeout + 0.5)
    before = board.ask("board")["loop"]["turns"]
    time.sleep(0.5)
    assert board.ask("board")["loop"]["turns"] - before < 10
    assert board.launcher.poll() is None


def test_stack_rescue_comes_before_the_services_and_they_follow(boot: Boot) -> None:
    board = boot(f"{SLEEP},", words=("stack.rescue",), settings="RESCUE_TIMEOUT = 1.5").up()
    eventually(lambda: "rescue: press Enter" in board.console())
    assert list(board.all_stats()) == ["rescue"]
    eventually(lambda: board.stats("s")["state"] == "running")


def test_a_critical_service_beyond_repair_reboots_the_board(boot: Boot) -> None:
    rows = f"Service('c', ('false',), critical=True), {SLEEP},"
    assert boot(rows, settings="CRITICAL_INTERVAL = 0.0\nCRITICAL_FAILURES = 3").launcher.wait(30) == 3
    board = boot(rows, settings="CRITICAL_FAILURES = 3").up()
    eventually(lambda: board.stats("c")["restart"] > 4)
    assert board.launcher.poll() is None, "not so soon after the boot"


# --- idle -----------------------------------------------------------------------------------------------------------
def test_an_idle_board_does_not_wake_pid_1(boot: Boot) -> None:
    board = boot("*(Service(f's{i}', ('sleep', '1000')) for i in range(20)),").up()
    eventually(lambda: all(row["state"] == "running" for row in board.all_stats().values()))

    def sleeps() -> int:
        lines = Path(f"/proc/{board.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    time.sleep(0.5)
    before = sleeps()
    time.sleep(3.0)
    assert sleeps() == before


def test_a_module_runs_in_a_copy_of_pid_1(prepared: Boot) -> None:
    """The log daemon does: nothing of PID 1 but the code is in it."""
    code = """
import os, signal, sys
def main(arguments):
    import _log
    print("arguments", arguments, "environment", "PATH" in os.environ, os.environ["STACK_SERVICE"])
    print("descriptors", sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1])
    print("name", open("/proc/self/comm").read().strip(), "leader", os.getsid(0) == os.getpid(), "uid", os.getuid())
    print("handlers", [n for n in (1, 2, 10, 12, 15, 17) if signal.getsignal(n) is not signal.SIG_DFL])
    if arguments[0] == "raise":
        raise RuntimeError("on purpose")
    sys.exit(125)
"""
    rows = (
        "Service('copy', ('x', 'one', 'two'), module='copied'),"
        "Service('bad', ('x', 'raise'), module='copied', restart='never'),"
        "Service('gone', ('x',), module='no_such_module', restart='never'),"
    )
    init = "import sys\nsys.path[:0] = ['/stack/lib/stack', '/test']\nimport stack\nsys.exit(stack.main(sys.argv[1:]))\n"
    board = prepared(rows, {"copied.py": code, "init.py": init}, init="/test/init.py").up()
    for name, end in (("copy", "exit 125"), ("bad", "exit 1"), ("gone", "exit 1")):
        assert board.wait_state(name, "stopped")["exit"] == end
    eventually(lambda: "handlers []" in board.log("copy"))
    said = board.log("copy")
    assert "arguments ['one', 'two'] environment True copy" in said
    assert "descriptors [0, 1, 2]" in said
    assert "name copy leader True uid 0" in said
    eventually(lambda: "error: RuntimeError: on purpose" in board.log("bad"))
    eventually(lambda: "No module named 'no_such_module'" in board.log("gone"))
    assert board.processes()[board.stats("logd")["pid"]] == board.processes()[1]
