"""An emulated machine: QEMU, its QMP socket, its serial console, and Python in the guest over ssh."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from image import BUILD, KINDS, kernel, ssh_key
from qemu.qmp import ConnectError
from qemu.qmp.legacy import QEMUMonitorProtocol

T = TypeVar("T")
# For Machine.wait(): an exception counts as a value that is not true yet.
WAIT = """
import traceback
deadline, code = time.monotonic() + {seconds}, compile({code!r}, "wait", "exec")
while True:
    names = dict(globals(), result=None)
    try:
        exec(code, names)
        last, done = names["result"], bool(names["result"])
    except Exception:
        last, done = traceback.format_exc(), False
    if done or time.monotonic() > deadline:
        break
    time.sleep(0.2)
result = [last, done]
"""
PATIENCE = float(os.environ.get("STACK_PATIENCE", "1"))  # how many times longer things may take, as in tests/conftest.py


def until(check: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first true value of `check`; TimeoutError after so many seconds, times PATIENCE."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if value := check():
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def command(name: str, disk: Path, words: tuple[str, ...], memory: int = 512, data: Path | None = None) -> list[str]:
    """QEMU's command line, without console, network and monitor. Of words that say the same the later one counts.

    `data` is a second disk, /dev/vdb, to which the guest really writes; raspi3b has one card alone.
    """
    kind, files = KINDS[name], kernel(name)
    drive = (
        ["-drive", f"if=sd,format=raw,file={disk},snapshot=on", "-dtb", str(files / "dtb"), "-serial", "null"]
        if name == "raspi3b"  # its console is the second serial line
        else [
            "-drive",
            f"if=none,id=root,file={disk},format=raw,snapshot=on",
            "-device",
            "virtio-blk-pci,drive=root",
            "-m",
            str(memory),
        ]
    )
    if data:
        drive += ["-drive", f"if=none,id=data,file={data},format=raw", "-device", "virtio-blk-pci,drive=data"]
    append = f"console={kind.console},115200 panic=-1 root={kind.disk} init=/sbin/stack.py quiet stack.profile={kind.profile}"
    return [
        *kind.qemu, "-accel", "tcg", "-display", "none",
        "-kernel", str(files / "kernel"), "-initrd", str(files / "initrd"), *drive, "-append", " ".join([append, *words]),
    ]  # fmt: skip


def network(name: str, port: int) -> list[str]:
    """A network card whose other end is QEMU's own little network; the guest's ssh is at this port of loopback."""
    card = "usb-net" if name == "raspi3b" else "virtio-net-pci,romfile="
    return ["-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", f"{card},netdev=n0"]


def free_port() -> int:
    """A TCP port of loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def make_pipe(path: Path) -> int:
    """A FIFO, open for both ways: nobody waits for the other end."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def drain(screen: int, folder: Path) -> None:
    """Read and forget: the text is in QEMU's log file. Until the machine's folder is removed."""
    while folder.exists():
        if select.select([screen], [], [], 1.0)[0]:
            os.read(screen, 65536)
    os.close(screen)


def connect(path: str) -> QEMUMonitorProtocol:
    """QEMU's monitor. An event that comes just before the answer to our greeting is taken for it: then once more."""
    for last in (False, False, True):
        qmp = QEMUMonitorProtocol(path)
        try:
            qmp.connect()
            break
        except ConnectError:
            if last:
                raise
            qmp.close()
    return qmp


