"""The board as a table: what is mounted, loaded and kept running, and how long things may take.

A profile is a file with the same names (`settings_prod.py`, or profiles/NAME.py for `stack.profile=NAME`): what it
gives replaces what stands here, what it leaves out stays. `python3 stack.py --plan` prints what a boot would do.
The columns are explained in tables/rows.py. Times are in seconds.
"""

from __future__ import annotations

import os

from base.stdlib import TYPE_CHECKING
from tables.rows import Device, Directory, Interface, Mode, Mount, Rule, Service, WifiNetwork, changed, replaced  # noqa: F401

if TYPE_CHECKING:
    from typing import Any

# --- names and places ---------------------------------------------------------------------------------------------
HOSTNAME = "stack"
CONSOLE = "/dev/console"
CONSOLE_LOGIN = "password"  # what its getty asks for; or "prompt": whoever holds the cable is root; or "off"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = (("HOME", "/root"), ("TERM", "linux"), ("LANG", "C.UTF-8"), ("BUS", "{BUS}"))  # of every service

LOG = "/run/log"  # in memory: NAME.log, rotated to NAME.log.1
KEEP = "/var/lib/stack"  # on the data partition: the clock's stamp, the random seed, the record of boots
LOG_KEEP = "/var/log/board"  # on the data partition, for services with log="disk"
LIB = os.path.dirname(os.path.abspath(__file__))  # where `make install` has put the modules
PYTHON = "/usr/bin/python3"
PYTHONPATH = "{LIB}"  # where our own Python programs find our modules, and libraries that nobody else needs
APP_USER = "{name}"  # of each app: a user of its own, that needs no line in /etc/passwd; or one for all, such as "nobody"

BUS = "/run/bus/mqtt.sock"  # a Unix socket, or "host:port" for a broker that has none
GPS_BAUD = 0  # of receivers on a serial line; 0: the usual ones in turn, until there is sense in what comes
FAKE_GPS = "off"  # "on": fakegps.py invents a position where no receiver speaks, for boards on a desk
GPS_ROUTE = ""  # a GPX file; empty is the built-in loop
WIFI_INTERFACE = "wlan0"
WIFI_COUNTRY = ""  # "DE": the regulatory domain (ISO 3166)
WIFI_CONFIG = "/etc/wpa_supplicant.conf"  # networks of the board's owner, beside WIFI_NETWORKS; need not be there
WIFI_CONTROL = "/run/wpa_supplicant"  # wpa_supplicant's control sockets
WIFI_GROUP = "scan_proxy"  # may use them, beside root: a service, or a group of /etc/group
WIFI_SCAN = "/run/wifi_scan"  # where wifi_scan.py asks: for scans alone
WIFI_RECORDING = ""  # recorded answers of wpa_supplicant, where there is no radio

RESOLV_CONF = "/run/resolv.conf"  # the image links /etc/resolv.conf to it
NETWORK_STATE = "/run/network/state.json"  # what `network()` in the prompt reads
NETLINK_BUFFER = 1024 * 1024  # bytes of the kernel's events that wait for network.py, and for hotplug.py
NETWORK_STAMP = "/var/lib/network.reboot"  # on the data partition: no reboot by the ladder where it cannot be written

UPLINK: tuple[str, ...] = ()  # "host:port" of the mothership's MQTT broker, or of several, tried in turn; (): no uplink
UPLINK_BOARD = ""  # our name there; empty is the host name
UPLINK_TLS: tuple[str, ...] = ()  # (ca, certificate, key), files in PEM; empty: no TLS
UPLINK_PROTOCOL = "3.1.1"  # of MQTT, or "5"
UPLINK_TOPICS = (("wifi", "wifi/+"), ("diag", "diag"))  # what of the bus is recorded, and as which kind
UPLINK_URGENT = ("boot", "stop", "crash", "fault", "cmd", "update")  # kinds that are on the disk at once
OUTBOX = "/var/lib/outbox"  # on the data partition
OUTBOX_SIZE = 64 * 1024 * 1024  # bytes of records
OUTBOX_SPARE = 32 * 1024 * 1024  # bytes of the disk that stay free
OUTBOX_GIVE_UP = ("diag", "wifi", "evt")  # what goes first where there is no room

VSOCK: tuple[
    str, ...
] = ()  # ("1024", "2"): a virtual machine's port for requests, and the CIDs that may ask as root: 2 is its host

