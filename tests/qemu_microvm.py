"""A microVM: QEMU's microvm machine, a real kernel, and a root of python3.11-minimal, with one program whose end is the machine's."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "lab"))
import microvm

LOOPBACK = """
MODULES = ("vsock_loopback",)
VSOCK = ("1024", "{cid}")
SERVICES = (Service("modules", ("modprobe", "-a", "{{MODULES}}"), ready="exit", restart="never"), *SERVICES)
"""
CLIENT = "usr/lib/stack/lab/vsock_client.py"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for all: each machine's writes are forgotten."""
    files = {
        CLIENT: (ROOT / "lab/vsock_client.py").read_text(),
        "usr/lib/stack/settings_loopback.py": "from tables.rows import Service\n" + LOOPBACK.format(cid=1),
        "usr/lib/stack/settings_stranger.py": "from tables.rows import Service\n" + LOOPBACK.format(cid=2),
    }
    return microvm.disk(tmp_path_factory.mktemp("microvm") / "root.img", files)


Run = Callable[..., tuple[str, int | None]]


@pytest.fixture
def run(disk: Path) -> Run:
    """Boot with a document on the command line and other words; its console and the status that it says."""

    def start(document: Any = None, *words: str, extra: tuple[str, ...] = (), **options: Any) -> tuple[str, int | None]:
        if document is not None:
            words = (f"stack.config=base64:{b64encode(json.dumps(document).encode()).decode()}", *words)
        return microvm.boot(microvm.command(disk, words, extra, **options), 200)

    return start


def shell(text: str, **columns: Any) -> dict[str, Any]:
    return {"main": {"argv": ["/bin/sh", "-c", text], **columns}}


def assert_clean(console: str, status: int | None, wanted: int) -> None:
    """It said its status, switched itself off, and the kernel did not panic."""
    assert status == wanted, console
    assert "reboot: Power down" in console
    assert "Kernel panic" not in console


@pytest.mark.parametrize(
    ("document", "status"),
    [
        (shell("echo hello; exit 3"), 3),
        (shell("kill -SEGV $$"), 139),
        ({**shell("trap : TERM INT; while :; do sleep 0.2; done", stop_timeout=1), "seconds": 2}, 124),
        ({"main": {"argv": ["/nothing"]}}, 127),
        ({"mian": {}}, 78),
    ],
    ids=["exit", "crash", "hang", "missing", "bad"],
)
def test_its_status_comes_out_and_it_powers_off(run: Run, document: Any, status: int) -> None:
    assert_clean(*run(document), status)


EATER = "import itertools; kept = [b'x' * (1 << 20) for _ in itertools.count()]"


@pytest.mark.parametrize("limit", [0, "32M"], ids=["all of the machine's", "its limit"])
def test_memory_is_out(run: Run, limit: Any) -> None:
    """The kernel kills the program, not PID 1."""
    columns = {"oom_score": 500, **({"memory_max": limit} if limit else {})}
    console, status = run({"main": {"argv": ["/usr/bin/python3", "-c", EATER], **columns}})
    assert_clean(console, status, 137)
    assert "signal KILL" in console


def test_without_acpi_a_reset_is_the_end(run: Run, monkeypatch: pytest.MonkeyPatch, disk: Path) -> None:
    """A monitor such as Firecracker ends with a reset; with QEMU's -no-reboot so does this one. The service says how."""
    console, status = run(shell("exit 4"), "stack.end=reboot", "reboot=t")
    assert status == 4, console
    assert "reboot: Restarting system" in console


def device(path: Path, *, fmt: str = "raw") -> tuple[str, ...]:
    return ("-drive", f"if=none,id=config,file={path},format={fmt},readonly=on", "-device", "virtio-blk-device,drive=config")


USER_DATA = """#cloud-config
write_files:
- path: /run/greeting
  content: |
    from the seed
runcmd:
- cat /run/greeting
- [sh, -c, "hostname; exit 6"]
"""


