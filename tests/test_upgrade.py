"""Live upgrades of a real PID 1 in namespaces: nothing is restarted, nothing is lost, and code that fails is taken back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Board, eventually
from test_init import sh

from onboard import to_pid1
from onboard.to_pid1 import SVError
from pid1 import handover, selftest
from pid1.life import Life
from pid1.process import Actions, Process
from pid1.watchdog import Device
from stack import Init
from tables.rows import Service

Boot = Callable[..., Board]
LIB = "/stack/lib/stack"
NEW = "/run/new"  # a copy of it on the board, which tests change
COPY = f"cp -a --no-preserve=ownership {LIB} {NEW} && chmod -R go-w {NEW} && {{}}; touch /tmp/copied; exec sleep 1000"
SLEEPS = "*(Service(f's{i}', ('sleep', '1000')) for i in range(3)),"
TICK = "        if self.snoozed is not None and now >= self.snoozed:"
ONLY_AS_PID_1 = "\nimport os\nif os.getpid() == 1:\n    "


def upgrade(board: Board, *, timeout: float = 60.0, **asked: Any) -> dict[str, Any]:
    with board.as_its_root() as path:
        answer: dict[str, Any] = to_pid1.ask(path, {"op": "upgrade", "seconds": 2.0, **asked}, timeout)
    return answer


def refusal(board: Board, **asked: Any) -> str:
    with pytest.raises(SVError) as caught:
        upgrade(board, **asked)
    return str(caught.value)


def compare(found: list[str], expected: list[str]) -> bool:
    assert found == expected
    return True


class Asking:
    """An upgrade that is asked for by a process of its own: whoever acts as the board's root does so with all of its threads."""

    def __init__(self, board: Board, **asked: Any) -> None:
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                answer = upgrade(board, **asked)
            except SVError as error:
                answer = {"error": str(error)}
            finally:
                os.write(writer, json.dumps(answer).encode())
                os._exit(0)
        os.close(writer)

    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(os.read(self.reader, 1 << 20))
        os.waitpid(self.pid, 0)
        os.close(self.reader)
        return found


def source(module: str) -> str:
    return (ROOT / module).read_text()


def same(board: Board) -> dict[str, Any]:
    """What an upgrade must not change."""
    keys = ("pid", "state", "restart", "exit", "ready", "status", "wanted")
    return {name: [row[key] for key in keys] for name, row in board.all_stats().items()}


def kinds(board: Board) -> list[str]:
    """What PID 1 has open, when no connection is just being closed; what stands for /dev/null until the first start of a service
    counts as that pipe."""

    def once() -> list[str]:
        files = [os.readlink(f"/proc/{board.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{board.pid}/fd")]
        time.sleep(0.02)
        return sorted(re.sub(r":\[\d+\]", "", file).replace("/dev/null", "pipe") for file in files)

    return min((once() for _ in range(5)), key=len)


def slow(condition: str) -> str:
    """The new code waits with its first turn until this is so."""
    wait = f"    open('/tmp/taken', 'w')\n    while not ({condition}): time.sleep(0.01)\n    init.catch_signals()\n"
    return source("pid1/succession.py").replace("    init.catch_signals()\n", wait)


