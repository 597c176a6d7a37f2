"""Two slots: autoboot.txt on real FATs, a firmware as its documentation describes it, and a power cut at each write.

The firmware here is a few lines of Python: Broadcom's runs on a Raspberry Pi alone. What it reads and clears is as in
config_txt/autoboot.adoc of the firmware's documentation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PYTHON, ROOT

from services import root_disk
from updates import fat
from updates import slots as module
from updates.fat import Fat
from updates.slots import AUTOBOOT, FLAG, FileFlag, SlotError, Tryboot, UBoot, partitions_of, with_partitions

TEXT = (ROOT / "buildroot/board/raspberrypi/autoboot.txt").read_text()
# Clusters of one sector and of many; the root folder in its own place, and in a chain of clusters.
KINDS = {"FAT12": (1, 12, 1), "FAT16": (16, 16, 4), "FAT32": (34, 32, 1)}
PATHS = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "MTOOLS_SKIP_CHECK": "1"}


def run(*argv: str | Path) -> str:
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=True, env=PATHS).stdout


@pytest.fixture(params=KINDS)
def card(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A BOOT partition with the owner's files before and behind autoboot.txt."""
    if not shutil.which("mkfs.vfat", path=PATHS["PATH"]) or not shutil.which("mcopy"):
        pytest.skip("no mkfs.vfat or no mcopy here, and only root can install them")
    size, bits, cluster = KINDS[request.param]
    image = tmp_path / "boot.vfat"
    with image.open("wb") as file:
        file.truncate(size << 20)
    run("mkfs.vfat", "-F", str(bits), "-s", str(cluster), "-n", "BOOT", image)
    for name, text in (
        ("a long name of the owner's.txt", "x" * 5000),
        (AUTOBOOT, TEXT),
        (FLAG, "0\n"),
        ("authorized_keys", "k"),
    ):
        (tmp_path / name).write_text(text)
        run("mcopy", "-i", image, tmp_path / name, f"::{name}")
    return image


class Firmware:
    """Starts slots from a card as the documentation says: [tryboot] where the flag is set, which it clears before the start."""

    def __init__(self, card: Path, folder: Path) -> None:
        self.card = card
        self.chosen = folder / "chosen"
        self.argument = folder / "argument"
        self.chosen.mkdir(exist_ok=True)

    def start(self, *, tryboot: bool = False, text: bytes = b"") -> Tryboot:
        """A start; `tryboot`: reboot(2) has said so. The board as it is then. `text`: what the card has, where that is known."""
        content = text.decode() or run("mtype", "-i", self.card, f"::{AUTOBOOT}")
        number = partitions_of(content)[int(tryboot)]
        (self.chosen / "partition").write_bytes(number.to_bytes(4, "big"))
        (self.chosen / "tryboot").write_bytes(int(tryboot).to_bytes(4, "big"))
        self.argument.unlink(missing_ok=True)  # it was in memory
        return Tryboot(str(self.card), str(self.chosen), str(self.argument))

    def reboot(self) -> Tryboot:
        """What PID 1 does with its argument."""
        return self.start(tryboot=self.argument.exists() and self.argument.read_text() == "0 tryboot")


def test_the_file_of_the_image_is_what_the_firmware_documents() -> None:
    assert TEXT.splitlines() == ["[all]", "tryboot_a_b=1", "boot_partition=2", "[tryboot]", "boot_partition=3"]
    assert len(TEXT) <= 512
    assert partitions_of(TEXT) == (2, 3)


@pytest.mark.parametrize(
    "text",
    ["", "[all]\nboot_partition=2\n[tryboot]\nboot_partition=3\n", TEXT.replace("=3", "=1"), TEXT.replace("[tryboot]", "[none]"),
     TEXT + "#" * 512, TEXT.replace("boot_partition=2", "boot_partition=two")],
)  # fmt: skip
def test_a_file_with_which_a_trial_cannot_work_is_refused(text: str) -> None:
    with pytest.raises(SlotError, match=AUTOBOOT):
        partitions_of(text)


def test_an_owners_comments_stay() -> None:
    text = "# mine: boot_partition=2\n" + TEXT.replace("\n", "\r\n")
    new = with_partitions(text, 3, 2)
    assert partitions_of(new) == (3, 2)
    assert new.splitlines()[0] == "# mine: boot_partition=2"
    assert [at for at in range(len(text)) if text[at] != new[at]] == [text.index("=2\r") + 1, text.index("=3\r") + 1]


