"""What a run of these tests says of itself: skips by reason, and no quiet end."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from conftest import PYTHON, ROOT


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_one.py").write_text(f"import os, pytest\n{text}\n")
    ours = (ROOT / "tests" / "conftest.py").read_text()
    (folder / "conftest.py").write_text(ours.replace("Path(__file__).resolve().parent.parent", f"Path({str(ROOT)!r})"))
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_a_childs_exit_in_pytests_own_process_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_a(): os._exit(0)\ndef test_b(): assert 0")
    assert done.returncode == 1, done.stdout
    assert "2 failed" in done.stdout
    forked = "def test_a():\n pid = os.fork()\n if not pid: os._exit(0)\n assert os.waitpid(pid, 0)[1] == 0"
    assert run(tmp_path, forked).returncode == 0


def test_skips_are_counted_by_their_reason(tmp_path: Path) -> None:
    text = "@pytest.mark.parametrize('n', range(3))\ndef test_a(n): pytest.skip('no radio here')"
    done = run(tmp_path, text)
    assert "3 tests were skipped, so this run does not show all:\n  3: no radio here" in done.stdout, done.stdout


def test_what_runs_on_arm_is_there() -> None:
    """`make test-arm` named a file that had got another name, and ended before its first test."""
    named = re.search(r'"([a-z0-9 ]+)"\.split\(\)\)\),', (ROOT / "lab/arm.py").read_text())
    assert named is not None
    assert [name for name in named[1].split() if not (ROOT / f"tests/test_{name}.py").exists()] == []
