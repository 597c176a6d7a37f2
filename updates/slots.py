"""Two slots, A and B: which one runs, which one the next start takes, and how that is changed.

A back-end knows the board's firmware. What the program itself knows of the slots (version, verdict) is updates/ledger.py's.
Nothing here writes into a slot, and nothing mounts the firmware's partition.
"""

from __future__ import annotations

import os
import re
import subprocess

from base.files import read_file
from base.stdlib import TYPE_CHECKING
from onboard import boot_ends
from onboard.device_tree import CHOSEN, chosen
from services import root_disk
from updates.fat import Fat

if TYPE_CHECKING:
    from typing import Protocol

    class Slots(Protocol):
        """What every back-end can do. SlotError says in a sentence why not."""

        kind: str

        def current(self) -> str: ...
        def other(self) -> str: ...
        def default(self) -> str: ...
        def on_trial(self) -> bool: ...
        def boots_left(self) -> int | None: ...
        def try_next(self) -> None: ...
        def mark_good(self, reason: str) -> None: ...
        def mark_bad(self, reason: str) -> None: ...


AUTOBOOT = "autoboot.txt"
FLAG = "tryboot.flg"  # beside autoboot.txt where no firmware keeps the flag: "1" and a newline, or "0" and a newline
BOOT_OF = {2: "A", 3: "B"}  # the firmware's partition of a slot; MBR, so that every Raspberry Pi's firmware can start from it
ROOT_OF = {"A": 5, "B": 6}
PARTITION_OF = {slot: number for number, slot in BOOT_OF.items()}
CMDLINE = "/proc/cmdline"
TRYBOOT = "0 tryboot"  # for LINUX_REBOOT_CMD_RESTART2: partition 0 is the firmware's own choice
TRIES = 3  # of a U-Boot's counter


class SlotError(Exception):
    """Why a slot cannot be asked or changed, as a sentence for people."""


def opposite(slot: str) -> str:
    return "B" if slot == "A" else "A"


# --- autoboot.txt ------------------------------------------------------------------------------------------------------
def partitions_of(text: str) -> tuple[int, int]:
    """boot_partition of a plain start, and of one by tryboot, as the firmware's documentation has autoboot.txt: at most 512
    bytes, the filters [all], [none] and [tryboot], and tryboot_a_b=1. SlotError where a trial cannot work with it."""
    found: dict[str, int] = {}
    section = "all"
    a_b = False
    for line in text.splitlines():
        line = line.strip()
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif line == "tryboot_a_b=1" and section == "all":
            a_b = True
        elif (match := re.fullmatch(r"boot_partition=(\d+)", line)) and section in ("all", "tryboot"):
            found[section] = int(match[1])
    if len(text.encode()) > 512:
        raise SlotError(f"{AUTOBOOT} has {len(text.encode())} bytes; the firmware reads 512")
    if not a_b or set(found.values()) - set(BOOT_OF) or set(found) != {"all", "tryboot"}:
        raise SlotError(
            f"{AUTOBOOT} is not that of a card with two slots: tryboot_a_b=1, and boot_partition=2 or 3 in [all] and [tryboot]"
        )
    return found["all"], found["tryboot"]


def with_partitions(text: str, plain: int, tried: int) -> str:
    """The same file with other numbers: of the same length, and different in at most two bytes.

    A write of which any part has reached the card leaves numbers of slots: each mixture of old and new can be started.
    """
    partitions_of(text)
    section, lines = "all", text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if match := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section = match[1]
        elif line.strip().startswith("boot_partition=") and section in ("all", "tryboot"):
            lines[number] = re.sub(r"\d", str(plain if section == "all" else tried), line)
    return "".join(lines)


# --- back-ends ------------------------------------------------------------------------------------------------------------
class Tryboot:
    """Raspberry Pi's: autoboot.txt names the slot of a plain start, and the firmware's tryboot flag starts the other one once.

    The firmware clears the flag before it starts that slot. So after a crash, a hang that the watchdog ends, or a power cut the
    old one starts, and nothing has to be written for that.
    """

    kind = "tryboot"

    def __init__(self, device: str, folder: str = CHOSEN, argument: str = boot_ends.ARGUMENT) -> None:
        self.device = device
        self.chosen = folder
        self.argument = argument

    def _text(self) -> str:
        try:
            return Fat(self.device).read(AUTOBOOT).decode("ascii")
        except (OSError, ValueError) as error:
            raise SlotError(f"{AUTOBOOT} on {self.device} cannot be read: {error}") from None

    def _write(self, plain: str, tried: str) -> None:
        text = self._text()
        new = with_partitions(text, PARTITION_OF[plain], PARTITION_OF[tried])
        if new == text:
            return
        try:
            Fat(self.device).rewrite(AUTOBOOT, new.encode("ascii"))
        except (OSError, ValueError) as error:
            raise SlotError(f"{AUTOBOOT} on {self.device} cannot be written: {error}") from None
        if self._text() != new:
            raise SlotError(f"{AUTOBOOT} on {self.device} does not keep what is written: is the card at its end, or locked?")

    def current(self) -> str:
        """The slot that runs, as the firmware tells the kernel."""
        number = chosen("partition", self.chosen)
        if number not in BOOT_OF:
            raise SlotError(f"the firmware says that partition {number} was started, which is no slot")
        return BOOT_OF[number]

    def on_trial(self) -> bool:
        """Whether this start was by the tryboot flag."""
        return chosen("tryboot", self.chosen) == 1

    def other(self) -> str:
        return opposite(self.current())

    def default(self) -> str:
        """The slot of a plain start."""
        return BOOT_OF[partitions_of(self._text())[0]]

    def boots_left(self) -> int | None:
        """How often the slot that runs may still be started before the other one is: 0 on trial, None for ever."""
        return 0 if self.current() != self.default() else None

    def try_next(self) -> None:
        """The next reboot, and no other start, takes the other slot. Nothing that a plain start reads is changed."""
        current = self.current()
        if self.default() != current:
            raise SlotError(f"slot {current} is on trial itself: it is committed, or left, before another one is tried")
        self._write(current, opposite(current))
        self._arm()

    def _arm(self) -> None:
        boot_ends.tell_argument(TRYBOOT, self.argument)

    def mark_good(self, reason: str) -> None:
        """The slot that runs is that of every plain start from now on. Marking it again writes nothing."""
        current = self.current()
        self._write(current, opposite(current))

    def mark_bad(self, reason: str) -> None:
        """The other slot is that of every plain start from now on: it was before, unless this one has been committed."""
        current = self.current()
        self._write(opposite(current), current)