# What the mothership may command: an operation, and which services, by name or by its beginning and "*". A board that has been
# switched off needs somebody to climb up, and one without network or uplink can no longer be asked: ("poweroff", ""),
# ("stop", "*") and ("signal", "*"), which stops as well, are for boards that are near. ("update", "https://updates.example.org/*")
# lets it update the board from addresses that begin so.
COMMANDS = (
    ("start", "*"), ("restart", "*"), ("stop", "gps@*"), ("stop", "fakegps"), ("stop", "wifi_scan"),
    ("stop", "wifi_analyzer"), ("stop", "diagnostic"), ("snooze", ""), ("reload", ""), ("reboot", ""),
)  # fmt: skip

# --- updates ------------------------------------------------------------------------------------------------------
UPDATE_CERTIFICATE = "/etc/stack-update.pem"  # whose bundles `update()` takes; `make update-key` and `make image` bring it
# Hours, by the board's clock (UTC, where it has no time zone), in which it begins an update that the mothership tells it:
# ("02:00-05:00",) or several; () is any time. It begins none either while the traffic goes over an interface that is `metered`,
# or while its voltage is too low.
UPDATE_WINDOW: tuple[str, ...] = ()
UPDATE_STEADY = 60.0  # a slot on trial is committed when it has been healthy for so long...
UPDATE_DEADLINE = 600.0  # ...and left when that is not so by this age of its boot; twice UPDATE_STEADY where that is longer

# --- watchdog -----------------------------------------------------------------------------------------------------
WATCHDOG = "/dev/watchdog"  # PID 1's loop resets its timer; empty: none
WATCHDOG_TIMEOUT = 30.0  # the board is reset when PID 1 hangs for so long; an SD card may take ten
WATCHDOG_SNOOZE_MAX = 60.0  # minutes: the longest snooze() in the prompt

# --- mounts -------------------------------------------------------------------------------------------------------
MOUNTS = (
    Mount("proc", "/proc", "proc", "nosuid,nodev,noexec"),
    Mount("sysfs", "/sys", "sysfs", "nosuid,nodev,noexec"),
    Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", "nosuid,nodev,noexec", required=False),
    Mount("dev", "/dev", "devtmpfs", "nosuid,mode=755"),
    Mount("devpts", "/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=666,mode=620,gid=5", required=False),
    Mount("shm", "/dev/shm", "tmpfs", "nosuid,nodev,noexec,mode=1777,size=10%", required=False),
    Mount("run", "/run", "tmpfs", "nosuid,nodev,mode=755,size=10%"),
    Mount("log", "/run/log", "tmpfs", "nosuid,nodev,noexec,mode=755,size=8%"),  # what apps fill is not what root needs
    Mount("bus", "/run/bus", "tmpfs", "nosuid,nodev,noexec,mode=755,size=64k,nr_inodes=64"),  # sockets
    Mount("scan", "/run/wifi_scan", "tmpfs", "nosuid,nodev,noexec,mode=755,size=64k,nr_inodes=64"),
    Mount("tmp", "/tmp", "tmpfs", "nosuid,nodev,noexec,mode=1777,size=20%"),
    Mount("", "/", "", "remount,ro", required=False),
    Mount("var", "/var", "tmpfs", "nosuid,nodev,noexec,mode=755,size=20%"),  # until the data partition comes over it
    Mount("/run", "/var/run", "", "bind,rec", required=False),
    Mount("/tmp", "/var/tmp", "", "bind", required=False),
    Mount("pstore", "/sys/fs/pstore", "pstore", "nosuid,nodev,noexec", required=False),
)
DIRECTORIES = (  # those below /var are made on the data partition too
    Directory("/run/bus", 0o755, "broker"),  # nobody else can put another socket in its place
    Directory("/run/wifi_scan", 0o710, "scan_proxy", "wifi_scan"),  # nobody else comes to the socket in it
    Directory("/var/lib/outbox", 0o700, "uplink"),
    Directory("/var/lib/dropbear", 0o700),  # the image links /etc/dropbear to it: host keys are made on the board
)
DEVICES = (  # what devtmpfs leaves to udev
    Device("/dev/fd", "link", target="/proc/self/fd"),
    Device("/dev/stdin", "link", target="/proc/self/fd/0"),
    Device("/dev/stdout", "link", target="/proc/self/fd/1"),
    Device("/dev/stderr", "link", target="/proc/self/fd/2"),
    Device("/dev/null", "c", 1, 3, 0o666),
    Device("/dev/urandom", "c", 1, 9, 0o666),
)

