"""The FAT boot partition on an x86_64 kernel: what its owner puts there is taken, what is wrong is named and left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, eventually
from qemu_storage import off, run, shell

sys.path.insert(0, str(ROOT / "lab"))
from image import ssh_key

MIB = 1024 * 1024
FEW = """
from tables.rows import Service
MODULES = ("virtio_net",)
DATA = ("LABEL=data", "/dev/vdb2")
DATA_WAIT = 2.0
BOOT_FILES = ("LABEL=BOOT", "/dev/vdb1")
BOOT_WAIT = 250.0  # longer than a test waits: storage.py has waited for the card already
SERVICES = tuple(row for row in SERVICES if row.name in
                 ("modules", "logd", "storage", "bootfiles", "syslogd", "dropbear", "console"))
SERVICES += (Service("eth0", ("sh", "-c", "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0"), ("modules",),
                     ready="exit", restart="never"),)
"""
# What an image must link for these files to be found.
LINKS = {"root/.ssh": "-> /run/stack/boot", "etc/wpa_supplicant.conf": "-> /run/stack/boot/wpa_supplicant.conf"}
PROFILE = (
    "HOSTNAME = 'mast'\nUPLINK_TLS = ('/run/stack/boot/ca.pem', '/run/stack/boot/board.pem', '/run/stack/boot/board.key')\n"
)
PROFILE += "SERVICES += (Service('mine', ('sleep', '100000'), user='{APP_USER}'),)\n"
WIFI = 'network={\n    ssid="harbour"\n    psk="long enough"\n}\n'


class Card:
    """A disk with a FAT and an ext4 partition, as a builder writes it."""

    def __init__(self, folder: Path) -> None:
        self.disk, self.fat = folder / "card.img", folder / "fat.img"
        with self.disk.open("wb") as file:
            file.truncate(96 * MIB)
        run("sfdisk", "-q", self.disk, text="label: dos\nstart=2048, size=32768, type=c\nstart=34816, size=65536, type=linux\n")
        run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-E", f"offset={17 * MIB}", self.disk, "32M")
        self.write({"kernel.img": b"what the firmware starts"})

    def write(self, files: dict[str, bytes]) -> None:
        """A new FAT with these in it."""
        self.fat.unlink(missing_ok=True)
        run("mkfs.vfat", "-n", "BOOT", "-C", self.fat, "16384")
        for name, data in files.items():
            source = self.fat.with_name("file")
            source.write_bytes(data)
            run("mcopy", "-i", self.fat, source, f"::{name}")
        self.overwrite(self.fat.read_bytes())

    def overwrite(self, content: bytes) -> None:
        with self.disk.open("r+b") as file:
            file.seek(MIB)
            file.write(content)


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)


@pytest.fixture
def good(tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """As an editor on Windows writes them."""
    request = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=b",
    )
    run(*request, "-keyout", tmp_path / "board.key", "-out", tmp_path / "board.pem")
    mark = b"\xef\xbb\xbf"

    def windows(text: str) -> bytes:
        return text.replace("\n", "\r\n").encode()

    certificate = (tmp_path / "board.pem").read_text()
    yield {
        "kernel.img": b"x", "authorized_keys": mark + windows(ssh_key().with_suffix(".pub").read_text()),
        "settings_prod.py": mark + windows(PROFILE), "wpa_supplicant.conf": windows(WIFI), "ca.pem": windows(certificate),
        "board.pem": windows(certificate), "board.key": (tmp_path / "board.key").read_bytes(),
    }  # fmt: skip


def facts(board: Any) -> dict[str, Any]:
    """What the board says when bootfiles.py has ended: by then it has also restarted what has read the old files."""
    code = """
