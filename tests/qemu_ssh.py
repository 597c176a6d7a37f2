"""ssh to a board on a real kernel: commands, files and the prompt, through its own dropbear and root's shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, eventually, machines

sys.path.insert(0, str(ROOT / "lab"))
from image import ssh_key


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    profile = "SERVICES = tuple(row for row in SERVICES if row.name in ('logd', 'syslogd', 'dropbear', 'keeper', 'modules', 'network', 'console'))\n"
    for start in machines(tmp_path_factory.mktemp("ssh")):
        yield start("x86_64", profile).up(180)


def run(board: Any, program: str, *words: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """One of OpenSSH's clients; `root@board:` in a word is the machine."""
    options = (
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        f"IdentityFile={ssh_key()}",
        f"Port={board.port}",
    )
    argv = [program, *(word for option in options for word in ("-o", option))]
    argv += [str(word).replace("root@board", "root@127.0.0.1") for word in words]
    return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=120, check=False)


def test_commands(board: Any) -> None:
    assert run(board, "ssh", "root@board", "uname", "-s").stdout == "Linux\n"
    done = run(board, "ssh", "root@board", "echo a | tr a b; exit 7")
    assert (done.returncode, done.stdout) == (7, "b\n")
    rows = json.loads(run(board, "ssh", "root@board", "sv stats --json").stdout)
    assert {"dropbear", "logd"} <= {row["name"] for row in rows}
    assert "dropbear" in run(board, "ssh", "root@board", "stats_process()").stdout
    assert run(board, "ssh", "root@board", "stop_process('nobody')").returncode == 1
    assert run(board, "ssh", "root@board", "cat", text="through").stdout == "through"


def test_the_prompt(board: Any) -> None:
    typed = "'a line' + ' to remember'\nfrom sv import *\nstats_process('dropbear')['state'] + '!'\nexit()\n"
    answer = board.ssh("-tt", seconds=60, text=typed)
    assert "functions: board" in answer
    assert "'running!'" in answer
    assert "' to remember'" in board.ssh("cat /var/lib/stack/prompt_history")
    assert board.ssh("stat -c %a /var/lib/stack/prompt_history || ls -l /var/lib/stack/prompt_history").startswith(
        ("600", "-rw-------")
    )


@pytest.mark.parametrize("protocol", ["-O", "-s"], ids=["scp", "sftp"])
def test_files(board: Any, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1_000_000))
    sent = run(board, "scp", protocol, tmp_path / "file", "root@board:/tmp/copy")
    assert (sent.returncode, sent.stderr) == (0, "")
    assert run(board, "scp", protocol, "root@board:/tmp/copy", tmp_path / "back").returncode == 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_rsync(board: Any, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_text("a" * 100_000)
    rsh = f"ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i {ssh_key()} -p {board.port}"
    for _ in range(2):
        command = ["rsync", "-a", "-e", rsh, f"{tmp_path}/tree/", "root@127.0.0.1:/tmp/tree/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert board.ssh("wc -c </tmp/tree/a").strip() == "100000"


def test_a_session_is_not_cut_by_a_restart_of_dropbear(board: Any) -> None:
    assert "restarted" in board.ssh("sv restart dropbear >/dev/null && echo restarted")
    eventually(lambda: board.ssh("echo here") == "here\n", 30)
