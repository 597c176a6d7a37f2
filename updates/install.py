"""One update: what is asked first, the bundle, the slot that does not run, and the next start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from base.files import open_folder, read_file
from base.stdlib import TYPE_CHECKING
from onboard import boot_ends, suits
from onboard.to_pid1 import SVError
from updates import engine, fetch, health, slots
from updates.engine import Refused
from updates.ledger import note
from updates.slots import PARTITION_OF, ROOT_OF, SlotError

if TYPE_CHECKING:
    from updates.slots import Slots

RELEASE = "/etc/stack-release"  # "BOARD VERSION", by the image's build
STORAGE = "/run/stack/storage.json"  # by services/storage.py

Say = Callable[[str, int, int], object]  # what is done, how far, of how much


def release(path: str = RELEASE) -> tuple[str, str]:
    """Board and version of the image that runs. Refused where it does not say so."""
    words = read_file(path).split()
    if len(words) != 2:
        raise Refused(f"{path} does not say which board and which version this is: only an image of `make image` takes updates")
    return words[0], words[1]


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """One update at a time. Refused where another one is under way."""
    os.close(open_folder(folder, 0o700))
    with open(f"{folder}/lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused("another update is under way") from None
        yield


def link(slot: str, place: str, devices: dict[int, str]) -> None:
    """Let the engine's names mean a slot's partitions, and nothing else."""
    os.makedirs(place, 0o700, exist_ok=True)
    for part, number in (("boot", PARTITION_OF[slot]), ("root", ROOT_OF[slot])):
        if number not in devices:
            raise Refused(f"the card has no partition {number}, which is slot {slot}'s {part}")
        if os.path.lexists(f"{place}/{part}"):
            os.unlink(f"{place}/{part}")
        os.symlink(devices[number], f"{place}/{part}")


class Where(NamedTuple):
    """Where things are on this board."""

    folder: str  # on the data partition: bundles on their way, and the ledger
    certificate: str
    devices: dict[int, str]  # partitions of the card by number
    place: str = engine.PLACE
    release: str = RELEASE
    authority: str = ""  # a file: whoever it vouches for may serve bundles too


def update(source: str, values: dict[str, Any], control: str, say: Say, version: str = "") -> dict[str, Any]:
    """One update of this board, whose settings are `values`: begin(), with what is noted of the slot that runs.

    Refused, SlotError, or OSError; SVError where PID 1 at `control` does not answer.
    """
    if not boot_ends.read(STORAGE).get("mounted"):
        raise Refused("there is no data partition: a bundle, and what is known of the slots, has no place")
    where = Where(
        f"{values['KEEP']}/update", values["UPDATE_CERTIFICATE"], slots.partitions(), authority=(*values["UPLINK_TLS"], "")[0]
    )
    seen = health.look(control, values["NETWORK_STATE"])
    if not seen.board:
        raise SVError("PID 1 does not answer")
    before = health.before(*seen[:3])
    found = begin(source, where, slots.slots(seen.board.get("options", {})), say, before, version)
    boot_ends.tell(boot_ends.UPDATE, {"state": "written", **found})
    return found


def begin(
    source: str, where: Where, board_slots: Slots, say: Say, before: dict[str, Any] | None = None, wanted: str = ""
) -> dict[str, Any]:
    """Write a bundle into the slot that does not run, and let the next reboot try it.

    `before` is what the new slot's health is compared with (updates/health.py); `wanted` the version that it has to be.

    Refused or SlotError: nothing that a start reads has been changed. The running slot never is.
    """
    folder = where.folder
    current, other = board_slots.current(), board_slots.other()
    if board_slots.default() != current:
        raise SlotError(f"slot {current} is on trial itself: it is committed, or left, before another update")
    board, version = release(where.release)
    if not os.path.exists(where.certificate):
        raise Refused(f"there is no {where.certificate} in this image: `make update-key` before `make image`")
    if fault := suits.power_fault():
        raise Refused(fault)
    with alone(folder):
        path = fetched(source, folder, say, where.authority)
        try:
            new = engine.version_of(engine.described(path))
            if wanted and new != wanted:
                raise Refused(f"it is version {new}, and not {wanted}")
            size = fetch.size_of(path)
            link(other, where.place, where.devices)
            note(folder, **{other: {"state": "writing", "version": new}}, trial=None)
            work = f"{where.place}/work"
            os.makedirs(work, 0o700, exist_ok=True)
            engine.install(path, where.certificate, board, version, work, lambda done: say("writing", done, size))
        finally:
            if path != source:
                os.unlink(path)
        os.sync()
        trial = {"slot": other, "version": new, "from": current, **(before or {})}
        note(folder, **{other: {"state": "written", "version": new}}, trial=trial)
        board_slots.try_next()
    return {
        "slot": other,
        "version": new,
        "instead_of": version,
        "next": f"reboot() tries slot {other}; until then {current} runs",
    }


def fetched(source: str, folder: str, say: Say, authority: str) -> str:
    """The path of the bundle."""
    if source == "-":
        return fetch.from_stdin(sys.stdin.buffer, folder, lambda done, size: say("receiving", done, size))
    if "://" in source:
        return fetch.download(source, folder, lambda done, size: say("loading", done, size), authority)
    if not os.path.isfile(source):
        raise Refused(f"there is no file {source[:200]!r}")
    return source