import sv
facts = sv.board()
result = facts if "bootfiles" in facts and sv.stats_process("bootfiles")[0]["state"] == "stopped" else None"""
    return dict(board.wait(code, 60))


def on_console(board: Any, expression: str, seconds: float = 60.0) -> str:
    """What an expression is worth at the prompt of the serial console: where nobody may log in by ssh."""
    board.wait_console(">>> ", seconds)
    before = board.console().count("||")
    board.type(f"from sv import *; print('\\x7c\\x7c' + str({expression}) + '\\x7c\\x7c')\n")
    text = eventually(lambda: board.console().count("||") == before + 2 and board.console(), 30)
    return str(text).split("||")[-2]


ALL = ["authorized_keys", "settings_prod.py", "wpa_supplicant.conf", "ca.pem", "board.pem", "board.key"]


@pytest.mark.timeout(600)
def test_good_ones_bad_ones_none_and_garbage(
    machine: Callable[..., Any], card: Card, good: dict[str, bytes], record_property: Callable[[str, object], None]
) -> None:
    """One card's life: each boot starts from what the one before has left."""
    figure = record_property
    card.write(good)
    board = machine("x86_64", FEW, files=LINKS, data=card.disk).up()
    found = facts(board)
    record = found["bootfiles"]
    assert (record["source"], record["device"], record["notes"]) == ("LABEL=BOOT", "/dev/vdb1", []), record
    assert record["files"] == dict.fromkeys(ALL, "taken")
    assert (found["hostname"], found["rejected"], found["faults"]) == ("mast", [], []), found
    assert board.python("import sv; result = sv.stats_process('mine')[0]['alive']")
    names = shell(board, "stat -c '%n %a %u:%g' /run/stack/boot/*").replace("/run/stack/boot/", "").splitlines()
    assert {"authorized_keys 600 0:0", "board.key 640 0:48327", "settings_prod.py 600 0:0",
            "wpa_supplicant.conf 600 0:0"} <= set(names)  # fmt: skip
    assert shell(board, "cat /etc/wpa_supplicant.conf") == WIFI.strip()
    chosen = board.python("""
import sys; sys.path.insert(0, "/usr/lib/stack")
import ssl
from onboard import board_table
from tables.accounts import own_number
os.setgroups([]); os.setgid(own_number("uplink")); os.setuid(own_number("uplink"))
ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*board_table.board_table().UPLINK_TLS[1:])
result = board_table.board_table().UPLINK_TLS[0]""")
    assert chosen == "/run/stack/boot/ca.pem"
    assert "/run/stack/fat" not in shell(board, "cat /proc/mounts")
    figure("figure", f"boot partition: six files taken in {record['seconds']:g} s on x86_64 under emulation")
    off(board)

    bad = {name: b"\xff\x00garbage" for name in ALL}
    bad |= {"settings_prod.py": b"HOSTNAME = 'wrong'\nwhile True: pass\n", "wpa_supplicant.conf": WIFI[:-2].encode()}
    bad |= {"authorized_keys": good["authorized_keys"][:60], "ca.pem": good["ca.pem"][:-40]}
    bad |= {"board.pem": good["board.pem"], "board.key": os.urandom(300)}
    card.write(bad)
    board = machine("x86_64", FEW, files=LINKS, data=card.disk).up()
    found = facts(board)
    record = found["bootfiles"]
    assert record["files"] == dict.fromkeys(ALL, "kept"), record
    assert found["hostname"] == "mast"
    for part in ("authorized_keys: line 1: the key is", "took more than 4 s",
                 "wpa_supplicant.conf: line 1: the block is not closed", "ca.pem: a block is not whole", "board.",
                 ):  # fmt: skip
        assert sum(part in note and note.endswith("it is not taken") for note in record["notes"]) == 1, record
    assert len(record["notes"]) == 5, record
    off(board)

    card.overwrite(os.urandom(16 * MIB))
    board = machine("x86_64", FEW, files=LINKS, data=card.disk).up()
    found = facts(board)
    record = found["bootfiles"]
    assert (record["read"], record["source"], record["files"]) == (False, "/dev/vdb1", dict.fromkeys(ALL, "kept")), record
    assert record["notes"] == ["/dev/vdb1 cannot be read as FAT: Invalid argument"]
    assert found["hostname"] == "mast"
    off(board)

    run("sfdisk", "-q", "--delete", card.disk, "1")
    board = machine("x86_64", FEW, files=LINKS, data=card.disk).up()
    record = facts(board)["bootfiles"]
    assert (record["device"], record["files"]) == ("", dict.fromkeys(ALL, "kept")), record
    assert record["notes"] == ["no boot partition: there is none of LABEL=BOOT, /dev/vdb1"]
    assert record["seconds"] < 250.0, "storage.py has waited for the card already"


@pytest.mark.timeout(400)
def test_what_is_taken_away_is_gone(machine: Callable[..., Any], card: Card, good: dict[str, bytes]) -> None:
    card.write(good)
    board = machine("x86_64", FEW, files=LINKS, data=card.disk).up()
    assert facts(board)["hostname"] == "mast"
    off(board)
    card.write({"kernel.img": b"x"})
    board = machine("x86_64", FEW, files=LINKS, data=card.disk)
    ended = "board()['bootfiles']['files'] if 'bootfiles' in board() else ''"
    assert eventually(lambda: on_console(board, ended), 30) == str(dict.fromkeys(ALL, "removed"))
    assert on_console(board, "board()['hostname']") == "qemu"
    assert on_console(board, "__import__('os').path.exists('/run/stack/boot/authorized_keys')") == "False"
    with pytest.raises(Exception, match="status 255"):
        board.ssh("echo 1", seconds=60)


@pytest.mark.timeout(200)
def test_a_board_without_any_card_comes_up(machine: Callable[..., Any], record_property: Callable[[str, object], None]) -> None:
    board = machine("x86_64", FEW).up()
    record = facts(board)["bootfiles"]
    assert (record["device"], record["files"], record["notes"][0]) == (
        "", {}, "no boot partition: there is none of LABEL=BOOT, /dev/vdb1"
    )  # fmt: skip
    assert record["seconds"] < 250.0, "storage.py has waited already"
    record_property("figure", f"no boot partition: known in {record['seconds']:g} s on x86_64 under emulation")
