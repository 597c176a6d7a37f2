"""`make install-board` on a Debian with systemd: both boot from one disk, and one word of the command line says which.

The root is Debian's own, with all maintainer scripts run; the installer runs in it as it does on a board, with Debian's
apt-get, and with pip's libraries from wheels that this machine has fetched.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, eventually

sys.path.insert(0, str(ROOT / "lab"))
from image import BUILD, KINDS, SUITE, ssh_key, stamped, system
from image import run as shell

PACKAGES = (
    "systemd systemd-sysv systemd-timesyncd libpam-systemd udev dbus openssh-server kmod procps iproute2 ifupdown "
    "isc-dhcp-client wpasupplicant python3 make sudo mount util-linux e2fsprogs"
).split()
WITHOUT = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
# Debian's names of interfaces are udev's; the kernel's are the same under both.
WORDS = ("root=/dev/vdb", "stack.profile=", "net.ifnames=0")
OLD = ("init=/usr/lib/systemd/systemd", *WORDS)
FACTS = """
import json, sv
rows = {row["name"]: {key: row[key] for key in ("state", "restart", "exit", "status")} for row in sv.stats_process()}
print(json.dumps({"rows": rows, "board": sv.board(), "network": sv.network()}))
"""
IN_ROOT = """
set -eu
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --bind /dev "$1/dev"
[ -L "$1/etc/resolv.conf" ] || cp /etc/resolv.conf "$1/etc/resolv.conf"
cd "$1/root/stack"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PIP_NO_INDEX=1 PIP_FIND_LINKS=/root/wheels \
    chroot "$1" sh -c "cd /root/stack && make $2"
