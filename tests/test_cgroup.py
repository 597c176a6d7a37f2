"""Control groups: what is written where, who is killed, what a row may say; and boards that have none."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Board, eventually

import _log
from onboard.cgroup_files import figures
from pid1.cgroup import Cgroups
from pid1.loop import Loop
from pid1.process import Actions, Process
from pid1.relatives import Relatives
from pid1.spawn import Spawner
from tables.accounts import ROOT
from tables.load import load
from tables.rows import Service
from tables.values import memory_bytes

ROW = Service("one", ("true",), memory_max="64M", pids_max=20, cpu_weight=50)
FILES = {
    "cgroup.procs": "", "cgroup.events": "populated 0\nfrozen 0\n", "cgroup.kill": "", "memory.max": "max\n",
    "memory.oom.group": "0\n", "memory.events": "low 0\noom 0\noom_kill 0\noom_group_kill 0\n", "memory.current": "4096\n",
    "pids.max": "max\n", "pids.events": "max 0\n", "pids.current": "3\n", "cpu.weight": "100\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "memory.pressure": "some avg10=1.25 avg60=0.00 avg300=0.00 total=7\n",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that looks like the kernel's, with a group for "one"."""
    (tmp_path / "one").mkdir()
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    for name, text in FILES.items():
        (tmp_path / "one" / name).write_text(text)
    return tmp_path


@pytest.fixture
def cgroups(root: Path) -> Cgroups:
    groups = Cgroups(Loop())
    groups.open(str(root))
    return groups


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(_log, "warning", said.append)
    return said


def says(group: Path, name: str) -> str:
    """What was written over the file's old content: the kernel takes a write as a whole, a file keeps the rest."""
    return (group / name).read_text()


def test_each_controller_is_enabled_on_its_own(root: Path, warnings: list[str]) -> None:
    (root / "cgroup.controllers").write_text("cpu pids\n")
    groups = Cgroups(Loop())
    groups.open(str(root))
    assert groups.controllers == ["pids", "cpu"]
    (warning,) = warnings
    assert "cgroup_enable=memory" in warning
    assert groups.prepare(ROW) == str(root / "one")
    assert says(root / "one", "memory.max") == "max\n", "the file of a controller that is off is left alone"
    assert says(root / "one", "pids.max").startswith("20")


def test_limits_are_written_before_the_start_and_only_what_changed(root: Path, cgroups: Cgroups) -> None:
    assert cgroups.prepare(ROW) == str(root / "one")
    values = {name: says(root / "one", name) for name in ("memory.max", "memory.oom.group", "pids.max", "cpu.weight")}
    assert values == {"memory.max": str(64 << 20), "memory.oom.group": "1\n", "pids.max": "20x\n", "cpu.weight": "500\n"}
    for name in values:
        (root / "one" / name).unlink()  # to write there again would fail
    assert cgroups.prepare(ROW)
    (root / "one/pids.max").write_text("")
    assert cgroups.prepare(ROW._replace(pids_max=0, kill="all"))
    assert says(root / "one", "pids.max") == "max"


def test_some_limits_change_while_a_service_runs(root: Path, cgroups: Cgroups) -> None:
    changed = ROW._replace(pids_max=7, cpu_weight=70)
    assert not cgroups.adjust(changed), "it has no group yet"
    cgroups.prepare(ROW)
    for name in ("pids.max", "cpu.weight", "memory.max"):
        (root / "one" / name).write_text("")
    assert cgroups.adjust(changed)
    assert (says(root / "one", "pids.max"), says(root / "one", "cpu.weight")) == ("7", "70")
    (root / "one/pids.max").unlink()
    assert not cgroups.adjust(changed._replace(pids_max=8)), "the kernel refuses"
    assert says(root / "one", "memory.max") == ""


def test_without_control_groups_nothing_is_asked_of_the_kernel(tmp_path: Path) -> None:
    groups = Cgroups(Loop())
    assert (groups.prepare(ROW), groups.folder("one"), groups.cause(ROW)) == ("", "", "")
    assert groups.adjust(ROW), "no limits are in force, as before"
    groups.forget("one")
    with pytest.raises(FileNotFoundError):
        groups.open(str(tmp_path))
    assert groups.prepare(ROW) == ""


def test_a_group_that_cannot_be_had_does_not_keep_a_service_from_starting(
    root: Path, cgroups: Cgroups, warnings: list[str]
) -> None:
    (root / "file").write_text("")
    assert cgroups.prepare(ROW._replace(name="file")) == ""
    assert cgroups.folder("file") == ""
    assert "runs without a control group" in warnings[0]


