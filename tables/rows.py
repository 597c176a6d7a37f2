"""The columns of the tables in settings.py: what a row may say, in the terms of the man pages."""

from __future__ import annotations

from base.near import did_you_mean
from base.stdlib import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Row = TypeVar("Row", bound=tuple[Any, ...])


class Condition(NamedTuple):
    """A function of the board, `lambda b: b.online`, as plain data: tables/plain.py makes it, tables/when.py runs it."""

    text: str  # as its file has it, for people
    code: str  # its byte code (Doc/library/marshal.rst), in hexadecimal digits
    names: tuple[tuple[str, Any], ...] = ()  # constants and functions of its file that it uses
    defaults: tuple[Any, ...] = ()  # of its parameters


class Mount(NamedTuple):
    """One file system (`man 2 mount`, `man 5 fstab`).

    A mount that fails is logged and the boot goes on; where it is `required`, a rescue prompt opens as well.
    """

    source: str
    target: str  # absolute; made if it is missing
    fstype: str
    options: str = ""  # as in fstab: nosuid, nodev, noexec, ro, relatime, remount, bind... the rest goes to the driver
    required: bool = True


class Directory(NamedTuple):
    """A directory made after the mounts, with its parents."""

    path: str
    mode: int = 0o755
    # Its owner: a user of /etc/passwd, or the name of a service, whoever that runs as; empty is root. A folder that was
    # somebody else's, on a disk from before, is given to the owner with the files in it.
    user: str = ""
    group: str = ""  # of /etc/group, or the name of a service; empty: its owner's


class Device(NamedTuple):
    """A node or a symbolic link that must be there, made where it is missing (`man 2 mknod`)."""

    path: str
    kind: str  # "c", "b" or "link"
    major: int = 0
    minor: int = 0
    mode: int = 0o600
    target: str = ""  # of the link


class Service(NamedTuple):
    """One process that PID 1 keeps running."""

    name: str  # one that ends in "@" is a template: "start gps@ttyUSB0" runs it with {instance} replaced by "ttyUSB0"
    argv: tuple[str, ...]  # argv[0] is found by the PATH that the program will have, or from its cwd where it has a "/" in it
    after: tuple[str, ...] = ()  # starts when these are ready, or when settings.AFTER_TIMEOUT has passed
    # How it says that it is ready: "" at once; "notify" by READY=1 on $NOTIFY_SOCKET (`man 3 sd_notify`); "exit" by
    # ending with status 0 (a job that runs once); "/a/path" when that path appears.
    ready: str = ""
    ready_timeout: float = 30.0  # seconds; after that it is logged, and those that wait for it go on
    restart: str = "always"  # or "on-failure", "never"; exit status 125 always means: do not restart me
    stop_signal: str = "TERM"
    stop_timeout: float = 5.0  # seconds between the stop signal and KILL
    # Name or number, whose HOME, USER, LOGNAME and SHELL it gets; empty is root, with those of ENVIRONMENT; "{name}" is a user
    # of this service alone, which needs no /etc/passwd.
    user: str = ""
    groups: tuple[str, ...] = ()  # supplementary ones, of /etc/group or of a service by its name; the primary one is the user's
    capabilities: tuple[str, ...] | None = None  # the only ones left (ambient): "net_admin"...; None: what the user has
    no_new_privs: bool = False
    rlimits: tuple[tuple[str, int], ...] = ()  # ("nofile", 1024)...: soft and hard, -1 is unlimited
    nice: int = 0
    oom_score: int = 0  # oom_score_adj, -1000 to 1000
    memory_max: int | str = 0  # bytes, "64M" or "25%" of the board's, of all its processes; more, and it is killed; 0: no limit
    pids_max: int = 512  # its processes and threads; when one more is refused, it is killed; 0: no limit
    cpu_weight: int = 100  # 1 to 10000: its share where there is not enough for all
    # What a stop ends: "all" that it has started; its "main" process alone (ssh's sessions go on); "mixed": its main process is
    # asked, and what is left when that has gone is killed.
    kill: str = "all"
    umask: int = 0o022
    cwd: str = "/"
    env: tuple[tuple[str, str], ...] = ()
    # A terminal of its own ("/dev/console"), controlling, which belongs to `user` then; empty: /dev/null and the log.
    tty: str = ""
    log: str = "memory"  # "memory" (/run/log), "disk" (settings.LOG_KEEP as well: after=("storage",)), "none"
    watchdog: float = 0.0  # seconds; once it is ready, it is killed when it has not sent WATCHDOG=1 for so long
    critical: bool = False  # the board reboots when this one keeps failing
    logger: bool = False  # this is the one that reads the log pipes of all others
    # Topics of the local bus that it may publish and hear, as patterns (MQTT 3.1.1, 4.7); {name} is its own, without what
    # follows an "@". Each also publishes log/{name}. Who runs as root may publish and hear everything.
    publishes: tuple[str, ...] = ("{name}/#",)
    hears: tuple[str, ...] = ("#",)
    may: str = ""  # the setting that lists what it may ask of PID 1 without being root: "COMMANDS"
    # A module of LIB whose main(argv[1:]) runs in a copy of PID 1, as root: no exec, and memory is shared until written.
    module: str = ""
    # A service that is a zygote (pid1/zygote.py), to fork this one, where argv is a Python script as program(...) has it: it
    # starts sooner, and shares memory with the others. Empty, or while that service is away: it is executed by itself.
    forked_by: str = ""
    enabled: str = ""  # a setting that leaves this row out where it is "off": "CONSOLE_LOGIN"
    # It runs only while this is true: lambda b: b.online and b.device("ttyUSB0"). What b has is in docs/services.md.
    when: Callable[[Any], object] | Condition | None = None
    tells: tuple[str, ...] = ()  # facts of the board that it may tell PID 1 without being root: "voltage", "mode/*"


