"""`make push BOARD=root@host`: what `make install` makes, sent to a board over ssh, to be tried until its next boot."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from typing import Any

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LEFT_OUT = ("__pycache__", "pid1.bundle", "build_date")  # the board makes them, and keeps the root's date
PATIENCE = 180.0  # seconds for a PID 1 that starts anew
ONCE = 60.0  # seconds for one command over ssh that only looks


def archive(folder: str) -> bytes:
    """A tar.gz of a folder's files, by names that count from it; the same bytes for the same files."""
    buffer = io.BytesIO()

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if os.path.basename(info.name) in LEFT_OUT:
            return None
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(f"{folder}/{name}", arcname=name, filter=plain)
    data = bytearray(buffer.getvalue())
    data[4:8] = bytes(4)  # gzip's own time (RFC 1952)
    return bytes(data)


def what() -> str:
    """Who sends what: it is shown by the board."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False)
    return " ".join(filter(None, (done.stdout.strip(), "of", os.environ.get("USER", ""), "at", os.uname().nodename)))


class Far:
    """The board, by ssh."""

    def __init__(self, ssh: list[str], board: str, sv: str) -> None:
        self.command = [*ssh, board]
        self.sv = sv

    def run(self, *words: str, data: bytes = b"", seconds: float = ONCE) -> subprocess.CompletedProcess[bytes]:
        """A command of sv there."""
        line = shlex.join([self.sv, *words])
        return subprocess.run([*self.command, line], input=data, capture_output=True, check=False, timeout=seconds)

    def running(self) -> dict[str, Any]:
        """What the board says of pushed code; {} where it does not answer."""
        try:
            found = json.loads(self.run("board", "--json").stdout)
        except (ValueError, subprocess.TimeoutExpired):
            return {}
        return found.get("pushed", {"running": False}) if isinstance(found, dict) else {}


def push(far: Far, data: bytes, text: str) -> str:
    """Send it, and wait until the board runs it; what it says, or SystemExit with why not."""
    done = far.run("push", "-", "--what", text, "--json", data=data, seconds=PATIENCE)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        if any("invalid choice" in word for word in words):
            raise SystemExit("push: the board's software knows no push; write it a new image first (make image)") from None
        raise SystemExit(f"push: {words[-1] if words else 'no answer'}") from None
    for row in answer["rejected"]:
        print(f"push: rejected there: {row}", file=sys.stderr)
    names = answer["restarted"]
    if names == "PID 1":
        wait(far, answer["id"])
        names = ["everything"]
    return f"{answer['changed']} files differ; restarted: {', '.join(names) or 'nothing'}"


def wait(far: Far, identity: str) -> None:
    """Until a PID 1 with this set answers; SystemExit where the board does not come back with it."""
    deadline = time.monotonic() + PATIENCE
    print("push: PID 1 starts anew ...", file=sys.stderr, flush=True)
    while time.monotonic() < deadline:
        found = far.running()
        if found.get("running") and found.get("id") == identity:
            return
        time.sleep(0.5)
    raise SystemExit(
        f"push: the board does not run it after {PATIENCE:g} s: it has been reset, or needs to be; the root's code boots"
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Try this tree's modules on a board, until its next boot.")
    parser.add_argument("board", metavar="USER@HOST", help="as ssh takes it; root's shell must be the board's own")
    parser.add_argument("folder", metavar="FOLDER", help="LIB, as make install has made it")
    parser.add_argument("--ssh", default="ssh", help="the command, with options of it")
    parser.add_argument("--sv", default="sv", help="sv on the board")
    options = parser.parse_args(arguments)
    far = Far(shlex.split(options.ssh), options.board, options.sv)
    try:
        print(f"push: {push(far, archive(options.folder), what())}")
    except subprocess.TimeoutExpired:
        raise SystemExit(f"push: {options.board} does not answer") from None
    print(f"push: {options.board} runs it until its next boot; `ssh {options.board} 'keep()'` keeps it")


if __name__ == "__main__":
    main(sys.argv[1:])
