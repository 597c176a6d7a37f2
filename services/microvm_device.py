"""Finds and reads a microVM's configuration on a small block device: label `stack`, or cloud-init's `cidata`.

Labels are read here, from the first blocks of each device (ISO 9660, FAT, ext2 to ext4): a root of two packages has no
blkid(8). The kernel reads the file system, read-only, without programs and devices. A device without a file system may hold
the document itself, after the line `#stack-config`, up to its first NUL.
"""

from __future__ import annotations

import os
import stat
import time

from base.stdlib import TYPE_CHECKING, NamedTuple
from base.syscalls import MNT_DETACH, mount, mount_options, umount
from services.microvm_config import ConfigFault
from services.yaml_subset import LARGEST

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS = "/sys/class/block"
PLACE = "/run/microvm/device"  # where it is mounted while it is read
OURS, CLOUD = "stack", "cidata"  # labels, in small letters: cloud-init takes CIDATA too
RAW = b"#stack-config\n"
HEAD = 36 * 1024  # bytes of a device that say what is on it
MOST_DEVICES = 32
PAUSE = 0.02  # seconds between two looks for a device that may still appear


class Found(NamedTuple):
    """A device with a configuration."""

    device: str
    label: str  # OURS or CLOUD
    fstype: str  # "" where the document is on the device itself


def find(label: str, seconds: float, blocks: str = BLOCKS, dev: str = "/dev") -> Found | None:
    """The first device with this label, or with either where it is empty; None where none has come in so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        for device in devices(blocks, dev):
            found = identify(device)
            if found and found.label in ((label.lower(),) if label else (OURS, CLOUD)):
                return found
        if time.monotonic() >= deadline:
            return None
        time.sleep(PAUSE)


def devices(blocks: str, dev: str) -> Iterator[str]:
    """Nodes of block devices; of virtual ones (loop, ram, zram) none."""
    try:
        names = sorted(name for name in os.listdir(blocks) if not name.startswith(("loop", "ram", "zram")))
    except OSError:
        return
    for name in names[:MOST_DEVICES]:
        yield f"{dev}/{name}"


def identify(device: str) -> Found | None:
    """What is on a device, by its first blocks; None where it is nothing of ours or cannot be read."""
    try:
        with open(device, "rb", buffering=0) as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if head.startswith(RAW):
        return Found(device, OURS, "")
    for fstype, label in labels(head):
        name = label.rstrip(b" \0").decode("ascii", "replace").lower()
        if name in (OURS, CLOUD):
            return Found(device, name, fstype)
    return None


def labels(head: bytes) -> Iterator[tuple[str, bytes]]:
    """File system and label (ECMA-119, 8.4; fatgen103; linux/ext2_fs.h)."""
    if head[32768:32774] == b"\x01CD001":
        yield "iso9660", head[32808:32840]
    if head[1080:1082] == b"\x53\xef":
        yield "ext4", head[1144:1160]
    if head[510:512] == b"\x55\xaa":
        if head[82:87] == b"FAT32":
            yield "vfat", head[71:82]
        elif head[54:57] == b"FAT":
            yield "vfat", head[43:54]


def read(found: Found, names: tuple[str, ...]) -> dict[str, bytes]:
    """Those of the files that are there; ConfigFault where the device cannot be read, or a file is too large."""
    if not found.fstype:
        with open(found.device, "rb", buffering=0) as file:
            text = file.read(LARGEST + len(RAW)).partition(b"\0")[0]
        return {names[0]: text.removeprefix(RAW)}
    os.makedirs(PLACE, 0o700, exist_ok=True)
    flags, data = mount_options("ro,nosuid,nodev,noexec")
    try:
        mount(found.device, PLACE, found.fstype, flags, data)
    except OSError as error:
        raise ConfigFault(f"{found.device} cannot be mounted as {found.fstype}: {error.strerror}") from None
    try:
        listed = {name.lower(): name for name in os.listdir(PLACE)}
        return {name: read_limited(f"{PLACE}/{listed[name]}") for name in names if name in listed}
    except OSError as error:
        raise ConfigFault(f"{found.device} cannot be read: {error.strerror}") from None
    finally:
        umount(PLACE, MNT_DETACH)


def read_limited(path: str) -> bytes:
    """A regular file of at most LARGEST bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigFault(f"{os.path.basename(path)} is no regular file")
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ConfigFault(f"{os.path.basename(path)} has more than {LARGEST} bytes")
    return text
