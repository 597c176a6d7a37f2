"""A fleet in five minutes, on this machine: a broker, the mothership's receiver, and three boards of `make run`.

Observations reach an SQLite database below build/demo, and a map is written of them every few seconds. Ctrl-C, or --seconds,
ends all that was started; exit status 0 if each board has been heard of. The positions are invented (fakegps.py), and the
Wi-Fi comes from a recording.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fleet_programs import find, free_port, make_broker, query  # noqa: E402

from base.syscalls import PR_SET_PDEATHSIG, prctl  # noqa: E402

FOLDER = ROOT / "build" / "demo"
ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
MAP_EVERY = 10.0  # seconds
SAY_EVERY = 5.0  # seconds
BEGIN = 20.0  # seconds for the broker, and for a child to end once it is asked
END = 60.0  # seconds for a board to shut down, whose own deadlines are shorter


class Child:
    """A process that we started, and that ends with us."""

    def __init__(self, name: str, argv: list[str], folder: Path, **environment: str) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("wb") as file:
            # In a session of its own: ^C on the terminal reaches us alone, and we end the children one after the other.
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                                            env={**os.environ, **environment}, preexec_fn=die_with_us)  # noqa: PLW1509 - we have no threads  # fmt: skip

    def check(self) -> None:
        """Raise an error if it has ended."""
        if self.process.poll() is not None:
            raise SystemExit(
                f"demo: {self.name} has ended; the last of {self.log}:\n{self.log.read_text(errors='replace')[-1500:]}"
            )

    def end(self, seconds: float) -> None:
        """Send SIGTERM, wait, send SIGKILL."""
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def die_with_us() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)


class Demo:
    """The mothership and its boards."""

    def __init__(self, boards: int, folder: Path) -> None:
        self.folder, self.database, self.map = folder, folder / "mothership.db", folder / "map.html"
        folder.mkdir(parents=True, exist_ok=True)
        for old in (*folder.glob("mothership.db*"), *folder.glob("*.log"), *folder.glob("map.html*")):
            old.unlink()
        self.names = [f"board{number}" for number in range(1, boards + 1)]
        self.port = free_port()
        self.children: list[Child] = []

    def start(self) -> None:
        """Start each process after the ones that it needs."""
        address = f"127.0.0.1:{self.port}"
        if find("mosquitto"):
            self.add("broker", make_broker("mosquitto", self.port, self.folder).argv)
        else:
            self.add("broker", [sys.executable, str(ROOT / "laptop/broker.py")], BUS=address, PYTHONPATH=str(ROOT))
        self.wait_for(lambda: accepts(self.port), BEGIN)
        self.add("receiver", [sys.executable, str(ROOT / "mothership"), "receive", address, str(self.database)])
        self.wait_for(self.database.exists, BEGIN)
        for name in self.names:
            launcher = [sys.executable, str(ROOT / "laptop/launcher.py"), "--mothership", address, "--name", name]
            self.add(name, launcher)

    def add(self, name: str, argv: list[str], **environment: str) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # or Ctrl-C would lose a child that has just been started
        try:
            self.children.append(Child(name, argv, self.folder, **environment))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def check(self) -> None:
        """Raise an error if one of them has ended."""
        for child in self.children:
            child.check()

    def wait_for(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until a check is true; raise an error if a child ends meanwhile."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"demo: {self.children[-1].name} is not ready after {seconds:g} s; see {self.children[-1].log}"
                )
            time.sleep(0.05)

    def counts(self) -> dict[str, int]:
        """How many observations of each board are in the database."""
        try:
            found = dict(query(self.database, "SELECT board, count(*) FROM record WHERE kind = 'wifi' GROUP BY board"))
        except sqlite3.OperationalError:  # the receiver is making its tables
            found = {}
        return {name: found.get(name, 0) for name in self.names}

    def draw(self) -> str:
        """Write the map of the observations so far; returns what the program prints."""
        argv = [sys.executable, str(ROOT / "mothership"), "map", str(self.database), "-o", str(self.map), "--fake"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def end(self) -> None:
        """End the boards first, so that their last records still reach the database."""
        for child in self.children:
            if child.name in self.names:
                child.process.terminate()
        for child in reversed(self.children):
            child.end(END if child.name in self.names else BEGIN)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def attend(demo: Demo, seconds: float | None) -> None:
    """Print what arrives and write the map, again and again, until the time is over."""
    deadline = None if seconds is None else time.monotonic() + seconds
    drawn, opened, said, next_line = -MAP_EVERY, False, "", 0.0
    print(
        f"demo: {len(demo.names)} boards boot; what each program prints is in {demo.folder}. Ctrl-C ends all.",
        flush=True,
    )
    while deadline is None or time.monotonic() < deadline:
        demo.check()
        counts = demo.counts()
        if all(counts.values()) and time.monotonic() - drawn > MAP_EVERY:
            drawn = time.monotonic()
            text = demo.draw()
            if not opened:
                print(
                    f"demo: {text}\ndemo: the map is {demo.map.as_uri()}, written anew every {MAP_EVERY:g} s: reload it",
                    flush=True,
                )
                opened = True
                if has_display():
                    webbrowser.open(demo.map.as_uri())
        line = ", ".join(f"{count} of {name}" for name, count in counts.items())
        if line != said and time.monotonic() >= next_line:
            print(f"demo: observations: {line}", flush=True)
            said, next_line = line, time.monotonic() + SAY_EVERY
        time.sleep(0.5)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--boards", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where database, map and logs go")
    options = parser.parse_args()
    for number in ENDS - {signal.SIGINT}:
        signal.signal(number, interrupted)
    demo = Demo(options.boards, options.folder.resolve())
    try:
        with contextlib.suppress(KeyboardInterrupt):
            demo.start()
            attend(demo, options.seconds)
    finally:
        for number in ENDS:
            signal.signal(number, signal.SIG_IGN)  # it ends already
        print("\ndemo: ending", flush=True)
        demo.end()
    counts = demo.counts()
    print(f"demo: {demo.draw()}\ndemo: the database is {demo.database}: `python3 mothership boards {demo.database}`")
    if silent := [name for name, count in counts.items() if not count]:
        print(f"demo: nothing was heard of {', '.join(silent)}; see {demo.folder}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
