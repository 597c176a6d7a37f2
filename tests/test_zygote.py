"""Services that a zygote forks: the same as executed ones, PID 1's own, and none the worse for what happens to the zygote."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PYTHON, ROOT, Board, eventually
from test_tables import load

Boot = Callable[..., Board]

# What a process can know of itself, as JSON: everything that a row sets, and what a program expects to find.
SELF = r"""
import atexit, json, os, resource, signal, sys

def read(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")

def main():
    status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    names = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask", "SigBlk"]
    print("SELF", json.dumps({
        "status": {name: status[name].split() for name in names},
        "ignored": [n for n in range(1, 32) if signal.getsignal(n) == signal.SIG_IGN],
        "handled": [n for n in range(1, 32) if callable(signal.getsignal(n))],
        "parent": os.getppid(), "leader": os.getsid(0) == os.getpid() == os.getpgid(0),
        "argv": sys.argv, "path": sys.path, "orig": sys.orig_argv, "name": __name__, "file": __file__,
        "environ": dict(os.environ), "proc environ": sorted(read("/proc/self/environ").split("\0")),
        "cmdline": read("/proc/self/cmdline").split("\0"), "exe": os.readlink("/proc/self/exe"), "cwd": os.getcwd(),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1], "stdin": os.readlink("/proc/self/fd/0"),
        "limits": [resource.getrlimit(n) for n in range(16)], "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom": read("/proc/self/oom_score_adj").strip(), "cgroup": read("/proc/self/cgroup").replace("exec", "fork"),
        "mounts": os.readlink("/proc/self/ns/mnt"), "owner": os.stat("/proc/self/fd").st_uid == os.geteuid(),
        "stderr": os.access("/proc/self/fd/2", os.W_OK), "buffered": sys.stdout.line_buffering,
        "comm": read("/proc/self/comm").strip(), "threads": len(os.listdir("/proc/self/task")), "gc": __import__("gc").isenabled(),
        "dispositions": (sys.flags.safe_path, sys.flags.no_site, sys.flags.dont_write_bytecode),
    }), flush=True)
    atexit.register(print, "at its end")
    sys.exit(int(sys.argv[1]))

if __name__ == "__main__":
    main()
"""
COLUMNS = {
    "nothing": "",
    "an ordinary app": "user='{name}', capabilities=('sys_time',), no_new_privs=True, oom_score=200, groups=('logd',), pids_max=9",
    "nobody": "user='nobody', capabilities=(), groups=('daemon',)",
    "limits": "rlimits=(('nofile', 99), ('core', 0), ('data', 900_000_000)), nice=3, umask=0o027",
    "a place": "cwd='/tmp', env=(('PYTHONPATH', '{PYTHONPATH}'), ('HOME', '/x'), ('TZ', 'UTC+5')), memory_max='64M'",
    "readiness": "ready='notify', ready_timeout=0.1, watchdog=60.0",
    "no log": "log='none'",
}


def zygote(*modules: str, columns: str = "") -> str:
    return f"(LOGD, ZYGOTE._replace(argv=(*ZYGOTE.argv[:3], {', '.join(map(repr, modules))}{',' * bool(modules)}) {columns}))"


def app(name: str, script: str, *arguments: str, columns: str = "", forked: bool = True) -> str:
    env = "" if "env=" in columns else "env=(('PYTHONPATH', '{PYTHONPATH}'),), "
    words = ", ".join(map(repr, ("{PYTHON}", "-P", f"/test/{script}", *arguments)))
    mother = "zygote" if forked else ""
    return f"Service({name!r}, ({words}), {env}forked_by={mother!r}, {columns}), "


def is_forked(board: Board, name: str) -> bool:
    """Whether a running service is a fork of the zygote: as such it has the service's name in ps(1)."""
    pid = board.outside(board.wait_state(name, "running")["pid"])
    return Path(f"/proc/{pid}/comm").read_text().strip() == name[:15]


def said(board: Board, name: str) -> list[dict[str, Any]]:
    return [json.loads(line.partition("SELF ")[2]) for line in board.log(name).splitlines() if "SELF " in line]


def first(board: Board, name: str) -> dict[str, Any]:
    """What a service has said of itself, as soon as it has."""
    return eventually(lambda: said(board, name))[0]


