"""A fleet in five minutes: `make demo`, a board in namespaces with a mothership outside, and `make mothership`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MOSQUITTO, NO_NAMESPACES, PYTHON, ROOT, eventually

needs_boards = pytest.mark.skipif(bool(NO_NAMESPACES) or MOSQUITTO is None, reason=NO_NAMESPACES or "no mosquitto here")


def mine(mark: str) -> dict[int, str]:
    """Pid and command line of each process that was started with this text in its environment, or in its command line."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = Path(f"/proc/{entry}")
            words = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if mark in words or mark.encode() in folder.joinpath("environ").read_bytes():
                found[int(entry)] = words
    return found


def family(pid: int) -> set[tuple[int, int]]:
    """Pid and time of start of a process and all below it: what runs on a board has no environment of ours."""
    below: dict[int, list[tuple[int, int]]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            below.setdefault(int(fields[1]), []).append((int(entry), int(fields[19])))
    found, waiting = set[tuple[int, int]](), [pid]
    while waiting:
        for one in below.get(waiting.pop(), []):
            found.add(one)
            waiting.append(one[0])
    return found


def alive(processes: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of them that still run: a pid alone may be somebody else's by now."""
    left = set()
    for pid, begin in processes:
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) == begin:
                left.add((pid, begin))
    return left


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """lab/demo.py with files in this folder; all that it starts can be told by a variable of its environment."""
    argv = [PYTHON, str(ROOT / "lab/demo.py"), "--folder", str(folder), *words]
    environment = {name: text for name, text in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            env={**environment, "DEMO_OF_THIS_TEST": str(folder)})  # fmt: skip


def observations(folder: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(f"file:{folder}/mothership.db?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT board, count(*) FROM record WHERE kind = 'wifi' GROUP BY board").fetchall())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The demo's; whatever a test did, its processes are gone after it."""
    yield tmp_path / "demo"
    for pid in mine(str(tmp_path / "demo")):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@needs_boards
@pytest.mark.timeout(150)
def test_three_boards_reach_the_database_and_the_map_and_nothing_remains(folder: Path) -> None:
    demo = started(folder, "--seconds", "25")
    eventually(lambda: len(observations(folder)) == 3, 24)
    processes = family(demo.pid)
    assert len(processes) > 30, "broker, receiver, and three boards with their services"
    said = demo.communicate(timeout=120)[0]
    assert demo.returncode == 0, said
    assert sorted(observations(folder)) == ["board1", "board2", "board3"]
    assert f"file://{folder}/map.html" in said
    assert "3 boards" in said
    page = (folder / "map.html").read_text()
    assert all(f'"name":"board{number}"' in page for number in (1, 2, 3))
    assert (mine(str(folder)), alive(processes)) == ({}, set())


@needs_boards
@pytest.mark.timeout(150)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_ended_at_any_time(folder: Path, number: int) -> None:
    demo = started(folder, "--boards", "1")
    eventually(lambda: [words for words in mine(str(folder)).values() if "launcher.py" in words], 20)
    demo.send_signal(number)
    said = demo.communicate(timeout=100)[0]
    assert "Traceback" not in said
    assert mine(str(folder)) == {}


@needs_boards
@pytest.mark.timeout(150)
def test_its_children_do_not_survive_it(folder: Path) -> None:
    demo = started(folder, "--boards", "1")
    eventually(lambda: observations(folder), 30)
    processes = family(demo.pid)
    demo.kill()
    demo.wait()
    eventually(lambda: not mine(str(folder)) and not alive(processes), 60)


@needs_boards
@pytest.mark.timeout(150)
def test_a_broker_that_ends_is_said_and_ends_the_demo(folder: Path) -> None:
    demo = started(folder, "--boards", "1")
    broker = eventually(
        lambda: [pid for pid, words in mine(str(folder)).items() if "mosquitto.conf" in words and "demo" in words], 20
    )
    eventually(lambda: [words for words in mine(str(folder)).values() if "launcher.py" in words], 20)
    os.kill(broker[0], signal.SIGKILL)
    said = demo.communicate(timeout=100)[0]
    assert demo.returncode == 1
    assert "demo: broker has ended" in said
    assert mine(str(folder)) == {}


@pytest.mark.parametrize("text", ["", "1883", "host:", "host:0", "host:70000", "host:x"])
def test_an_address_that_is_none_is_refused_with_an_example(text: str) -> None:
    argv = [PYTHON, str(ROOT / "laptop/launcher.py"), "--mothership", text, "--seconds", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert "localhost:1883" in done.stderr


def test_a_name_without_a_mothership_is_refused() -> None:
    done = subprocess.run(
        [PYTHON, str(ROOT / "laptop/launcher.py"), "--name", "b1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "say --mothership too" in done.stderr) == (2, True)


def test_the_mothership_has_an_environment_of_its_own(tmp_path: Path) -> None:
    """`make mothership` on a fresh clone, where another pip is not allowed: into its own venv, and nothing else is made."""
    for name in ("Makefile", "setup.sh", "mothership", "requirements.txt", "requirements-mothership.txt"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    (tmp_path / "requirements.txt").write_text("")  # nothing that would be downloaded
    (tmp_path / "requirements-mothership.txt").write_text("-r requirements.txt\n")
    first = subprocess.run(["make", "-C", str(tmp_path), "mothership"], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "build/mothership/bin/python mothership receive HOST:PORT DATABASE" in first.stdout
    assert "installing requirements-mothership.txt" in first.stdout
    assert not (tmp_path / ".venv").exists()
    began = time.monotonic()
    second = subprocess.run(["make", "-C", str(tmp_path), "mothership"], capture_output=True, text=True, check=True)
    assert "installing" not in second.stdout, f"once is enough ({time.monotonic() - began:.1f} s)"
    python = tmp_path / "build/mothership/bin/python"
    where = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True).stdout
    assert where.strip() == str(tmp_path / "build/mothership")
