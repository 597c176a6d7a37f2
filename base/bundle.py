"""One file with the code of all of PID 1's modules: one read(2) where the import system would make some 700 system calls.

`python3 bundle.py LIB [DESTDIR]` writes LIB/pid1.bundle; `make install` calls it. pid1/launcher.py.in loads it, and with it
this file. A module whose source is no longer the one that was compiled is imported from its source, as if there were no bundle.
The format is a `.pyc`'s magic number, then marshal (`Doc/library/marshal.rst`): this file's code, and a row for each module.
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
Row = tuple[str, bool, int, int, bytes]  # source, whether it is a package, its mtime (s) and size (bytes), marshalled code


class Finder:
    """Finds PID 1's modules in the bundle (`Doc/reference/import.rst`, "Finders and loaders")."""

    def __init__(self, rows: dict[str, Row], made: int) -> None:
        """`made` is the bundle's own mtime: tools that build images give all files of a root one time."""
        self._rows = rows
        self._made = made

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's spec; None where it is not ours, or its source has been edited since."""
        if name not in self._rows:
            return None
        source, package, seconds, size, _ = self._rows[name]
        try:
            status = os.stat(source)
        except OSError:
            return None
        if status.st_size != size or int(status.st_mtime) not in (seconds, self._made):
            return None
        spec = ModuleSpec(name, self, origin=source, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        return spec

    def load(self) -> None:
        """Import all that is up to date, each module after those that it imports: `import` would look for a lock and a finder
        for each of them."""
        for name in list(self._rows):
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
        exec(marshal.loads(self._rows.pop(module.__name__)[4]), module.__dict__)


def write(lib: str, destdir: str = "") -> None:
    """Compile what `import stack` loads below DESTDIR/LIB; file names in it are those that the board will see."""
    folder = f"{destdir}{lib}"
    sys.path.insert(0, folder)
    rows: dict[str, Row] = {}
    for name in _import_order("stack"):
        module = sys.modules[name]
        path = module.__file__ or ""
        if path.startswith(f"{folder}/"):
            status = os.stat(path)
            source = path[len(destdir) :]
            rows[name] = (source, hasattr(module, "__path__"), int(status.st_mtime), status.st_size, _code(path, source))
    from importlib.util import MAGIC_NUMBER

    with open(f"{folder}/{NAME}.new", "wb") as file:
        file.write(MAGIC_NUMBER + marshal.dumps((_code(__file__, f"{lib}/base/bundle.py"), rows)))
    os.chmod(f"{folder}/{NAME}.new", 0o644)
    os.rename(f"{folder}/{NAME}.new", f"{folder}/{NAME}")


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
