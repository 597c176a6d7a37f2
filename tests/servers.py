"""Real servers that tests start and end: PostgreSQL, mosquitto."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from conftest import MOSQUITTO, ROOT, eventually

BIN = max(glob.glob("/usr/lib/postgresql/*/bin"), default="")
POSTGRES = shutil.which("initdb", path=f"{BIN}:{os.environ['PATH']}")


def why_no_postgres() -> str:
    """Why no PostgreSQL can be started here; empty where it can."""
    if POSTGRES is None:
        return "no PostgreSQL server here, and only root can install it"
    try:
        pwd.getpwuid(postgres_user())
    except KeyError:
        return "PostgreSQL does not run as a user without a name, nor as root"
    return ""


def postgres_user() -> int:
    """It refuses root: then it is the user that came with its package."""
    return pwd.getpwnam("postgres").pw_uid if os.getuid() == 0 else os.getuid()


class Postgres:
    """A server of our own on a Unix socket in a folder of its own."""

    def __init__(self) -> None:
        assert POSTGRES
        self.bin = Path(POSTGRES).resolve().parent
        self.folder = Path(
            tempfile.mkdtemp(prefix="pg")
        )  # pytest's own folders are closed to other users, and their paths long
        os.chown(self.folder, postgres_user(), -1)
        self.run("initdb", "-D", f"{self.folder}/data", "-U", "stack", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "-N")
        self.count = 0
        self.start()

    def run(self, program: str, *words: str) -> bool:
        user = postgres_user() if os.getuid() == 0 else None
        command = [str(self.bin / program), *words]
        done = subprocess.run(command, cwd=self.folder, user=user, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return True

    def start(self) -> None:
        user = postgres_user() if os.getuid() == 0 else None
        words = ["-D", f"{self.folder}/data", "-k", str(self.folder), "-c", "listen_addresses=", "-c", "shared_buffers=16MB"]
        with open(self.folder / "log", "ab") as log:
            self.server = subprocess.Popen(
                [str(self.bin / "postgres"), *words], cwd=self.folder, user=user, stderr=log, stdout=log
            )
        eventually(lambda: self.run("pg_isready", "-h", str(self.folder)), 20)

    def stop(self) -> None:
        """At once, but in order: `fast`."""
        self.server.send_signal(signal.SIGINT)
        self.server.wait(20)

    def database(self) -> str:
        """A new one; its URL."""
        self.count += 1
        self.run("createdb", "-h", str(self.folder), "-U", "stack", f"d{self.count}")
        return f"postgresql://stack@/d{self.count}?host={self.folder}"

    def end(self) -> None:
        if self.server.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)):
        return True


class Mosquitto:
    """A real broker; `text` is its configuration."""

    def __init__(self, folder: Path, text: str, *ports: int) -> None:
        self.config = folder / "mosquitto.conf"
        self.config.write_text(text + ("\nuser root\n" if os.getuid() == 0 else ""))  # pytest's folder is closed to others
        self.ports = ports
        self.start()

    def start(self) -> None:
        with open(self.config.with_suffix(".log"), "ab") as log:
            self.server = subprocess.Popen([str(MOSQUITTO), "-c", str(self.config)], stdout=log, stderr=log)
        for port in self.ports:
            eventually(lambda port=port: answers(port))  # type: ignore[misc]

    def end(self) -> None:
        self.server.terminate()
        self.server.wait(10)


def plain(folder: Path) -> tuple[Mosquitto, str]:
    """A broker that lets everybody in; HOST:PORT."""
    port = free_port()
    return Mosquitto(folder, f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n", port), f"127.0.0.1:{port}"


def secured(folder: Path) -> tuple[Mosquitto, int, int]:
    """The sample configuration with ports and paths of this test; ports of boards and of receivers."""
    boards, receivers = free_port(), free_port()
    text = (ROOT / "mothership" / "mosquitto.conf").read_text()
    text = text.replace("/etc/mosquitto/certs", f"{folder}/certs")
    text = text.replace("/etc/mosquitto/acl", str(ROOT / "mothership" / "acl"))
    text = text.replace("listener 8883", f"listener {boards} 127.0.0.1").replace("listener 8884", f"listener {receivers}")
    text += "\nlog_type information\n"  # it says when it has read its configuration again
    return Mosquitto(folder, text, boards, receivers), boards, receivers