def seed(folder: Path, kind: str) -> Path:
    """A device with cloud-init's files, or with our own document."""
    (folder / "user-data").write_text(USER_DATA)
    (folder / "meta-data").write_text("local-hostname: seeded\n")
    (folder / "stack.json").write_text(json.dumps({**shell("hostname; exit 6"), "hostname": "seeded"}))
    target = folder / "seed.img"
    if kind == "vfat":
        subprocess.run(["mkfs.vfat", "-C", "-n", "CIDATA", target, "1024"], check=True, capture_output=True)
        subprocess.run(["mcopy", "-i", target, folder / "user-data", folder / "meta-data", "::"], check=True)
    elif kind == "ext4":
        tree = folder / "tree"
        tree.mkdir()
        (folder / "stack.json").rename(tree / "stack.json")
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", "stack", "-d", tree, target, "1M"], check=True)
    else:
        target.write_bytes((b"#stack-config\n" + (folder / "stack.json").read_bytes()).ljust(4096, b"\0"))
    return target


@pytest.mark.parametrize("kind", ["vfat", "ext4", "raw"])
def test_a_small_block_device_configures_it(run: Run, tmp_path: Path, kind: str) -> None:
    console, status = run(None, extra=device(seed(tmp_path, kind)))
    assert_clean(console, status, 6)
    assert "seeded" in console
    assert ("from the seed" in console) == (kind == "vfat")


def test_a_device_of_random_bytes_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 512)
    console, status = run(None, extra=device(tmp_path / "noise"))
    assert_clean(console, status, 78)
    assert "there is no device of the label stack or cidata" in console


def test_addresses(run: Run) -> None:
    document = {
        **shell("ip -4 addr show dummy0; ip route; cat /run/resolv.conf"),
        "addresses": [{"interface": "lo", "address": "10.9.8.7/24"}], "nameservers": ["10.9.8.1"],
    }  # fmt: skip
    document["main"]["argv"][2] = "ip -4 addr show lo; cat /run/resolv.conf"
    console, status = run(document)
    assert_clean(console, status, 0)
    assert "10.9.8.7/24" in console
    assert "nameserver 10.9.8.1" in console


# --- vsock, by the kernel's loopback: the host is the guest ----------------------------------------------------------------------
ASK = f"python3 /{CLIENT} vsock:1:1024"


def python(text: str, status: int = 0, **others: Any) -> dict[str, Any]:
    return {"main": {"argv": ["/bin/sh", "-c", f"{text}; exit {status}"]}, **others}


def test_the_control_protocol_over_vsock(run: Run) -> None:
    wait = f"until {ASK} board 2>/dev/null | grep -q kernel; do sleep 0.2; done"
    text = f"{wait}; {ASK} stats name=main; {ASK} start name=nobody; {ASK} events & sleep 1; {ASK} stop name=beside; sleep 1"
    console, status = run(
        python(text, 5, services=[{"name": "beside", "argv": ["sleep", "1000"]}]), "stack.profile=microvm,loopback"
    )
    assert status == 5, console
    assert '"name": "main"' in console
    assert "vsock: there is no service 'nobody'" in console
    assert '"kind": "up"' in console, "the event stream"
    assert '"state": "stopping"' in console or '"state": "stopped"' in console


def test_the_machines_end_is_an_event_and_a_report(run: Run) -> None:
    """Who listens are services beside it; the console has what both heard."""
    wait = f"until {ASK} board 2>/dev/null | grep -q kernel; do sleep 0.2; done"
    heard = [f"python3 /{CLIENT} vsock:1:1025 listen", f"{wait}; {ASK} events"]
    services = [{"name": f"hears{n}", "argv": ["/bin/sh", "-c", f"({text}) >/dev/console"]} for n, text in enumerate(heard)]
    console, status = run(
        python(f"{wait}; sleep 2", 7, services=services), "stack.profile=microvm,loopback", "stack.report=vsock:1:1025"
    )
    assert status == 7, console
    assert '{"kind": "exit", "status": 7, "why": "exit 7"}' in console, "the report"
    assert '{"from": "microvm", "kind": "exit", "data": {"status": 7, "why": "exit 7"}}' in console, "the event"


def test_a_cid_that_is_not_listed_is_refused(run: Run) -> None:
    console, status = run(python(f"sleep 4; {ASK} board", 8), "stack.profile=microvm,stranger")
    assert status == 8, console
    assert "closed without an answer" in console or "no answer" in console


def test_a_configuration_that_nobody_sends(run: Run) -> None:
    console, status = run(None, "stack.config=vsock:1026")
    assert status == 78, console
    assert "no configuration from vsock 2:1026" in console
