"""Before the first import of a part of pyroute2: the parts are loaded that we name, and not all of the library.

The `__init__` of the package imports every part that there is: 6 MiB, and a quarter of the CPU of network.py's start. It is put
off here until somebody asks for a name that only it has.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

PACKAGE = "pyroute2"


def put_off() -> None:
    """Put the package in place without its `__init__` (Doc/reference/import.rst, "Submodules"; PEP 562)."""
    spec = PathFinder.find_spec(PACKAGE)
    if PACKAGE in sys.modules or spec is None or spec.loader is None:
        return  # somebody has all of it already; or nobody will have any
    module, loader = module_from_spec(spec), spec.loader

    def whole(name: str) -> Any:
        if name.startswith("__") or PathFinder.find_spec(f"{PACKAGE}.{name}", module.__path__):
            raise AttributeError(name)  # a part: it is imported next
        if vars(module).pop("__getattr__", None):
            loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = whole
    sys.modules[PACKAGE] = module


put_off()