def logged(board: Board, name: str, text: str, times: int = 1) -> None:
    """Wait until a service has printed this so often."""
    eventually(lambda: board.log(name).count(text) >= times)


def another(board: Board, name: str, before: int) -> None:
    """Wait until a service has another pid."""
    eventually(lambda: board.stats(name)["pid"] not in (None, before))


SLEEPER = "import time, sys, os\nprint('this is', os.getpid(), flush=True)\ntime.sleep(1000)\n"


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS.keys())
def test_a_forked_service_has_what_an_executed_one_has(boot: Boot, columns: str) -> None:
    kept = columns.replace("log='none'", "")
    rows = app("fork", "me.py", "7", columns=f"restart='never', {columns}")
    rows += app("exec", "me.py", "7", columns=f"restart='never', {columns}", forked=False)
    board = boot(rows, base=zygote("json"), files={"me.py": SELF}).up()
    board.wait_state("zygote", "running")
    ends = [board.wait_state(name, "stopped")["exit"] for name in ("fork", "exec")]
    assert ends == ["exit 7", "exit 7"]
    if columns != kept:
        assert not said(board, "fork")
        return
    eventually(lambda: all("at its end" in board.log(name) for name in ("fork", "exec")))
    forked, executed = (said(board, name)[0] for name in ("fork", "exec"))
    assert forked["parent"] == 1
    assert forked["leader"]
    assert forked["owner"]
    assert forked.pop("comm") == "fork"
    assert executed.pop("comm").startswith("python"), "ps(1) shows the program's name"
    for one, own in ((forked, "fork"), (executed, "exec")):
        environ = one["environ"]
        assert environ.pop("STACK_SERVICE") == own
        shown = [word for word in one.pop("proc environ") if word and not word.startswith(("STACK_SERVICE", "NOTIFY_SOCKET"))]
        assert shown == sorted(f"{name}={value}" for name, value in environ.items() if name != "NOTIFY_SOCKET")
        assert ("NOTIFY_SOCKET" in environ) == ("notify" in columns)
        environ.pop("NOTIFY_SOCKET", "")
        if "{name}" in columns:  # users of their own
            assert (environ.pop("USER"), environ.pop("LOGNAME")) == (own, own)
            del one["status"]["Uid"], one["status"]["Gid"]
    assert forked == executed


def test_how_it_ends_is_known_as_of_any_child(boot: Boot) -> None:
    ends = {
        "text": "import sys; sys.exit('no such thing')", "raises": "def f():\n    raise ValueError('on purpose')\nf()",
        "killed": "import os; os.kill(os.getpid(), 9)", "interrupted": "raise KeyboardInterrupt", "well": "pass",
        "syntax": "this is no Python", "thread": "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('waited for', flush=True))).start()",
        "not there": "",
    }  # fmt: skip
    files = {f"{name.replace(' ', '_')}.py": text for name, text in ends.items() if text}
    rows = "".join(app(name.replace(" ", "_"), f"{name.replace(' ', '_')}.py", columns="restart='never'") for name in ends)
    board = boot(rows, base=zygote("threading"), files=files).up()
    expected = {"text": "exit 1", "raises": "exit 1", "killed": "signal KILL", "interrupted": "signal INT", "well": "exit 0",
                "syntax": "exit 1", "thread": "exit 0", "not_there": "exit 2"}  # fmt: skip
    found = {name: board.wait_state(name, "stopped")["exit"] for name in expected}
    assert found == expected
    logged(board, "text", "no such thing")
    logged(board, "thread", "waited for")
    logged(board, "syntax", "SyntaxError")
    logged(board, "not_there", "No such file or directory")
    logged(board, "raises", "ValueError: on purpose")
    trace = board.log("raises")
    assert 'raises.py", line 2, in f' in trace
    assert "zygote.py" not in trace, "a traceback begins in the app's own file"
    assert "child.py" not in trace
    assert board.stats("zygote")["restart"] == 0, "an app that cannot be imported does the zygote no harm"


