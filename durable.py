"""A file that a power cut leaves whole: the old text or the new one, never a part of it."""

from __future__ import annotations

import os


def write_atomically(path: str, text: str, mode: int = 0o644) -> None:
    """Replace a file by this text, on the disk when this returns. A secret one is never readable by others in between."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    new = f"{path}.new"
    if os.path.lexists(new):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fchmod(fd, mode)
        os.fsync(fd)
    os.rename(new, path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)  # the new name is in the folder
    finally:
        os.close(fd)
