"""The programs that a simulated fleet needs: broker, receiver and database, each a process that is killed and started again.

The brokers are mosquitto and nats-server. What the latter's MQTT, which is JetStream inside, can and cannot is said at NATS.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATH = f"{ROOT}/.venv/bin:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
TICKS = os.sysconf("SC_CLK_TCK")
# mosquitto keeps 1,000 messages for a slow subscriber and drops what is more, which is sent again, later: a backlog of
# 2,000 boards took five times as long.
MOSQUITTO = "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 100000\nlog_type error\n"
# As measured with nats-server 2.15.1: MQTT 3.1.1 alone; `+`, QoS 1, wills, topics with dots and retained messages work,
# these after kill -9 too; a client id with a dot (a board named so) is refused, and a topic with a space; `$share/...` is
# accepted and heard nothing here; a message may have 1 MB (max_payload). A subscription with QoS 1 is a consumer of one
# stream, of which a stream has 1,000 since 2.15 unless told otherwise; these are kept in memory: boards begin a new session
# with each connection.
NATS = """
server_name: mothership
listen: 127.0.0.1:-1
jetstream {{ store_dir: "{folder}/nats", limits {{ default_max_consumers: -1 }} }}
mqtt {{ listen: "127.0.0.1:{port}", consumer_memory_storage: true }}
"""


class Workers:
    """The processes that serve the boards: fleet_boards.obey() has the other end of each one's pipe."""

    def __init__(self, target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        for its in arguments:
            ours, theirs = context.Pipe()
            self.processes.append(context.Process(target=target, args=(theirs, *its), daemon=True))
            self.pipes.append(ours)

    def start(self) -> None:
        for process in self.processes:
            process.start()

    def order(self, order: str, *arguments: Any) -> list[Any]:
        """Send an order to all processes; returns their answers."""
        for pipe in self.pipes:
            pipe.send((order, *arguments))
        return [pipe.recv() for pipe in self.pipes]

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            with contextlib.suppress(OSError):
                pipe.send(("end",))
            process.join(10)
            process.kill()


class Program:
    """A process that can be killed and started again, and the CPU time of all its runs."""

    def __init__(self, name: str, argv: list[str], output: Path) -> None:
        self.name = name
        self.argv = argv
        self.output = output
        self.earlier = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def kill(self) -> None:
        """Kill it with SIGKILL, as a power cut would end it."""
        if self.process:
            self.earlier = self.used()
            self.process.kill()
            self.process.wait()
            self.process = None

    def signal(self, number: int) -> None:
        if self.process:
            self.process.send_signal(number)

    def used(self) -> float:
        """CPU seconds so far."""
        if self.process is None:
            return self.earlier
        if self.process.poll() is not None:
            raise SystemExit(f"fleet: {self.name} has ended: {self.output.read_text()[-2000:]}")
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return self.earlier + (int(fields[11]) + int(fields[12])) / TICKS

    def size(self) -> float:
        """Largest resident size, in MB."""
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def find(broker: str) -> str | None:
    """The path of the broker's program."""
    return shutil.which({"mosquitto": "mosquitto", "nats": "nats-server"}[broker], path=PATH)


def query(database: Path, statement: str) -> list[Any]:
    """Rows of a database that other processes write."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as one:
        return one.execute(statement).fetchall()


def make_broker(kind: str, port: int, folder: Path) -> Program:
    text = {"mosquitto": MOSQUITTO, "nats": NATS}[kind].format(port=port, folder=folder)
    config = folder / f"{kind}.conf"
    config.write_text(text + ("user root\n" if kind == "mosquitto" and os.getuid() == 0 else ""))
    return Program(kind, [str(find(kind)), "-c", str(config)], folder / f"{kind}.log")
