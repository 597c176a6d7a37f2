"""The whole board of `make run`: observations flow, everything comes back, and the host does not change."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EMULATED, NO_NAMESPACES, PATIENCE, PYTHON, ROOT, Board, eventually

from laptop.namespaces import FOREIGN_ROOT

Boot = Callable[..., Board]
pytestmark = [pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES), pytest.mark.timeout(120)]
JOBS = {"bus_rights"}  # have ended when all others run
APPS = ("fakegps", "wifi_scan", "wifi_analyzer", "diagnostic")


@pytest.fixture
def board(boot: Boot) -> Iterator[Board]:
    one = boot("", base="SERVICES", settings="SV_COOLDOWN = 1.0").up()
    eventually(lambda: all(row["state"] == "running" for row in one.all_stats().values() if row["name"] not in JOBS), 20)
    yield one


def successor(board: Board, name: str, before: int | None) -> Callable[[], bool]:
    return lambda: board.stats(name)["pid"] not in (None, before)


def observations(board: Board) -> list[dict[str, object]]:
    return [json.loads(line.partition(" ")[2]) for line in board.console().splitlines() if line.startswith("wifi/")]


def test_observations_flow(board: Board) -> None:
    eventually(lambda: len(observations(board)) >= 5, 20)
    one = eventually(lambda: next(o for o in observations(board) if o["latitude"] is not None), 20)
    assert set(one) == {
        "latitude",
        "longitude",
        "accuracy",
        "age",
        "bssid",
        "ssid",
        "frequency",
        "signal",
        "security",
        "source",
        "event",
        "position_source",
    }
    assert one["source"] == "recording", "marked as such in every message"
    for name in APPS:
        assert board.stats(name)["restart"] == 0
        status = Path(f"/proc/{board.outside(board.stats(name)['pid'])}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        kept = "1000" if name == "wifi_scan" else "0000"  # CAP_NET_ADMIN, for scans without wpa_supplicant
        assert f"CapBnd:\t000000000000{kept}" in status


def test_observations_flow_over_the_embedded_broker(boot: Boot) -> None:
    """What an ordinary user without mosquitto gets."""
    settings = (
        "BUS = '127.0.0.1:1883'\n"
        "AMQTT = program('broker', 'laptop/broker', ready='notify', user='{APP_USER}', capabilities=(), no_new_privs=True)\n"
        "SERVICES = tuple(AMQTT if row.name == 'broker' else row for row in SERVICES)"
    )
    board = boot("", base="SERVICES", settings=settings).up()
    for _ in range(3):
        with contextlib.suppress(StopIteration):
            eventually(lambda: next(o for o in observations(board) if o["latitude"] is not None), 12)
            return
        board.kill("broker")  # amqtt 0.12 loses a subscription now and then that it has acknowledged: our apps subscribe anew
    raise AssertionError("three brokers, and no observation")


def test_diagnostic_reports_at_the_start(board: Board) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import bus; b = bus.Bus('t', sys.argv[2])\n" \
        "b.subscribe('diag', lambda t, m: (print(__import__('json').dumps(m['data'])), sys.exit()))\nb.run()"  # fmt: skip
    path = f"{board.root}/run/bus/mqtt.sock"
    if not os.path.exists(path):
        pytest.skip("the embedded broker listens inside the board's network namespace")
    done = subprocess.run([PYTHON, "-c", code, str(ROOT), path], capture_output=True, text=True, timeout=30, check=True)
    report = json.loads(done.stdout)
    assert report["memory_total"] > 0
    assert report["services"]["rows"]["fakegps"]["state"] == "running"
    assert report["services"]["loop"]["errors"] == 0
    assert "fakegps" in report["logs"] or report["logs"] == {} or "diagnostic" in report["logs"]


def test_each_process_in_turn_killed_comes_back_and_nothing_else_restarts(board: Board) -> None:
    time.sleep(1.0)  # past the cool-down: what dies is restarted at once
    for name in [name for name in board.all_stats() if name not in JOBS]:
        before = {other: row["pid"] for other, row in board.all_stats().items()}
        board.kill(name)
        eventually(successor(board, name, before[name]))
        board.wait_state(name, "running")
        after = {other: row["pid"] for other, row in board.all_stats().items()}
        assert {other for other in before if before[other] != after[other]} == {name}
    count = len(observations(board))
    eventually(lambda: len(observations(board)) > count, 20)


def test_the_log_of_everything_survives_the_death_of_logd(board: Board) -> None:
    eventually(lambda: "fakegps: started" in board.log())
    board.kill("logd")
    eventually(lambda: board.log().count("logd: started") == 2)


# --- nothing on the host changes --------------------------------------------------------------------------------------
def snapshot(own: Path) -> dict[str, object]:
    """What an init let loose could have changed; `own` is this test's folder."""
    mine = (str(own.parent), "/var/cache", "/var/lib/apt")
    folders = {}
    for top in ("/tmp", "/run", "/var"):
        found = set()
        for path, names, files in os.walk(top):
            names[:] = [name for name in names if not f"{path}/{name}".startswith(mine)]
            found |= {f"{path}/{name}" for name in [*names, *files]}
        folders[top] = found
    controls = ("kernel/panic", "kernel/printk", "vm/swappiness", "kernel/ctrl-alt-del")
    modules = Path("/proc/modules")
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "hostname": os.uname().nodename,
        "folders": folders,
        "sysctl": {name: Path(f"/proc/sys/{name}").read_text() for name in controls},
        "links": Path("/proc/net/dev").read_text().count(":"),
        "modules": [line.split()[0] for line in modules.read_text().splitlines()] if modules.exists() else [],
        "clock": round((time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)) / 60),
    }