"""


def debian() -> Path:
    """A Debian as its installer leaves it, unpacked once."""
    folder = BUILD / "installed-amd64"

    def build() -> None:
        shell("unshare", "-m", "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet",
              f"--include={','.join(PACKAGES)}", *WITHOUT, SUITE, folder)  # fmt: skip

    stamped(folder, f"{SUITE} {PACKAGES}", build, "a Debian with systemd (mmdebstrap)")
    return folder


def in_root(root: Path, target: str) -> str:
    done = subprocess.run(["unshare", "-m", "-p", "-f", "sh", "-c", IN_ROOT, "sh", root, target],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(root: Path) -> dict[str, str]:
    """Everything of the system's configuration: what a file holds, or where a link leads."""
    found = {}
    for path in sorted((root / "etc").rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = str(hash(path.read_bytes()))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of this test's own, with the sources in it, the kernel's modules, and a network."""
    folder = tmp_path_factory.mktemp("install") / "root"
    shell("cp", "-a", debian(), folder)
    shell("cp", "-a", f"{system(KINDS['x86_64'])}/usr/lib/modules", folder / "usr/lib")
    tracked = shell("git", "-C", ROOT, "ls-files")
    shell("sh", "-c", f"cd '{ROOT}' && cpio -pdm --quiet '{folder}/root/stack'", input=tracked)
    shell(
        sys.executable,
        "-m",
        "pip",
        "download",
        "-qq",
        "--no-deps",
        "-d",
        folder / "root/wheels",
        "-r",
        ROOT / "requirements.txt",
    )
    (folder / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (folder / "root/.ssh/authorized_keys").write_text(ssh_key().with_suffix(".pub").read_text())
    (folder / "etc/network/interfaces").write_text("auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n")
    (folder / "etc/hostname").write_text("mast\n")
    (folder / "etc/fstab").write_text("/dev/vdb / ext4 defaults 0 1\ntmpfs /srv tmpfs mode=700 0 0\n")
    return folder


def up(board: Any, init: str) -> Any:
    """Wait for ssh, whose shell is bash; and who is PID 1."""
    eventually(lambda: board.ssh("true") == "", 150)
    assert board.ssh("cat /proc/1/comm").strip() == init
    return board


def end(board: Any, command: str) -> None:
    with contextlib.suppress(Exception):  # it may be faster than its answer
        board.ssh(command, seconds=20)
    assert board.event("SHUTDOWN", seconds=90)["data"]["reason"] == "guest-shutdown"
    board.process.wait(30)


@pytest.mark.timeout(900)
def test_one_word_says_who_is_pid_1(root: Path, tmp_path: Path) -> None:
    from machine import Machine

    before = files(root)
    said = in_root(root, "install-board")
    assert "To boot it, add one word to the kernel's command line:  init=/sbin/stack.py" in said
    own = root / "usr/lib/stack/settings_prod.py"
    own.write_text(own.read_text() + "MODULES = ('mac80211_hwsim',)\n")
    again = in_root(root, "install-board")
    assert all(text in again for text in ("are there already", "settings_prod.py stays as it is")), again
    assert "MODULES" in own.read_text()
    changed = {name for name, held in files(root).items() if before.get(name) != held}
    ours = {name for name in changed if name.startswith("etc/systemd")}
    assert ours == {"etc/systemd/system/mosquitto.service"}, "masked: it came with us, and is not for systemd to start"
    enabled = {name for name in changed if "/rc" in name or ".wants/" in name}
    assert not {name for name in enabled if "mosquitto" not in name}, enabled

    disk, nothing = tmp_path / "disk.img", tmp_path / "nothing.img"
    shell("mke2fs", "-q", "-t", "ext4", "-d", root, disk, "700M")
    nothing.write_bytes(bytes(1 << 20))

    def boot(*words: str) -> Any:
        machine = Machine("x86_64", nothing, words, data=disk)
        machines.append(machine)
        return machine

    machines: list[Any] = []
    try:
        old(up(boot(*OLD), "systemd"))
        new(up(boot(*WORDS), "stack.py"))
        old(up(boot(*OLD), "systemd"))
    finally:
        for machine in machines:
            machine.close()


def old(board: Any) -> None:
    eventually(lambda: "running" in board.ssh("systemctl is-system-running --wait || true"), 90)
    assert board.ssh("systemctl is-active mosquitto || true").strip() == "inactive"
    assert board.ssh("systemctl is-active ssh").strip() == "active"
    assert board.ssh("systemctl --failed --no-legend").strip() == ""
    end(board, "systemctl poweroff")


def new(board: Any) -> None:
    """The whole table runs on Debian's daemons, and the prompt is there for who starts Python."""

    def facts() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(board.ssh("python3 -", text=FACTS))
        assert {row["state"] for row in found["network"] if row["name"] == "eth0"} <= {"local", "online"}, found["network"]
        return found

    found = eventually(facts, 60)
    assert (found["board"]["faults"], found["board"]["rejected"], found["board"]["hostname"]) == ([], [], "mast"), found[
        "board"
    ]
    for name, row in found["rows"].items():
        once = name in ("modules", "fstab", "bus_rights")
        assert (row["state"], row["restart"]) == ("stopped" if once else "running", 0), (name, row)
        assert row["exit"] == ("exit 0" if once else None), (name, row)
    assert {"sshd", "broker", "network", "timesyncd", "hotplug", "wpa_supplicant", "diagnostic"} <= found["rows"].keys()
    mounts = {line.split()[1]: line.split() for line in board.ssh("cat /proc/mounts").splitlines()}
    assert mounts["/"][3].startswith("rw")
    assert mounts["/srv"][2] == "tmpfs", "what fstab says is mounted"
    assert "/var" not in mounts
    assert "10.0.2.15" in board.ssh("ip addr show eth0")
    assert "NAME" in board.ssh("sv status")
    refused = board.ssh("make -s -C /root/stack uninstall-board 2>&1 || true")
    assert "init=/sbin/stack.py is still in /proc/cmdline: take it out" in refused
    end(board, "sv poweroff")  # systemd's own asks systemd


def test_what_was_installed_goes_again(root: Path) -> None:
    if not (root / "sbin/stack.py").exists():
        in_root(root, "install-board")
    said = in_root(root, "uninstall-board")
    assert "apt-get purge mosquitto" in said
    left = [path for path in ("sbin/stack.py", "usr/lib/stack", "usr/bin/sv") if (root / path).exists()]
    assert left == []
    assert not list(root.glob("usr/**/stack.pth"))
    assert "profiles.debian" in (root / "root/settings_prod.py").read_text(), "what its owner has written is kept"


def test_it_says_what_it_cannot_do() -> None:
    words = ["setpriv", "--reuid=65533", "sh", str(ROOT / "install_board.sh"), "install"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "run it as root (sudo make install-board)" in done.stderr) == (1, True)
