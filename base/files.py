"""Files that survive a power cut: the old content or the new one, never a part of either."""

from __future__ import annotations

import os
from errno import EINVAL


def write_atomically(path: str, data: bytes | str, mode: int = 0o644) -> None:
    """When this returns, the new content is on the disk; a secret one is never readable in between.

    The new file is complete before it takes the old one's name, and the name is on the disk before we say so. No symbolic
    link is followed on the way to it (see open_folder), and one that has its name is replaced.
    """
    folder, name = os.path.split(path)
    at = open_folder(folder or ".")
    try:
        new = f"{name}.new"
        try:
            os.unlink(new, dir_fd=at)
        except FileNotFoundError:
            pass
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=at)
        with open(fd, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(new, name, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)
    finally:
        os.close(at)


def open_folder(path: str, mode: int = 0o755) -> int:
    """A descriptor of a folder, made with its parents where it is missing. OSError for a symbolic link on the way.

    Whoever wrote the data partition may have put one there, to have root write somewhere else. The first part of the path
    may be one: it stands in the root, which is ours. Nor may the path go up by "..".
    """
    first, *others = [part for part in path.split("/") if part not in ("", ".")] or ["."]
    if ".." in (first, *others):
        raise OSError(EINVAL, "a path with .. in it", path)
    at = _folder(f"/{first}" if path.startswith("/") else first, None, mode, 0)
    for part in others:
        try:
            below = _folder(part, at, mode, os.O_NOFOLLOW)
        except OSError as error:
            raise OSError(error.errno, _why(part, at, error), path) from None
        finally:
            os.close(at)
        at = below
    return at


def _folder(name: str, at: int | None, mode: int, more: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | more
    try:
        return os.open(name, flags, dir_fd=at)
    except FileNotFoundError:
        try:
            os.mkdir(name, mode, dir_fd=at)
        except FileExistsError:  # somebody else was quicker; or a symbolic link to nowhere
            pass
        return os.open(name, flags, dir_fd=at)


def _why(name: str, at: int, error: OSError) -> str:
    try:
        os.readlink(name, dir_fd=at)
    except OSError:
        return error.strerror or str(error)
    return f"{name} is a symbolic link, which is not followed"


def read_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
