"""One file with the code of all of PID 1's modules: one read(2) where the import system would make some 700 system calls.

`python3 bundle.py LIB [DESTDIR]` writes LIB/pid1.bundle; `make install` calls it. pid1/launcher.py.in loads it, and with it
this file. A module whose source is no longer the one that was compiled is imported from its source, as if there were no bundle.
The format is a `.pyc`'s magic number, then marshal (`Doc/library/marshal.rst`): this file's code, and a row for each module.
Behind that stands the code of modules that PID 1 seldom needs: they are read from the open file when they are imported.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False  # before stdlib.py can be imported
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
else:
    from _frozen_importlib import ModuleSpec

NAME = "pid1.bundle"
# Source, whether it is a package, its mtime (s) and size (bytes), marshalled code; or where that stands, and its size (bytes).
Row = tuple[str, bool, int, int, "bytes | tuple[int, int]"]


class Finder:
    """Finds PID 1's modules in the bundle (`Doc/reference/import.rst`, "Finders and loaders")."""

    def __init__(self, rows: dict[str, Row], made: int, fd: int = -1, *, trusted: bool = False) -> None:
        """`made` is the bundle's own mtime: tools that build images give all files of a root one time. `fd` is the bundle,
        open for reading, and stays so. `trusted`: the sources need not be there any more."""
        self._rows = rows
        self.names = frozenset(rows)
        self._made = made
        self.fd = fd
        self.trusted = trusted
        self.held: tuple[int, ...] = (fd,)  # descriptors that PID 1 leaves open at its start (base/native.py)
        self.edited: list[str] = []  # modules whose source is another one

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's spec; None where it is not ours, or its source has been edited since.

        What PID 1 loads late, it takes as it was at the boot: files that have been replaced since belong to another program.
        """
        if name not in self._rows:
            return None
        source, package, _, _, code = self._rows[name]
        late = isinstance(code, tuple) and not self.edited
        if not (self.trusted or late or self.fresh(name, source)):
            self.edited.append(name)
            return None
        spec = ModuleSpec(name, self, origin=source, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        return spec

    def fresh(self, name: str, source: str) -> bool:
        """Whether this file is the one that was compiled."""
        _, _, seconds, size, _ = self._rows[name]
        try:
            status = os.stat(source)
        except OSError:
            return False
        return status.st_size == size and int(status.st_mtime) in (seconds, self._made)

    def load(self) -> None:
        """Import all that is up to date, each module after those that it imports: `import` would look for a lock and a finder
        for each of them."""
        for name in [name for name, row in self._rows.items() if isinstance(row[4], bytes)]:
            spec = self.find_spec(name)
            if spec is None:
                return
            module = type(sys)(name)
            module.__spec__, module.__file__, module.__loader__ = spec, spec.origin, spec.loader
            parent, _, child = name.rpartition(".")
            module.__package__ = parent
            if spec.submodule_search_locations:
                module.__path__, module.__package__ = spec.submodule_search_locations, name
            sys.modules[name] = module
            try:
                self.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            if parent:
                setattr(sys.modules[parent], child, module)

    def create_module(self, spec: ModuleSpec) -> None:
        """The import system makes it as usual."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        exec(marshal.loads(self.code(module.__name__)), module.__dict__)

    def code(self, name: str) -> bytes:
        """A module's marshalled code. It is read from the file, or let go of: a module is imported once."""
        code = self._rows[name][4]
        if isinstance(code, tuple):
            return os.pread(self.fd, code[1], code[0])
        del self._rows[name]
        return code

    def place(self, name: str) -> tuple[int, int]:
        """Where a late module's code stands in the file, and its size; KeyError where it is none."""
        code = self._rows[name][4]
        if isinstance(code, tuple):
            return code
        raise KeyError(name)


def write(lib: str, destdir: str = "") -> None:
    """Compile what PID 1 loads below DESTDIR/LIB; file names in it are those that the board will see."""
    folder = f"{destdir}{lib}"
    with open(f"{folder}/{NAME}.new", "wb") as file:
        file.write(build(folder, lib))
    os.chmod(f"{folder}/{NAME}.new", 0o644)
    os.rename(f"{folder}/{NAME}.new", f"{folder}/{NAME}")


def build(folder: str, lib: str) -> bytes:
    """The bundle of the sources in `folder`, which the board will see in `lib`: what `import stack` loads, and the rest of
    pid1/, which is loaded late."""
    sys.path.insert(0, folder)
    rows: dict[str, Row] = {}
    for name in _import_order("stack"):
        module = sys.modules[name]
        path = module.__file__ or ""
        if path.startswith(f"{folder}/"):
            rows[name] = _row(path, lib + path[len(folder) :], package=hasattr(module, "__path__"))
    late: dict[str, Row] = {}
    for file in sorted(os.listdir(f"{folder}/pid1")):
        name = f"pid1.{file.removesuffix('.py')}"
        if file.endswith(".py") and file != "__init__.py" and name not in rows:
            late[name] = _row(f"{folder}/pid1/{file}", f"{lib}/pid1/{file}", package=False)
    return joined(_code(f"{folder}/base/bundle.py", f"{lib}/base/bundle.py"), rows, late)


def joined(finder: bytes, rows: dict[str, Row], late: dict[str, Row]) -> bytes:
    """The file's bytes. Where a late module stands depends on how long that information is: numbers of a fixed size."""
    from _frozen_importlib_external import MAGIC_NUMBER

    def head(first: int) -> bytes:
        placed: dict[str, Row] = {}
        for name, row in late.items():
            placed[name] = (*row[:4], (first, len(row[4])))
            first += len(row[4])
        return bytes(MAGIC_NUMBER) + marshal.dumps((finder, {**rows, **placed}))

    blobs = b"".join(row[4] for row in late.values() if isinstance(row[4], bytes))
    return head(len(head(1))) + blobs  # marshal writes each int of less than 31 bits as four bytes


def _row(path: str, source: str, *, package: bool) -> Row:
    status = os.stat(path)
    return (source, package, int(status.st_mtime), status.st_size, _code(path, source))


def _import_order(name: str) -> list[str]:
    """Import a module; the names of all that it imports from sources, each after those that it imports itself."""
    from importlib.machinery import SourceFileLoader

    done: list[str] = []
    real = SourceFileLoader.exec_module

    def note(self: SourceFileLoader, module: ModuleType) -> None:
        real(self, module)
        done.append(module.__name__)

    SourceFileLoader.exec_module = note  # type: ignore[method-assign,assignment]
    __import__(name)
    return done


def _code(path: str, source: str) -> bytes:
    """Without docstrings: they are a third of the code, and PID 1 never shows them."""
    with open(path, encoding="utf-8") as file:
        return marshal.dumps(compile(file.read(), source, "exec", dont_inherit=True, optimize=2))


if __name__ == "__main__":
    write(*sys.argv[1:])
