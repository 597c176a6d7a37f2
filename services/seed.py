"""The random seed that this boot saves for the next one (`man 4 random`, drivers/char/random.c).

A board without a hardware random generator has little entropy when it starts. The seed is credited as entropy only
where we have saved it from a pool that was itself initialised, and only after another one has taken its place on the
disk: the same seed is never credited twice, whenever the power goes. (As systemd-random-seed(8) and SeedRNG do.)
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from fcntl import ioctl
from hashlib import blake2b

from base.files import write_atomically

SIZE = 32  # bytes: 256 bits are what the kernel's pool holds (POOL_READY_BITS)
GOOD, DOUBTFUL = b"credit\n", b"no-credit\n"  # the file's first line: whether the pool was initialised when the seed was read
RNDADDENTROPY = 0x40085203  # linux/random.h: _IOW('R', 3, int[2])
POOL = "/dev/urandom"


def restore(folder: str, *, believed: bool = True) -> None:
    """Write the last boot's seed to the kernel's pool. Without `believed` it is mixed in but not credited as entropy."""
    old, creditable = read(f"{folder}/seed")
    creditable = creditable and believed
    if not old:
        print("<5>no random seed of an earlier boot", file=sys.stderr)
        return
    try:
        _replace(folder, DOUBTFUL, old)
    except OSError as error:
        print(f"<4>the old random seed stays on the disk ({error.strerror}): not credited", file=sys.stderr)
        creditable = False
    credited = feed(old, creditable)
    save(folder, old)
    print(f"<6>random seed: {8 * len(old)} bits, {'credited' if credited else 'not credited'}", file=sys.stderr)


def save(folder: str, old: bytes = b"") -> None:
    """Save a seed for the next boot, marked creditable if the pool is initialised (`man 2 getrandom`). Raises OSError."""
    try:
        os.getrandom(1, os.GRND_NONBLOCK)
        mark = GOOD
    except BlockingIOError:
        mark = DOUBTFUL
    _replace(folder, mark, old or read(f"{folder}/seed")[0])


def read(path: str) -> tuple[bytes, bool]:
    """The seed, and whether it may be credited: only if no user but root could read or write the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b"", False
    with open(fd, "rb") as file:
        status, data = os.fstat(fd), file.read(1024)
    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    mark, newline, seed = data.partition(b"\n")
    return seed, ours and mark + newline == GOOD and len(seed) == SIZE


def feed(seed: bytes, creditable: bool) -> bool:
    """Mix a seed into the kernel's pool. Returns whether it was credited; raises OSError."""
    fd = os.open(POOL, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if creditable:
            try:  # struct rand_pool_info: bits, bytes, buffer
                ioctl(fd, RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
                return True
            except PermissionError:
                pass  # not the root of the kernel's own user namespace
        os.write(fd, seed)
        return False
    finally:
        os.close(fd)


def _replace(folder: str, mark: bytes, old: bytes) -> None:
    """Write a new seed: a hash of the old one and of the pool, so it is never weaker than the old one."""
    with open(POOL, "rb", buffering=0) as pool:  # getrandom(2) would wait for a pool that is not initialised
        new = blake2b(old + pool.read(SIZE), digest_size=SIZE).digest()
    write_atomically(f"{folder}/seed", mark + new, 0o600)
