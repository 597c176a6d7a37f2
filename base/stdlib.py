"""Names of the standard library at the price that PID 1 can pay.

`signal`, `socket`, `json` and `typing` would double PID 1's start and add 2 MiB (they pull in `enum`, `re` and friends).
PID 1 uses the C modules underneath, which have the same names, and a `NamedTuple` of twenty lines. Type checkers
see the real ones. `make bench` prints what each import costs.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    import json
    import signal
    import socket
    from typing import NamedTuple
else:
    import _json
    import _signal as signal
    import _socket as socket
    from _collections import _tuplegetter

    MISSING = object()

    class NamedTuple(tuple):
        """`typing.NamedTuple` for rows of settings: fields, defaults, equality, repr and `_replace`."""

        __slots__ = ()

        def __init_subclass__(cls) -> None:
            cls._fields = tuple(cls.__annotations__)
            cls._index = {name: index for index, name in enumerate(cls._fields)}
            cls._defaults = [cls.__dict__.get(name, MISSING) for name in cls._fields]
            cls._needed = cls._defaults.count(MISSING)  # the first columns
            for index, name in enumerate(cls._fields):
                setattr(cls, name, _tuplegetter(index, name))

        def __new__(cls, *values, **named):
            row = cls._defaults.copy()
            row[: len(values)] = values
            for name, value in named.items():
                index = cls._index.get(name, -1)
                if index < 0:
                    from base.near import did_you_mean

                    raise TypeError(f"{cls.__name__}: {name} is not a column{did_you_mean(name, cls._fields)}")
                if index < len(values):
                    raise TypeError(f"{cls.__name__}: {name} is given twice")
                row[index] = value
            if len(row) > len(cls._fields):
                raise TypeError(f"{cls.__name__} has {len(cls._fields)} columns, not {len(row)}")
            if MISSING in row[: cls._needed]:
                raise TypeError(f"{cls.__name__}: {cls._fields[row.index(MISSING)]} is missing")
            return tuple.__new__(cls, row)

        def __getnewargs__(self):
            return tuple(self)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes):
            cells = list(self)
            for name in changes.keys() & self._index.keys():
                cells[self._index[name]] = changes.pop(name)
            return type(self)(*cells, **changes)  # which says what is no column

        def __repr__(self) -> str:
            pairs = zip(self._fields, self, strict=True)
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    class json:
        """`json.loads` and `json.dumps` on the C scanner that the `json` package itself uses."""

        strict, object_hook, object_pairs_hook = True, None, None
        parse_float, parse_int, parse_constant = float, int, float

        @classmethod
        def loads(cls, text):
            text = (text if isinstance(text, str) else bytes(text).decode()).strip(" \t\r\n")
            try:
                value, end = _json.make_scanner(cls)(text, 0)
            except StopIteration as stop:
                raise ValueError(f"Expecting value at {stop.value}") from None
            except SystemError:  # it looks for JSONDecodeError in `json.decoder`, which is not loaded, and raises nothing
                raise ValueError("malformed JSON") from None
            except RecursionError:
                raise ValueError("lists in lists without an end") from None
            if end != len(text):
                raise ValueError(f"Extra data at {end}")
            return value

        @staticmethod
        def dumps(value) -> str:
            return "".join(_encode(value, 0))

    def _refuse(value):
        raise TypeError(f"{type(value).__name__} is not JSON")

    # What json.JSONEncoder passes: markers, default, encoder, indent, two separators, sort_keys, skipkeys, allow_nan.
    _encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True)


__all__ = ["TYPE_CHECKING", "NamedTuple", "json", "signal", "socket"]