def connect(path: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.settimeout(20)
    one.connect(path)
    return one


# --- what survives ------------------------------------------------------------------------------------------------------
def test_services_go_on_and_what_pid_1_knows_of_them_too(boot: Boot) -> None:
    notify = "import os, socket, time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    notify += "while True:\n    s.sendto(b'READY=1\\nWATCHDOG=1\\nSTATUS=beat', os.environ['NOTIFY_SOCKET']); time.sleep(0.1)"
    rows = SLEEPS + f"Service('beat', ('{{PYTHON}}', '-c', {notify!r}), ready='notify', watchdog=3.0),"
    rows += sh("talks", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done")
    rows += sh("dies", "[ -e /tmp/died ] || { touch /tmp/died; exit 3; }; exec sleep 1000")
    board = boot(rows, settings="SV_COOLDOWN = 0.1\nBACKOFF_FIRST = 0.1").up()
    board.wait_state("beat", "running")
    eventually(lambda: board.stats("dies")["restart"] == 1 and board.stats("dies")["state"] == "running")
    board.ask("run", argv=["sleep", "999"])
    before, facts, files = same(board), board.ask("board"), kinds(board)
    answer = upgrade(board)
    assert answer["code"] == LIB
    assert same(board) == before
    after = board.ask("board")
    for key in ("boot_id", "faults", "profile", "options", "rejected", "complete", "log_folder"):
        assert after[key] == facts[key], key
    assert after["uptime"] > facts["uptime"]
    assert after["log"]["info"] > facts["log"]["info"]
    assert after["boot_ms"] == facts["boot_ms"]
    assert after["loop"]["turns"] > facts["loop"]["turns"]
    assert after["loop"]["errors"] == facts["loop"]["errors"]
    # Its pipe has been the same all the time: no line is missing.
    eventually(lambda: board.log("talks").count("line ") > 100)
    numbers = [int(number) for number in re.findall(r"line (\d+)", board.log("talks"))]
    assert numbers == list(range(1, len(numbers) + 1))
    time.sleep(3.5)  # longer than its watchdog
    assert board.stats("beat")["pid"] == before["beat"][0], "its words are heard by the new PID 1"
    eventually(lambda: compare(kinds(board), files))
    board.kill("s0")
    eventually(lambda: board.stats("s0")["exit"] == "signal KILL")
    assert board.end() == 0


def test_facts_modes_and_the_timeline_go_on(boot: Boot) -> None:
    """A service that waits for its condition still waits, since then, and the new PID 1 hears of what makes it true."""
    rows = "Service('a', ('sleep', '1000'), when=lambda b: b.mode('motion') == 'moving' and b.fact('doors') == 2),"
    board = boot(rows, settings="MODES = (Mode('motion', ('idle', 'moving')),)").up()
    board.ask("fact", name="mode/motion", value="moving")
    board.ask("fact", name="doors", value=3, by="doors")
    board.wait_state("a", "unmet")
    facts, moves = board.ask("facts"), board.ask("timeline")
    assert upgrade(board)["state"] == 1
    assert [(one["name"], one["value"], one["by"]) for one in board.ask("facts")] == [
        (one["name"], one["value"], one["by"]) for one in facts
    ]
    assert board.ask("timeline")[: len(moves)] == moves
    assert board.stats("a")["state"] == "unmet"
    board.ask("fact", name="doors", value=2)
    board.wait_state("a", "running")


def test_a_service_that_dies_meanwhile_is_started_again(boot: Boot) -> None:
    """Between the last turn of the old code and the first one of the new: nobody reaps, and nothing is lost."""
    board = boot(SLEEPS, settings="BACKOFF_FIRST = 0.1").up()
    pids = {name: board.outside(row["pid"]) for name, row in board.all_stats().items()}
    dead = "len([pid for pid in children_of(1) if read_file(f'/proc/{pid}/stat').rpartition(')')[2].split()[0] == 'Z']) >= 2"
    asking = Asking(board, module="pid1/succession.py", source=slow(dead), seconds=20.0)
    with board.as_its_root() as path:
        early = connect(path)  # before, and says nothing yet
    eventually((board.root / "tmp/taken").exists, 30)
    early.send(b'{"op": "stats", "name": "s2"}')
    with board.as_its_root() as path:
        late = connect(path)
    late.send(b'{"op": "board"}')
    os.kill(pids["s0"], signal.SIGKILL)
    os.kill(pids["s1"], signal.SIGTERM)
    assert b'"ok": [{"name": "s2"' in early.recv(1 << 20), "a connection from before is answered"
    assert b'"ok": {"hostname"' in late.recv(1 << 20), "so is one from meanwhile"
    assert asking.answer()["code"]
    for name, how in (("s0", "signal KILL"), ("s1", "signal TERM")):
        row = eventually(lambda name=name: board.stats(name) if board.stats(name)["restart"] == 1 else {})  # type: ignore[misc]
        assert (row["exit"], row["restart"]) == (how, 1)
    assert not [name for name in board.processes().values() if name.startswith("<")], "no zombie"


def test_a_signal_that_comes_meanwhile_is_heard(boot: Boot) -> None:
    board = boot(SLEEPS).up()
    pending = "'ShdPnd:\\t0000000000000000' not in read_file('/proc/self/status')"
    asking = Asking(board, module="pid1/succession.py", source=slow(pending), seconds=20.0)
    eventually((board.root / "tmp/taken").exists, 30)
    os.kill(board.pid, signal.SIGTERM)
    assert board.launcher.wait(30) == 3, "a reboot"
    asking.answer()


def test_back_off_goes_on_with_its_clock(boot: Boot) -> None:
    board = boot(sh("dies", "exit 7") + SLEEPS, settings="BACKOFF_FIRST = 6.0\nBACKOFF_MAX = 6.0").up()
    row = board.wait_state("dies", "backoff")
    upgrade(board)
    after = board.stats("dies")
    assert (after["state"], after["restart"], after["exit"]) == ("backoff", row["restart"], "exit 7")
    assert after["next_restart"] < row["next_restart"]
    eventually(lambda: board.stats("dies")["restart"] == row["restart"] + 1, 10)


# --- new code that fails --------------------------------------------------------------------------------------------------
BROKEN: dict[str, tuple[str, Callable[[str], str], str]] = {
    "raises at import": ("pid1/loop.py", lambda text: text + ONLY_AS_PID_1 + "raise RuntimeError('at import')\n", "at import"),
    "raises at restore": (
        "pid1/cgroup.py",
        lambda text: text.replace("        if self._events >= 0:\n            self._loop.watch(self._events, self._fork_refused)\n\n    # --- one",
                                  "        if os.getpid() == 1:\n            raise RuntimeError('at restore')\n\n    # --- one"),
        "at restore",
    ),
    "raises in the loop": (
        "pid1/watchdog.py",
        lambda text: text.replace(TICK, "        raise RuntimeError('in the loop')\n        if True:"),
        "in the loop",
    ),
    "hangs in Python": (
        "pid1/watchdog.py",
        lambda text: text.replace(TICK, "        while True: pass\n        if True:"),
        "not healthy within 2 s",
    ),
    "hangs and catches everything": (
        "pid1/watchdog.py",
        lambda text: text.replace(
            TICK,
            "        while True:\n            try:\n                time.sleep(1)\n            except BaseException: pass\n        if True:"),
        "not healthy within 2 s",
    ),
    "hangs in C": (
        "pid1/watchdog.py",
        lambda text: text.replace(TICK, "        sum(range(10**13))\n        if True:"),
        "not healthy within 2 s",
    ),
    "hangs at import": ("pid1/loop.py", lambda text: text + ONLY_AS_PID_1 + "while True: pass\n", "not healthy within 2 s"),
    "ends": ("pid1/watchdog.py", lambda text: text.replace(TICK, "        os._exit(5)\n        if True:"), "os._exit(5)"),
    "exits": ("pid1/watchdog.py", lambda text: text.replace(TICK, "        sys.exit(5)\n        if True:"), "SystemExit: 5"),
    "dies of a fault": (
        "pid1/watchdog.py",
        lambda text: text.replace(
            TICK,
            "        from base.syscalls import libc\n        libc.strlen(8)\n        if True:"),
        f"died of signal {int(signal.SIGSEGV)}",
    ),
    "has no answer": ("pid1/requests.py", lambda text: text.replace("        match request:", "        if os.getpid() == 1: 1/0\n        match request:"), "a request has failed"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_code_that_fails_is_taken_back(boot: Boot, fault: str, record_property: Callable[[str, object], None]) -> None:
    module, change, why = BROKEN[fault]
    text = change(source(module))
    assert text != source(module)
    board = boot(SLEEPS).up()
    before, files = same(board), kinds(board)
    began = time.monotonic()
    assert why in refusal(board, module=module, source=text)
    took = time.monotonic() - began
    assert same(board) == before
    assert any(why in fault for fault in board.ask("board")["faults"])
    eventually(lambda: compare(kinds(board), files))  # no descriptor is left
    record_property(
        "figure", f"new code that {fault}: the old code answers {took:.1f} s after it was asked, the check included"
    )
    upgrade(board)  # and it can be replaced still
    assert same(board) == before
    assert board.end() == 0


def test_what_failing_code_has_done_is_known_to_the_old_one(boot: Boot) -> None:
    """It reaps a child and starts it again, and hangs in the same turn, before it has saved its state."""
    text = source("sv.py").replace("            self.bury(now)\n", "            self.bury(now)\n            self.hang = True\n")
    head, tick, tail = text.partition("    def tick(")
    hang = "        while hasattr(self, 'hang') and any(p.restarts for p in self.processes.values()): pass\n"
    text = head + tick + tail.replace("        self.settle(now)\n", f"        self.settle(now)\n{hang}", 1)
    assert text.count("self.hang = True") == text.count("hasattr(self, 'hang')") == 1
    board = boot(SLEEPS, settings="SV_COOLDOWN = 0.05\nBACKOFF_FIRST = 0.05").up()
    pid = board.outside(board.stats("s0")["pid"])
    asking = Asking(board, module="sv.py", source=text, seconds=4.0)
    eventually(lambda: "has 4 s to prove itself" in board.log(), 30)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    assert "not healthy within 4 s" in asking.answer()["error"]
    row = eventually(lambda: board.stats("s0") if board.stats("s0")["state"] == "running" else {})
    assert len([words for words in board.processes().values() if words == "sleep 1000"]) == 3, "none twice"
    board.kill("s0")
    eventually(lambda: board.stats("s0")["restart"] > row["restart"])


# --- what is refused before -----------------------------------------------------------------------------------------------
def changed_copy(boot: Boot, command: str, **options: Any) -> Board:
    board = boot(SLEEPS + sh("copy", COPY.format(command)), **options).up()
    eventually((board.root / "tmp/copied").exists, 20)
    return board


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (f"echo 'def (' >> {NEW}/pid1/loop.py", "SyntaxError"),
        (f"echo 'def (' >> {NEW}/services/hotplug.py", "SyntaxError"),
        (f"echo 'SERVICES = 5' >> {NEW}/settings.py", "its tables do not validate: SERVICES"),
        (f"sed -i 's/min(2 \\* self.delay/min(3 * self.delay/' {NEW}/pid1/process.py", "self-test: a service that has died"),
        (f"sed -i 's/^VERSION = 1/VERSION = 3/' {NEW}/pid1/handover.py", "the state has version 1; this code reads 3 to 3"),
        (f"rm {NEW}/pid1/guard.py {NEW}/base/bundle.py", "base/bundle.py: No such file or directory"),
        (f"chmod o+w {NEW}/pid1", "can be changed by others than root"),
        (f"echo 'while True: pass' >> {NEW}/_log.py; sed -i 's/^/#/' /dev/null", "the check took more than 3 s"),
    ],
    ids=["syntax", "syntax of a service", "table", "self-test", "format", "no modules", "writable", "hangs"],
)
def test_code_that_cannot_be_pid_1_is_not_tried(boot: Boot, command: str, why: str) -> None:
    if "took more" in why:
        command += "; touch /run/short"
    board = changed_copy(boot, command)
    if "took more" in why:  # the running code's own patience, by a patch
        upgrade(board, module="pid1/upgrade.py", source=source("pid1/upgrade.py").replace("CHECK = 60.0", "CHECK = 3.0"))
    before = same(board)
    assert why in refusal(board, path=NEW)
    assert same(board) == before
    assert "prove itself" not in board.log() or "took more" in why


def test_who_may_and_what_is_asked(boot: Boot) -> None:
    board = boot(SLEEPS).up()
    assert "is no such folder" in refusal(board, path="/nowhere") or "No such file" in refusal(board, path="/nowhere")
    assert "absolute path" in refusal(board, path="here")
    assert "to prove itself" in refusal(board, seconds=0)
    assert "PID 1 does not have" in refusal(board, module="json", source="x = 1\n")
    assert "source is empty" in refusal(board, module="sv.py")
    with pytest.raises(SVError, match="only root may upgrade the board"):
        to_pid1.ask(str(board.root / "run/stack/control"), {"op": "upgrade"})
    assert board.end() == 0


# --- other code -----------------------------------------------------------------------------------------------------------
def test_a_folder_is_taken_with_its_changes_and_the_next_one_from_there(boot: Boot) -> None:
    board = changed_copy(
        boot, f'echo "EDITED = 1" >> {NEW}/pid1/loop.py; sed -i \'s/"uptime"/"up_time"/\' {NEW}/pid1/requests.py'
    )
    before = same(board)
    assert upgrade(board, path=NEW)["code"] == NEW
    assert "up_time" in board.ask("board")
    assert same(board) == before
    assert upgrade(board, path=LIB)["code"] == LIB
    assert "uptime" in board.ask("board")
    assert same(board) == before
    assert board.end() == 0


def test_files_that_were_replaced_in_place(boot: Boot) -> None:
    """`make install` over the files that PID 1 came from: the old code comes back from its open bundle all the same."""
    board = boot(
        SLEEPS
        + sh(
            "copy",
            COPY.format(
                f"echo 'import os\nif os.getpid() == 1: raise RuntimeError(5)' >> {NEW}/pid1/loop.py; rm {NEW}/pid1.bundle"
            ),
        )
    ).up()
    eventually((board.root / "tmp/copied").exists, 20)
    assert "RuntimeError: 5" in refusal(board, path=NEW)
    assert board.all_stats()["s0"]["state"] == "running"
    assert board.end() == 0


def test_a_patch_is_tried_and_kept_until_the_next_boot(boot: Boot) -> None:
    text = source("pid1/requests.py").replace('"hostname": os.uname().nodename', '"hostname": "patched"')
    board = boot(SLEEPS).up()
    assert (
        upgrade(board, module="pid1/requests.py", source=text)["code"] == "pid1.requests of /run/stack/patch/pid1/requests.py"
    )
    assert board.ask("board")["hostname"] == "patched"
    folder = board.root / "run/stack/patch"
    assert folder.stat().st_mode & 0o777 == 0o700
    more = source("sv.py").replace("ENDED_COMMANDS = 20", "ENDED_COMMANDS = 21")
    upgrade(board, module="sv.py", source=more)
    assert board.ask("board")["hostname"] == "patched", "patches add up"
    upgrade(board)
    assert board.ask("board")["hostname"] != "patched", "without a module it is the installed code again"


def next_version() -> str:
    """pid1/handover.py with a version 2 of the format, in which the loop's figures stand somewhere else."""
    text = source("pid1/handover.py").replace("VERSION = 1\n", "VERSION = 2\n")
    steps = (
        "def up(document):\n    document['loops'] = document['parts'].pop('loop')\n    return document\n"
        "def down(document):\n    document['parts']['loop'] = document.pop('loops')\n    return document\n"
        "STEPS = {2: (up, down)}\n"
    )
    text = text.replace("STEPS: dict[int, Step] = {}", steps)
    text = text.replace(
        "    take_tables(init.tables, document)\n", "    down(document)\n    take_tables(init.tables, document)\n"
    )
    return text.replace(
        "        for step in range(VERSION, version, -1):",
        "        up(document)\n        for step in range(VERSION, version, -1):",
    )


@pytest.mark.parametrize("fault", ["", "while True: pass", "raise RuntimeError(5)"])
def test_one_version_of_the_state_to_the_next_and_back(boot: Boot, fault: str) -> None:
    """The new code has format 2 and reads 1; the old one reads 1 alone. While it is on trial the new code writes 1."""
    files = {"handover.py": next_version(), "watchdog.py": source("pid1/watchdog.py").replace(
        TICK, f"        seen = vars(self.life.loop)\n        seen['n'] = seen.get('n', 0) + 1\n        if seen['n'] > 1:\n            {fault}\n{TICK}" if fault else TICK)}  # fmt: skip
    board = changed_copy(boot, f"cp /test/*.py {NEW}/pid1", files=files)
    before, turns = same(board), board.ask("board")["loop"]["turns"]
    if fault:
        assert ("not healthy" if "while" in fault else "RuntimeError: 5") in refusal(board, path=NEW)
    else:
        assert upgrade(board, path=NEW)["state"] == 2
        assert same(board) == before
        assert board.ask("board")["loop"]["turns"] > turns
        assert upgrade(board, path=LIB)["state"] == 1, "and back to the older code"
    assert same(board) == before
    assert board.ask("board")["loop"]["turns"] > turns


# --- pure -----------------------------------------------------------------------------------------------------------------
def test_every_attribute_of_every_part_is_handed_over_or_made_anew() -> None:
    """Whoever gives a part of PID 1 another attribute says in pid1/handover.py what becomes of it in an upgrade."""
    init = Init([])
    init.control = None
    for name, part in {**handover.parts(init), "tables": init.tables}.items():
        known = {word for row in (handover.HANDED, handover.ANEW) for word, _ in handover.words(row.get(name, ""))}
        assert set(vars(part)) == known, name
    init.loop._epoll.close()


def test_all_of_a_process_is_plain() -> None:
    process = Process(Service("one", ("true",)), Actions(), Life([]).tables.delays())
    for name, value in vars(process).items():
        if name not in handover.ANEW["process"].split():
            handover.Packer().pack(value)


def test_the_watchdogs_device_is_no_row_of_the_table() -> None:
    """Both classes are called Device."""
    device = Device.__new__(Device)
    device.fd = 7
    packer = handover.Packer()
    assert packer.pack(device) == {"device": 7}
    packer.hold(device)
    assert packer.fds == {7}


def test_what_cannot_be_handed_over_is_an_error() -> None:
    with pytest.raises(TypeError):
        handover.Packer().pack(object())


def test_a_state_that_was_half_written_is_none(tmp_path: Path) -> None:
    fd = os.memfd_create("state")
    try:
        handover.store(fd, 0, 1, "first")
        handover.store(fd, 1, 2, "second")
        assert handover.stored(fd) == ["second", "first"]
        os.pwrite(fd, bytes(16), handover.SLOT)  # what `store` does first
        assert handover.stored(fd) == ["first"]
    finally:
        os.close(fd)


def test_the_self_test_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.run()
    monkeypatch.setattr(Process, "dies_young", None)
    monkeypatch.setattr(Process, "_restarts", lambda self, code: False)
    with pytest.raises(selftest.Wrong):
        selftest.run()