# --- the data partition -------------------------------------------------------------------------------------------
# Where it may be, in this order: LABEL=, UUID=, PARTLABEL=, PARTUUID= or PARTITION= (its number), all of the disk that the root
# is on, and then devices of any disk. The number at the end finds it also where its label has been destroyed. () is a board
# without one: /var stays a tmpfs.
DATA: tuple[str, ...] = ("LABEL=data", "PARTITION=3")
# True: LABEL= and the like, here and in BOOT_FILES, may name a partition of any disk. Then a stick that somebody plugs in may
# become /var, and gets the board's keys written on it. False also means that the clock and the seed on another disk are not
# believed.
DATA_ANYWHERE = False
DATA_OPTIONS = "noexec,noatime,errors=remount-ro"  # beside nosuid and nodev (`man 5 ext4`)
DATA_REMAKE = True  # a file system that cannot be repaired is formatted; False: it stays as it is, and /var is a tmpfs
DATA_GROW = True  # to the end of its card
DATA_WAIT = 10.0  # for the device to appear
DATA_TIMEOUT = 600.0  # for check and repair; services go on after 50 s of it, and find /var on the disk as soon as it is done

# --- the boot partition -------------------------------------------------------------------------------------------
# Where the owner's files are (bootfiles.py), on a FAT that any computer can write: as DATA names it. What is on it makes root.
# (): none.
BOOT_FILES: tuple[str, ...] = ("PARTITION=1",)
BOOT_WAIT = 2.0  # for the device to appear, where storage.py has not waited for it already

# --- kernel -------------------------------------------------------------------------------------------------------
MODULES: tuple[str, ...] = ("brcmfmac", "bcm2835_wdt", "i2c_dev")  # loaded by the one-shot service "modules"
SYSCTLS = (  # name and value, as sysctl(8) writes them; "-" before a name: where this kernel has it
    ("kernel.printk", "4 4 1 7"),
    ("kernel.printk_devkmsg", "on"),  # or the kernel drops most of what PID 1 says at boot
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("net.ipv4.conf.all.rp_filter", "1"),
    ("vm.panic_on_oom", "0"),
    # An app sees nothing of the kernel's addresses and log, and of its neighbours; and finds fewer ways into the kernel.
    ("-kernel.dmesg_restrict", "1"),
    ("-kernel.kptr_restrict", "2"),
    ("-kernel.yama.ptrace_scope", "2"),
    ("-kernel.unprivileged_userns_clone", "0"),  # Debian's
    ("-user.max_user_namespaces", "0"),
    ("-kernel.unprivileged_bpf_disabled", "1"),
    ("-kernel.perf_event_paranoid", "3"),
    ("-vm.unprivileged_userfaultfd", "0"),
    ("-dev.tty.ldisc_autoload", "0"),
    ("-fs.protected_symlinks", "1"),
    ("-fs.protected_hardlinks", "1"),
    ("-fs.protected_fifos", "2"),
    ("-fs.protected_regular", "2"),
    ("-fs.suid_dumpable", "0"),
)

# --- devices ------------------------------------------------------------------------------------------------------
# hotplug.py loads what a device asks for by its modalias, and then these. After a change: restart_process("hotplug").
RULES: tuple[Rule, ...] = (
    Rule("tty", properties=(("DEVNAME", "tty[A-Z]*"),), group="dialout"),  # serial lines, as udev has it
    Rule("tty", properties=(("DEVNAME", "ttyUSB*"),), start="gps@{devname}"),
    Rule("tty", properties=(("DEVNAME", "ttyACM*"),), start="gps@{devname}"),
    Rule("block", "*", properties=(("ID_BUS", "usb"),), publish="device/{devname}"),
)

# --- network ------------------------------------------------------------------------------------------------------
INTERFACES: tuple[Interface, ...] = (
    Interface("eth0", metric=100),
    Interface("usb0", metric=200),
    Interface("{WIFI_INTERFACE}", wifi=True, metric=600),
)
WIFI_NETWORKS: tuple[WifiNetwork, ...] = ()  # WifiNetwork("harbour", "the passphrase"), ...

