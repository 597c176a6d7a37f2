"""One app is not another, on a real kernel: what a hostile app's user may read, write, signal, trace, fill and publish there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import machines
from qemu_bootfiles import LINKS, Card
from qemu_storage import shell

import settings

PASSPHRASE, KEY = "the passphrase of the harbour", "-----BEGIN PRIVATE KEY-----"
# The table's own rows, as on a board without Wi-Fi, and four apps.
PROFILE = """
MODULES = ("virtio_net",)
DATA = ("LABEL=data", "/dev/vdb2")
BOOT_FILES = ("LABEL=BOOT", "/dev/vdb1")
BOOT_WAIT = 30.0
UPLINK = ("10.0.2.2:9",)
AWAY = "console ntpd klogd wpa_supplicant scan_proxy radios access_point udhcpd fakegps wifi_scan wifi_analyzer".split()
SERVICES = tuple(row for row in SERVICES if row.name not in AWAY) + (
    app("ear"), app("victim"), app("hostile", after=("broker", "uplink")), app("greedy")._replace(memory_max="256M"),
)
# What the owner's files say is judged in good time, before an emulated processor has all of the others to start.
SERVICES = changed(changed(SERVICES, "bus_rights", after=("bootfiles",)), "hotplug", after=("bootfiles",))
del AWAY
"""
OWNERS = f"WIFI_NETWORKS = (WifiNetwork('harbour', {PASSPHRASE!r}),)\n"
EAR = """#!/usr/bin/python3
from bus import Bus
bus = Bus("ear")
bus.subscribe("#", lambda topic, message: print("heard", topic, message["data"], flush=True))
bus.run()
"""
VICTIM = """#!/usr/bin/python3
from bus import Bus
bus = Bus("victim")
for _ in bus.every(1.0):
    bus.publish("victim", "lives")
