"""Edit and try: a file that is saved in the project's folder is copied to the running board, whose next restart runs it."""

from __future__ import annotations

import os
import shutil
import struct
import sys

from base.syscalls import inotify_add_watch, inotify_init

IN_CLOSE_WRITE, IN_MOVED_TO = 0x8, 0x80  # man 7 inotify: an editor writes the file, or a new one and renames it
EVENT = struct.Struct("iIII")


class Live:
    """Copies saved files from the project to where `make install` has put them, which the board sees."""

    def __init__(self, project: str, installed: str, profile: str) -> None:
        self.project, self.library = project, f"{installed}/lib/stack"
        self.profile = os.path.abspath(profile) if profile else ""
        self.board = 0  # PID 1's pid
        self.fd = inotify_init()
        self.folders: dict[int, set[str]] = {}  # inotify's number of a watch: the folders, two names of one perhaps
        inner = [entry.name for entry in os.scandir(self.library) if entry.is_dir() and entry.name.isidentifier()]
        for folder in [
            project,
            *(f"{project}/{name}" for name in inner),
            *([os.path.dirname(profile) or "."] if profile else []),
        ]:
            if os.path.isdir(folder):
                number = inotify_add_watch(self.fd, folder, IN_CLOSE_WRITE | IN_MOVED_TO)
                self.folders.setdefault(number, set()).add(os.path.abspath(folder))

    def changed(self) -> None:
        """Read inotify's events."""
        try:
            block = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        while block:
            number, _, _, length = EVENT.unpack_from(block)
            name = os.fsdecode(block[EVENT.size : EVENT.size + length].rstrip(b"\0"))
            block = block[EVENT.size + length :]
            for folder in self.folders.get(number, ()):
                try:
                    self.take(folder, name)
                except OSError as error:
                    print(f"{folder}/{name} did not reach the board: {error}\r", file=sys.stderr)

    def take(self, folder: str, name: str) -> None:
        """Copy one saved file, if it is the profile or a module of the board."""
        path = f"{folder}/{name}"
        if path == self.profile and self.board:
            # In place: its file system belongs to the board's users, and takes no new file of ours.
            shutil.copyfile(path, f"/proc/{self.board}/root/profile.py")
        inside = os.path.relpath(folder, self.project)
        target = os.path.normpath(f"{self.library}/{inside}")
        if not name.endswith(".py") or name.startswith(".") or inside.startswith("..") or not os.path.isdir(target):
            return
        replace(path, f"{target}/{name}")
        cache = f"{target}/__pycache__"  # byte code that is not compared with its source
        for entry in os.listdir(cache) if os.path.isdir(cache) else ():
            if entry.startswith(f"{name[:-3]}."):
                os.unlink(f"{cache}/{entry}")


def replace(source: str, target: str) -> None:
    """Copy a file so that whoever reads the target sees the old or the new one, whole."""
    new = f"{target}.new"
    shutil.copyfile(source, new)
    os.chmod(new, 0o644)
    os.rename(new, target)
