"""What a microVM is to run, from documents that somebody else wrote: pure, bounded, and each fault a sentence.

Our own document is JSON, or the part of YAML that yaml_subset.py reads:

    {"main": {"argv": ["/usr/bin/python3", "/app.py"], "env": {"TZ": "UTC"}, "user": "nobody", "memory_max": "64M"},
     "seconds": 60, "services": [{"name": "cache", "argv": ["/usr/bin/cache"]}], "hostname": "vm1",
     "files": [{"path": "/run/app.json", "content": "{}", "permissions": "0600"}],
     "addresses": [{"interface": "eth0", "address": "10.0.0.2/24"}], "gateway": "10.0.0.1", "nameservers": ["10.0.0.1"],
     "report": "vsock:1024"}

services/cloud_init.py makes the same of cloud-init's files. A service's keys are columns of tables/rows.py; PID 1 checks
their values when it is asked to run the row.
"""

from __future__ import annotations

from binascii import Error, a2b_base64

from base.stdlib import TYPE_CHECKING, NamedTuple
from services.yaml_subset import LARGEST, YamlFault, parse
from tables.check_settings import CHECKS
from tables.rows import Service
from tables.values import is_address, is_text, path_fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAIN = "main"  # the service whose end is the machine's
MOST_SERVICES, MOST_FILES, MOST_ADDRESSES = 16, 64, 8
LONGEST = 30 * 86400.0  # seconds that main may be given
# What a document may say of a service. The others would let it into PID 1's own code, or change what main's end means.
COLUMNS = (
    "argv", "after", "ready", "ready_timeout", "restart", "stop_signal", "stop_timeout", "user", "groups", "capabilities",
    "no_new_privs", "rlimits", "nice", "oom_score", "memory_max", "pids_max", "cpu_weight", "kill", "umask", "cwd", "env",
    "tty", "log", "watchdog",
)  # fmt: skip
KEYS = ("main", "seconds", "services", "hostname", "files", "addresses", "gateway", "nameservers", "report")
VMADDR_CID_HOST = 2  # linux/vm_sockets.h


class ConfigFault(ValueError):
    """What is wrong with a configuration, as a sentence."""


class File(NamedTuple):
    """A file that is written before anything runs."""

    path: str
    content: bytes
    mode: int = 0o644


