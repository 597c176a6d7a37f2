"""One app is not another: attacks from the user of one app on the board and on its neighbours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from conftest import MOSQUITTO, Broker, eventually
from paho.mqtt.enums import CallbackAPIVersion

import bus
from onboard import board_table
from onboard.mounts import make_directory, write_sysctl
from services import bus_rights
from tables import load as tables_module
from tables.accounts import COUNT, FIRST, own_number
from tables.rows import Directory
from tables.tables import Tables

Boot = Callable[..., Any]


def load(folder: Path, text: str) -> Tables:
    profile = folder / "profile.py"
    profile.write_text(text)
    return tables_module.load({"stack.profile": str(profile)})


# --- users of their own -----------------------------------------------------------------------------------------------
def test_every_app_has_a_user_of_its_own(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES += (app('hello'),); UPLINK = ('h:1883',); FAKE_GPS = 'on'")
    assert board.rejected == []
    rows = {**board.services, **board.templates}
    numbers = {name: board.account(rows[name]).uid for name in ("broker", "fakegps", "gps@", "uplink", "wifi_scan", "hello")}
    assert len(set(numbers.values())) == len(numbers), "no two are the same"
    assert all(FIRST <= number < FIRST + COUNT for number in numbers.values())
    assert board.account(rows["hello"]).gid == numbers["hello"]
    assert rows["gps@"].user == "gps"


def test_a_number_follows_from_the_name_alone() -> None:
    """Files on the data partition belong to it: these may never change."""
    assert [own_number(name) for name in ("uplink", "broker", "gps")] == [48327, 43710, 44795]


def test_one_user_for_all_is_still_possible(tmp_path: Path) -> None:
    board = load(tmp_path, "APP_USER = 'daemon'; UPLINK = ('h:1883',); FAKE_GPS = 'on'")
    assert board.rejected == []
    assert {board.services[name].user for name in ("broker", "uplink", "fakegps")} == {"daemon"}
    assert board.owner("uplink") == board.accounts["daemon"], "whose outbox it is follows"


def test_the_outbox_has_an_owner_where_there_is_no_uplink(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES = tuple(row for row in SERVICES if row.name != 'uplink')")
    assert board.rejected == []
    assert board.owner("uplink").uid == own_number("uplink")


def collision() -> tuple[str, str]:
    """Two names with one number."""
    names: dict[int, str] = {}
    for count in range(100_000):
        number = own_number(f"app{count}")
        if number in names:
            return names[number], f"app{count}"
        names[number] = f"app{count}"
    raise AssertionError("a good hash in so small a range has some")


def test_names_with_the_same_number_are_found_and_said(tmp_path: Path) -> None:
    one, two = collision()
    board = load(tmp_path, f"SERVICES += (app({one!r}), app({two!r}))")
    assert [name for name in (one, two) if name in board.services] == [one]
    assert len(board.rejected) == 1
    assert f"its user's number {own_number(one)}, which follows from its name, is that of {one!r}" in board.rejected[0]


@pytest.mark.parametrize("name", ["root", "daemon"])
def test_a_name_of_etc_passwd_is_not_taken(tmp_path: Path, name: str) -> None:
    """An app that is called root must not become root."""
    board = load(tmp_path, f"SERVICES += (app({name!r}),)")
    assert name not in board.services
    assert f"a user {name!r} is in /etc/passwd already" in board.rejected[0]


def test_a_template_and_a_service_have_not_one_user(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES += (app('gps'),)")
    assert "gps@" in board.templates
    assert "gps" not in board.services
    assert "its own user would be that of 'gps@'" in board.rejected[0]


def test_apps_on_a_board_are_different_users(boot: Boot) -> None:
    """Without a line of /etc/passwd for them, on a root that cannot be written."""
    board = boot(
        "Service('one', ('sleep', '1000'), user='{name}', capabilities=(), no_new_privs=True),"
        "Service('two', ('sleep', '1000'), user='{name}', capabilities=(), no_new_privs=True),"
    ).up()
    rows = {name: board.wait_state(name, "running") for name in ("one", "two")}
    if rows["one"]["user"] == "root":
        pytest.skip("one user alone in this user namespace: they run as root without capabilities")
    assert [rows["one"]["user"], rows["two"]["user"]] == ["one", "two"]

    def inside(name: str) -> list[str]:
        path = f"/proc/{board.outside(rows[name]['pid'])}/status"
        fields = dict(line.split(":\t", 1) for line in Path(path).read_text().splitlines() if ":\t" in line)
        base = int(Path(f"/proc/{board.pid}/uid_map").read_text().split()[1])
        return [str(int(number) - base) for number in fields["Uid"].split()] + fields["Groups"].split()

    assert eventually(lambda: inside("one") == [str(own_number("one"))] * 4)
    assert eventually(lambda: inside("two") == [str(own_number("two"))] * 4)


# --- folders that were somebody else's ------------------------------------------------------------------------------
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_an_outbox_from_before_is_given_to_uplink(tmp_path: Path) -> None:
    """With its files; but not what the old owner has linked to."""
    folder, shadow, other = tmp_path / "outbox", tmp_path / "shadow", tmp_path / "other"
    folder.mkdir()
    for path in (folder / "outbox.db", folder / "outbox.db-wal", shadow, other):
        path.write_text("secret")
        os.chown(path, 65534, 65534)
    (folder / "link").symlink_to(shadow)
    os.link(other, folder / "hard")
    (folder / "roots").write_text("")
    os.chown(folder, 65534, 65534)
    board = tables_module.load()
    number = own_number("uplink")
    make_directory(Directory(str(folder), 0o700, "uplink"), board)
    owners = {path.name: path.lstat().st_uid for path in (folder, *folder.iterdir(), shadow, other)}
    assert {name: owners[name] for name in ("outbox", "outbox.db", "outbox.db-wal")} == dict.fromkeys(
        ("outbox", "outbox.db", "outbox.db-wal"), number
    )
    assert (owners["shadow"], owners["hard"], owners["other"], owners["roots"]) == (65534, 65534, 65534, 0)
    assert folder.stat().st_mode & 0o7777 == 0o700


# --- the local bus ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "columns",
    ["publishes=('wifi/#', 3)", "publishes='wifi/#'", "publishes=('a#',)", "hears=('#/a',)", "hears=('a\\nuser root',)"],
)
def test_what_is_no_pattern_of_topics_is_refused(tmp_path: Path, columns: str) -> None:
    """A line end in a topic would be a line of the access list."""
    board = load(tmp_path, f"SERVICES += (Service('met', ('x',), user='{{name}}', {columns}),)")
    assert "met" not in board.services
    assert "user root" not in board.values["BUS_RIGHTS"]


APP = """
import sys, os, json
sys.path.insert(0, "/stack/lib/stack")
from bus import Bus
bus = Bus("{name}")
"""
HELLO = (
    APP.format(name="hello")
    + """
