"""What each setting of settings.py may be, by what its consumer accepts: sethostname(2), execve(2), a number of seconds.

A check returns what is wrong as the end of a sentence, "is not a number from 0 to 30"; empty where nothing is. The rows of
the tables have checks of their own, in the files beside this one.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from tables.rows import Service
from tables.values import (
    MOST,
    is_number,
    is_text,
    kind_of,
    pairs_fault,
    path_fault,
    truth_fault,
    tuple_fault,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[Any], str]

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
TABLES = ("MOUNTS", "DIRECTORIES", "DEVICES", "SERVICES", "INTERFACES", "WIFI_NETWORKS", "RULES", "MODES")  # tables of rows
PAIRS = ("SYSCTLS", "COMMANDS")
WORDS = ("MODULES", "DATA", "BOOT_FILES")
MOST_ROWS = 4096  # of one table: each is compared with others, in PID 1
SECRET = ("WIFI_NETWORKS", "ENVIRONMENT", "SERVICES")  # no message quotes a value of these


# --- kinds ------------------------------------------------------------------------------------------------------------
def _hostname(value: Any) -> str:
    if not is_text(value) or not 0 < len(value) <= 64 or set(value) - LETTERS or value[0] in "-.":
        return "is not a host's name: at most 64 letters, digits and -_. beginning with a letter or digit"
    return ""


def _name(value: Any) -> str:
    return _hostname(value) if value else "" if value == "" and is_text(value) else _text(value)


def _text(value: Any) -> str:
    return "" if is_text(value) and len(value.encode()) <= 4095 else "is not text of at most 4095 bytes without a NUL"


def _choice(*choices: str) -> Check:
    return lambda value: "" if is_text(value) and value in choices else f"is not one of {', '.join(choices)}"


def _number(least: float = 0.0, most: float = MOST) -> Check:
    def check(value: Any) -> str:
        good = type(value) in (int, float) and least <= value <= most
        return "" if good else f"is not a sane number; it may be from {least:g} to {most:g}"

    return check


_seconds = _number()


def _whole(least: int, most: int) -> Check:
    return lambda value: "" if is_number(value, least, most) else f"is not a whole number from {least} to {most}"


def _written(value: Any) -> str:
    return path_fault(value, writes=True)


def _optional_path(value: Any) -> str:
    return "" if value == "" and is_text(value) else path_fault(value)


def _folders(value: Any) -> str:
    good = _text(value) == "" and all(folder.startswith("/") for folder in value.split(":"))
    return "" if good else "is not a list of absolute folders with a colon between two of them"


def _interface(value: Any) -> str:
    bad = not is_text(value) or not 0 < len(value.encode()) < 16 or set(value) & set("/: \n\t%{}") or value[0] == "."
    return "is not an interface's name such as wlan0, of at most 15 characters" if bad else ""


def _country(value: Any) -> str:
    good = value == "" or (is_text(value) and len(value) == 2 and value.isascii() and value.isalpha())
    return "" if good else 'is not a country\'s two letters such as "DE" (ISO 3166)'


def is_endpoint(value: Any) -> bool:
    """Whether it is "host:port"."""
    host, _, port = value.rpartition(":") if is_text(value) else ("", "", "")
    return bool(host) and not set(host) & set(" \n\t/") and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536


def _bus(value: Any) -> str:
    if is_text(value) and value.startswith("/"):
        long = len(value.encode()) > 107  # sun_path of `man 7 unix`
        return path_fault(value, writes=True) or ("is a socket's path of more than 107 bytes" if long else "")
    return "" if is_endpoint(value) else 'is neither the path of a socket nor "host:port"'


def _texts(value: Any) -> str:
    if fault := tuple_fault(value, '("text",)'):
        return fault
    wrong = [item for item in value if not is_text(item)]
    return f"has {kind_of(wrong[0])} in it, which is no text" if wrong else ""


def _endpoints(value: Any) -> str:
    # Nothing is quoted: somebody may write "me:password@host:1883".
    if fault := tuple_fault(value, '("host:1883",)', quote=False) or _texts(value):
        return fault
    return "" if all(map(is_endpoint, value)) else 'has an item that is not "host:port"'


def _tls(value: Any) -> str:
    if fault := _texts(value):
        return fault
    good = len(value) in (0, 1, 3) and not any(map(path_fault, value))
    return "" if good else "is not (), (ca,) or (ca, certificate, key), each the absolute path of a file"


def _vsock(value: Any) -> str:
    if fault := _texts(value):
        return fault
    numbers = [int(one) for one in value if one.isascii() and one.isdigit() and 0 < len(one) < 11]
    good = len(numbers) == len(value) and all(0 < one < 2**32 - 1 for one in numbers) and len(value) in (0, *range(2, 18))
    return "" if good else 'is not a port and the CIDs that may connect, such as ("1024", "2")'


def minutes_of(text: str) -> tuple[int, int] | None:
    """The minutes of the day at which "22:30-04:00" begins and ends; None for what is not like that."""
    digits = text.replace(":", "").replace("-", "")
    if (
        len(text) != 11
        or text[2] + text[5] + text[8] != ":-:"
        or len(digits) != 8
        or not (digits.isascii() and digits.isdigit())
    ):
        return None
    begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in text.split("-"))
    good = begin < 1440 and end <= 1440 and text[3] < "6" and text[9] < "6" and begin != end
    return (begin, end) if good else None


def _window(value: Any) -> str:
    if fault := _texts(value):
        return fault
    wrong = [one for one in value if minutes_of(one) is None]
    return f"has {wrong[0][:20]!r} in it; hours are like ('02:00-05:00',), also over midnight" if wrong else ""


def _topics(value: Any) -> str:
    return pairs_fault(value, '(("wifi", "wifi/+"),)')


def _service(value: Any) -> str:
    return "" if type(value) is Service else f"is {kind_of(value)}, not a Service(...) row"


def _services(value: Any) -> str:
    if fault := tuple_fault(value, "(Service(...),)", quote=False):
        return fault
    return "" if all(type(row) is Service for row in value) else "has something in it that is not a Service(...) row"


def _table(value: Any) -> str:
    return tuple_fault(value, "(Row(...),)", quote=False)


def _pairs(value: Any) -> str:
    return tuple_fault(value, '(("name", "value"),)', quote=False)


def _words(value: Any) -> str:
    return tuple_fault(value, '("word",)')


CHECKS: dict[str, Check] = {
    "HOSTNAME": _hostname, "CONSOLE": path_fault, "CONSOLE_LOGIN": _choice("password", "prompt", "off"), "PATH": _folders,
    "FAKE_GPS": _choice("on", "off"),
    "ENVIRONMENT": _pairs, "LOG": _written, "KEEP": _written, "LOG_KEEP": _written, "LIB": path_fault, "PYTHON": path_fault,
    "PYTHONPATH": _text, "APP_USER": _text, "BUS": _bus, "GPS_BAUD": _whole(0, 4_000_000), "GPS_ROUTE": _text,
    "WIFI_INTERFACE": _interface, "WIFI_COUNTRY": _country, "WIFI_CONFIG": path_fault, "WIFI_CONTROL": _written,
    "WIFI_GROUP": _text, "WIFI_SCAN": _written, "WIFI_RECORDING": _text, "RESOLV_CONF": _written, "NETWORK_STATE": _written,
    "NETLINK_BUFFER": _whole(4096, 1 << 30), "NETWORK_STAMP": _written, "UPLINK": _endpoints, "UPLINK_BOARD": _name,
    "UPLINK_TLS": _tls, "UPLINK_PROTOCOL": _choice("3.1.1", "5"), "UPLINK_TOPICS": _topics, "UPLINK_URGENT": _texts,
    "OUTBOX": _written, "OUTBOX_SIZE": _whole(4096, 1 << 50), "OUTBOX_SPARE": _whole(0, 1 << 50), "OUTBOX_GIVE_UP": _texts,
    "VSOCK": _vsock, "UPDATE_CERTIFICATE": path_fault, "UPDATE_WINDOW": _window, "UPDATE_STEADY": _number(1),
    "UPDATE_DEADLINE": _number(1),
    "WATCHDOG": _optional_path, "WATCHDOG_TIMEOUT": _number(3), "WATCHDOG_SNOOZE_MAX": _seconds,
    "DATA_ANYWHERE": truth_fault, "DATA_OPTIONS": _text,
    "DATA_REMAKE": truth_fault, "DATA_GROW": truth_fault, "DATA_WAIT": _seconds,
    "DATA_TIMEOUT": _seconds, "BOOT_WAIT": _seconds, "SV_COOLDOWN": _seconds, "BACKOFF_FIRST": _number(0.01),
    "BACKOFF_MAX": _number(0.01), "AFTER_TIMEOUT": _seconds, "SHUTDOWN_TIMEOUT": _seconds, "KILL_TIMEOUT": _seconds,
    "SYNC_TIMEOUT": _seconds, "RESCUE_TIMEOUT": _seconds, "CRITICAL_FAILURES": _whole(1, 1000),
    "CRITICAL_WINDOW": _seconds, "CRITICAL_INTERVAL": _seconds, "LOOP_TURN_MAX": _number(0.1),
    "FACT_GRACE": _seconds, "NETWORK_RETRY": _number(0.1), "DHCP_TIMEOUT": _number(1), "ONLINE_TIMEOUT": _seconds,
    "LADDER_REASSOCIATE": _seconds, "LADDER_SUPPLICANT": _seconds, "LADDER_MODULE": _seconds, "LADDER_REBOOT": _seconds,
    "LADDER_STEADY": _seconds, "REBOOT_INTERVAL": _seconds, "CONSOLE_LEVEL": _whole(0, 8),
    "LOG_FILE_SIZE": _whole(1024, 1 << 40), "LOG_TOTAL_SIZE": _whole(1024, 1 << 40), "LOG_RATE": _whole(1, 1_000_000),
    "LOG_BURST": _whole(1, 10_000_000), "APPS": _services, **dict.fromkeys(TABLES, _table), **dict.fromkeys(PAIRS, _pairs),
    **dict.fromkeys(WORDS, _words),
    **dict.fromkeys(("LOGD", "ZYGOTE", "STORAGE", "BOOT", "PUSHED", "KEEPER", "DROPBEAR", "BROKER", "RESCUE"), _service),
}  # fmt: skip


def setting_fault(name: str, value: Any) -> str:
    """What is wrong with a setting's value, beginning with what it is where that is no secret; empty where nothing is."""
    if type(value) is tuple and len(value) > MOST_ROWS:
        return f"has {len(value)} rows; at most {MOST_ROWS} are taken"
    return CHECKS[name](value)
