"""Edit and try on a laptop: a saved file reaches the running board, a second terminal enters it, names may have spaces."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import EMULATED, NO_NAMESPACES, PATIENCE, PYTHON, ROOT, eventually
from test_board import Terminal

from laptop import running
from laptop.live import Live

pytestmark = [pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES), pytest.mark.timeout(180)]
HELLO = """import time
print("hello from {0}", flush=True)
time.sleep(1000)
"""


def test_a_saved_file_replaces_the_installed_one(tmp_path: Path) -> None:
    project, library = tmp_path / "a project", tmp_path / "root/lib/stack"
    for folder in (project / "base", library / "base/__pycache__", library / "names"):
        folder.mkdir(parents=True)
    (library / "base/files.py").write_text("old")
    (library / "base/__pycache__/files.cpython-311.pyc").write_bytes(b"old")
    (library / "base/__pycache__/files_too.cpython-311.pyc").write_bytes(b"another's")
    live = Live(str(project), str(tmp_path / "root"), "")
    (project / "base/files.py").write_text("new")
    (project / "hello.py").write_text("an app")
    (project / ".hello.py.swp").write_text("an editor's")
    (project / "notes.txt").write_text("nothing to the board")
    (project / "renamed").write_text("by an editor that is careful")
    (project / "renamed").rename(project / "careful.py")

    def arrived() -> bool:
        live.changed()
        return (library / "careful.py").exists()

    eventually(arrived)
    assert (library / "base/files.py").read_text() == "new"
    assert (library / "hello.py").read_text() == "an app"
    assert [path.name for path in (library / "base/__pycache__").iterdir()] == ["files_too.cpython-311.pyc"]
    assert {path.name for path in library.iterdir()} == {"base", "names", "hello.py", "careful.py"}
    os.close(live.fd)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A copy of this tree in a folder with a space, installed for `make run`."""
    folder = tmp_path / "my project"
    (folder / "build").mkdir(parents=True)
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if not name.startswith(("tests/", "bench/", "buildroot/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    for stamp in (ROOT / "build").glob("*.stamp"):
        shutil.copy(stamp, folder / "build")
    yield folder


def make(folder: Path, *words: str, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds * PATIENCE, check=False
    )  # fmt: skip


def test_profiles_in_the_projects_folder(project: Path) -> None:
    """A name with a space, a folder with one, and a typo, in a project whose own folder has a space."""
    (project / "my board.py").write_text(
        'SERVICES += (Service("said", ("sh", "-c", "echo it works; sleep 1000"), tty="{CONSOLE}"),)\n'
    )
    (project / "my boards").mkdir()
    shutil.copy(project / "my board.py", project / "my boards/one.py")
    for profile in ("my board.py", "my boards/one.py", str(project / "my board.py")):
        done = make(project, "run", "SECONDS=3", f"PROFILE={profile}")
        assert (done.returncode, "it works" in done.stdout) == (0, True), done.stdout + done.stderr
    (project / "typo.py").write_text("SV_COOLDOWN = 5.0\nSERVICES += (\n")
    done = make(project, "run", "SECONDS=3", "PROFILE=typo.py")
    assert done.returncode == 0, done.stderr
    assert "profile /profile.py line 2: SyntaxError: '(' was never closed" in done.stdout
    assert "Error compiling" not in done.stdout + done.stderr
    assert make(project, "run", "SECONDS=3").returncode == 0, "nor does it break the board without it"
    missing = make(project, "run", "SECONDS=3", "PROFILE=no where.py")
    assert missing.returncode != 0
    assert "there is no profile no where.py" in missing.stderr


@pytest.mark.skipif(EMULATED, reason="the second terminal is this machine's")
def test_an_edit_runs_and_a_second_terminal_enters(project: Path) -> None:
    (project / "hello.py").write_text(HELLO.format("before"))
    (project / "mine.py").write_text('SERVICES += (app("hello")._replace(after=()),)\n')
    with open(project / "output", "wb") as output:
        launcher = subprocess.Popen(
            ["make", "run", "SECONDS=120", "PROFILE=mine.py"], cwd=project, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        folder = str(project / "build/boards")
        (pid,) = eventually(lambda: running.running(folder), 60)
        log = Path(f"/proc/{pid}/root/run/log/hello.log")
        eventually(lambda: "hello from before" in log.read_text(), 30)
        terminal = Terminal(["/usr/bin/env", "-C", str(project), "make", "prompt"])
        terminal.expect(">>> ")
        (project / "hello.py").write_text(HELLO.format("after"))
        eventually(lambda: "after" in (project / "build/root/stack/lib/stack/hello.py").read_text())
        terminal.type("restart_process('hello')['state']\n")
        terminal.expect("'running'\n")
        eventually(lambda: "hello from after" in log.read_text(), 30)
        (project / "mine.py").write_text('SERVICES += (app("hello"), Service("more", ("sleep", "1000")))\n')
        eventually(lambda: "more" in Path(f"/proc/{pid}/root/profile.py").read_text())
        terminal.type("reload()['started']\n")
        terminal.expect("['more']\n")
        terminal.type("import time; time.sleep(100)\n")
        terminal.settle()
        terminal.type("\x03")  # is for the prompt: make, and the board, go on
        terminal.expect("KeyboardInterrupt\n>>> ")
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert make(project, "prompt").returncode == 0, "without a terminal it runs what stdin has: nothing"
        assert running.running(folder) == [pid]
    finally:
        os.killpg(launcher.pid, signal.SIGTERM)
        launcher.wait(60)
    eventually(lambda: not os.listdir(folder), 60)  # make ends before the board does
    done = make(project, "prompt")
    assert done.returncode != 0
    assert "no board runs from this folder; `make run` in another terminal starts one" in done.stderr


def test_a_number_that_is_somebody_elses_now_is_no_board(tmp_path: Path) -> None:
    folder = str(tmp_path / "boards")
    assert running.running(folder) == []
    sleeper = subprocess.Popen([PYTHON, "-c", "import time; time.sleep(100)"])
    running.register(folder, sleeper.pid)
    assert running.running(folder) == [sleeper.pid]
    (tmp_path / "boards" / str(os.getpid())).write_text("pid:[1]")
    sleeper.kill()
    sleeper.wait()
    assert running.running(folder) == []
    running.forget(folder, sleeper.pid)
    running.forget(folder, sleeper.pid)
    assert os.listdir(folder) == [str(os.getpid())]