def test_an_app_of_the_table_says_what_it_says_when_it_is_executed(boot: Boot) -> None:
    """The apps themselves need no change: this one prints what passes on the bus, and has no broker here."""
    rows = "".join(
        f"Service('{name}', ('{{PYTHON}}', '-P', '{{LIB}}/bus.py', 'x'), env=(('PYTHONPATH', '{{PYTHONPATH}}'),), {more}),"
        for name, more in (("fork", "forked_by='zygote'"), ("exec", ""))
    )
    board = boot(rows, base=zygote("bus")).up()
    for name in ("fork", "exec"):
        logged(board, name, "bus: lost (No such file or directory), trying again")
    assert is_forked(board, "fork")
    board.ask("stop", name="fork")
    assert board.wait_state("fork", "stopped")["exit"] == "exit 0"


def test_a_zygote_that_dies_leaves_its_children_alone(boot: Boot) -> None:
    board = boot(
        app("one", "s.py") + app("two", "s.py"), base=zygote(columns=", stop_timeout=1.0"), files={"s.py": SLEEPER}
    ).up()
    assert is_forked(board, "one")
    before = {name: board.wait_state(name, "running")["pid"] for name in ("one", "two", "zygote")}
    board.kill("zygote")
    another(board, "zygote", before["zygote"])
    board.wait_state("zygote", "running")
    assert {name: board.stats(name)["pid"] for name in ("one", "two")} == {name: before[name] for name in ("one", "two")}
    board.kill("one")
    another(board, "one", before["one"])
    assert is_forked(board, "one"), "by the one that is there now"
    board.ask("stop", name="zygote")
    board.wait_state("zygote", "stopped")
    assert board.stats("two")["pid"] == before["two"]
    board.kill("two")
    another(board, "two", before["two"])
    eventually(lambda: not is_forked(board, "two"), 5)
    board.ask("stop", name="two")
    board.wait_state("two", "stopped")


def test_a_zygote_that_hangs_is_killed_and_the_service_executed(boot: Boot) -> None:
    board = boot(app("one", "s.py") + app("two", "s.py"), base=zygote(), files={"s.py": SLEEPER}).up()
    assert is_forked(board, "one")
    board.wait_state("two", "running")
    mother = board.stats("zygote")["pid"]
    os.kill(board.outside(mother), signal.SIGSTOP)
    board.kill("one")
    eventually(lambda: board.stats("one")["state"] == "waiting")
    board.ask("stop", name="two")
    board.wait_state("two", "stopped")
    board.ask("start", name="two")
    eventually(lambda: board.stats("two")["state"] == "waiting")
    board.ask("stop", name="two")
    assert board.stats("two")["state"] == "stopped", "who is stopped while it waits is not waited for"
    board.wait_state("one", "running", seconds=20)
    eventually(lambda: not is_forked(board, "one"))
    logged(board, "stack", "zygote: has not forked one in 5 s, killed")
    another(board, "zygote", mother)
    running = [words for words in board.processes().values() if words.endswith("/test/s.py")]
    assert len(running) == 1, "no child of an old request has become an app"


def test_code_on_the_disk_counts_at_the_next_start(boot: Boot) -> None:
    code = "import time, part\nprint('app', 1, part.VERSION, flush=True)\ntime.sleep(1000)\n"
    env = "env=(('PYTHONPATH', '{PYTHONPATH}:/test'),)"
    board = boot(
        app("one", "app.py", columns=env), base=zygote("part", columns=f", {env}"), files={"app.py": code, "part.py": "VERSION = 1\n"}
    ).up()  # fmt: skip
    logged(board, "one", "app 1 1")
    assert is_forked(board, "one")
    mother = board.stats("zygote")["pid"]
    (board.folder / "files/app.py").write_text(code.replace("'app', 1", "'app', 2"))
    board.ask("restart", name="one")
    logged(board, "one", "app 2 1")
    assert is_forked(board, "one")
    assert board.stats("zygote")["pid"] == mother, "what it has not imported is nothing to it"
    (board.folder / "files/part.py").write_text("VERSION = 22\n")
    board.ask("restart", name="one")
    logged(board, "one", "app 2 22")
    assert "part.py has changed: starting again" in board.log("zygote")
    another(board, "zygote", mother)
    board.wait_state("zygote", "running")
    board.ask("restart", name="one")
    logged(board, "one", "app 2 22", 2)
    eventually(lambda: is_forked(board, "one"))