def test_an_update_is_tried_once_and_committed(card: Path, tmp_path: Path) -> None:
    firmware = Firmware(card, tmp_path)
    board = firmware.start()
    assert (board.current(), board.other(), board.default(), board.on_trial(), board.boots_left()) == (
        "A",
        "B",
        "A",
        False,
        None,
    )
    board.try_next()
    board = firmware.reboot()
    assert (board.current(), board.default(), board.on_trial(), board.boots_left()) == ("B", "A", True, 0)
    board.mark_good("healthy for 60 s")
    assert (board.default(), board.boots_left()) == ("B", None)
    board = firmware.reboot()
    assert (board.current(), board.on_trial()) == ("B", False)
    board.try_next()
    assert firmware.reboot().current() == "A", "the next update goes the other way"
    assert run("mtype", "-i", card, "::authorized_keys") == "k"
    assert subprocess.run(["fsck.vfat", "-n", card], capture_output=True, check=False, env=PATHS).returncode == 0


def test_a_start_that_nobody_asked_for_takes_the_old_slot(card: Path, tmp_path: Path) -> None:
    firmware = Firmware(card, tmp_path)
    firmware.start().try_next()
    assert firmware.start().current() == "A", "the power went before the reboot"
    firmware.start().try_next()
    assert firmware.reboot().current() == "B"
    assert firmware.start().current() == "A", "a panic, a hang or a power cut on trial"


def test_one_that_is_bad_after_its_commit_is_left(card: Path, tmp_path: Path) -> None:
    firmware = Firmware(card, tmp_path)
    firmware.start().try_next()
    board = firmware.reboot()
    board.mark_good("healthy")
    board.mark_bad("it crashes since")
    assert firmware.reboot().current() == "A"


def test_a_slot_on_trial_tries_no_other(card: Path, tmp_path: Path) -> None:
    firmware = Firmware(card, tmp_path)
    firmware.start().try_next()
    with pytest.raises(SlotError, match="slot B is on trial itself"):
        firmware.reboot().try_next()


class PowerCut(BaseException):
    """The board is gone in the middle of a line."""