class Mode(NamedTuple):
    """One thing that the board as a whole may be: moving or idle, its power good or failing. Conditions ask b.mode(NAME)."""

    name: str
    states: tuple[str, ...]  # it begins in the first one
    # When it enters which state: ("failing", lambda b: b.voltage < 11.5). The first that is true counts. Without these, apps
    # say which state it is in, on the topic mode/NAME of the bus.
    enter: tuple[tuple[str, Callable[[Any], object] | Condition], ...] = ()
    hold: float = 0.0  # seconds for which that must be true before it enters the state
    memory: tuple[str, ...] = ()  # states in which log="disk" is as log="memory": nothing is written to the disk


class Interface(NamedTuple):
    """One network interface that network.py keeps up (`man 8 ip`)."""

    name: str  # "eth0"
    wifi: bool = False  # wpa_supplicant associates it, and the ladder looks after it
    # "dhcp": IPv4 from a DHCP server (RFC 2131); "ra": IPv6 from router advertisements (RFC 4861);
    # "192.168.1.5/24", "2001:db8::5/64": these. Any number of them.
    addresses: tuple[str, ...] = ("dhcp", "ra")
    gateways: tuple[str, ...] = ()  # default routes beside the fixed addresses, one for each family
    nameservers: tuple[str, ...] = ()  # before those that DHCP and router advertisements name
    metric: int = 100  # of its default routes: the lowest one carries the traffic
    hostname: bool = True  # tell the DHCP server ours
    module: str = ""  # the driver's, for the ladder; empty: what /sys/class/net/NAME/device/driver/module says
    metered: bool = False  # somebody pays by the byte: no update is downloaded while the traffic goes over it


class WifiNetwork(NamedTuple):
    """One network that wpa_supplicant may join (`man 5 wpa_supplicant.conf`)."""

    ssid: str | bytes
    psk: str = ""  # passphrase of 8 to 63 characters, or 64 hexadecimal digits
    security: str = ""  # "open", "psk" (WPA2), "sae" (WPA3), "psk+sae" (either); empty: psk where there is one
    hidden: bool = False  # it does not say its name: ask for it
    priority: int = 0  # the highest one in reach is joined
    frequencies: tuple[int, ...] = ()  # MHz: scan these alone, which is faster


class Rule(NamedTuple):
    """What hotplug.py does about a device: all patterns (`man 7 glob`) fit, and everything that the row names is done.

    In what it names, `{devname}` and the like are the device's properties in lower case, "/" become "-": hotplug.py lists them.
    """

    subsystem: str = "*"  # "tty", "block", "net", "usb"...
    action: str = "add"  # of the kernel's: add, remove, change, bind, unbind...; what is there at boot is added then
    # All of these properties are there and fit: those of the uevent (DEVNAME, PRODUCT, INTERFACE, ...), and of the USB device
    # that it belongs to, as udev names them: ID_VENDOR_ID, ID_MODEL_ID, ID_VENDOR, ID_MODEL, ID_SERIAL_SHORT, ID_PATH...
    properties: tuple[tuple[str, str], ...] = ()  # (("ID_VENDOR_ID", "1546"), ("DEVNAME", "ttyACM*"))
    path: str = "*"  # below /sys: "/devices/platform/*"
    module: str = ""  # load it
    group: str = ""  # may use the device's node in /dev: its group, and mode 660
    start: str = ""  # a service ("gps@{devname}"): where the action is "add", it runs as long as such a device is there
    stop: str = ""  # a service
    publish: str = ""  # a topic of the bus: action, path and properties


class Delays(NamedTuple):
    """The delays of settings.py that pid1/process.py needs, in seconds."""

    SV_COOLDOWN: float
    BACKOFF_FIRST: float
    BACKOFF_MAX: float
    AFTER_TIMEOUT: float
    KILL_RETRY: float = 1.0


class NetworkDelays(NamedTuple):
    """The settings of the same names, in seconds."""

    NETWORK_RETRY: float
    DHCP_TIMEOUT: float
    ONLINE_TIMEOUT: float
    LADDER_REASSOCIATE: float
    LADDER_SUPPLICANT: float
    LADDER_MODULE: float
    LADDER_REBOOT: float
    LADDER_STEADY: float
    REBOOT_INTERVAL: float


# --- for profiles -----------------------------------------------------------------------------------------------------
def replaced(rows: tuple[Row, ...], *new: Row) -> tuple[Row, ...]:
    """A table with rows in the place of those of the same name: `SERVICES = replaced(SERVICES, Service("ntpd", ...))`."""
    for row in new:
        place = _place(rows, _key(row))
        rows = (*rows[:place], row, *rows[place + 1 :])
    return rows


def changed(rows: tuple[Row, ...], name: str, **columns: Any) -> tuple[Row, ...]:
    """A table with other values in one row: `SERVICES = changed(SERVICES, "network", nice=0)`, MOUNTS by their target."""
    place = _place(rows, name)
    row: Any = rows[place]
    return (*rows[:place], row._replace(**columns), *rows[place + 1 :])


def _key(row: Any) -> Any:
    """What a row is called by: its target, where it is a mount, and else its first column."""
    return row.target if type(row) is Mount else row[0]


def _place(rows: tuple[Row, ...], name: Any) -> int:
    names = [_key(row) for row in rows]
    if name not in names:
        raise ValueError(f"there is no row {name!r}{did_you_mean(str(name), names) or '; add it: (*ROWS, Row(...))'}")
    return names.index(name)


__all__ = ["Device", "Directory", "Interface", "Mode", "Mount", "Rule", "Service", "WifiNetwork", "changed", "replaced"]
