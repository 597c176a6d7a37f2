"""Conditions of the table: functions of the board, run under a limit.

A condition sees the board as `Board` shows it, constants and functions of its own file, and those of Python's functions that
only compute. It is root's own program, and this is no sandbox; but a mistake in it must not stop PID 1.
"""

from __future__ import annotations

import marshal

from base.near import did_you_mean
from base.stdlib import TYPE_CHECKING, signal
from tables.rows import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CellType, CodeType, FrameType, FunctionType
    from typing import Any
else:
    FunctionType = type(lambda: None)
    CellType = type((lambda one: lambda: one)(0).__closure__[0])

LIMIT = 0.05  # seconds of processor time for one condition
LARGEST = 64 * 1024  # hexadecimal digits of one condition's code
PURE = {
    one.__name__: one
    for one in (
        abs, all, any, bool, dict, float, frozenset, int, isinstance, len, list, max, min, round, set, sorted, str, sum, tuple,
    )
}  # fmt: skip
UNKNOWN = float("nan")  # a number that nobody has told: no comparison with it is true
# What services tell of every board: the kinds that it may be, and what it is until somebody tells it.
FACTS: dict[str, tuple[tuple[type, ...], Any]] = {
    "online": ((bool,), False),  # an interface has an address; network/service.py tells it
    "network": ((str,), ""),  # the best state of an interface, as network() has it: "online", "local"...
    "clock": ((str,), "unset"),  # "synchronised", "plausible" or "unset", as onboard/clock.py has it; diagnostic.py tells it
    "voltage": ((int, float), UNKNOWN),  # volts of the first power supply
    "under_voltage": ((bool,), False),  # what the firmware of a Raspberry Pi says
    "temperature": ((int, float), UNKNOWN),  # degrees Celsius of the hottest zone
    "devices": ((list,), ()),  # names below /dev, and of network interfaces; hotplug tells them
}


class Board:
    """The board as a condition sees it. `used` gets the name of each fact that the condition has asked for."""

    def __init__(self, facts: dict[str, Any], modes: dict[str, str], ready: Callable[[str], bool]) -> None:
        self._facts, self._modes, self._ready = facts, modes, ready
        self.used: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in FACTS:
            raise AttributeError(f"a board has no {name}{did_you_mean(name, (*FACTS, 'synchronised', *METHODS))}")
        return self._fact(name, FACTS[name][1])

    def _fact(self, name: str, default: Any) -> Any:
        if name not in self.used:
            self.used.append(name)
        return self._facts.get(name, default)

    @property
    def synchronised(self) -> bool:
        """Whether something keeps the clock in time."""
        return bool(self._fact("clock", "") == "synchronised")

    def device(self, name: str) -> bool:
        """Whether there is such a node in /dev, or such a network interface."""
        return name.removeprefix("/dev/") in self._fact("devices", ())

    def ready(self, name: str) -> bool:
        """Whether a service is ready."""
        self.used.append(f"service {name}")
        return self._ready(name)

    def mode(self, name: str) -> str:
        """The state that one of MODES is in."""
        if name not in self._modes:
            raise KeyError(f"there is no mode {name!r}{did_you_mean(name, set(self._modes))}")
        self.used.append(f"mode {name}")
        return self._modes[name]

    def fact(self, name: str, default: Any = None) -> Any:
        """What a service of the board's own has told under this name; `default` until then."""
        return self._fact(name, default)


METHODS = ("device", "ready", "mode", "fact")


def compiled(condition: Condition) -> Callable[[Board], object]:
    """The function again; ValueError, EOFError or TypeError where its code is damaged."""
    code = marshal.loads(bytes.fromhex(condition.code))
    there: dict[str, Any] = {"__builtins__": PURE}
    there |= {name: compiled(value) if type(value) is Condition else value for name, value in condition.names}
    cells = tuple(CellType(there[name]) if name in there else CellType() for name in code.co_freevars)
    return FunctionType(code, there, "when", condition.defaults, cells or None)


def judge(function: Callable[[Board], object], board: Board) -> tuple[bool, str]:
    """Whether it is true, and what it raised where it is false because of that. It takes at most LIMIT."""
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT, LIMIT)
    try:
        return bool(function(board)), ""
    except BaseException as error:  # whatever it is, a condition that fails is false
        return False, f"{type(error).__name__}: {error.args[0] if error.args else ''}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _too_long(_number: int, frame: FrameType | None) -> None:
    """Raise in the condition, which catches nothing (`codes` are looked at for that); not where it has just ended."""
    if frame is not None and frame.f_code is not judge.__code__:
        raise TimeoutError(f"takes more than {LIMIT:g} s")


def codes(function: Any) -> Iterator[CodeType]:
    """The code of a condition, and of all functions in it and of its file."""
    waiting: list[Any] = [function, *(one for one in function.__globals__.values() if type(one) is FunctionType)]
    seen: list[Any] = []
    while waiting:
        one = waiting.pop()
        code = one.__code__ if type(one) is FunctionType else one
        if code not in seen:
            seen.append(code)
            yield code
            waiting += [constant for constant in code.co_consts if type(constant) is type(judge.__code__)]
            if type(one) is FunctionType:
                waiting += [other for other in one.__globals__.values() if type(other) is FunctionType]


def catches(function: Any) -> bool:
    """Whether it catches exceptions: then nothing could end it. There is no other use of this operation (`dis`)."""
    suspects = [code for code in codes(function) if code.co_exceptiontable]
    if not suspects:
        return False
    from opcode import opmap

    return any(opmap["POP_EXCEPT"] in code.co_code[::2] for code in suspects)


def condition_fault(value: Any, modes: dict[str, str]) -> str:
    """What is wrong with a condition, by a look at it and by trying it on a board of which nothing is known."""
    if type(value) is not Condition:
        return "is not a function such as lambda b: b.online"
    if len(value.code) > LARGEST:
        return f"has more than {LARGEST // 2} bytes of code"
    try:
        function = compiled(value)
    except Exception as error:
        return f"cannot be read ({type(error).__name__})"
    if catches(function):
        return "has try or with in it: a condition that fails is false, and one that catches exceptions could not be ended"
    _, error_text = judge(function, Board({}, modes, lambda name: False))
    kind = error_text.partition(":")[0]
    return f"fails: {error_text}" if kind in ("AttributeError", "NameError", "KeyError", "ImportError", "TimeoutError") else ""