@pytest.mark.parametrize("step", ["try_next", "mark_good", "mark_bad"])
def test_a_power_cut_at_every_byte_of_every_write(
    card: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the sector has reached the card, a plain start and one on trial take a slot, and nothing else of the card
    has changed. A commit is of a slot that is good: so both are."""
    firmware = Firmware(card, tmp_path)
    if step == "try_next":  # a card whose [tryboot] names the running slot: it has to be written
        Fat(str(card)).rewrite(AUTOBOOT, with_partitions(TEXT, 2, 2).encode())
    else:
        firmware.start().try_next()
    if step == "mark_bad":  # of a slot that is committed
        firmware.reboot().mark_good("healthy")
    before = card.read_bytes()
    sector = Fat(str(card)).find(AUTOBOOT)[0]
    end = sector + len(TEXT)
    writes = reached = 0

    def cut(fd: int, content: bytes, at: int) -> None:
        nonlocal writes
        writes += 1
        assert (at, len(content)) == (sector, len(TEXT))
        os.pwrite(fd, content[:reached], at)
        raise PowerCut

    monkeypatch.setattr(fat, "write_sector", cut)
    digits = [at for at in range(len(TEXT)) if TEXT[at] in "23"]
    lengths = (
        range(len(TEXT) + 1) if card.stat().st_size < 2 << 20 else sorted({0, *digits, *(at + 1 for at in digits), len(TEXT)})
    )
    for length in lengths:
        reached = length
        with card.open("r+b") as file:
            file.seek(sector)
            file.write(before[sector:end])
        board = firmware.start(tryboot=step == "mark_good", text=before[sector:end])
        with pytest.raises(PowerCut):
            board.try_next() if step == "try_next" else getattr(board, step)("a reason")
        after = card.read_bytes()
        assert (after[:sector], after[end:]) == (before[:sector], before[end:])
        for tryboot in (False, True):
            assert firmware.start(tryboot=tryboot, text=after[sector:end]).current() in "AB"
        if step == "try_next":
            assert firmware.start(text=after[sector:end]).current() == "A", "nothing that a plain start reads has changed"
    assert writes == len(lengths)


def test_a_card_that_keeps_nothing_is_noticed(card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    firmware = Firmware(card, tmp_path)
    firmware.start().try_next()
    board = firmware.reboot()
    monkeypatch.setattr(fat, "write_sector", lambda *_: None)
    with pytest.raises(SlotError, match="does not keep what is written"):
        board.mark_good("healthy")


def test_a_flag_in_a_file_is_played_the_same_way(card: Path) -> None:
    board = FileFlag(str(card), {"stack.slot": "A"})
    assert (board.current(), board.default(), board.on_trial()) == ("A", "A", False)
    board.try_next()
    assert run("mtype", "-i", card, f"::{FLAG}") == "1\n"
    board = FileFlag(str(card), {"stack.slot": "B", "stack.tryboot": ""})
    assert (board.on_trial(), board.boots_left()) == (True, 0)
    board.mark_good("healthy")
    assert (board.default(), board.boots_left()) == ("B", None)
    with pytest.raises(SlotError, match=r"stack\.slot"):
        FileFlag(str(card), {}).current()


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xeb" * 510 + b"\x55\xaa"])
def test_what_is_no_fat_is_an_error_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card").write_bytes(content)
    (tmp_path / "partition").write_bytes(b"\0\0\0\2")
    with pytest.raises(SlotError, match="cannot be read: "):
        Tryboot(str(tmp_path / "card"), str(tmp_path)).default()


# --- U-Boot ---------------------------------------------------------------------------------------------------------------------
def test_the_convention_of_rauc_is_read() -> None:
    board = UBoot({"BOOT_ORDER": "B A", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "2"}, "root=/dev/mmcblk0p6 rauc.slot=B rw")
    assert (board.current(), board.other(), board.default(), board.boots_left(), board.on_trial()) == ("B", "A", "B", 2, True)
    assert UBoot({"BOOT_ORDER": "B A", "BOOT_B_LEFT": "0"}, "rauc.slot=A").default() == "A"
    for step in (board.try_next, lambda: board.mark_good(""), lambda: board.mark_bad("")):
        with pytest.raises(SlotError, match="read, not written"):
            step()
    with pytest.raises(SlotError, match="no slot of BOOT_ORDER"):
        UBoot({"BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"}, "rauc.slot=A").default()
    with pytest.raises(SlotError, match="is no number"):
        UBoot({"BOOT_A_LEFT": "many"}, "rauc.slot=A").boots_left()
    with pytest.raises(SlotError, match=r"rauc\.slot"):
        UBoot({}, "root=/dev/mmcblk0p2").current()


# --- which ------------------------------------------------------------------------------------------------------------------------
def test_a_card_of_before_has_one_root_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_disk, "of_root", lambda: "mmcblk0")
    parts = {1: "/dev/mmcblk0p1", 2: "/dev/mmcblk0p2", 3: "/dev/mmcblk0p3"}
    monkeypatch.setattr(root_disk, "partitions", lambda disk: parts)
    with pytest.raises(SlotError, match="this card has one root"):
        module.slots({})


def test_a_board_is_known_by_what_started_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(root_disk, "of_root", lambda: "vda")
    monkeypatch.setattr(root_disk, "partitions", lambda disk: {number: f"/dev/vda{number}" for number in range(1, 8)})
    assert module.slots({"stack.slot": "A"}).kind == "file"
    assert module.slots({}, str(tmp_path)).kind == "tryboot"
    with pytest.raises(SlotError, match="which slot was started"):
        module.slots({}, str(tmp_path / "none"))


# --- reboot(2) ----------------------------------------------------------------------------------------------------------------------
def test_the_kernel_takes_the_words_for_the_firmware() -> None:
    """In a PID namespace RESTART2 ends it with SIGHUP as RESTART does (kernel/pid_namespace.c); another command would be EINVAL."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from base.syscalls import restart_with; restart_with('0 tryboot')"
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", PYTHON, "-ESB", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr and "unshare" in done.stderr:
        pytest.skip("no namespaces here")
    assert (done.returncode, done.stderr) in ((-1, ""), (129, "")), done
