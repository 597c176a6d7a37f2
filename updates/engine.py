"""SWUpdate writes and verifies: its command line, and its complaints as sentences (docs/decisions.md says why it).

A bundle is SWUpdate's: a cpio whose first two members are sw-description and its signature (CMS). It names no partition of a
card: it writes to `PLACE`/boot and `PLACE`/root, which the board makes links to the slot that does not run. So a bundle that
`make bundle` has made cannot name the running one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable

from uplink.certificates import until_of

PLACE = "/run/stack/slot"
PARTS = ("boot", "root")
LONGEST = 64 * 1024  # bytes of a sw-description, and of what the engine says that are read
HEADER = 110  # bytes of a member's header (cpio "newc" and "crc", `man 5 cpio`)
LOOK = 0.2  # seconds between two looks at how far the engine is
SUCCESS = "SWUPDATE successful"
FOREIGN = "its signature is not by this board's key"
# What SWUpdate says, and what it means; the first that fits.
MEANS = (
    ("not compatible with hardware", "it is for another board than this, which is {board}"),
    ("No downgrading allowed", "it is older than what runs, {version}"),
    ("signature", FOREIGN),
    ("Signature", FOREIGN),
    ("HASH mismatch", "it is damaged: what it holds is not what was signed"),
    ("No space left", "it does not fit into a slot"),
)


class Refused(Exception):
    """Why a bundle is not installed, as a sentence for people."""


def described(path: str) -> str:
    """The text of a bundle's sw-description, its first member. Not verified yet. Refused where it is no bundle."""
    with open(path, "rb") as file:
        head = file.read(HEADER)
        try:
            size, length = int(head[54:62], 16), int(head[94:102], 16)
        except ValueError:
            size = length = 0
        name = file.read(length if length < 256 else 0)
        file.seek(-(HEADER + length) % 4, os.SEEK_CUR)
        if head[:6] not in (b"070701", b"070702") or name != b"sw-description\0" or not 0 < size <= LONGEST:
            raise Refused("it is no update bundle: `make bundle` makes one")
        return file.read(size).decode("utf-8", "replace")


def version_of(text: str) -> str:
    """The version that a sw-description gives. Refused where it gives none."""
    match = re.search(r'^\s*version\s*=\s*"([0-9.]{1,40})"', text, re.M)
    if not match:
        raise Refused("it does not say which version it is")
    return match[1]


def install(
    path: str, certificate: str, board: str, version: str, folder: str, progress: Callable[[int], object] = lambda done: None
) -> None:
    """Verify a bundle and write its parts to PLACE. Refused, and what is there is not to be started, where it is not good.

    `version` is what runs: nothing older is written. `folder` is the engine's for its sockets: nobody else may write there.
    `progress` hears how many bytes of the bundle have been read. Memory: SWUpdate copies the images in pieces of 16 KiB.
    """
    low = [word for tool in (("ionice", "-c3"), ("nice", "-n19")) if shutil.which(tool[0]) for word in tool]
    words = [*low, "swupdate", "-l", "2", "-k", certificate, "-H", f"stack:{board}", "-N", version, "-i", path]
    environment = {**os.environ, "TMPDIR": folder, "LC_ALL": "C"}
    said = os.memfd_create("swupdate")
    try:
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        except OSError as error:
            raise Refused(f"there is no swupdate in this image: {error.strerror}") from None
        try:
            while process.poll() is None:
                progress(position(process.pid, path))
                time.sleep(LOOK)
        finally:
            if process.poll() is None:  # ctrl-C
                process.kill()
                process.wait()
        size = os.fstat(said).st_size
        text = os.pread(said, LONGEST, max(0, size - LONGEST)).decode(errors="replace")
    finally:
        os.close(said)
    if not successful(text):
        why = meaning(text, board, version, process.returncode)
        raise Refused(out_of_date(certificate, time.time()) or why if why == FOREIGN else why)


def successful(text: str) -> bool:
    """Whether the engine says that all is written, and no error.

    Its exit status does not tell: version 2022.12 asks itself for its result, now and then too late, and ends with 1 then.
    """
    return SUCCESS in text and "ERROR" not in text


def meaning(text: str, board: str, version: str, status: int = 1) -> str:
    """The engine's complaint as a sentence: ours where we know it, else its own words."""
    errors = [line.partition(" : ")[2] or line for line in text.splitlines() if "ERROR" in line]
    for sign, sentence in MEANS:
        if any(sign in line for line in errors):
            return sentence.format(board=board, version=version)
    first = (
        re.sub(r"SWUPDATE \w+\s*(\[\d\])?\s*(ERROR : )?", "", errors[0]).strip()
        if errors
        else f"it ended with status {status} and names no error"
    )
    return f"swupdate: {first[:300]}"


def out_of_date(certificate: str, now: float) -> str:
    """Why the board's certificate is the reason, which the engine does not tell; empty where it is not."""
    end = until_of(certificate)
    if end is None:
        return f"{certificate}, by which updates are known, cannot be read"
    if now <= end:
        return ""
    ended, today = (time.strftime("%Y-%m-%d", time.gmtime(at)) for at in (end, now))
    return f"{certificate}, by which updates are known, has expired on {ended}, and here it is {today}"


def position(pid: int, path: str) -> int:
    """How far a process has read a file (`man 5 proc`: fdinfo); 0 where that is not known."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == os.path.realpath(path):
                with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
                    return int(file.readline().split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0