# --- delays -------------------------------------------------------------------------------------------------------
SV_COOLDOWN = 10.0  # a service that ran for so long is restarted at once
BACKOFF_FIRST = 0.1  # otherwise the wait doubles from here...
BACKOFF_MAX = 60.0  # ...to here
AFTER_TIMEOUT = 60.0  # a service waits at most so long for those named in its `after`
SHUTDOWN_TIMEOUT = 20.0  # all services together, at the end
KILL_TIMEOUT = 2.0  # between kill(-1, TERM), kill(-1, KILL) and going on without the unkillable
SYNC_TIMEOUT = 10.0  # for sync(2) and umount(2) at the end
RESCUE_TIMEOUT = 300.0  # nobody types at the rescue prompt: reboot
CRITICAL_FAILURES = 5  # a critical service that fails so many times...
CRITICAL_WINDOW = 600.0  # ...in so many seconds reboots the board...
CRITICAL_INTERVAL = 3600.0  # ...at most once in so long, remembered over boots on the data partition
LOOP_TURN_MAX = 5.0  # a turn of PID 1's loop that takes longer is logged; three in a minute reboot the board likewise
FACT_GRACE = 15.0  # a fact of the board is believed for so long after its teller has ended: time to be back and tell it again
NETWORK_RETRY = 5.0  # the kernel, or a DHCP client that died, is asked again
DHCP_TIMEOUT = 120.0  # a DHCP client without a lease is started again
ONLINE_TIMEOUT = 300.0  # an interface is online for so long after an acknowledgement of the mothership
LADDER_REASSOCIATE = 60.0  # Wi-Fi without an address for so long: associate again...
LADDER_SUPPLICANT = 180.0  # ...restart wpa_supplicant...
LADDER_MODULE = 600.0  # ...reload the driver's module...
LADDER_REBOOT = 1800.0  # ...reboot, and begin again
LADDER_STEADY = 60.0  # an address for so long, and the ladder is left
REBOOT_INTERVAL = 3600.0  # the ladder reboots a board only that has been up for so long: at most once an hour

# --- logging ------------------------------------------------------------------------------------------------------
CONSOLE_LEVEL = 4  # PID 1's own log on its console, where there is no /dev/kmsg: warnings and worse (`man 3 syslog`)
LOG_FILE_SIZE = 256 * 1024  # bytes: a service's log is rotated at this size and one old file is kept
LOG_TOTAL_SIZE = 16 * 1024 * 1024  # bytes: all of /run/log
LOG_RATE = 1000  # lines a second from one service; more is counted and dropped
LOG_BURST = 5000  # lines


# --- modes --------------------------------------------------------------------------------------------------------
# What the board as a whole may be, for conditions: lambda b: b.mode("power") == "good". docs/services.md has an example.
MODES: tuple[Mode, ...] = ()


# --- services -----------------------------------------------------------------------------------------------------
# `{NAME}` is the setting NAME, whatever a profile has made of it.
def program(name: str, path: str, *arguments: str, **columns: Any) -> Service:
    """A row for one of our own Python programs: LIB/`path`.py. -P: its folder's other files hide no module of Python's."""
    argv = ("{PYTHON}", "-P", f"{{LIB}}/{path}.py", *arguments)
    return Service(name, argv, env=(("PYTHONPATH", "{PYTHONPATH}"),), **columns)


def app(
    name: str, *arguments: str, path: str = "", capabilities: tuple[str, ...] = (), after: tuple[str, ...] = ("broker",),
    groups: tuple[str, ...] = (), publishes: tuple[str, ...] = (),
) -> Service:  # fmt: skip
    """A row for one of our applications: a Python module in LIB, unprivileged. It publishes below its name, and `publishes`;
    mosquitto lets those use its socket who are in its group."""
    return program(
        name, path or name, *arguments, after=after, user="{APP_USER}", capabilities=capabilities, no_new_privs=True,
        oom_score=200, memory_max="96M", pids_max=64, groups=("broker", *groups), publishes=("{name}/#", *publishes),
        forked_by="zygote",
    )  # fmt: skip


