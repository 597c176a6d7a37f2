"""Profiles and rows: every fault is named, nothing raises, the rest is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import accounts, check, check_services, rights
from tables import load as tables
from tables.rows import Device, Directory, Mount, Service
from tables.tables import Tables


def load(tmp_path: Path, text: str, **options: str) -> Tables:
    path = tmp_path / "profile.py"
    path.write_text(text)
    return tables.load({"stack.profile": str(path), **{f"stack.{name}": value for name, value in options.items()}})


def test_the_default_table_is_clean() -> None:
    board = tables.load({})
    assert board.rejected == []
    assert {"logd", "broker", "klogd", "syslogd", "dropbear", "ntpd", "wpa_supplicant", "console"} <= set(board.services)


def test_rows_follow_the_settings_that_a_profile_changes(tmp_path: Path) -> None:
    board = load(tmp_path, "WIFI_INTERFACE = 'wlan7'\nMODULES = ('a', 'b')\nBUS = '/run/x'\n")
    assert board.rejected == []
    assert "wlan7" in board.services["wpa_supplicant"].argv
    assert board.services["modules"].argv == ("modprobe", "-a", "a", "b")
    assert board.services["broker"].ready == "/run/x"
    assert "modules" not in load(tmp_path, "MODULES = ()").services, "a job with nothing to do is left out"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("this is no Python", "SyntaxError"),
        ("raise ValueError('no')", "line 1: ValueError: no"),
        ("x = 1\nimport nowhere", "line 2: ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("HOSTNAME = 7", "HOSTNAME = 7 is not a host's name"),
        ("MOUNTS = 'proc'", "MOUNTS is text; a comma makes a tuple of it"),
        ("SV_COOLDOWN = -1", "SV_COOLDOWN = -1 is not a sane number; it may be from 0 to 1e+06; 10.0 is used"),
        ("SV_COOLDOWN = float('nan')", "SV_COOLDOWN = nan is not a sane number"),
        ("NO_SUCH_SETTING = 1", "NO_SUCH_SETTING is not a setting"),
    ],
)
def test_a_bad_profile_is_named_and_the_default_boots(tmp_path: Path, text: str, fault: str) -> None:
    board = load(tmp_path, text)
    assert any(fault in line for line in board.rejected), board.rejected
    assert "dropbear" in board.services
    assert board.HOSTNAME == "stack"


def test_a_profile_that_hangs_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PROFILE_SECONDS", 0.2)
    board = load(tmp_path, "while True: pass")
    assert "took more than 0.2 s; left out" in board.rejected[0]
    assert "dropbear" in board.services


def test_a_missing_profile_is_named() -> None:
    board = tables.load({"stack.profile": "nowhere"})
    assert "settings_nowhere.py" in board.rejected[0]


BAD_ROWS: list[tuple[str, str]] = [
    ("Service('a', 'sleep 5')", 'argv is text; a comma makes a tuple of it: ("sleep", "5")'),
    ("Service('a b', ('x',))", "name 'a b'"),
    ("Service('', ('x',))", "name ''"),
    ("Service('../x', ('x',))", "name '../x'"),
    ("Service('stack', ('x',))", "the name is taken"),
    ("Service('a', ('x', 5))", "argv has a number in it; each of its words must be text"),
    ("Service('a', ('x',), memory_max='lots')", "memory_max 'lots' is not a number of bytes"),
    ("Service('a', ('x',), memory_max=4096)", "not enough for any program"),
    ("Service('a', ('x',), pids_max=-1)", "pids_max -1 is not a whole number from 0 to 4194304"),
    ("Service('a', ('x',), cpu_weight=0)", "cpu_weight 0 is not a whole number from 1 to 10000"),
    ("Service('a', ('x',), kill='group')", "kill 'group' is not one of all, main"),
    ("Service('a', ('',))", "argv has no program"),
    ("Service('a', ('x',), ready='soon')", "ready 'soon'"),
    ("Service('a', ('x',), restart='maybe')", "restart 'maybe' is not one of always, on-failure, never"),
    ("Service('a', ('x',), module='a..b')", "module 'a..b' is not the name of a module"),
    ("Service('a', ('x',), module='b', user='nobody')", "module 'b' has PID 1's memory, with passphrases in it"),
    ("Service('a', ('x',), stop_signal='NOPE')", "stop_signal 'NOPE' is not a signal"),
    ("Service('a', ('x',), stop_timeout=-1)", "stop_timeout -1"),
    ("Service('a', ('x',), stop_timeout='5')", "stop_timeout '5'"),
    ("Service('a', ('x',), ready_timeout=0)", "ready_timeout 0"),
    ("Service('a', ('x',), watchdog=True)", "watchdog True"),
    ("Service('a', ('x',), nice=40)", "nice 40"),
    ("Service('a', ('x',), oom_score=5000)", "oom_score 5000"),
    ("Service('a', ('x',), user='who')", "user 'who' is not in /etc/passwd"),
    ("Service('a', ('x',), groups=('what',))", "group 'what' is not in /etc/group"),
    ("Service('a', ('x',), capabilities=('fly',))", "capability 'fly'"),
    ("Service('a', ('x',), rlimits=(('files', 1),))", "rlimit 'files'"),
    ("Service('a', ('x',), cwd='here')", "cwd 'here' is not absolute"),
    ("Service('a', ('x',), tty='tty1')", "tty 'tty1' is not absolute"),
    ("Service('a', ('x',), log='loud')", "log 'loud'"),
    ("Service('a', ('x',), env=5)", 'env is a number; write a tuple: (("TZ", "UTC"),)'),
    ("('a', ('x',))", "is a tuple, not a Service(...) row"),
    ("None", "is None, not a Service(...) row"),
]


@pytest.mark.parametrize(("row", "fault"), BAD_ROWS)
def test_a_bad_row_is_named_and_the_rest_boots(tmp_path: Path, row: str, fault: str) -> None:
    board = load(tmp_path, f"SERVICES = ({row}, Service('good', ('true',)))")
    assert list(board.services) == ["good"]
    assert len(board.rejected) == 1
    assert board.rejected[0].startswith("SERVICES[0] ")
    assert fault in board.rejected[0]


def test_who_waits_for_nobody_starts_all_the_same(tmp_path: Path) -> None:
    """A profile may leave out what others would wait for; a board without its network for that would be lost."""
    board = load(tmp_path, "SERVICES = (Service('a', ('x',), after=('nobody', 'b', 'a')), Service('b', ('x',)))")
    assert board.services["a"].after == ("b",)
    assert [text.partition(": ")[2] for text in board.rejected] == [
        "after names 'nobody', which is no service; it does not wait for that",
        "after names 'a', which is itself; it does not wait for that",
    ]
    board = load(tmp_path, "SERVICES = tuple(row for row in SERVICES if row.name in ('dropbear', 'network'))")
    assert (board.rejected, board.services["network"].after) == ([], ()), "the default table's are left out on purpose"


@pytest.mark.parametrize(
    ("table", "row", "fault"),
    [
        ("MOUNTS", "Mount('a', 'b', 'c')", "MOUNTS[0] b: target 'b' is not absolute"),
        ("MOUNTS", "('a', '/b', 'c')", "is not a Mount(...) row"),
        ("MOUNTS", "Mount('a', '/b', 'tmpfs', 5)", "must be text"),
        ("DIRECTORIES", "Directory('x')", "is not absolute"),
        ("DIRECTORIES", "Directory('/x', 0o755, 'who')", "user 'who'"),
        ("DEVICES", "Device('/dev/x', 'z')", "kind 'z'"),
        ("DEVICES", "Device('/dev/x', 'link')", "a link needs a target"),
        ("SYSCTLS", "('a',)", "is a tuple, not a pair of texts"),
        ("MODULES", "'-r'", "is not a module's name"),
        ("INTERFACES", "('eth0',)", "is not an Interface(...) row"),
        ("INTERFACES", "Interface('a' * 16)", "of at most 15 characters"),
        ("INTERFACES", "Interface('../all')", "is not an interface's name"),
        ("INTERFACES", "Interface(5)", "is not an interface's name"),
        ("INTERFACES", "Interface('eth0', addresses='dhcp')", "addresses is text; a comma makes a tuple of it: ('dhcp',)"),
        (
            "INTERFACES",
            "Interface('eth0', addresses=('192.0.2.5',))",
            "address '192.0.2.5' is not 'dhcp', 'ra', or like 192.0.2.5/24",
        ),
        ("INTERFACES", "Interface('eth0', addresses=('192.0.2.5/33',))", "'192.0.2.5/33'"),
        ("INTERFACES", "Interface('eth0', addresses=('2001:db8::5/129',))", "'2001:db8::5/129'"),
        ("INTERFACES", "Interface('eth0', addresses=(5,))", "address 5"),
        ("INTERFACES", "Interface('eth0', gateways=('router',))", "'router' is not an address"),
        ("INTERFACES", "Interface('eth0', gateways=('192.0.2.1', '192.0.2.2'))", "more than one of a family"),
        ("INTERFACES", "Interface('eth0', nameservers=(None,))", "None is not an address"),
        ("INTERFACES", "Interface('eth0', metric=0)", "metric 0"),
        ("INTERFACES", "Interface('eth0', metric='100')", "metric '100'"),
        ("WIFI_NETWORKS", "WifiNetwork('')", "ssid is not a name of 1 to 32 bytes"),
        ("WIFI_NETWORKS", "WifiNetwork('é' * 17)", "ssid is not a name of 1 to 32 bytes"),
        ("WIFI_NETWORKS", "WifiNetwork('a', security='wep')", "security is not one of"),
        ("WIFI_NETWORKS", "WifiNetwork('a', security='psk')", "psk is not a passphrase"),
        ("WIFI_NETWORKS", "WifiNetwork('a', security='open', psk='hunter22')", "an open network has no psk"),
        ("WIFI_NETWORKS", "WifiNetwork('a', 'hunter2')", "psk is not a passphrase of 8 to 63 characters"),
        ("WIFI_NETWORKS", "WifiNetwork('a', 'x' * 64)", "psk is not a passphrase"),
        ("WIFI_NETWORKS", "WifiNetwork('a', 'hunter2\\n2')", "psk is not a passphrase"),
        ("WIFI_NETWORKS", "WifiNetwork('a', 'a' * 64, 'sae')", "WPA3 needs the passphrase"),
        ("WIFI_NETWORKS", "WifiNetwork('a', frequencies=(11,))", "is not a tuple of MHz"),
        ("WIFI_NETWORKS", "WifiNetwork('a', priority='high')", "priority is not a whole number"),
        ("WIFI_NETWORKS", "('a', 'hunter22')", "is a tuple, not a WifiNetwork(...) row"),
    ],
)
def test_other_tables(tmp_path: Path, table: str, row: str, fault: str) -> None:
    board = load(tmp_path, f"from rows import *\n{table} = ({row},)")
    assert len(board.rejected) == 1
    assert fault in board.rejected[0]
    assert "hunter2" not in board.rejected[0], "anyone may read what is rejected"
    assert getattr(board, table) == ()


def test_names_are_unique(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES = (Service('a', ('x',)), Service('a', ('y',)))")
    assert board.rejected[0].startswith("SERVICES[1] a: the name is taken; SERVICES = replaced(SERVICES, Service(...))")
    assert board.services["a"].argv == ("x",)


def test_interfaces_share_neither_name_nor_metric(tmp_path: Path) -> None:
    """Two default routes of one metric would replace each other."""
    rows = "Interface('eth0'), Interface('eth0', metric=7), Interface('eth0'), Interface('eth1', metric=100), Interface('{WIFI_INTERFACE}', metric=8)"
    board = load(tmp_path, f"from rows import Interface\nWIFI_INTERFACE = 'wlan7'\nINTERFACES = ({rows})")
    assert [row.name for row in board.INTERFACES] == ["eth0", "wlan7"]
    taken = ("INTERFACES eth0: the name is taken; INTERFACES = replaced(INTERFACES, Interface(...)) puts a row in the place of "
             "that one")  # fmt: skip
    assert board.rejected == [taken, taken,
                              "INTERFACES eth1: metric 100 is eth0's; each interface has its own"]  # fmt: skip


def test_one_row_without_its_tuple_does_not_tell_the_passphrase(tmp_path: Path) -> None:
    board = load(tmp_path, "from rows import WifiNetwork\nWIFI_NETWORKS = WifiNetwork('a', 'hunter22')")
    assert board.WIFI_NETWORKS == ()
    assert board.rejected
    assert "hunter22" not in str(board.rejected)


def test_circles_are_opened_one_row_at_a_time(tmp_path: Path) -> None:
    text = "SERVICES = (Service('a', ('x',), ('b',)), Service('b', ('x',), ('c',)), Service('c', ('x',), ('a',)), Service('d', ('x',)))"
    board = load(tmp_path, text)
    assert len(board.rejected) == 1
    assert "after runs in a circle" in board.rejected[0]
    assert len(board.services) == 3
    assert "d" in board.services


def test_skipped_services_are_known_names(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES = (Service('a', ('x',)), Service('b', ('x',), ('a',)))", skip="a")
    assert list(board.services) == ["b"]
    assert board.rejected == []


def test_a_profile_stands_on_the_table_before_it(tmp_path: Path) -> None:
    board = load(tmp_path, "SERVICES += (app('hello', after=()),)")
    assert board.services["hello"].argv == ("/usr/bin/python3", "-P", f"{board.LIB}/hello.py")
    assert "dropbear" in board.services


def test_order_is_topological_for_long_chains(tmp_path: Path) -> None:
    text = "SERVICES = tuple(Service(f's{i}', ('x',), (f's{i + 1}',) if i < 1999 else ()) for i in range(2000))"
    board = load(tmp_path, text)
    assert board.rejected == []
    assert board.order[0] == "s1999"
    assert board.order[-1] == "s0"


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.tuples(st.text(max_size=3)))
COLUMNS = st.sampled_from([name for name in Service._fields if name != "name"])


@given(st.dictionaries(COLUMNS, VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_row_however_wrong_raises(columns: dict[str, Any]) -> None:
    row = Service(**{"name": "a", "argv": ("x",), **columns})
    board = Tables()
    board.values["SERVICES"] = (row, Service("good", ("true",)))
    check.check_services(board)
    assert "good" in board.services
    assert len(board.services) + len(board.rejected) >= 1


def test_row_types_are_like_named_tuples() -> None:
    row = Mount("a", "/b", "c", required=False)
    assert row == Mount(source="a", target="/b", fstype="c", options="", required=False)
    assert row._replace(target="/d").target == "/d"
    assert row[1] == row.target == "/b"
    assert len(row) == 5
    assert hash(row) == hash(tuple(row))
    assert repr(Device("/x", "link", target="/y")).startswith("Device(path='/x', kind='link'")
    for wrong in (lambda: Mount("a"), lambda: Directory("/a", 1, "b", "c", 4), lambda: Mount("a", "b", "c", d=1)):  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            wrong()


def test_accounts_come_from_the_files(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("app:x:1000:1001::/:/bin/sh\nbroken line\nworse:x:a:b\n")
    (tmp_path / "group").write_text("gpio:x:997:app\nbroken\n")
    users, groups = accounts.read_accounts(str(tmp_path))
    assert (users["app"].uid, users["app"].gid, groups["gpio"]) == (1000, 1001, 997)
    assert "worse" not in users


def test_a_profile_may_have_names_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "profile.py"
    path.write_text("_EXTRA = ('a',)\nHOSTNAME = 'mine'\n")
    board = tables.load({"stack.profile": str(path)})
    assert (board.HOSTNAME, board.rejected) == ("mine", [])


@pytest.mark.parametrize("profile", ["", "debian"])
def test_no_service_may_take_all_memory(profile: str) -> None:
    """The rescue prompt alone may: it runs where nothing else could be started."""
    board = tables.load({"stack.profile": profile} if profile else {})
    assert [row.name for row in board.SERVICES if not row.memory_max] == []


def test_a_setting_that_is_off_leaves_a_row_out(tmp_path: Path) -> None:
    """The console without a login cost a Python start; a position on a desk is invented, one on a mast is not."""
    none: set[str] = set()
    for values, there in (("CONSOLE_LOGIN = 'off'", none), ("FAKE_GPS = 'on'", {"console", "fakegps"}), ("", {"console"})):
        board = load(tmp_path, values)
        assert board.services.keys() & {"console", "fakegps"} == there
        assert board.rejected == []
    text = load(tmp_path, "SERVICES += (Service('one', ('true',), enabled='FAKE_GSP'),)").rejected[0]
    assert "one: enabled 'FAKE_GSP' is no setting; did you mean FAKE_GPS" in text


def test_a_default_needs_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks look at the columns that a row sets: looking at all of them must find the same, which is nothing."""
    row = Service("x", ("true",))
    assert check_services.given(row) == {"name", "argv"}
    monkeypatch.setattr(check_services, "given", lambda row: set(row._fields))
    monkeypatch.setattr(rights, "USUAL", dict.fromkeys(Service._fields))
    board = Tables()
    board.environment = {}
    assert [*check_services.column_faults(row), *check_services.service_faults(board, row)] == []