def test_the_exit_text_says_which_limit_was_met_in_this_life(root: Path, cgroups: Cgroups) -> None:
    (root / "one/memory.events").write_text("oom_kill 3\n")
    cgroups.prepare(ROW)
    assert cgroups.cause(ROW) == "", "three kills of earlier lives"
    (root / "one/memory.events").write_text("oom_kill 4\n")
    assert cgroups.cause(ROW) == ", out of memory (memory_max 64M)"
    assert cgroups.cause(ROW._replace(memory_max=0)) == ", out of memory"
    cgroups.prepare(ROW)
    (root / "one/pids.events").write_text("max 1\n")
    assert cgroups.cause(ROW) == ", out of processes (pids_max 20)"


def test_a_refused_fork_ends_the_whole_service(root: Path) -> None:
    loop = Loop()
    groups = Cgroups(loop)
    groups.open(str(root))
    groups.prepare(ROW)
    (root / "one/pids.events").write_text("max 0\n")
    loop.turn()
    assert says(root / "one", "cgroup.kill") == "", "the file was written, but says the same"
    (root / "one/pids.events").write_text("max 9\n")
    loop.turn()
    assert says(root / "one", "cgroup.kill") == "1"
    assert loop.errors == 0


def test_what_has_gone_is_forgotten(root: Path) -> None:
    loop = Loop()
    groups = Cgroups(loop)
    groups.open(str(root))
    groups.prepare(ROW)
    for _ in range(2):
        groups.forget("one")
        assert groups.folder("one") == ""
    (root / "one/pids.events").write_text("max 9\n")
    loop.turn()
    assert says(root / "one", "cgroup.kill") == ""


def test_pid_1_is_nobodys(root: Path, cgroups: Cgroups) -> None:
    (root / "one/cgroup.procs").write_text("0\n1\n77\n")
    assert cgroups.pids("one") == [77]


def test_before_linux_5_14_processes_are_killed_one_by_one(root: Path, cgroups: Cgroups) -> None:
    (root / "one/cgroup.kill").unlink()
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    (root / "one/cgroup.procs").write_text("".join(f"{child.pid}\n" for child in children))
    cgroups.kill("one")
    assert [child.wait(10) for child in children] == [-signal.SIGKILL] * 3


@pytest.mark.parametrize(
    ("size", "number"), [(0, 0), (4096, 4096), ("4096", 4096), ("64M", 64 << 20), ("2G", 2 << 30), ("8K", 8192)]
)
def test_sizes(size: int | str, number: int) -> None:
    assert memory_bytes(size) == number


def test_a_share_of_the_boards_memory() -> None:
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert abs(memory_bytes("50%") / total - 0.5) < 0.01


@pytest.mark.parametrize("size", ["", "M", "64m", "-1", -1, "1.5G", "64 M", "²", None, True])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        memory_bytes(size)


def test_figures_have_the_same_keys_everywhere(root: Path) -> None:
    here = figures(str(root / "one"))
    assert here == {
        "memory_current": 4096, "memory_peak": None, "memory_pressure": 1.25, "pids_current": 3, "cpu_usage": 2.5,
    }  # fmt: skip
    assert figures(None) == dict.fromkeys(here)


# --- whose processes ---------------------------------------------------------------------------------------------------
class Nothing(Actions):
    """A process that is only looked at."""


def make(row: Service, relatives: Relatives) -> tuple[Process, subprocess.Popen[bytes]]:
    process = Process(row, Nothing(), load({}).delays())
    main = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    process.pid = main.pid
    relatives.born(process, main.pid)
    return process, main