for _ in bus.every(0.2):
    bus.publish("hello", {"text": "world"})
"""
)
# What a hostile app may do: everything that its user can, with paho and without our manners.
HOSTILE = """
import sys, os, json, time, socket
sys.path.insert(0, "/stack/lib/stack")
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
said = lambda *words: print(*words, flush=True)

def client(name, password, id=""):
    one = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=id, transport="unix", reconnect_on_failure=False)
    if name:
        one.username_pw_set(name, password)
    one.on_connect = lambda *a: said("as", name, a[3])
    one.connect("/run/bus/mqtt.sock", 1)
    one.loop_start()
    return one

def tried(what, step):
    try:
        said(what, "DONE", step())
    except Exception as error:
        said(what, type(error).__name__)
"""
FAKES = (
    HOSTILE
    + """
facts = json.load(open("/run/bus-rights/hostile"))
for name in ("uplink", "broker", "root", "+passwd", "+acl"):
    tried(f"read {name}", lambda: open(f"/run/bus-rights/{name}").read())
tried("unlink", lambda: os.unlink("/run/bus/mqtt.sock"))
tried("rename", lambda: os.rename("/run/bus/mqtt.sock", "/run/bus/other"))
tried("place", lambda: socket.socket(socket.AF_UNIX).bind("/run/bus/mine"))
tried("outbox", lambda: os.listdir("/var/lib/outbox"))
client("uplink", "guess")
mine, nobodys = client("hostile", facts["password"]), client("", "")
time.sleep(0.5)
for one in (mine, nobodys):
    for topic in ("ack", "gps", "scan", "network/wlan0", "device/sda", "wifi/00:00", "log/uplink", "hello", "diag"):
        one.publish(topic, json.dumps({"data": "fake"}), 0, True)