def test_modules_that_cannot_be_imported_and_such_as_start_threads(boot: Boot) -> None:
    """A thread's locks would never be released in a child; so everybody is executed, and the log says why."""
    files = {
        "s.py": SLEEPER, "bad.py": "1 / 0", "leaves.py": "import sys; sys.exit(3)",
        "threads.py": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
    }  # fmt: skip
    env = "env=(('PYTHONPATH', '{PYTHONPATH}:/test'),)"
    for modules, forked in ((("no_such", "bad", "leaves"), True), (("threads",), False)):
        board = boot(app("one", "s.py", columns=env), base=zygote(*modules, columns=f", {env}"), files=files).up()
        logged(board, "one", "this is")
        assert is_forked(board, "one") == forked
        said = board.log("zygote")
        assert all(
            word in said
            for word in (("bad is not imported: ZeroDivisionError", "no_such", "leaves") if forked else ("forks nobody",))
        )
        assert board.stats("zygote")["restart"] == 0
        if not forked:
            logged(board, "stack", "one: is executed, zygote does not fork it: a module")
            board.ask("restart", name="one")
            logged(board, "one", "this is", 2)
            assert board.log().count("does not fork it") == 1, "it is not asked again"


STATE = """
import json, os, random, secrets, socket, ssl, sys, tempfile, threading, time, uuid
import shared
print("SELF", json.dumps({
    "random": [random.random(), secrets.token_hex(8), str(uuid.uuid4()), str(uuid.uuid1()), ssl.RAND_bytes(8).hex(),
               next(tempfile._get_candidate_names())],
    "hash": hash("a text"), "place": id(shared), "sockets": [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2][:-1],
    "mine": shared.written, "lock": shared.lock.acquire(timeout=1), "daemon": len(threading.enumerate()),
}), flush=True)
shared.written.append(os.getpid())
time.sleep(1000)
"""
SHARED = """
import os, socket, threading
written = []
lock = threading.Lock()
listener = socket.socket()  # what a module opens when it is imported
listener.bind(("127.0.0.1", 0))
file = open("/etc/passwd")
"""


def test_nothing_of_one_app_is_in_another(boot: Boot) -> None:
    """What they share is said in docs/security.md: where things are in memory, and the seed of hash()."""
    env = "env=(('PYTHONPATH', '{PYTHONPATH}:/test'),)"
    rows = "".join(app(name, "state.py", columns=env) for name in ("one", "two", "three"))
    modules = ("shared", "random", "secrets", "ssl", "uuid", "tempfile", "json", "socket")
    board = boot(rows, base=zygote(*modules, columns=f", {env}"), files={"state.py": STATE, "shared.py": SHARED}).up()
    found = [first(board, name) for name in ("one", "two", "three")]
    assert all(is_forked(board, name) for name in ("one", "two", "three"))
    for values in zip(*(one["random"] for one in found), strict=True):
        assert len(set(values)) == 3
    for one in found:
        assert (one["sockets"], one["mine"], one["lock"], one["daemon"]) == ([], [], True, 1)
    assert len({one["hash"] for one in found}) == len({one["place"] for one in found}) == 1


def test_what_the_loader_reads_from_the_environment_makes_an_exec(boot: Boot) -> None:
    env = "env=(('PYTHONPATH', '{PYTHONPATH}'), ('PYTHONHASHSEED', '7'))"
    board = boot(app("one", "s.py", columns=env) + app("two", "s.py"), base=zygote(), files={"s.py": SLEEPER}).up()
    assert is_forked(board, "two")
    logged(board, "one", "this is")
    assert not is_forked(board, "one")


def test_whoever_an_app_leaves_behind_is_the_apps_and_not_the_zygotes(boot: Boot) -> None:
    """A process that forks twice and gives up its session is known by its mark, where there are no control groups."""
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n"
    code += "    print('stray', os.getpid(), flush=True)\n    time.sleep(1000)\nos.wait()\ntime.sleep(1000)\n"
    board = boot(app("one", "stray.py"), base=zygote(), files={"stray.py": code}).up()
    stray = int(eventually(lambda: board.log("one").partition("stray ")[2].split())[0])
    assert is_forked(board, "one")
    board.ask("stop", name="zygote")
    board.wait_state("zygote", "stopped")
    assert stray in board.processes()
    board.ask("stop", name="one")
    board.wait_state("one", "stopped")
    assert stray not in board.processes()