class Plan(NamedTuple):
    """All that a microVM is to do."""

    main: Service | None = None  # None: there is nothing to run
    seconds: float = 0.0  # main may take so long; 0: as long as it likes
    services: tuple[Service, ...] = ()  # run beside it, and are stopped with the machine
    hostname: str = ""
    files: tuple[File, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()  # interface and "10.0.0.2/24"
    gateway: str = ""
    nameservers: tuple[str, ...] = ()
    report: tuple[int, int] = (0, 0)  # CID and port to connect to and tell how it goes; (0, 0): nobody
    notes: tuple[str, ...] = ()  # what was left out, for people


def from_text(text: bytes, what: str) -> Plan:
    """The plan of a document of ours; ConfigFault names `what` it was and why it cannot be used."""
    return plan_of(read(text, what), what)


def read(text: bytes, what: str) -> dict[str, Any]:
    """A mapping of JSON or of the part of YAML that we read."""
    if len(text) > LARGEST:
        raise ConfigFault(f"{what} has more than {LARGEST} bytes")
    try:
        value = parse(text.decode())
    except UnicodeDecodeError:
        raise ConfigFault(f"{what} is not UTF-8") from None
    except YamlFault as fault:
        raise ConfigFault(f"{what}: {fault}") from None
    if type(value) is not dict:
        raise ConfigFault(f'{what} is not a mapping such as {{"main": {{"argv": ["/bin/true"]}}}}')
    return value


def plan_of(document: dict[str, Any], what: str) -> Plan:
    """The plan of a document that has been read."""
    if unknown := [name for name in document if name not in KEYS]:
        raise ConfigFault(f"{what} has {str(unknown[0])[:40]!r}; there are {', '.join(KEYS)}")
    services = tuple(row(one, what) for one in items(document, "services", what, MOST_SERVICES))
    names = [one.name for one in services]
    if MAIN in names or len(set(names)) < len(names):
        raise ConfigFault(f"{what}: two services have one name; {MAIN} is the one that `main` describes")
    return Plan(
        main=row({"name": MAIN, "restart": "never", "tty": "/dev/console", **mapping(document["main"], "main", what)}, what)
        if "main" in document
        else None,
        seconds=seconds(document.get("seconds", 0), what),
        services=services,
        hostname=hostname(document.get("hostname", ""), what),
        files=tuple(file(one, what) for one in items(document, "files", what, MOST_FILES)),
        addresses=tuple(address(one, what) for one in items(document, "addresses", what, MOST_ADDRESSES)),
        gateway=ipv4(document.get("gateway", ""), "gateway", what),
        nameservers=tuple(ipv4(one, "nameservers", what) for one in items(document, "nameservers", what, MOST_ADDRESSES)),
        report=endpoint(document.get("report", ""), what),
    )


# --- parts --------------------------------------------------------------------------------------------------------------
def items(document: dict[str, Any], name: str, what: str, most: int) -> list[Any]:
    """A list of at most so many things; empty where there is none."""
    found = document.get(name)
    if found is None:
        return []
    if type(found) is not list or len(found) > most:
        raise ConfigFault(f"{what}: {name} is not a list of at most {most} things")
    return found


def mapping(value: Any, name: str, what: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise ConfigFault(f"{what}: {name} is not a mapping")
    return value


def row(given: Any, what: str) -> Service:
    """A service's row. PID 1 checks its values; here a cell only becomes what JSON has no word for."""
    cells = {name: value for name, value in mapping(given, "a service", what).items() if name != "name"}
    name = given.get("name")
    if not is_text(name) or not name:
        raise ConfigFault(f"{what}: a service has no name")
    if unknown := [one for one in cells if one not in COLUMNS]:
        raise ConfigFault(f"{what}: {name[:40]} has {str(unknown[0])[:40]!r}; there are {', '.join(COLUMNS)}")
    if not cells.get("argv") or type(cells["argv"]) is not list:
        raise ConfigFault(f'{what}: {name[:40]} has no argv such as ["/bin/echo", "hello"]')
    if type(cells.get("env")) is dict:
        cells["env"] = [[key, value] for key, value in cells["env"].items()]
    if cells.get("tty") is None:
        cells.pop("tty", None)
    return Service(name, **{column: tuples(value) for column, value in cells.items()})


def tuples(value: Any, depth: int = 0) -> Any:
    """Lists become tuples; what is deeper than any cell stays as it is, and is refused by the cell's check."""
    return tuple([tuples(one, depth + 1) for one in value]) if type(value) is list and depth < 3 else value


def seconds(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= LONGEST:
        raise ConfigFault(f"{what}: seconds is not a number from 0 (no limit) to {LONGEST:g}")
    return float(value)


def hostname(value: Any, what: str) -> str:
    if value and (fault := CHECKS["HOSTNAME"](value)):
        raise ConfigFault(f"{what}: hostname {fault}")
    return value or ""


def file(given: Any, what: str) -> File:
    """A file: path, content, permissions ("0600") and encoding ("base64")."""
    one = mapping(given, "a file", what)
    if unknown := one.keys() - {"path", "content", "permissions", "encoding", "owner"}:
        raise ConfigFault(
            f"{what}: a file has {sorted(map(str, unknown))[0][:40]!r}; there are path, content, permissions, encoding"
        )
    path, content, mode = str(one.get("path")), one.get("content", ""), one.get("permissions", "0644")
    if fault := path_fault(one.get("path"), writes=True):
        raise ConfigFault(f"{what}: a file's path {fault}")
    if not is_text(mode) or not mode or set(mode) - set("01234567") or int(mode, 8) > 0o777:
        raise ConfigFault(f'{what}: {path}: permissions are text such as "0644"')
    if one.get("owner", "root:root") not in ("root", "root:root"):
        raise ConfigFault(f"{what}: {path}: owner can only be root:root here")
    if type(content) is not str or one.get("encoding") not in (None, "text/plain", "b64", "base64"):
        raise ConfigFault(f"{what}: {path}: content is text, and encoding text/plain or base64")
    if one.get("encoding") in ("b64", "base64"):
        return File(path, decoded(content, f"{what}: {path}"), int(mode, 8))
    return File(path, content.encode("utf-8", "replace"), int(mode, 8))


def decoded(text: str, what: str) -> bytes:
    """Base64, with or without its padding."""
    try:
        return a2b_base64(text.encode("ascii") + b"===")
    except (Error, UnicodeEncodeError):
        raise ConfigFault(f"{what} is not base64") from None


def address(given: Any, what: str) -> tuple[str, str]:
    one = mapping(given, "an address", what)
    name, text = one.get("interface"), one.get("address")
    if CHECKS["WIFI_INTERFACE"](name):
        raise ConfigFault(f"{what}: interface {CHECKS['WIFI_INTERFACE'](name)}")
    return str(name), with_prefix(text, what)


def with_prefix(text: Any, what: str) -> str:
    """ "10.0.0.2/24"."""
    bare, _, prefix = text.partition("/") if is_text(text) else ("", "", "")
    if not (prefix.isascii() and prefix.isdigit() and len(prefix) < 3 and 0 < int(prefix) <= 32):
        raise ConfigFault(f"{what}: an address is not such as 10.0.0.2/24; IPv6 is not configured here")
    return f"{ipv4(bare, 'address', what)}/{int(prefix)}"


def ipv4(value: Any, name: str, what: str) -> str:
    if value == "" and name == "gateway":
        return ""
    if not is_text(value) or ":" in value or not is_address(value):
        raise ConfigFault(f"{what}: {name} has something that is no IPv4 address; IPv6 is not configured here")
    return str(value)


def endpoint(value: Any, what: str) -> tuple[int, int]:
    """ "vsock:1024" is the host's port 1024, "vsock:1:1024" another CID's; (0, 0) for the empty text."""
    if value == "":
        return 0, 0
    words = value.split(":") if is_text(value) else []
    numbers = words[1:] if len(words) == 3 else [str(VMADDR_CID_HOST), *words[1:]]
    good = (
        words[:1] == ["vsock"]
        and len(numbers) == 2
        and all(one.isascii() and one.isdigit() and len(one) < 11 for one in numbers)
    )
    if not good or not (0 < int(numbers[0]) < 1 << 32 and 0 < int(numbers[1]) < 1 << 32):
        raise ConfigFault(f"{what} is not such as vsock:1024 (the host's port) or vsock:CID:PORT")
    return int(numbers[0]), int(numbers[1])


# --- the kernel command line -----------------------------------------------------------------------------------------------
def from_words(options: dict[str, str], fetch: Callable[[str], Plan]) -> Plan:
    """The plan that `stack.run`, `stack.seconds`, `stack.report` and `stack.config` ask for. What stands on the command line
    counts before what the document says that `fetch` finds, which gets stack.config's value."""
    source = options.get("stack.config", "")
    if source.startswith("base64:"):
        plan = from_text(decoded(source.removeprefix("base64:"), "stack.config"), "stack.config")
    elif "stack.run" in options and not source:
        plan = Plan()
    else:
        plan = fetch(source)
    if "stack.run" in options:
        argv = split(options["stack.run"])
        if not argv:
            raise ConfigFault("stack.run names no program")
        plan = plan._replace(main=Service(MAIN, argv, restart="never", tty="/dev/console"))
    if "stack.seconds" in options:
        text = options["stack.seconds"]
        plan = plan._replace(
            seconds=seconds(int(text) if text.isascii() and text.isdigit() and len(text) < 9 else text, "stack.seconds")
        )
    if "stack.report" in options:
        plan = plan._replace(report=endpoint(options["stack.report"], "stack.report"))
    return plan


def split(text: str) -> tuple[str, ...]:
    """Words between blanks; 'single quotes' keep blanks in a word. (Double quotes are the kernel's own.)"""
    words, word, quoted, begun = [], "", False, False
    for char in text:
        if char == "'":
            quoted, begun = not quoted, True
        elif char.isspace() and not quoted:
            if begun:
                words.append(word)
            word, begun = "", False
        else:
            word, begun = word + char, True
    if quoted:
        raise ConfigFault("stack.run has a ' that is not closed")
    return tuple([*words, word] if begun else words)