for _ in range(1000):
    mine.publish("hostile/end", json.dumps({"data": "end"}), 0, True)
    time.sleep(0.2)
"""
)
EAR = (
    APP.format(name="ear")
    + """
bus.subscribe("#", lambda topic, message: print("heard", topic, message["data"], flush=True))
bus.run()
"""
)


def python_app(name: str, columns: str = "") -> str:
    return (
        f"Service('{name}', ('{{PYTHON}}', '/test/{name}.py'), after=('broker',), user='{{name}}', capabilities=(), "
        f"no_new_privs=True, groups=('broker',), {columns}),"
    )


BUS = "(LOGD, RIGHTS, BROKER)"
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here, and only root can install it")


@needs_mosquitto
def test_a_hostile_app_publishes_in_nobodys_name(boot: Boot) -> None:
    """A faked position, scan, acknowledgement: refused with its own password, without one, and with a guessed one."""
    services = python_app("ear") + python_app("hello") + python_app("hostile")
    files = {"ear.py": EAR, "hello.py": HELLO, "hostile.py": FAKES}
    board = boot(services, base=BUS, files=files, settings="from settings import RIGHTS, BROKER").up()
    eventually(lambda: "heard hostile/end" in board.log("ear"), 20)
    heard = board.log("ear")
    assert "fake" not in heard, "nothing that it had no right to was passed on"
    eventually(lambda: "heard hello {'text': 'world'}" in board.log("ear"))
    assert "WARNING" not in board.log("hello"), "the ten-line app knows nothing of all this"
    if board.stats("hostile")["user"] == "root":
        pytest.skip("one user alone in this user namespace: apps can read each other's files")
    said = board.log("hostile")
    assert "as uplink Not authorized" in said
    for name in ("uplink", "broker", "root", "+passwd", "+acl"):
        assert f"read {name} PermissionError" in said or f"read {name} FileNotFoundError" in said, said
    for what in ("unlink", "rename", "place", "outbox"):
        assert f"{what} PermissionError" in said, said


@needs_mosquitto
def test_an_app_is_told_what_its_row_does_not_name(boot: Boot) -> None:
    code = APP.format(name="met") + "for _ in bus.every(0.1):\n    bus.publish('weather/now', 1); bus.publish('met', 2)\n"
    more = python_app("met2", "publishes=('weather/#',)").replace("/test/met2", "/test/met")
    board = boot(
        python_app("met") + more + python_app("ear"), base=BUS, files={"met.py": code, "ear.py": EAR},
        settings="from settings import RIGHTS, BROKER",
    ).up()  # fmt: skip
    eventually(lambda: "heard met 2" in board.log("ear"), 20)
    eventually(lambda: "heard weather/now 1" in board.log("ear"), 20)
    eventually(lambda: board.log("met").count("weather/now is not published: the row of 'met'") == 1)
    assert "weather/now is not published" not in board.log("met2")


@needs_mosquitto
def test_an_app_that_comes_with_a_reload_has_its_rights(boot: Boot) -> None:
    """The broker reads its list again, and who is connected stays connected."""
    files = {"ear.py": EAR, "hello.py": HELLO}
    board = boot(python_app("ear"), base=BUS, files=files, settings="from settings import RIGHTS, BROKER").up()
    board.wait_state("ear", "running")
    text = board.profile.read_text()
    inside = board.root / "profile.py"
    inside.write_text(text + f"SERVICES += ({python_app('hello')})\n")
    changes = board.ask("reload")
    assert (changes["started"], changes["restarted"]) == (["hello"], ["bus_rights"])
    eventually(lambda: "heard hello" in board.log("ear"), 20)
    assert board.stats("broker")["restart"] == 0
    assert board.log("ear").count("bus: lost") <= 1


@pytest.mark.parametrize(
    "services",
    ["(LOGD, BROKER, *APPS)", "(Service('broker', ('mosquitto', '-c', '{LIB}/data/mosquitto.conf'), ready='{BUS}'),)"],
)
def test_a_profile_from_before_there_was_an_access_list_has_it_all_the_same(tmp_path: Path, services: str) -> None:
    board = load(tmp_path, f"from settings import APPS, BROKER, LOGD\nSERVICES = {services}")
    assert board.rejected == []
    assert board.services["bus_rights"].argv[1] == "broker"
    assert [*board.services].index("bus_rights") + 1 == [*board.services].index("broker")


@pytest.mark.parametrize(
    "text",
    [
        "SERVICES = (LOGD, BROKER._replace(argv=('mosquitto', '-c', '/etc/mine.conf'), after=()))",
        "SERVICES = (LOGD, Service('a', ('x',)), 3, Service('b', 'data/mosquitto.conf', after=7))",
        "SERVICES = (LOGD, *(r for r in SERVICES if r.name == 'network'))",
    ],
)
def test_a_table_that_needs_no_access_list_gets_none(tmp_path: Path, text: str) -> None:
    board = load(tmp_path, f"from settings import BROKER, LOGD\n{text}")
    assert "bus_rights" not in board.services
    assert "logd" in board.services


def test_a_service_may_be_called_as_a_file_of_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have no bus, or the broker no passwords."""
    uid = os.getuid()
    monkeypatch.setattr(bus_rights, "ROOT", ("root", uid, ["#"], ["#"]))  # an ordinary user gives no file away
    rows = [(name, uid, [f"{name}/#"], ["#"]) for name in ("passwd", "acl", "broker")]
    assert bus_rights.make(rows, "broker", str(tmp_path))
    assert json.loads((tmp_path / "passwd").read_text())["user"] == "passwd"
    assert json.loads((tmp_path / "acl").read_text())["user"] == "acl"
    users = [line.split(":")[0] for line in (tmp_path / "+passwd").read_text().splitlines()]
    assert users == ["root", "passwd", "acl", "broker"]
    assert "user acl\n" in (tmp_path / "+acl").read_text()
    assert not bus_rights.make(rows, "broker", str(tmp_path)), "nothing has changed"