def processes() -> set[int]:
    """Processes that share no namespace of ours or are children of ours."""
    me = str(os.getpid())
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes()
            if b"launcher.py" in words or b"/stack/" in words:
                found.add(int(entry))
        except OSError:
            pass
    return found - {int(me)}


WILD = """
MOUNTS += (Mount("none", "/run/wild", "tmpfs", "shared"), Mount("/usr", "/tmp/usr", "", "bind"))
SYSCTLS = (("kernel.panic", "77"), ("kernel.printk", "1 1 1 1"), ("vm.swappiness", "3"))
MODULES = ("dummy",)
HOSTNAME = "wild"
SERVICES += (
    Service("modules", ("modprobe", "-a", "{MODULES}"), ready="exit", restart="never"),
    Service("writer", ("sh", "-c", "touch /tmp/wild /run/wild-file /var/wild /usr/wild /etc/wild /wild; rm -rf /tmp/* /run/lock; "
            "mount -o remount,rw /usr; touch /usr/wild2; echo b > /proc/sysrq-trigger; date -s 2001-01-01; sync; sleep 1000")),
    Service("killer", ("sh", "-c", "kill -9 -1; sleep 1000"), user="nobody"),
)
"""


def test_nothing_on_the_host_changes(tmp_path: Path) -> None:
    """Also with a table that tries: mounts that propagate, kernel settings, modules, files everywhere, the clock.

    Others may be at work in the host's folders: what our board does, it does each of three times.
    """
    canary = tmp_path / "canary"
    canary.write_text("still here")
    profile = tmp_path / "wild.py"
    profile.write_text(WILD)
    command = [PYTHON, str(ROOT / "laptop" / "launcher.py"), "--seconds", f"{3 * PATIENCE}", "--profile", str(profile)]
    running = processes()
    for _ in range(3):
        before = snapshot(tmp_path)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60 * PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        after = snapshot(tmp_path)
        if after == before:
            break
    assert after == before
    assert canary.read_text() == "still here"
    eventually(lambda: processes() <= running)
    assert not [path for path in ("/usr/wild", "/usr/wild2", "/etc/wild", "/wild", "/tmp/wild") if os.path.exists(path)]


def test_a_killed_launcher_takes_its_board_along(boot: Boot) -> None:
    board = boot("Service('s', ('sleep', '1000')),").up()
    board.launcher.send_signal(signal.SIGKILL)
    board.launcher.wait()
    eventually(lambda: not os.path.exists(f"/proc/{board.pid}"))


# --- on a terminal ----------------------------------------------------------------------------------------------------
def plain(text: str) -> str:
    """What a terminal shows: Python 3.13's prompt has colours and moves about."""
    return re.sub(r"\n+", "\n", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]", "", text))


