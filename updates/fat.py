"""The first sector of a small file of a FAT's root folder, read and rewritten on the device itself, without a mount.

A mounted FAT that is written changes its boot sector, a folder entry and the file. Here one sector changes, and the file system
is never mounted writable. Format: Microsoft's "FAT: General Overview of On-Disk Format", 1.03.
"""

from __future__ import annotations

import os

SECTOR = 512  # bytes; also the limit of autoboot.txt
MOST_ENTRIES = 4096  # entries of the root folder that are looked at
END = 0x0FFFFFF8  # of a chain, FAT32
LONG_NAME, VOLUME, FOLDER = 0x0F, 0x08, 0x10  # attributes of an entry


class Fat:
    """A FAT12, FAT16 or FAT32 on a device or in a file. Raises OSError, and ValueError with a sentence where it is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        head = self._read(0, SECTOR)
        self.sector = int.from_bytes(head[11:13], "little")
        self.cluster = head[13]  # sectors
        reserved, copies, self.entries = (
            int.from_bytes(head[at : at + size], "little") for at, size in ((14, 2), (16, 1), (17, 2))
        )
        size = int.from_bytes(head[22:24], "little") or int.from_bytes(head[36:40], "little")
        if (
            head[510:512] != b"\x55\xaa"
            or self.sector not in (512, 1024, 2048, 4096)
            or not self.cluster
            or not copies
            or not size
        ):
            raise ValueError(f"{path} holds no FAT")
        self.table = reserved * self.sector
        self.root = self.table + copies * size * self.sector
        self.data = self.root + -(-self.entries * 32 // self.sector) * self.sector
        self.first = 0 if self.entries else int.from_bytes(head[44:48], "little")  # FAT32: the root folder's cluster

    def _read(self, at: int, size: int) -> bytes:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.pread(fd, size, at)
        finally:
            os.close(fd)
        if len(found) < size:
            raise ValueError(f"{self.path} ends at byte {at + len(found)}: it holds no whole FAT")
        return found

    def _place(self, cluster: int) -> int:
        return self.data + (cluster - 2) * self.cluster * self.sector

    def _folder(self) -> bytes:
        """The root folder's entries, as far as MOST_ENTRIES."""
        if not self.first:
            return self._read(self.root, min(self.entries, MOST_ENTRIES) * 32)
        found, cluster, size = b"", self.first, self.cluster * self.sector
        while 2 <= cluster < END and len(found) < MOST_ENTRIES * 32:
            found += self._read(self._place(cluster), size)
            cluster = int.from_bytes(self._read(self.table + cluster * 4, 4), "little") & 0x0FFFFFFF
        return found

    def find(self, name: str) -> tuple[int, int]:
        """Byte at which a file of the root folder begins, and its size. FileNotFoundError where there is none."""
        stem, _, ending = name.upper().partition(".")
        wanted = f"{stem:8}{ending:3}".encode()
        folder = self._folder()
        for at in range(0, len(folder), 32):
            entry = folder[at : at + 32]
            if entry[0] == 0:
                break
            if entry[:11] == wanted and entry[11] & LONG_NAME != LONG_NAME and not entry[11] & (VOLUME | FOLDER):
                cluster = int.from_bytes(entry[26:28], "little") | int.from_bytes(entry[20:22], "little") << 16
                size = int.from_bytes(entry[28:32], "little")
                if not size or cluster < 2:
                    raise ValueError(f"{name} on {self.path} is empty")
                return self._place(cluster), size
        raise FileNotFoundError(2, f"there is no {name}", self.path)

    def read(self, name: str) -> bytes:
        """The content of a file that fits into one sector. ValueError for a longer one."""
        at, size = self.find(name)
        if size > SECTOR:
            raise ValueError(f"{name} on {self.path} has {size} bytes; the firmware reads {SECTOR}")
        return self._read(at, size)

    def rewrite(self, name: str, content: bytes) -> None:
        """Other content of the same length, on the disk when this returns. One sector of the device is written."""
        at, size = self.find(name)
        if len(content) != size or size > SECTOR:
            raise ValueError(f"{name} on {self.path} keeps its {size} bytes; {len(content)} were to be written")
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_sector(fd, content, at)
            os.fsync(fd)
        finally:
            os.close(fd)


def write_sector(fd: int, content: bytes, at: int) -> None:
    """The one write of an update that changes what a board starts. Tests put a power cut here."""
    os.pwrite(fd, content, at)