@needs_mosquitto
def test_such_a_profile_has_a_bus(boot: Boot) -> None:
    board = boot(python_app("ear") + python_app("hello"), base="(LOGD, BROKER)", files={"ear.py": EAR, "hello.py": HELLO},
                 settings="from settings import BROKER").up()  # fmt: skip
    eventually(lambda: "heard hello {'text': 'world'}" in board.log("ear"), 20)
    assert board.stats("broker")["restart"] == 0


class Raw:
    """A client without our manners."""

    def __init__(self, broker: Broker, *topics: str) -> None:
        self.heard: list[str] = []
        self.up = True
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, transport="unix", reconnect_on_failure=False)
        self.client.on_message = lambda client, data, packet: self.heard.append(packet.topic)
        self.client.on_disconnect = self._gone
        eventually(lambda: self.client.connect(broker.path, 1) == mqtt.MQTT_ERR_SUCCESS)
        self.client.loop_start()
        eventually(self.client.is_connected)
        for topic in topics:
            self.client.subscribe(topic)

    def _gone(self, *_: Any) -> None:
        self.up = False


def test_a_greedy_app_ends_neither_the_broker_nor_its_neighbours(broker: Broker) -> None:
    """80 retained messages of 1 MB, and 400 of 200 kB: eight deaths in 45 s, before there were limits."""
    broker.start()
    assert broker.process
    neighbour = Raw(broker, "quiet")
    large = Raw(broker)
    large.client.publish("greedy/1", b"x" * 1_000_000, 0, True)
    eventually(lambda: not large.up)
    greedy = Raw(broker)
    for count in range(400):
        if not greedy.up:
            break
        greedy.client.publish(f"greedy/{count}", b"x" * 200_000, 1, True)
        time.sleep(0.01)
    eventually(lambda: not greedy.up, 20)
    assert broker.process.poll() is None
    assert neighbour.up
    neighbour.client.publish("quiet", b"y" * 1000)
    eventually(lambda: neighbour.heard)
    memory = int(Path(f"/proc/{broker.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert memory < 56 << 20, "its row has memory_max=64M"


FLOOD = (
    HOSTILE
    + """
facts = json.load(open("/run/bus-rights/flood"))
while True:
    try:
        one = client("flood", facts["password"])
        time.sleep(0.2)
        for count in range(10 ** 9):  # each opens a level of topics of its own, which costs the broker most
            if count % 500 == 0: said("at", count)
            last = one.publish(f"flood/{count}/x", b"x", 1, True)
            if count % 100 == 99: last.wait_for_publish(2)
            if not one.is_connected(): break
    except (OSError, RuntimeError, ValueError) as error:
        said(error)
    time.sleep(0.1)
"""
)
RETAINS = APP.format(name="retains") + "bus.publish('retains', 'still here', retain=True)\nbus.run()\n"


@needs_mosquitto
@pytest.mark.timeout(180)
def test_small_retained_messages_take_a_bounded_memory_and_a_new_broker_has_what_others_retain(boot: Boot) -> None:
    """mosquitto has no bound for their number. At its memory_limit it ends, or refuses everybody, until it is started again."""
    services = python_app("flood") + python_app("retains") + python_app("ear")
    files = {"flood.py": FLOOD, "retains.py": RETAINS, "ear.py": EAR.replace('"#"', '"retains"')}
    board = boot(services, base=BUS, files=files, settings="from settings import RIGHTS, BROKER").up()
    most = 0

    def full() -> bool:
        nonlocal most
        row = board.stats("broker")
        with contextlib.suppress(OSError, TypeError):
            most = max(most, int(Path(f"/proc/{board.outside(row['pid'])}/statm").read_text().split()[1]))
        return bool(row["restart"]) or board.log("flood").count(" at 0") > 3

    eventually(full, 120)
    assert board.stats("broker")["exit"] in (None, "exit 255"), "by itself, not for want of memory"
    assert 20 << 20 < most * os.sysconf("SC_PAGE_SIZE") < 56 << 20, "its row has memory_max=64M"
    board.ask("stop", name="flood")
    heard = board.log("ear").count("heard retains still here")
    board.ask("restart", name="broker")
    eventually(lambda: board.log("ear").count("heard retains still here") > heard, 30)


def test_what_is_too_large_for_the_broker_is_said_and_costs_no_connection(broker: Broker, caplog: Any) -> None:
    broker.start()
    one, heard = bus.Bus("big", broker.path), Raw(broker, "big", "small")
    rights = bus.LARGEST
    for _ in one.every(0.05):
        one.publish("big", "x" * rights)
        one.publish("small", "x" * (rights - 1000))
        if "small" in heard.heard:
            break
    assert "big" not in heard.heard
    assert heard.up
    one._client.disconnect()


@pytest.mark.parametrize("topic", ["", "a/\x01", "a/+", "a/#", "a/\ud800", "a/\0", "a/\u202e", "a/" + "x" * 70_000, "\x7fa"])
def test_a_topic_that_is_none_costs_no_connection(broker: Broker, monkeypatch: pytest.MonkeyPatch, topic: str) -> None:
    """The broker ends the connection of who sends one; a retained one would be sent again after each reconnect."""
    broker.start()
    one = bus.Bus("odd", broker.path)
    heard: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(one.log, "warning", lambda text, *words: said.append(text % words))
    one.subscribe("odd/#", lambda on, _: heard.append(on))
    for _ in range(3):
        one.publish(topic, 1, retain=True)
    one.publish("odd/1", 1)
    deadline = time.monotonic() + 10
    for _ in one.every(0.02):
        one.publish("odd/2", 1)
        if "odd/2" in heard or time.monotonic() > deadline:
            break
    assert "odd/2" in heard
    assert topic not in one._retained
    one._client.disconnect()
    said = [text for text in said if " is not published: " in text]
    assert (len(said), said[0].isprintable()) == (1, True), said


@pytest.mark.parametrize("pattern", ["", "a#", "a/#/b", "a+", "+a/b", "##", "a/\x01", "a\ud800", "x" * 70_000])
def test_what_is_no_pattern_is_an_error_at_once(broker: Broker, pattern: str) -> None:
    """Later, it would be one at each connect, and keep the patterns behind it from the broker."""
    one = bus.Bus("odd", broker.path)
    with pytest.raises(ValueError, match="cannot be subscribed to"):
        one.subscribe(pattern, print)
    assert not one._handlers
    for fine in ("#", "+", "a/+/b", "a/#", "/", "a//b", "$SYS/#", "a b", "é/⚓"):
        one.subscribe(fine, print)


def test_nobody_knows_how_a_neighbour_is_called_at_the_broker() -> None:
    """A second client of the same id ends the first one's connection (MQTT 3.1.1, 3.1.4-2)."""
    one, two = (bus.Bus("same", "/nowhere")._client._client_id for _ in range(2))
    assert one != two
    assert str(os.getpid()).encode() not in one.split(b"-")


# --- the kernel, and memory -------------------------------------------------------------------------------------------
def test_a_sysctl_may_be_one_that_this_kernel_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sysctl("-kernel.yama.no_such_thing", "1")
    with pytest.raises(FileNotFoundError):
        write_sysctl("kernel.yama.no_such_thing", "1")
    assert load(tmp_path, "SYSCTLS = (('-kernel.yama.ptrace_scope', '2'),)").rejected == []


GREEDY = """
import os, errno
def fill(folder):
    count = 0
    try:
        for number in range(100000):
            with open(f"{folder}/fill{number}", "wb") as file:
                while file.write(b"x" * 65536): count += 65536
    except OSError as error:
        print(folder, errno.errorcode[error.errno], count, flush=True)
for top in ("/run", "/var", "/dev/shm", "/tmp"):
    for folder, folders, files in os.walk(top):
        if os.access(folder, os.W_OK): fill(folder)
        else: print(folder, "closed", flush=True)
program = "/dev/shm/program"
print("done", flush=True)
while True:
    print("x" * 1000)
"""


@pytest.mark.timeout(120)
def test_run_can_be_filled_by_nobody(boot: Boot) -> None:
    """An app writes wherever it may until nothing more goes in: PID 1 and services of root have their /run all the same."""
    settings = "MOUNTS = tuple(row._replace(options=row.options.replace('size=10%', 'size=16m')) for row in MOUNTS)\n"
    settings += "DIRECTORIES += (Directory('/run/bus', 0o755, 'greedy'),)\n"  # as if the broker itself were the attacker
    board = boot(
        python_app("greedy").replace("after=('broker',)", "after=('logd',)"), files={"greedy.py": GREEDY}, settings=settings
    ).up()
    eventually(lambda: "done" in board.log("greedy") or "lines dropped" in board.log("greedy"), 60)
    if board.stats("greedy")["user"] == "root":
        pytest.skip("one user alone in this user namespace: everything belongs to it")
    row = board.ask("run", argv=["sh", "-c", "head -c 1000000 /dev/zero >/run/probe && echo written >&2; sleep 1000"])
    eventually(lambda: "written" in board.log(row["name"]))
    free = os.statvfs(board.root / "run")
    assert free.f_bavail * free.f_frsize > 12_000_000


def test_what_lies_in_tmp_is_no_program(boot: Boot) -> None:
    code = "for f in /tmp /dev/shm /run/bus; do cp /bin/true $f/p 2>/dev/null; $f/p; echo $f $?; done >&2; sleep 1000"
    board = boot(f"Service('s', ('sh', '-c', {code!r})),").up()
    eventually(lambda: "/run/bus" in board.log("s"))
    assert [line for line in board.log("s").splitlines() if line.endswith(" 0")] == []


# --- the uplink -------------------------------------------------------------------------------------------------------
UPLINK = "UPLINK = ('127.0.0.1:1',)\nfrom settings import APPS, RIGHTS, BROKER\n"
UPLINK += "SERVICES = tuple(row._replace(watchdog=2.0) for row in APPS if row.name == 'uplink')"


@needs_mosquitto
def test_a_stop_of_the_uplink_is_noticed(boot: Boot) -> None:
    board = boot("", base="(LOGD, RIGHTS, BROKER, *SERVICES)", settings=UPLINK).up()
    board.wait_state("uplink", "running", seconds=20)
    board.kill("uplink", signal.SIGSTOP)
    eventually(lambda: board.stats("uplink")["restart"] == 1, 20)
    assert board.stats("uplink")["exit"].startswith("signal KILL")
    board.wait_state("uplink", "running", seconds=20)


TRACER = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
found = []
while not found:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"uplink/service" in open(f"/proc/{pid}/cmdline", "rb").read(): found.append(int(pid))
        except OSError: pass
def tried(what, step):
    try:
        step()
        print(what, "DONE", flush=True)
    except Exception as error:
        print(what, type(error).__name__, flush=True)
def attach():
    if libc.ptrace(16, found[0], None, None) < 0: raise OSError(ctypes.get_errno(), "ptrace")
for _ in range(200):
    tried("ptrace", attach)
tried("stop", lambda: os.kill(found[0], signal.SIGSTOP))
tried("environ", lambda: open(f"/proc/{found[0]}/environ", "rb").read())
tried("mem", lambda: open(f"/proc/{found[0]}/mem", "rb").read(1))
tried("records", lambda: open("/var/lib/outbox/outbox.db", "rb").read())
print("end", flush=True)
import time; time.sleep(1000)
"""


@needs_mosquitto
def test_another_app_neither_stops_nor_traces_nor_reads_the_uplink(boot: Boot) -> None:
    """From the first moment of its life: before it protects itself."""
    files = {"tracer.py": TRACER}
    tracer = python_app("tracer").replace("after=('broker',)", "after=('logd',)")
    board = boot(tracer, base="(LOGD, RIGHTS, BROKER, *SERVICES)", settings=UPLINK, files=files).up()
    eventually(lambda: "end" in board.log("tracer"), 30)
    if board.stats("tracer")["user"] == "root":
        pytest.skip("one user alone in this user namespace")
    said = board.log("tracer")
    assert "DONE" not in said
    for what in ("ptrace", "stop", "environ", "mem", "records"):
        assert f"{what} PermissionError" in said, said


# --- Wi-Fi ------------------------------------------------------------------------------------------------------------
WPA_SUPPLICANT = shutil.which("wpa_supplicant", path=os.environ["PATH"] + ":/usr/sbin")
SUPPLICANT = """
import os, subprocess, sys
sys.path.insert(0, "/stack/lib/stack")
from network import supplicant
supplicant.make_control("/run/wpa_supplicant", int(sys.argv[1]))
open("/run/network/lo.conf", "w").write(supplicant.configuration((), "/run/wpa_supplicant", sys.argv[1])
    + 'network={\\n ssid="x"\\n psk="secretsecret"\\n}\\n')
os.execvp("wpa_supplicant", ["wpa_supplicant", "-i", "lo", "-D", "wired", "-c", "/run/network/lo.conf"])
"""
ASKER = """
import os, socket, sys, time
def ask(target, command):
    own = f"/tmp/asker.{os.getpid()}"
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if os.path.exists(own): os.unlink(own)
    one.bind(own)
    one.settimeout(2)
    try:
        one.connect(target); os.chmod(own, 0o666); one.send(command.encode())
        return one.recv(65536).decode().split("\\n")[0]
    except OSError as error:
        return type(error).__name__
for _ in range(100):
    if ask(sys.argv[1] + "/lo", "PING") in ("PONG", "PermissionError"): break
    time.sleep(0.1)
for command in ("PING", "STATUS", "ADD_NETWORK", "SET update_config 1", "SAVE_CONFIG", "SELECT_NETWORK 0", "SCAN TYPE=ONLY",
                "P2P_GROUP_ADD", "DISCONNECT", "BSS FIRST", "PING\\nSAVE_CONFIG", "BSS FIRST\\0SAVE_CONFIG", "BSS_FLUSH 0"):
    print(repr(command), ask(sys.argv[1] + "/lo", command), flush=True)
print("end", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(WPA_SUPPLICANT is None, reason="no wpa_supplicant here")
def test_wifi_scan_scans_and_does_nothing_else_and_others_not_even_that(boot: Boot) -> None:
    """A real wpa_supplicant on loopback, which its driver `wired` takes for a network."""
    group = own_number("scan_proxy")
    app = "Service('{}', ('{{PYTHON}}', '/test/asker.py', '{}'), after=('logd',), user='{{name}}', capabilities=(), no_new_privs=True),"
    services = f"Service('wpa', ('{{PYTHON}}', '/test/supplicant.py', '{group}'), umask=0o077),"
    services += app.format("wifi_scan", "/run/wifi_scan") + app.format("other", "/run/wifi_scan")
    services += app.format("direct", "/run/wpa_supplicant")
    settings = "import settings\nWIFI_INTERFACE = 'lo'\nPROXY = tuple(r for r in settings.SERVICES if r.name == 'scan_proxy')\n"
    settings += "DIRECTORIES = (*settings.DIRECTORIES, Directory('/run/network'))"
    board = boot(
        services, base="(LOGD, *PROXY)", files={"supplicant.py": SUPPLICANT, "asker.py": ASKER}, settings=settings
    ).up()
    for name in ("wifi_scan", "other", "direct"):
        eventually(lambda name=name: "end" in board.log(name), 40)  # type: ignore[misc]
    if board.stats("other")["user"] == "root":
        pytest.skip("one user alone in this user namespace")

    def said(name: str) -> list[str]:
        lines = [line.split(" ", 2)[2] for line in board.log(name).splitlines()]
        return [line.split(": ", 1)[-1] for line in lines if "end" not in line]

    assert [line for line in said("other") + said("direct") if not line.endswith("PermissionError")] == []
    assert said("wifi_scan")[0] == "'PING' PONG"
    assert said("wifi_scan")[1].startswith(("'STATUS' bssid=", "'STATUS' wpa_state="))  # whether it has associated yet
    refused = [line for line in said("wifi_scan") if line.endswith(" FAIL")]
    assert len(refused) == 10, said("wifi_scan")
    assert (board.root / "run/network/lo.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(WPA_SUPPLICANT is None, reason="no wpa_supplicant here")
def test_what_save_config_writes_is_roots_alone(boot: Boot) -> None:
    code = "sleep 1; wpa_cli -p /run/wpa_supplicant -i lo set update_config 1; wpa_cli -p /run/wpa_supplicant -i lo save_config"
    board = boot(
        "Service('wpa', ('{PYTHON}', '/test/supplicant.py', '0'), umask=0o077, ready='/run/wpa_supplicant/lo'),"
        f"Service('cli', ('sh', '-c', {code!r}), after=('wpa',), restart='never'),",
        files={"supplicant.py": SUPPLICANT}, settings="DIRECTORIES += (Directory('/run/network'),)",
    ).up()  # fmt: skip
    eventually(lambda: "update_config=1" in (board.root / "run/network/lo.conf").read_text(), 20)
    assert (board.root / "run/network/lo.conf").stat().st_mode & 0o777 == 0o600


def test_services_that_read_the_boards_table_know_the_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """storage.py makes the outbox on the disk anew: it is the uplink's there too, also on a board without one."""
    for text in ("", "SERVICES = tuple(row for row in SERVICES if row.name != 'uplink')"):
        board_table.write(load(tmp_path, text), str(tmp_path))
        monkeypatch.setenv("STACK_CONTROL", str(tmp_path / "control"))
        chosen = board_table.board_table()
        assert chosen.owner("uplink").uid == own_number("uplink")
        assert chosen.group_number(chosen.WIFI_GROUP) == own_number("scan_proxy")