class Machine:
    """One running guest. `close()` ends it; nothing of it is left."""

    def __init__(
        self, name: str, disk: Path, words: tuple[str, ...] = (), extra: tuple[str, ...] = (), *, data: Path | None = None,
        reboots: bool = False,
    ) -> None:  # fmt: skip
        """`data` is a second disk, which keeps what is written to it; with `reboots` a reset is not the machine's end."""
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="stack-qemu."))
        self.console_file = self.folder / "console.txt"
        self.port = free_port()
        self.events: list[dict[str, Any]] = []
        # Pipes, not a socket, which is full after some 300 single bytes: what QEMU has to write again is in its log twice.
        self.keys, screen = make_pipe(self.folder / "con.in"), make_pipe(self.folder / "con.out")
        threading.Thread(target=drain, args=(screen, self.folder), daemon=True).start()
        serial = ["-chardev", f"pipe,id=con,path={self.folder}/con,logfile={self.console_file}"]
        serial += ["-serial", "chardev:con", "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off"]
        serial += ["-action", "panic=none"] if reboots else ["-no-reboot"]
        self.started = time.monotonic()
        with (self.folder / "qemu.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [*self.argv(disk, words, data), *network(name, self.port), *serial, *extra],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            until((self.folder / "qmp").exists, 20, "QEMU's monitor")
            self.qmp = connect(f"{self.folder}/qmp")
        except Exception as error:
            self.process.kill()
            raise RuntimeError((self.folder / "qemu.txt").read_text()) from error

    def argv(self, disk: Path, words: tuple[str, ...], data: Path | None) -> list[str]:
        """QEMU's command line, as command() has it."""
        return command(self.name, disk, words, data=data)

    # --- its outside ------------------------------------------------------------------------------------------------
    def console(self) -> str:
        """All that the serial console has printed."""
        return self.console_file.read_text(errors="replace") if self.console_file.exists() else ""

    def wait_console(self, text: str, seconds: float = 60.0) -> str:
        """Wait for words on the console."""
        try:
            return until(lambda: self.console() if text in self.console() else "", seconds, f"{text!r} on the console")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it says:\n{self.console()[-3000:]}") from None

    def type(self, text: str) -> None:
        """Type on the serial console."""
        os.write(self.keys, text.encode())

    def execute(self, name: str, **arguments: Any) -> Any:
        """A QMP command."""
        return self.qmp.cmd(name, **arguments)

    def event(self, *names: str, seconds: float = 60.0 * PATIENCE) -> dict[str, Any]:
        """The first QMP event of these names, of those that have not been asked for yet."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Exception):  # the end of QEMU ends the connection: what came before it still counts
                self.events += self.qmp.get_events(wait=0.2)
            for event in self.events:
                if event["event"] in names:
                    self.events.remove(event)
                    return event
            if time.monotonic() > deadline or (self.process.poll() is not None and not self.qmp_alive()):
                seen = [event["event"] for event in self.events]
                raise TimeoutError(f"no {' or '.join(names)} but {seen}; the console says:\n{self.console()[-3000:]}")

    def reset(self, seconds: float = 60.0) -> None:
        """Wait until a machine that `reboots` has been reset; QEMU says so up to three times."""
        self.event("RESET", seconds=seconds)
        with contextlib.suppress(TimeoutError):
            while True:
                self.event("RESET", seconds=1)

    def qmp_alive(self) -> bool:
        with contextlib.suppress(Exception):
            self.qmp.cmd("query-status")
            return True
        return False

    # --- its inside -------------------------------------------------------------------------------------------------
    def ssh(self, *words: str, seconds: float = 60.0, text: str = "") -> str:
        """Run something by ssh; GuestError with what it printed where it fails."""
        options = {
            "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "BatchMode": "yes", "ConnectTimeout": 20,
            "ControlMaster": "auto", "ControlPath": self.folder / "ssh", "ControlPersist": 600,
        }  # fmt: skip
        argv = [
            "ssh",
            "-q",
            "-i",
            str(ssh_key()),
            "-p",
            str(self.port),
            *(f"-o{key}={value}" for key, value in options.items()),
        ]
        argv += ["root@127.0.0.1", *words]
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=seconds * PATIENCE, check=False)
        if done.returncode:
            raise GuestError(f"{words[0][:200] if words else 'ssh'}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def python(self, code: str, seconds: float = 60.0) -> Any:
        """Run Python in the guest as root; what its last line, `result = ...`, left behind, by way of JSON."""
        program = f"import json, os, subprocess, time\nresult = None\n{code}\nprint('\\n' + json.dumps(result))"
        printed = self.ssh("python3 -", seconds=seconds, text=program)
        return json.loads(printed.rstrip("\n").rpartition("\n")[2])

    def wait(self, code: str, seconds: float = 60.0) -> Any:
        """The first true `result` of this code, which one Python in the guest runs again and again; TimeoutError with the last.

        A login and a new Python for each look would take more of an emulated processor than what is waited for.
        """
        program = WAIT.format(code=code, seconds=seconds * PATIENCE)
        value, done = self.python(program, seconds + 60.0)
        if not done:
            raise TimeoutError(f"still {value!r} after {seconds * PATIENCE:g} s: {code}")
        return value

    def up(self, seconds: float = 90.0) -> Machine:
        """Wait until ssh answers."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"QEMU ended; the console says:\n{self.console()[-3000:]}")
            try:
                return bool(self.ssh("echo 1", seconds=30))
            except GuestError:
                return False

        try:
            until(answers, seconds, "ssh")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the console says:\n{self.console()[-4000:]}") from None
        return self

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        with contextlib.suppress(Exception):
            self.qmp.close()
        os.close(self.keys)
        shutil.rmtree(self.folder, ignore_errors=True)


class GuestError(Exception):
    """What ran in the guest failed."""


__all__ = ["BUILD", "KINDS", "GuestError", "Machine", "command", "network", "until"]
