"""Files that survive a power cut: the old content or the new one, never a part of either."""

from __future__ import annotations

import os


def write_atomically(path: str, data: bytes | str, mode: int = 0o644) -> None:
    """When this returns, the new content is on the disk; a secret one is never readable in between.

    The new file is complete before it takes the old one's name, and the name is on the disk before we say so.
    """
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    new = f"{path}.new"
    if os.path.lexists(new):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fchmod(fd, mode)
        os.fsync(fd)
    os.rename(new, path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