@pytest.mark.timeout(120)
def test_many_at_once_and_one_again_and_again(boot: Boot) -> None:
    """More than may be on their way at a time; and the zygote does not grow."""
    rows = "".join(app(f"s{n}", "s.py") for n in range(40))
    board = boot(rows, base=zygote(), files={"s.py": SLEEPER}, settings="SV_COOLDOWN = 0.0").up()
    eventually(lambda: all(row["state"] == "running" for row in board.ask("stats")), 60)
    assert all(is_forked(board, f"s{n}") for n in range(40))
    mother = board.outside(board.stats("zygote")["pid"])

    def again(times: int) -> None:
        for _ in range(times):
            pid = board.stats("s0")["pid"]
            board.kill("s0")
            another(board, "s0", pid)

    def own() -> tuple[int, int]:
        text = Path(f"/proc/{mother}/smaps_rollup").read_text()
        rss = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))
        return rss, len(os.listdir(f"/proc/{mother}/fd"))

    again(20)
    rss, fds = own()
    open_files = len(os.listdir(f"/proc/{board.pid}/fd"))
    again(100)
    assert own()[0] <= rss + 256, "KiB"
    assert own()[1] == fds
    eventually(lambda: len(os.listdir(f"/proc/{board.pid}/fd")) <= open_files)
    assert not [words for words in board.processes().values() if words.startswith("<")], "no zombies"


def test_the_first_steps_that_a_zygote_takes_for_all_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bus.warm_up: it connects to itself, hears ten messages, and is as if it had not been."""
    import _log
    import bus

    heard: list[bytes] = []
    real = bus.Bus._on_message

    def on_message(self: bus.Bus, client: Any, data: Any, packet: Any) -> None:
        heard.append(packet.payload)
        real(self, client, data, packet)

    monkeypatch.setattr(bus.Bus, "_on_message", on_message)
    gc.collect()  # what earlier tests have left is not ours
    open_before, before = set(os.listdir("/proc/self/fd")), (signal.getsignal(signal.SIGTERM), dict(_log.counts))
    bus.warm_up(str(tmp_path))
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= open_before
    assert (signal.getsignal(signal.SIGTERM), dict(_log.counts)) == before
    assert len(heard) == 10
    assert os.listdir(tmp_path) == []


def test_pid_1_loads_nothing_of_this_where_nobody_needs_it() -> None:
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; import stack; print(*sys.modules)"
    loaded = subprocess.run([PYTHON, "-ESB", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pid1.forks", "pid1.child", "pid1.zygote", "base.title"} & set(loaded)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("program('a', 'a', forked_by='a')", "forked_by is the service itself"),
        ("Service('a', ('sleep', '5'), forked_by='zygote')", 'argv must begin with "{PYTHON}", "-P"'),
        ("Service('a', ('{PYTHON}', '-P', '-c', 'pass'), forked_by='zygote')", "a path that ends in .py"),
        ("Service('a', ('{PYTHON}', '/a.py', 'x'), forked_by='zygote')", 'argv must begin with "{PYTHON}", "-P"'),
        ("program('a', 'a', forked_by='zygote', tty='/dev/tty1')", "forked_by cannot be together with tty"),
        ("program('a', 'a', forked_by=7)", "forked_by is a number, not text"),
        ("program('a', 'a', forked_by='zigote')", "forked_by names 'zigote', which is no service; it is executed; did you mean zygote?"),
        ("program('a', 'a', forked_by='b'), program('b', 'b', nice=5)", "nice cannot be set for a service that is another row's forked_by"),
        ("program('a', 'a', forked_by='b'), program('b', 'b', user='{name}')", "user cannot be set for a service that is"),
    ],
)  # fmt: skip
def test_what_a_row_may_not_say(tmp_path: Path, row: str, fault: str) -> None:
    board = load(tmp_path, f"SERVICES += ({row},)")
    assert [text for text in board.rejected if fault in text], board.rejected


def test_a_profile_may_leave_the_zygote_out(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES = tuple(row for row in SERVICES if row.name != 'zygote')")
    assert not board.rejected
    assert {row.forked_by for row in board.services.values()} == {""}
