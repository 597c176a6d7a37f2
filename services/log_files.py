"""The files of the log daemon: appended to, rotated by size, bounded together."""

from __future__ import annotations

import os
import sys

from base.files import open_folder


class File:
    """One service's log in one folder: appended to, rotated by size to NAME.log.1. Opened when there is something to write."""

    def __init__(self, folder: str, name: str) -> None:
        self.folder = folder
        self.path = f"{folder}/{name}.log"
        self.fd = -1
        self.size = 0
        self.said = ""  # the last write error that was logged, so that it is logged once

    def write(self, block: bytes, limit: int) -> bool:
        """Append; whether the file was rotated. On an error (a full disk) the block is dropped and the error logged."""
        rotate = False
        try:
            if not self._is_there():
                self._open()
            rotate = self.size > 0 and self.size + len(block) > limit
            if rotate:
                os.rename(self.path, self.path + ".1")
                self._open()
            self.size += os.write(self.fd, block)
            self.said = ""
        except OSError as error:
            if self.said != error.strerror:
                self.said = error.strerror or "?"
                print(f"<4>logd: {self.path}: {self.said}", file=sys.stderr)
        return rotate

    def _is_there(self) -> bool:
        """Whether the path is still what we have open: somebody may have deleted it, or mounted a disk over its folder."""
        try:
            there, ours = os.lstat(self.path), os.fstat(self.fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        self.close()
        # We are root: a foreign disk may have a link in the place of a log or of its folder.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        at = open_folder(self.folder)
        try:
            self.fd = os.open(os.path.basename(self.path), flags, 0o644, dir_fd=at)
        finally:
            os.close(at)
        self.size = os.fstat(self.fd).st_size

    def close(self) -> None:
        """Close the file; write() opens it again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def bound(folder: str, most: int, live: set[str]) -> None:
    """Delete the largest files of a folder that are not `live` until it holds `most` bytes or less. Raises OSError."""
    sizes: dict[str, int] = {}
    for entry in os.scandir(folder):
        sizes[entry.path] = entry.stat(follow_symlinks=False).st_size
    for path in sorted(sizes, key=lambda path: -sizes[path]):
        if sum(sizes.values()) <= most:
            return
        if path not in live:
            os.unlink(path)
            del sizes[path]