class FileFlag(Tryboot):
    """For QEMU and microVMs: autoboot.txt as on a Raspberry Pi, and the flag in a file beside it. Whoever plays the firmware
    reads both, clears the flag before the start, and gives PID 1 `stack.slot=A` and, on trial, `stack.tryboot`."""

    kind = "file"

    def __init__(self, device: str, words: dict[str, str]) -> None:
        super().__init__(device)
        self.words = words  # `stack.` words, as PID 1 has them

    def current(self) -> str:
        if self.words.get("stack.slot") not in PARTITION_OF:
            raise SlotError("nobody has said by stack.slot=A or B which slot was started")
        return self.words["stack.slot"]

    def on_trial(self) -> bool:
        return "stack.tryboot" in self.words

    def _arm(self) -> None:
        try:
            Fat(self.device).rewrite(FLAG, b"1\n")
        except (OSError, ValueError) as error:
            raise SlotError(f"{FLAG} on {self.device} cannot be written: {error}") from None


class UBoot:
    """The convention of RAUC's U-Boot scripts, to be read: BOOT_ORDER="A B", and BOOT_A_LEFT, which U-Boot counts down before
    each start of slot A. The running slot is rauc.slot= of the kernel command line."""

    kind = "u-boot"

    def __init__(self, environment: dict[str, str], cmdline: str) -> None:
        self.environment = environment
        self.cmdline = cmdline

    def current(self) -> str:
        match = re.search(r"(?:^|\s)rauc\.slot=([AB])(?:\s|$)", self.cmdline)
        if not match:
            raise SlotError("the kernel command line has no rauc.slot=A or B")
        return match[1]

    def other(self) -> str:
        return opposite(self.current())

    def _left(self, slot: str) -> int:
        text = self.environment.get(f"BOOT_{slot}_LEFT", str(TRIES))
        try:
            return int(text, 16)  # as U-Boot's setexpr counts
        except ValueError:
            raise SlotError(f"BOOT_{slot}_LEFT={text[:20]!r} is no number") from None

    def default(self) -> str:
        """The first slot in BOOT_ORDER that has starts left."""
        order = [slot for slot in self.environment.get("BOOT_ORDER", "A B").split() if slot in PARTITION_OF]
        for slot in order:
            if self._left(slot) > 0:
                return slot
        raise SlotError("no slot of BOOT_ORDER has a start left: U-Boot resets the counters")

    def on_trial(self) -> bool:
        return self._left(self.current()) < TRIES

    def boots_left(self) -> int | None:
        return self._left(self.current())

    def _read_only(self) -> None:
        raise SlotError("the U-Boot environment is read, not written: the board's own tools mark its slots")

    def try_next(self) -> None:
        self._read_only()

    def mark_good(self, reason: str) -> None:
        self._read_only()

    def mark_bad(self, reason: str) -> None:
        self._read_only()


def uboot_environment() -> dict[str, str]:
    """What fw_printenv(1) of u-boot-tools prints; {} where it does not work."""
    try:
        done = subprocess.run(["fw_printenv"], capture_output=True, text=True, timeout=10.0, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = [line.partition("=") for line in done.stdout.splitlines()[:2000]] if done.returncode == 0 else []
    return {name: value for name, _, value in lines}


def partitions() -> dict[int, str]:
    """The devices of the root's card by number."""
    return root_disk.partitions(root_disk.of_root())


def slots(options: dict[str, str], folder: str = CHOSEN) -> Slots:
    """The back-end of this board. SlotError where the card has one root only, such as one of before there were slots."""
    cmdline = read_file(CMDLINE)
    if "rauc.slot=" in cmdline:
        return UBoot(uboot_environment(), cmdline)
    parts = partitions()
    device = parts.get(1, "")
    if not set(ROOT_OF.values()) <= set(parts):
        raise SlotError("this card has one root: it takes no update while it runs. Write a card of today's layout once")
    if "stack.slot" in options:
        return FileFlag(device, options)
    if os.path.exists(folder):
        return Tryboot(device, folder)
    raise SlotError("neither a Raspberry Pi's firmware nor stack.slot= says which slot was started")
