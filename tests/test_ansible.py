"""ansible's ping and raw through the door of ssh. `pip install ansible-core` into an environment, and ANSIBLE=its folder of programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Board
from test_ssh import Clients, clients

__all__ = ["clients"]
WHERE = os.environ.get("ANSIBLE", "")
ANSIBLE = shutil.which("ansible", path=WHERE or None)
pytestmark = pytest.mark.skipif(ANSIBLE is None, reason="no ansible here: pip install ansible-core, ANSIBLE=its folder")
Boot = Callable[..., Board]


def ansible(clients: Clients, folder: Path, *words: str) -> str:
    """What it prints of the board, which it reaches by ssh; `python` is the board's own."""
    options = [str(word) for word in clients.options]
    inventory = folder / "inventory.json"
    facts = {
        "ansible_user": "root", "ansible_ssh_common_args": " ".join(f"'{word}'" for word in options),
        "ansible_python_interpreter": "/usr/bin/python3", "ansible_remote_tmp": "/tmp/.ansible",
    }  # fmt: skip
    inventory.write_text(json.dumps({"all": {"hosts": {"board": facts}}}))
    environment = {
        **os.environ, "ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"), "LC_ALL": "C.UTF-8",
        "ANSIBLE_SSH_PIPELINING": os.environ.get("PIPELINING", "0"), "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "PATH": f"{WHERE}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [str(ANSIBLE), "-i", str(inventory), "all", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=90, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(200)
def test_ansibles_raw_and_ping(clients: Clients, tmp_path: Path) -> None:
    """raw is a line for the shell; ping copies a module by sftp or scp, and runs it with the board's Python."""
    assert "dropbear" in ansible(clients, tmp_path, "-m", "raw", "-a", "/stack/bin/sv stats | grep dropbear")
    assert '"ping": "pong"' in ansible(clients, tmp_path, "-m", "ping")
    for way in ("sftp", "scp", "piped"):
        assert '"ping": "pong"' in ansible(clients, tmp_path, "-m", "ping", "-e", f"ansible_ssh_transfer_method={way}")
    assert '"ping": "pong"' in ansible(clients, tmp_path, "-m", "ping", "-e", "ansible_ssh_pipelining=true")
