#!/usr/bin/env python3
"""The boards of buildroot/configs, each composed of the parts that it shares with others and one of its own.

`compose.py BUILDROOT` writes configs/*_defconfig as that checkout of Buildroot saves them; `compose.py --check` says
which of them do not consist of exactly the lines of their parts, on any machine; `compose.py --list` names the boards.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
_PI = "common raspberrypi"
BOARDS = {
    "raspberrypi0w": f"{_PI} raspberrypi_0to4 raspberrypi_0to3 radio raspberrypi0w",
    "raspberrypi2": f"{_PI} raspberrypi_0to4 raspberrypi_0to3 raspberrypi2",
    "raspberrypi3_64": f"{_PI} raspberrypi_0to4 raspberrypi_0to3 radio aarch64 raspberrypi3_64",
    "raspberrypizero2w_64": f"{_PI} raspberrypi_0to4 raspberrypi_0to3 radio aarch64 raspberrypizero2w_64",
    "raspberrypi4_64": f"{_PI} raspberrypi_0to4 radio aarch64 raspberrypi4_64",
    "raspberrypi5": f"{_PI} radio aarch64 raspberrypi5",
    "qemu_aarch64": "common qemu aarch64 qemu_aarch64",
    "qemu_x86_64": "common qemu qemu_x86_64",
}


def stored(board: str) -> Path:
    """Where the board's configuration is, under a name that none of Buildroot's own has."""
    return HERE / "configs" / f"stack_{board}_defconfig"


def lines(board: str) -> list[str]:
    """The lines of its parts, in their order."""
    return [line for part in BOARDS[board].split() for line in (HERE / "parts" / f"{part}.config").read_text().splitlines()]


def symbol(line: str) -> str:
    """The name that a line of a configuration sets."""
    return line.removeprefix("# ").split("=")[0].split()[0]


def faults(board: str) -> list[str]:
    """What is wrong with the stored file, as sentences."""
    wanted, path = lines(board), stored(board)
    names = [symbol(line) for line in wanted]
    twice = [f"{board}: two parts set {name}" for name in sorted({name for name in names if names.count(name) > 1})]
    found = path.read_text().splitlines() if path.exists() else []
    missing = [f"{path.name} lacks {line!r}, which its parts have" for line in wanted if line not in found]
    return [*twice, *missing, *(f"{path.name} has {line!r}, which no part has" for line in found if line not in wanted)]


def write(board: str, buildroot: str) -> None:
    """Let Buildroot read the parts and save them in its own order, without what is a default anyway."""
    with tempfile.TemporaryDirectory() as folder:
        make = ["make", "-s", "-C", buildroot, f"O={folder}/out", f"BR2_EXTERNAL={HERE}"]
        Path(folder, "parts").write_text("\n".join(lines(board)) + "\n")
        for target in (("defconfig", f"DEFCONFIG={folder}/parts"), ("savedefconfig", f"DEFCONFIG={stored(board)}")):
            subprocess.run([*make, *target], check=True, stdout=subprocess.DEVNULL)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--list"]:
            print(*BOARDS)
            return 0
        case ["--check"]:
            pass
        case [buildroot] if Path(buildroot, "support/kconfig").is_dir():
            for board in BOARDS:
                write(board, os.path.abspath(buildroot))
        case [buildroot]:
            print(f"compose.py: {buildroot} is not a checkout of Buildroot: it has no support/kconfig", file=sys.stderr)
            return 1
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    found = [fault for board in BOARDS for fault in faults(board)]
    print("".join(f"compose.py: {fault}\n" for fault in found), end="", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