"""
# It waits for /run/tests/go, tries what it can, and says how each try ended.
HOSTILE = r"""#!/usr/bin/python3
import ctypes, errno, json, os, shutil, signal, socket, stat, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def tried(what, step, *arguments):
    try:
        step(*arguments)
        end = "DONE"
    except OSError as error:
        end = errno.errorcode.get(error.errno, type(error).__name__)
    except Exception as error:
        end = type(error).__name__
    print("tried", json.dumps([what, end]), flush=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def pids(*words):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = open(f"/proc/{pid}/cmdline", "rb").read()
        except OSError:
            continue
        if any(word.encode() in line for word in words):
            found.append(int(pid))
    return found

def read(path):
    with open(path, "rb") as file:
        file.read(1)

PTRACE_ATTACH, PTRACE_SEIZE, CLONE_NEWUSER = 16, 0x4206, 0x10000000
ROUND = 0
while True:
    while not os.path.exists(f"/run/tests/{ROUND}"):
        time.sleep(0.2)
    kind = open(f"/run/tests/{ROUND}").read()
    ROUND += 1
    if kind == "others":
        targets = {"init": [1], **{name: pids(word) for name, word in (
            ("uplink", "uplink/service"), ("broker", "mosquitto"), ("victim", "victim.py"), ("network", "network/service"))}}
        for name, numbers in targets.items():
            print("pids", name, len(numbers), flush=True)
            for pid in numbers:
                tried(f"attach {name}", call, "ptrace", PTRACE_ATTACH, pid, None, None)
                tried(f"seize {name}", call, "ptrace", PTRACE_SEIZE, pid, None, None)
                tried(f"stop {name}", os.kill, pid, signal.SIGSTOP)
                tried(f"kill {name}", os.kill, pid, signal.SIGKILL)
                for file in ("environ", "mem", "maps", "fd/0", "stack"):
                    tried(f"{file} {name}", read, f"/proc/{pid}/{file}")
    if kind == "birth":  # from the first moment of its life
        print("spinning", flush=True)
        tries, end = 0, time.monotonic() + 30
        old = set(pids("uplink/service"))
        while time.monotonic() < end and tries < 300:
            for pid in set(pids("uplink/service")) - old:
                tries += 1
                try:
                    call("ptrace", PTRACE_SEIZE, pid, None, None)
                    print("tried", json.dumps(["seize at birth", "DONE"]), flush=True)
                except OSError:
                    pass
        print("tries", tries, flush=True)
    if kind == "child":  # not even its own
        child = subprocess.Popen(["sleep", "60"])
        tried("seize own child", call, "ptrace", PTRACE_SEIZE, child.pid, None, None)
        child.kill()
    if kind == "kernel":
        tried("user namespace", call, "unshare", CLONE_NEWUSER)
        tried("mount", call, "mount", b"none", b"/tmp", b"tmpfs", 0, None)
        tried("reboot", call, "reboot", 0x1234567)
        tried("settime", time.clock_settime, time.CLOCK_REALTIME, 0)
        tried("bpf", call, "syscall", 321, 0, ctypes.create_string_buffer(72), 72)
        tried("userfaultfd", call, "syscall", 323, 0)
        tried("kernel log", call, "klogctl", 3, ctypes.create_string_buffer(100), 100)
        tried("raw packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        print("kallsyms", open("/proc/kallsyms").readline().split()[0].strip("0") or "hidden", flush=True)
    if kind == "programs":
        for folder in ("/tmp", "/dev/shm", "/var/tmp"):
            shutil.copy("/bin/busybox", f"{folder}/true")
            tried(f"execute in {folder}", subprocess.run, [f"{folder}/true"])
            os.unlink(f"{folder}/true")
    if kind == "files":
        for path in open("/run/tests/paths").read().split():
            tried(f"read {path}", read, path)
            tried(f"write {path}", lambda: os.close(os.open(path, os.O_WRONLY)))
    if kind == "writable":  # whatever this user may write to, where the root's being read-only is not what keeps it
        found = []
        for start in ("/dev", "/run", "/tmp", "/var", "/proc/sys", "/sys/fs", "/sys/kernel", "/sys/module", "/boot", "/root", "/etc"):
            for top, folders, files in os.walk(start):
                folders[:] = [name for name in folders if f"{top}/{name}" != "/var/run"]  # it is /run
                for path in [top, *(f"{top}/{name}" for name in files)]:
                    if not os.path.islink(path) and os.access(path, os.W_OK):
                        found.append(path)
        print("writable", json.dumps(sorted(found)), flush=True)
    if kind == "place":
        print("taking", flush=True)
        done, end = set(), time.monotonic() + 15
        while time.monotonic() < end:
            for step, arguments in (
                (os.unlink, ("/run/bus/mqtt.sock",)), (os.rename, ("/run/bus/mqtt.sock", "/run/bus/old")),
                (os.rename, ("/run/bus", "/run/old")), (os.mkdir, ("/run/bus/mine",)),
                (lambda path: socket.socket(socket.AF_UNIX).bind(path), ("/run/bus/mqtt.sock",)),
                (lambda path: socket.socket(socket.AF_UNIX).bind(path), ("/run/bus/other",)),
            ):
                try:
                    step(*arguments)
                    done.add(f"{step.__name__} {arguments}")
                except OSError:
                    pass
        tried("place", lambda: 1 / (not done))
        print("taken", sorted(done), flush=True)
    if kind == "bus":
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion
        facts = json.load(open("/run/bus-rights/hostile"))
        for name, password in (("hostile", facts["password"]), ("", ""), ("uplink", "guess"), ("root", facts["password"])):
            one = mqtt.Client(CallbackAPIVersion.VERSION2, transport="unix", reconnect_on_failure=False)
            if name:
                one.username_pw_set(name, password)
            one.on_connect = lambda client, data, flags, reason, properties: print("as", name or "nobody", reason, flush=True)
            one.connect("/run/bus/mqtt.sock", 1)
            one.loop_start()
            time.sleep(1)
            for topic in ("ack", "gps", "scan", "network/eth0", "device/sda", "wifi/00:00", "log/uplink", "victim", "diag", "hostile"):
                one.publish(topic, json.dumps({"data": f"faked by {name or 'nobody'}"}), 0, True)
            time.sleep(1)
            one.loop_stop()
    if kind == "ask":
        sys.path.insert(0, "/usr/lib/stack")
        from onboard.to_pid1 import SOCKET, ask
        for request in ({"op": "reboot"}, {"op": "stop", "name": "uplink"}, {"op": "run", "argv": ["id"]}, {"op": "reload"},
                        {"op": "signal", "name": "victim", "signal": 9}, {"op": "snooze", "minutes": 1}):
            tried(f"ask {request['op']}", ask, SOCKET, request)
    print("end", kind, flush=True)
"""
# Fills a file in each folder that it may write to, and prints without end.
GREEDY = r"""#!/usr/bin/python3
import errno, os, time
while not os.path.exists("/run/tests/greedy"):
    time.sleep(0.2)
def fill(folder):
    count = 0
    try:
        with open(f"{folder}/fill", "wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                count += 65536
    except OSError as error:
        print(folder, errno.errorcode[error.errno], count, flush=True)
for top, folders, files in os.walk("/"):
    if top == "/proc" or top == "/sys":
        folders[:] = []
    elif os.access(top, os.W_OK):
        fill(top)
print("filled", flush=True)
while not os.path.exists("/run/tests/flood"):
    time.sleep(0.2)
while True:
    print("x" * 1000)
"""
FILES = {
    "usr/lib/stack/hostile.py": HOSTILE, "usr/lib/stack/ear.py": EAR, "usr/lib/stack/victim.py": VICTIM,
    "usr/lib/stack/greedy.py": GREEDY, **LINKS,
}  # fmt: skip


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("security")
    card = Card(folder)
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=b".split()
    subprocess.run([*request, "-keyout", folder / "key", "-out", folder / "pem"], check=True, capture_output=True)
    from image import ssh_key

    certificate, key = (folder / "pem").read_bytes(), (folder / "key").read_bytes()
    assert key.startswith(KEY.encode())
    card.write({
        "settings_prod.py": OWNERS.encode(), "ca.pem": certificate, "board.pem": certificate, "board.key": key,
        "authorized_keys": ssh_key().with_suffix(".pub").read_bytes(),
    })  # fmt: skip
    for start in machines(folder):
        one = start("x86_64", PROFILE, files=FILES, data=card.disk).up(180)
        facts = one.python("import sv; result = sv.board()")
        assert (facts["faults"], facts["rejected"], facts["bootfiles"]["notes"]) == ([], [], [])
        one.rounds = 0
        settled(one)
        yield one


def states(board: Any) -> dict[str, str]:
    return {row["name"]: row["state"] for row in board.python("import sv; result = sv.stats_process()")}


def settled(board: Any) -> None:
    code = "import sv; found = {row['name']: row['state'] for row in sv.stats_process()}"
    board.wait(f"{code}; result = found['hostile'] == found['uplink'] == found['victim'] == 'running'", 120)


LOG = """
import sv
def log(name):
    return [line.split(f"{{name}}: ", 1)[-1] for line in sv.logs(name, 5000)]
lines = log({name!r})[{after}:]
result = {expression}
"""


def log(board: Any, name: str) -> list[str]:
    """What a service has printed, without times."""
    return list(board.python(LOG.format(name=name, after=0, expression="lines")))


def wait_log(board: Any, name: str, after: int, text: str, seconds: float = 60) -> list[str]:
    """What a service has printed after so many lines, once this line is among it."""
    expression = f"lines if {text!r} in lines else []"
    return list(board.wait(LOG.format(name=name, after=after, expression=expression), seconds))


def wait_ready(board: Any, name: str) -> None:
    board.wait(f"import sv; result = sv.stats_process({name!r})[0]['ready']")


def begin(board: Any, kind: str) -> int:
    """Let the hostile app try something; the number of lines that it had printed before."""
    before = len(log(board, "hostile"))
    shell(board, f"mkdir -p /run/tests; printf {kind} >/run/tests/new; mv /run/tests/new /run/tests/{board.rounds}")
    board.rounds += 1
    return before


def said(board: Any, kind: str, before: int, seconds: float = 60) -> list[str]:
    return wait_log(board, "hostile", before, f"end {kind}", seconds)


def attack(board: Any, kind: str, seconds: float = 60) -> tuple[dict[str, str], list[str]]:
    """How each try has ended, and all lines."""
    lines = said(board, kind, begin(board, kind), seconds)
    return dict(json.loads(line.removeprefix("tried ")) for line in lines if line.startswith("tried ")), lines


def test_the_kernels_settings_are_what_the_table_says(board: Any) -> None:
    """Each that this kernel has; the two that close ptrace and user namespaces are among them."""
    wanted = {name.removeprefix("-"): value for name, value in settings.SYSCTLS if name.startswith("-")}
    paths = {name: f"/proc/sys/{name.replace('.', '/')}" for name in wanted}
    found = board.python(f"result = {{n: open(p).read().strip() for n, p in {paths!r}.items() if os.path.exists(p)}}")
    assert found == {name: wanted[name] for name in found}
    assert {"kernel.yama.ptrace_scope", "user.max_user_namespaces", "kernel.unprivileged_userns_clone", "fs.suid_dumpable"} <= {
        *found
    }


def test_no_neighbour_is_traced_signalled_or_read(board: Any) -> None:
    ends, lines = attack(board, "others")
    assert [line for line in lines if line.startswith("pids") and line.endswith(" 0")] == [], "each of them was found"
    assert {what: end for what, end in ends.items() if end not in ("EPERM", "EACCES")} == {}
    assert len(ends) == 5 * 9
    assert states(board)["uplink"] == states(board)["victim"] == "running"


def test_the_uplink_is_not_traced_from_its_first_moment_on(board: Any) -> None:
    before = begin(board, "birth")
    wait_log(board, "hostile", before, "spinning")
    board.python("import sv; sv.restart_process('uplink')")
    lines = said(board, "birth", before, 90)
    assert not [line for line in lines if "DONE" in line]
    assert int(next(line for line in lines if line.startswith("tries")).split()[1]) > 20, "it was there early enough"


def test_not_even_its_own_child(board: Any) -> None:
    """kernel.yama.ptrace_scope=2: CAP_SYS_PTRACE, or nothing."""
    assert attack(board, "child")[0] == {"seize own child": "EPERM"}


def test_the_kernel_is_closed(board: Any) -> None:
    ends, lines = attack(board, "kernel")
    assert ends.pop("user namespace") in ("EPERM", "ENOSPC")
    assert set(ends.values()) == {"EPERM"}, ends
    assert "kallsyms hidden" in lines


def test_what_lies_where_apps_write_is_no_program(board: Any) -> None:
    assert attack(board, "programs")[0] == {f"execute in {path}": "EACCES" for path in ("/tmp", "/dev/shm", "/var/tmp")}


def test_secrets_are_read_by_their_one_reader(board: Any) -> None:
    folder = "/run/stack/boot"
    secrets = (
        "/run/stack/secrets.json", f"{folder}/settings_prod.py", f"{folder}/board.key", f"{folder}/authorized_keys",
        "/var/lib/stack/boot/settings_prod.py", "/var/lib/stack/boot/board.key", "/var/lib/outbox/outbox.db",
        "/run/bus-rights/uplink", "/run/bus-rights/root", "/run/bus-rights/+passwd", "/var/lib/dropbear/dropbear_ed25519_host_key",
        "/dev/vda", "/dev/vdb", "/dev/mem", "/dev/kmsg", "/dev/watchdog", "/proc/kcore", "/proc/sysrq-trigger",
    )  # fmt: skip
    there = board.python(f"result = [path for path in {secrets!r} if os.path.exists(path)]")
    assert {"/run/stack/secrets.json", f"{folder}/board.key", f"{folder}/settings_prod.py", "/var/lib/outbox/outbox.db"} <= {
        *there
    }
    everything = shell(board, f"cat /run/stack/secrets.json {folder}/settings_prod.py {folder}/board.key")
    assert PASSPHRASE in everything, "root reads them: they are where this test believes them to be"
    assert KEY in everything
    shell(board, f"mkdir -p /run/tests; echo {' '.join(there)} >/run/tests/paths")
    ends, _ = attack(board, "files")
    assert {what: end for what, end in ends.items() if end not in ("EACCES", "EPERM")} == {}
    assert len(ends) == 2 * len(there)
    # Who anyone may ask or read tells neither.
    facts = board.python("import sv; result = [sv.board(), sv.stats_process()]")
    assert PASSPHRASE not in json.dumps(facts)
    assert PASSPHRASE not in shell(board, "cat /run/stack/table.json; cat /run/log/*")


def test_it_may_write_to_few_places(board: Any) -> None:
    """Found by a walk through the file systems that are not the root's, which is read-only."""
    _, lines = attack(board, "writable", 200)
    found = json.loads(next(line for line in lines if line.startswith("writable")).removeprefix("writable "))
    devices = {"/dev/full", "/dev/null", "/dev/ptmx", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero", "/dev/pts/ptmx"}
    devices.add("/proc/sys/kernel/ns_last_pid")  # open for all, and then CAP_CHECKPOINT_RESTORE is asked for
    sockets = {"/run/stack/control", "/run/bus/mqtt.sock", "/dev/log"}
    folders = {"/tmp", "/dev/shm", "/var/tmp"}
    more = {path for path in {*found} - devices - sockets - folders if not path.startswith(("/run/stack/notify", "/tmp/"))}
    assert more == set()


def test_pid_1_obeys_it_in_nothing(board: Any) -> None:
    ends, _ = attack(board, "ask")
    assert set(ends.values()) == {"SVError"}, ends
    assert states(board)["victim"] == "running"


def test_the_brokers_place_is_not_taken(board: Any) -> None:
    """Not while it runs, not while it is away."""
    before = begin(board, "place")
    wait_log(board, "hostile", before, "taking")
    for _ in range(2):
        shell(board, "sv signal broker KILL")
        wait_ready(board, "broker")
    lines = said(board, "place", before)
    assert "taken []" in lines, lines
    assert shell(board, "stat -c %U:%a /run/bus; stat -c %u /run/bus/mqtt.sock").splitlines()[0].endswith(":755")
    heard = len(log(board, "ear"))
    wait_log(board, "ear", heard, "heard victim lives")


def test_it_publishes_in_nobodys_name(board: Any) -> None:
    heard = len(log(board, "ear"))
    _, lines = attack(board, "bus")
    assert [line for line in lines if line.startswith("as ")] == [
        "as hostile Success", "as nobody Success", "as uplink Not authorized", "as root Not authorized"
    ]  # fmt: skip
    wait_log(board, "ear", heard, "heard hostile faked by hostile")
    assert [line for line in log(board, "ear")[heard:] if "faked" in line] == ["heard hostile faked by hostile"]


@pytest.mark.timeout(600)
def test_run_is_filled_by_nobody(board: Any) -> None:
    """An app fills whatever it may and prints without end: PID 1, ssh, the network and root's requests go on."""
    shell(board, "mkdir -p /run/tests; touch /run/tests/greedy")
    lines = wait_log(board, "greedy", 0, "filled", 120)
    full = {line.split()[0]: line.split()[1] for line in lines if line.startswith("/")}
    assert full == {"/tmp": "ENOSPC", "/dev/shm": "ENOSPC", "/var/tmp": "ENOSPC"}
    shell(board, "touch /run/tests/flood")
    board.ssh("-S", "none", "echo 1")  # a connection of its own
    assert board.python("import sv; result = sv.board()['faults']") == []
    names = ("network", "uplink", "broker", "keeper")
    board.python(f"import sv; [sv.restart_process(name, timeout=100) for name in {names}]", seconds=300)
    for name in names:
        wait_ready(board, name)
    online = "{row['name']: row['state'] for row in sv.network()}['eth0'] in ('local', 'online')"
    board.wait(f"import sv; result = {online}")
    assert shell(board, "head -c 5000000 /dev/zero >/run/probe && wc -c </run/probe; rm /run/probe") == "5000000"
    board.ssh("-S", "none", "echo 1")
    assert states(board)["victim"] == "running"


def test_it_has_cost_nobody_anything(board: Any) -> None:
    """After all of these: nobody has died of it whom this test has not restarted itself."""
    ours = ("network", "uplink", "broker", "keeper", "greedy")
    rows = board.python("import sv; result = sv.stats_process()")
    assert {row["name"]: row["exit"] for row in rows if row["restart"] and row["name"] not in ours} == {}
    assert all(row["restart"] <= 1 for row in rows if row["name"] in ("network", "keeper"))