def test_a_stop_reaches_what_left_its_process_group(root: Path, cgroups: Cgroups) -> None:
    cgroups.prepare(ROW)
    relatives = Relatives(cgroups)
    process, main = make(ROW, relatives)
    escaped = subprocess.Popen(["sleep", "1000"], start_new_session=True, env={})
    (root / "one/cgroup.procs").write_text(f"{main.pid}\n{escaped.pid}\n")
    relatives.kill(process, signal.SIGTERM)
    assert (main.wait(10), escaped.wait(10)) == (-signal.SIGTERM, -signal.SIGTERM)

    process.pid = None
    (root / "one/cgroup.procs").write_text("")
    assert not relatives.linger(process)
    (root / "one/cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert relatives.linger(process)
    relatives.kill(process, signal.SIGKILL)
    assert says(root / "one", "cgroup.kill") == "1"


def test_where_only_the_main_process_is_stopped_the_others_go_on(root: Path, cgroups: Cgroups) -> None:
    row = ROW._replace(kill="main")
    cgroups.prepare(row)
    assert says(root / "one", "memory.oom.group").startswith("0"), "want of memory ends one session, not all"
    relatives = Relatives(cgroups)
    process, main = make(row, relatives)
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as session:
        (root / "one/cgroup.procs").write_text(f"{main.pid}\n{session.pid}\n")
        (root / "one/cgroup.events").write_text("populated 1\nfrozen 0\n")
        relatives.kill(process, signal.SIGKILL)
        assert main.wait(10) == -signal.SIGKILL
        process.pid = None
        assert not relatives.linger(process)
        assert session.poll() is None
        assert says(root / "one", "cgroup.kill") == ""
        session.kill()


def test_a_child_joins_by_itself_and_starts_even_if_it_cannot(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    reader, writer = os.pipe()
    spawner = Spawner({"PATH": os.environ["PATH"]})
    for folder in (tmp_path, tmp_path / "none"):
        pid = spawner.spawn(Service("one", ("true",)), ROOT, {}, writer, cgroup=str(folder))
        assert os.waitpid(pid, 0)[1] == 0
    os.close(writer)
    with open(reader) as file:
        assert file.read() == "", "the service's own log has its own words alone"
    spawner.hear()
    assert warnings == ["one: starts without its control group and its limits, No such file or directory"]
    assert (tmp_path / "cgroup.procs").read_text() == "0"


def test_a_group_that_its_service_has_divided_is_made_whole_for_its_next_life(root: Path, cgroups: Cgroups) -> None:
    cgroups.prepare(ROW)
    (root / "one/inner/leaf").mkdir(parents=True)
    (root / "one/cgroup.subtree_control").write_text("memory pids\n")
    (root / "one/cgroup.max.descendants").write_text("")
    assert cgroups.prepare(ROW) == str(root / "one")
    assert not (root / "one/inner").exists()
    assert says(root / "one", "cgroup.subtree_control").startswith("-memory -pids")


def test_one_that_stays_divided_is_said_and_keeps_nobody_from_starting(
    root: Path, cgroups: Cgroups, warnings: list[str]
) -> None:
    cgroups.prepare(ROW)
    (root / "one/inner").mkdir()
    (root / "one/inner/cgroup.procs").write_text("77\n")  # a file, so that rmdir(2) refuses
    assert cgroups.prepare(ROW) == str(root / "one")
    assert "its control group stays divided" in warnings[0]


def test_processes_in_groups_of_a_services_own_are_its_own(root: Path, cgroups: Cgroups) -> None:
    cgroups.prepare(ROW)
    (root / "one/inner/leaf").mkdir(parents=True)
    (root / "one/cgroup.procs").write_text("0\n1\n20\n")
    (root / "one/inner/cgroup.procs").write_text("30\n")
    (root / "one/inner/leaf/cgroup.procs").write_text("40\n")
    assert sorted(cgroups.pids("one")) == [20, 30, 40]


HIERARCHY = next((line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2"), "")


@pytest.mark.skipif(
    not HIERARCHY or not os.access(HIERARCHY, os.W_OK), reason="no control groups of version 2 to write to here"
)
def test_what_a_service_leaves_in_groups_of_its_own_is_reached_and_removed() -> None:
    """The real kernel."""
    root = Path(HIERARCHY) / f"stack-test-{os.getpid()}"
    root.mkdir()
    groups = Cgroups(Loop())
    groups.root = str(root)
    escaped = None
    try:
        assert groups.prepare(ROW) == str(root / "one")
        (root / "one/inner/leaf").mkdir(parents=True)
        escaped = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (root / "one/inner/leaf/cgroup.procs").write_text(str(escaped.pid))
        assert groups.pids("one") == [escaped.pid]
        assert groups.populated("one")
        groups.kill("one")
        assert escaped.wait(10) == -signal.SIGKILL
        eventually(lambda: not groups.populated("one"))
        groups.prepare(ROW)
        assert [entry.name for entry in (root / "one").iterdir() if entry.is_dir()] == []
        groups.forget("one")
        assert not (root / "one").exists()
    finally:
        if escaped and escaped.poll() is None:
            escaped.kill()
            escaped.wait()
        for folder in (*sorted(root.rglob("*"), reverse=True), root):
            if folder.is_dir():
                folder.rmdir()


def test_a_board_without_control_groups(boot: Callable[..., Board]) -> None:
    """Namespaces on a laptop: limits have no effect, and nothing complains."""
    board = boot("Service('s', ('sleep', '1000'), memory_max='32M', pids_max=9, cpu_weight=9),").up()
    row = board.wait_state("s", "running")
    assert row["cgroup"] is None
    assert board.ask("board")["log"]["warning"] == 0
    board.ask("stop", name="s")
    assert eventually(lambda: board.wait_state("s", "stopped"))["exit"] == "signal TERM"
