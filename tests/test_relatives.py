"""Whom a signal to a service reaches: real processes, without control groups; test_cgroup.py has those with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from conftest import Board, eventually
from test_process import World

from pid1.cgroup import Cgroups
from pid1.loop import Loop
from pid1.process import Process
from pid1.relatives import Relatives, children_of, descendants
from tables.accounts import ROOT
from tables.load import load
from tables.rows import Service

FAMILY = """
import os, subprocess, sys
one = subprocess.Popen(["sleep", "1000"], start_new_session=True)
two = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE)
print(one.pid, two.pid, two.stdout.readline().decode().strip(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A main process with a child in a session of its own, another child, and its grandchild."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    main = subprocess.Popen([sys.executable, "-c", FAMILY], start_new_session=True, text=True, **pipes)  # type: ignore[call-overload]
    members = [int(word) for word in main.stdout.readline().split()]
    yield main, members
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    main.kill()
    main.wait()


def relatives_of(main: subprocess.Popen[str], **columns: str) -> tuple[Relatives, Process]:
    relatives = Relatives(Cgroups(Loop()), Loop())
    process = Process(Service("one", ("x",), **columns), World(), load({}).delays())  # type: ignore[arg-type]
    process.pid = main.pid
    relatives.born(process, main.pid)
    return relatives, process


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_descendants(family: tuple[subprocess.Popen[str], list[int]]) -> None:
    main, (session, child, grandchild) = family
    assert set(children_of(main.pid)) == {session, child}
    assert set(descendants(main.pid)) == {session, child, grandchild}
    assert children_of(2**22 + 1) == []


def test_a_child_in_a_session_of_its_own_is_asked_too(family: tuple[subprocess.Popen[str], list[int]]) -> None:
    main, members = family
    relatives, process = relatives_of(main)
    relatives.kill(process, signal.SIGTERM)
    assert main.wait(10) == -signal.SIGTERM
    assert eventually(lambda: all(map(gone, members)))


def test_mixed_asks_the_main_process_alone(family: tuple[subprocess.Popen[str], list[int]]) -> None:
    main, members = family
    relatives, process = relatives_of(main, kill="mixed")
    relatives.kill(process, signal.SIGTERM)
    assert main.wait(10) == -signal.SIGTERM
    assert not any(map(gone, members))
    assert relatives.linger(process)
    process.pid = None
    relatives.kill(process, signal.SIGKILL)
    assert eventually(lambda: gone(members[1]) and gone(members[2])), "its process group"


def test_an_orphans_death_is_nobodys() -> None:
    """Every death of the board comes here: it must not raise."""
    relatives = Relatives(Cgroups(Loop()), Loop())
    assert relatives.owner(4321) is None
    relatives.reaped(4321)


def test_a_death_is_its_services_until_it_is_dealt_with() -> None:
    relatives = Relatives(Cgroups(Loop()), Loop())
    process = Process(Service("one", ("x",)), World(), load({}).delays())
    process.pid = 4321
    relatives.born(process, 4321)
    assert relatives.owner(4321) is process
    assert relatives.owner(4321) is process, "asked again, after our own code has failed on it"
    process.pid = None
    relatives.reaped(4321)
    assert relatives.owner(4321) is None


def turn(loop: Loop) -> None:
    loop.timers.append((lambda: 0.0, lambda now: None))
    loop.turn()
    loop.timers.pop()


def service_of(main: subprocess.Popen[str]) -> tuple[Loop, Relatives, Process]:
    """A service whose main process this is, as PID 1 knows it."""
    loop = Loop()
    relatives = Relatives(Cgroups(loop), loop)
    process = Process(Service("one", ("x",)), World(), load({}).delays())
    process.pid = main.pid
    relatives.born(process, main.pid)
    return loop, relatives, process


def test_the_death_of_a_main_process_that_is_not_our_child_is_noticed(
    family: tuple[subprocess.Popen[str], list[int]],
) -> None:
    main, (session, _, _) = family
    loop, relatives, process = service_of(main)
    died: list[int] = []
    relatives.adopt(process, str(session), ROOT._replace(uid=os.getuid()), lambda process, pid, now: died.append(pid))
    assert process.pid == session
    assert relatives.owner(main.pid) is None, "its end is not the service's"
    turn(loop)
    assert died == []
    assert relatives.signal_main(process, signal.SIGKILL)
    eventually(lambda: gone(session))
    turn(loop)
    assert died == [session]
    relatives.reaped(session)
    assert relatives.pidfds == {}


def test_a_process_of_another_service_is_no_main_process(family: tuple[subprocess.Popen[str], list[int]]) -> None:
    """Root's services may all name each other's processes, and so may those of one user: a stop would end a stranger."""
    main, (session, _, _) = family
    _, relatives, process = service_of(main)
    relatives.groups["two"] = {os.getpgid(session)}
    relatives.adopt(process, str(session), ROOT._replace(uid=os.getuid()), lambda *_: None)
    assert (process.pid, relatives.pidfds, relatives.groups["one"]) == (main.pid, {}, {main.pid})


@pytest.mark.parametrize("main", ["1", "0", "-1", "x", "", "9" * 12, "4194303"])
def test_a_main_process_that_is_none(main: str) -> None:
    relatives, process = relatives_of(subprocess.Popen(["true"], text=True))
    before = process.pid
    count = len(os.listdir("/proc/self/fd"))
    relatives.adopt(process, main, ROOT, lambda *_: None)
    assert process.pid == before
    assert len(os.listdir("/proc/self/fd")) == count


ALIEN = """
import os, socket, subprocess, sys, time
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
main = subprocess.Popen(["sleep", "1000"])
sender.sendto(f"MAINPID={main.pid}\\nREADY=1".encode(), os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""


def test_a_main_process_with_another_parent_is_restarted_when_it_dies(boot: Callable[..., Board]) -> None:
    """Its parent lives and does not reap it, so that nobody but its pidfd says that it is dead."""
    board = boot("Service('a', ('python3', '/test/alien.py'), ready='notify'),", files={"alien.py": ALIEN}).up()
    board.wait_state("a", "running")
    assert board.processes()[board.stats("a")["pid"]] == "sleep 1000"
    board.kill("a")
    row = eventually(lambda: (row := board.stats("a"))["restart"] == 1 and row["ready"] and row)
    assert row["exit"] == "ECHILD ended, and only its parent knows how"
    assert sum("alien" in words for words in board.processes().values()) == 1, "the old parent has gone with it"


def test_both_on_a_board(boot: Callable[..., Board]) -> None:
    said = "trap 'echo asked >>/tmp/{0}; exit' TERM; echo up; while :; do sleep 0.05; done"
    inner = said.format("child")
    script = f"setsid sh -c {inner!r} & echo main; wait"
    rows = f"Service('all', ('sh', '-c', {script!r}), stop_timeout=8.0),"
    inner = said.format("left")
    script = f"setsid sh -c {inner!r} & trap exit TERM; while :; do sleep 0.05; done"
    rows += f"Service('mixed', ('sh', '-c', {script!r}), stop_timeout=8.0, kill='mixed'),"
    board = boot(rows).up()
    for name in ("all", "mixed"):
        eventually(lambda name=name: "up" in board.log(name))  # type: ignore[misc]
        board.ask("stop", name=name)
        board.wait_state(name, "stopped", seconds=5)
    assert (board.root / "tmp/child").read_text() == "asked\n"
    assert not (board.root / "tmp/left").exists()
    eventually(lambda: not [words for words in board.processes().values() if "trap" in words])