LOGD = Service(
    "logd",
    ("logd", "--folder={LOG}", "--keep={LOG_KEEP}", "--file-size={LOG_FILE_SIZE}",
     "--total-size={LOG_TOTAL_SIZE}", "--rate={LOG_RATE}", "--burst={LOG_BURST}"),
    module="services.logd", logger=True, log="none", oom_score=-900, nice=5, watchdog=15.0,
    memory_max="64M",  # what it writes to /run/log counts: LOG_TOTAL_SIZE of it
)  # fmt: skip
STORAGE = Service(
    "storage",
    ("storage", "{DATA}"),
    module="services.storage",
    ready="exit",
    ready_timeout=50.0,
    restart="never",
    memory_max="75%",
)
BOOT = Service(
    "bootfiles",
    ("bootfiles", "{BOOT_FILES}"),
    ("storage",),
    module="services.bootfiles",
    ready="exit",
    restart="never",
    memory_max="50%",
)
PUSHED = Service(  # of the code that `make push` has brought, and keep() kept
    "pushed", ("pushed", "{KEEP}"), ("storage",), module="services.kept_push", restart="never", memory_max="128M",
)  # fmt: skip
KEEPER = Service(
    "keeper",
    ("keeper", "{KEEP}"),
    ("storage", "modules"),
    module="services.keeper",
    ready="notify",
    stop_timeout=10.0,
    oom_score=-900,
    memory_max="32M",
)
DROPBEAR = Service(
    "dropbear", ("ssh_door", "22", "dropbear", "-i", "-s", "-R"), after=("syslogd", "storage"), oom_score=-900,
    cpu_weight=400, module="services.ssh_door",
    kill="main", memory_max="50%",  # sessions have its oom_score: without a limit all others would die for one of them
)  # fmt: skip
# Who may publish and hear what: the access list of mosquitto, and a password for each service that only its user can read.
RIGHTS = Service(
    "bus_rights",
    ("bus_rights", "broker", "{BUS_RIGHTS}"),
    module="services.bus_rights",
    ready="exit",
    restart="on-failure",
    memory_max="64M",
)
BROKER = Service(
    "broker", ("mosquitto", "-c", "{LIB}/data/mosquitto.conf"), ("bus_rights",), "{BUS}", user="{APP_USER}", capabilities=(),
    no_new_privs=True, umask=0, memory_max="64M", pids_max=64,
)  # fmt: skip
# Imports these modules once, and forks the apps: each starts sooner, and shares their memory. What it holds of memory counts
# here, not as the apps'.
ZYGOTE = program("zygote", "pid1/zygote", "bus", ready="notify", ready_timeout=15.0, memory_max="96M")
APPS = (
    app("fakegps", "{GPS_ROUTE}", publishes=("gps",))._replace(enabled="FAKE_GPS"),
    app(
        "gps", "/dev/{instance}", "{GPS_BAUD}", capabilities=("sys_time",), groups=("dialout",), publishes=("gps", "receiver/+")
    )._replace(name="gps@"),
    app(
        "wifi_scan",
        "{WIFI_INTERFACE}",
        "{WIFI_SCAN}",
        "{WIFI_RECORDING}",
        capabilities=("net_admin",),  # where no wpa_supplicant runs it scans by itself
        publishes=("scan",),
    ),
    app("wifi_analyzer", publishes=("wifi/#",)),
    app("diagnostic", publishes=("diag", "boot"))._replace(tells=("*",)),  # what apps say on the bus, too
    app("uplink", "{UPLINK}", path="uplink/service", after=("broker", "storage"), publishes=("ack",))._replace(
        may="COMMANDS", ready="notify", watchdog=60.0
    ),
)

SERVICES: tuple[Service, ...] = (
    Service("modules", ("modprobe", "-a", "{MODULES}"), ready="exit", restart="never", memory_max="64M"),
    LOGD,
    STORAGE,
    BOOT,
    PUSHED,
    KEEPER,
    Service("klogd", ("klogd", "-n"), memory_max="16M"),
    Service("syslogd", ("syslogd", "-n", "-C64"), memory_max="16M"),
    DROPBEAR,
    Service("vsock", ("vsock_door", "{VSOCK}"), ("modules",), module="services.vsock_door", memory_max="32M"),
    # Where chronyd takes its place: with `rtcsync`, without which it does not tell the kernel that the clock is synchronised.
    Service("ntpd", ("ntpd", "-n", "-p", "pool.ntp.org"), after=("network",), nice=-5, memory_max="16M"),
    program(
        "wpa_supplicant", "network/supplicant", "{WIFI_INTERFACE}", after=("modules", "bootfiles"), memory_max="64M",
        umask=0o077,  # what it writes by SAVE_CONFIG has passphrases in it
    ),
    program(
        "scan_proxy", "network/scan_proxy", "{WIFI_INTERFACE}", "{WIFI_CONTROL}", "{WIFI_SCAN}", user="{name}",
        groups=("{WIFI_GROUP}",), capabilities=(), no_new_privs=True, memory_max="32M", pids_max=8, publishes=(), hears=(),
    ),
    program("hotplug", "services/hotplug", oom_score=-900, nice=-5, memory_max="96M"),
    program(
        "network", "network/service", after=("modules", "storage", "bootfiles"), oom_score=-900, nice=-5,
        log="disk", cpu_weight=400, memory_max="128M",
    ),
    program(
        "console", "prompt/console", "login", "{CONSOLE_LOGIN}", after=("dropbear",), tty="{CONSOLE}", memory_max="50%",
        enabled="CONSOLE_LOGIN",
    ),
    ZYGOTE,
    RIGHTS,
    BROKER,
    *APPS,
)  # fmt: skip

# The last resort, on the console: `stack.rescue`, or nothing else could be started.
RESCUE = program("rescue", "prompt/console", "rescue", ready="notify", tty="{CONSOLE}")