class Terminal:
    """A terminal with somebody at it."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(command[0], command)
        self.seen = ""

    def expect(self, text: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in plain(self.seen):
            if not select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            try:
                self.seen += os.read(self.fd, 65536).decode(errors="replace").replace("\r", "")
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from None

    def settle(self) -> None:
        """Until it is silent: the prompt reads keys now, a Ctrl-D before would be lost between two terminal modes."""
        while select.select([self.fd], [], [], 0.3)[0]:
            self.seen += os.read(self.fd, 65536).decode(errors="replace")

    def type(self, text: str) -> None:
        self.settle()
        self.seen = ""
        os.write(self.fd, text.encode())

    def wait(self) -> int:
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_lands_in_the_prompt_and_leaving_it_halts_the_board(tmp_path: Path) -> None:
    terminal = Terminal([PYTHON, str(ROOT / "laptop" / "launcher.py")])
    terminal.expect(">>> ")
    terminal.type("len(stats_process())\n")
    terminal.expect("9\n>>> ")
    terminal.type("stats_process('fakegps')[0]['state']\n")
    terminal.expect("'running'\n>>> ")
    terminal.type("stop_process('nobody')\n")
    terminal.expect("SVError: there is no service 'nobody'")
    terminal.type("import time; time.sleep(100)\n")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.expect("KeyboardInterrupt")
    terminal.type("logs('stack')\n")
    terminal.expect("stack: fakegps: started, pid")
    terminal.type("board()\n")
    terminal.expect("boot_ms")
    terminal.expect("\n>>> ")
    terminal.settle()
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_reboot_in_the_prompt_boots_again(tmp_path: Path) -> None:
    terminal = Terminal([PYTHON, str(ROOT / "laptop" / "launcher.py")])
    terminal.expect(">>> ")
    terminal.type("reboot()\n")
    terminal.expect("functions: ")
    terminal.expect(">>> ")
    terminal.type("exit()\n")
    assert terminal.wait() == 0


def test_ctrl_bracket_shuts_the_board_down_whatever_its_console_does(tmp_path: Path) -> None:
    terminal = Terminal([PYTHON, str(ROOT / "laptop" / "launcher.py"), "--", "stack.skip=diagnostic"])
    terminal.expect(">>> ")
    terminal.type("[row['name'] for row in stats_process()]\n")
    terminal.expect("['logd', 'zygote', 'bus_rights', 'prompt', 'broker', 'fakegps', 'wifi_scan', 'wifi_analyzer']")
    terminal.type("stop_process('prompt')\n")
    time.sleep(0.5)
    terminal.type("\x1d")
    assert terminal.wait() == 0


@pytest.mark.skipif(
    EMULATED,
    reason="qemu-user catches signals that the kernel drops before PID 1 has a handler, and then waits for its own death",
)
def test_a_board_asked_to_end_before_it_listens_ends(tmp_path: Path) -> None:
    command = [PYTHON, str(ROOT / "laptop" / "launcher.py"), "--seconds", "0.001"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 0, done.stderr
    wrong = subprocess.run([*command[:2], "--profile", "nowhere"], capture_output=True, text=True, check=False, timeout=30)
    assert (wrong.returncode, "there is no profile nowhere" in wrong.stderr) == (2, True)


def test_the_rescue_prompt_waits_for_somebody_who_types(tmp_path: Path) -> None:
    profile = tmp_path / "p.py"
    profile.write_text("SERVICES = ()\nRESCUE_TIMEOUT = 4.0")
    terminal = Terminal([PYTHON, str(ROOT / "laptop" / "launcher.py"), "--profile", str(profile), "--once"])
    terminal.expect("rescue: press Enter")
    terminal.type("\n")
    terminal.expect(">>> ")
    time.sleep(4.5)  # past the time at which it would have rebooted
    terminal.type("stats_process('rescue')[0]['status']\n")
    terminal.expect("'somebody is typing'")
    terminal.type("halt()\n")
    assert terminal.wait() == 0


RAW = (
    "SERVICES = (Service('app', ('sh', '-c', 'stty raw -echo; exit 1'), tty='{CONSOLE}'),)\n"
    "BACKOFF_FIRST = 0.05\nRESCUE_TIMEOUT = 4.0"
)


def test_any_key_opens_the_rescue_prompt_on_a_console_that_an_app_left_raw(tmp_path: Path) -> None:
    profile = tmp_path / "p.py"
    profile.write_text(RAW)
    terminal = Terminal([PYTHON, str(ROOT / "laptop" / "launcher.py"), "--profile", str(profile), "--once"])
    terminal.expect("rescue: press Enter")
    terminal.settle()
    terminal.type("x")
    terminal.expect(">>> ")
    terminal.type("1 + 41\n")
    terminal.expect("1 + 41\n42")  # with echo
    terminal.type("halt()\n")
    assert terminal.wait() == 0


# --- commands ---------------------------------------------------------------------------------------------------------
def test_the_sv_command(boot: Boot, tmp_path: Path) -> None:
    board = boot("Service('s', ('sleep', '1000')),").up()
    folder = os.open(board.root / "run/stack", os.O_PATH)
    environment = {**os.environ, "STACK_CONTROL": f"/proc/self/fd/{folder}/control", "PYTHONPATH": str(ROOT)}
    board_root = {"user": FOREIGN_ROOT, "group": FOREIGN_ROOT, "extra_groups": []} if os.getuid() == 0 else {}

    try:
        subprocess.run([sys.executable, "-c", ""], check=True, **board_root)  # type: ignore[call-overload]
    except PermissionError:
        pytest.skip("this Python lies where the board's root, who is nobody here, may not run it")

    def sv(*words: str) -> Any:
        command = [sys.executable, "-P", str(ROOT / "prompt" / "command.py"), *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=40,
            pass_fds=(folder,),
            cwd="/",
            **board_root,
        )  # type: ignore[call-overload]

    board.wait_state("s", "running")
    rows = json.loads(sv("--json", "stats").stdout)
    assert [row["name"] for row in rows] == ["logd", "s"]
    assert json.loads(sv("stats", "s", "--json").stdout)[0]["state"] == "running"
    assert "sleep 1000" in sv("stats").stdout
    facts = json.loads(sv("status", "s", "--json").stdout)
    assert (facts["name"], facts["exits"], facts["log"]) == ("s", [], [])
    assert "running for" in sv("status", "s").stdout
    busy = json.loads(sv("top", "0.1", "--json").stdout)
    assert {row["name"] for row in busy} == {"logd", "s"}
    assert all(0 <= row["percent"] < 400 for row in busy)
    assert json.loads(sv("stop", "s", "--json").stdout)[0]["state"] == "stopped"
    assert sv("start", "s").returncode == 0
    assert sv("restart", "s").returncode == 0
    assert sv("signal", "s", "CONT").returncode == 0
    wrong = sv("stop", "x")
    assert (wrong.returncode, wrong.stderr) == (1, "sv: there is no service 'x'; there are logd, s; did you mean s?\n")
    assert sv("nonsense").returncode == 2
    assert sv("halt").stdout == "halt has begun\n"
    assert board.launcher.wait(30) == 0


def test_make_install_has_what_an_image_needs(tmp_path: Path) -> None:
    done = subprocess.run(["make", "-s", "install", f"DESTDIR={tmp_path}", "PREFIX=/usr", "TARGET_PYTHON=" + PYTHON,
                           "SITEDIR=/usr/lib/python3/site-packages"], cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.access(tmp_path / "sbin/stack.py", os.X_OK)
    assert (tmp_path / "sbin/stack.py").read_text().startswith("#!/usr/bin/python3 -ESB\n")
    library = tmp_path / "usr/lib/stack"
    assert {"stack.py", "sv.py", "settings.py", "services", "fakegps.py", "data"} <= set(os.listdir(library))
    assert "launcher.py" not in os.listdir(library)
    flags = {path.name.split(".")[0]: path.read_bytes()[4] for path in (library / "__pycache__").glob("*.pyc")}
    assert flags["stack"] == 3, "checked against the source: an edit on the board runs"
    assert flags["settings"] == 3, "checked: the owner may edit it on the board"
    assert str(tmp_path) not in (library / "__pycache__").joinpath(
        next(os.walk(library / "__pycache__"))[2][0]
    ).read_bytes().decode("latin-1")
    assert (
        tmp_path / "usr/lib/python3/site-packages/stack.pth"
    ).read_text() == 'import sys; sys.path.insert(0, "/usr/lib/stack/names")\n'
    assert "exec" in (tmp_path / "usr/bin/sv").read_text()
