"""Wi-Fi in the air of mac80211_hwsim: real hostapd, real wpa_supplicant, our scans and our network, on an arm64 kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import machines

from base.printable import printable

ODD = b'P"\xc3\xb6\\\x00\xff\n'
MANY = 26  # names as long as can be, escaped: more than the 4,096 bytes of SCAN_RESULTS
BASE = "driver=nl80211\nhw_mode=g\n"
PSK = "wpa=2\nwpa_key_mgmt=WPA-PSK\nrsn_pairwise=CCMP\n"
SAE = "wpa=2\nwpa_key_mgmt=SAE\nrsn_pairwise=CCMP\nieee80211w=2\nsae_password=odd-password\n"
RADIOS = {
    "wlan2": f"ssid2={ODD.hex()}\nchannel=6\n{SAE}",
    "wlan3": f"ssid=stack-hidden\nignore_broadcast_ssid=1\nchannel=11\n{PSK}wpa_passphrase=hidden-password\n",
    "wlan4": "utf8_ssid=1\nssid=Caf\u00e9 am See \u2693\nchannel=6\n",
}
COMING = ("wlan5", "wlan6", "wlan7")  # started by the tests
NAMES = [bytes([128 + number] * 32).hex() for number in range(MANY)]
LATER = {
    **{name: f"ssid=comes-{name}\nchannel=1\n{PSK}wpa_passphrase=does-not-matter\n" for name in COMING},
    "wlan8": f"channel=11\nssid2={NAMES[0]}\n" + "".join(f"bss=wlan8_{n}\nssid2={NAMES[n]}\n" for n in range(1, MANY)),
}
PROFILE = f"""
from tables.rows import WifiNetwork
ap = lambda name, *after: Service("ap_" + name, ("ip", "netns", "exec", "ap", "hostapd", f"/etc/hostapd/{{name}}.conf"), after=after)
SERVICES = tuple(row for row in SERVICES if row.name not in ("console", "ntpd", "klogd", "diagnostic"))
SERVICES += tuple(ap(name, "radios") for name in {tuple(RADIOS)})
SERVICES += (Service("recorder", ("{{PYTHON}}", "{{LIB}}/bus.py", "wifi/#"), after=("broker",)),)
WIFI_NETWORKS = (
    WifiNetwork("stack-lab", "stack-lab-psk", priority=3),
    WifiNetwork({ODD!r}, "odd-password", security="sae", priority=2),
    WifiNetwork("stack-hidden", "hidden-password", hidden=True, priority=1),
)
"""
Seen = tuple[float, dict[str, Any]]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for start in machines(tmp_path_factory.mktemp("wifi")):
        files = {f"etc/hostapd/{name}.conf": f"interface={name}\n{BASE}{text}" for name, text in (RADIOS | LATER).items()}
        files["etc/modprobe.d/lab.conf"] = "options mac80211_hwsim radios=9\n"
        yield start("virt-arm64", PROFILE, files=files).up(180)


def bssid(radio: str | int) -> str:
    return f"02:00:00:00:{int(str(radio)[-1]):02x}:00"


# In the guest: seconds since boot, and what was published under wifi/#.
OBSERVATIONS = r"""
import re, sv
def observations():
    found = [re.match(r"\S+\s+(\S+) recorder: wifi/\S+ (.*)", line) for line in sv.logs("recorder", 5000)]
    return [(float(match[1]), json.loads(match[2])) for match in found if match]
"""


def wait_observed(board: Any, expression: str, seconds: float) -> Any:
    """The first true value of an expression in which `observations()` is what was published."""
    return board.wait(f"{OBSERVATIONS}result = {expression}", seconds)


def wait_event(board: Any, of: str, event: str, since: float, seconds: float = 90) -> Seen:
    """The first such event of an access point."""
    such = f"seen[0] > {since} and (seen[1]['bssid'], seen[1]['event']) == {(of, event)}"
    when, seen = wait_observed(board, f"[seen for seen in observations() if {such}]", seconds)[0]
    return when, seen


def wait_source(board: Any, source: str) -> dict[str, tuple[Any, ...]]:
    """Records of one source, once the latest observation is from there and all fixed access points are among them."""
    since = board.python("result = time.monotonic()")
    told = wait_observed(board, f"""{{
    seen["bssid"]: (seen["frequency"], seen["security"], seen["ssid"]) for when, seen in observations()
    if when > {since} and seen["source"] == {source!r} and seen["event"] != "lost"}}
if not {{*{[bssid(1), *map(bssid, RADIOS)]}}} <= result.keys():
    result = None""", 120)  # fmt: skip
    return {name: tuple(record) for name, record in told.items()}


def wait_log(board: Any, name: str, text: str, since: float) -> float:
    """When a service said something. A scan that was under way has SCAN_LIMIT to end."""
    code = f"""
import sv
times = [float(line.split()[1]) for line in sv.logs({name!r}, 200) if {text!r} in line]
result = [when for when in times if when > {since}]"""
    return float(board.wait(code, 150)[0])


def start_ap(board: Any, radio: str) -> tuple[str, float]:
    """Start a hostapd: the name of its service, and when it said that it is on the air."""
    now = board.python("result = time.monotonic()")
    command = f"ip netns exec ap hostapd /etc/hostapd/{radio}.conf"
    name = board.python(f"import sv; result = sv.start_process({command!r})['name']")
    return name, wait_log(board, name, "AP-ENABLED", now)


# In the guest: wpa_supplicant's own answer.
ASK = """
import sys; sys.path.insert(0, "/usr/lib/stack")
from onboard import wpa_control
def ask(command):
    wire = wpa_control.connect("/run/wpa_supplicant", "wlan0", "/run/test.ctl")
    try:
        wire.settimeout(5)
        wire.send(command)
        return wire.recv(65536).decode()
    finally:
        wire.close()
        os.unlink("/run/test.ctl")
"""


def ask(board: Any, command: str) -> str:
    return str(board.python(f"{ASK}result = ask({command.encode()!r})"))


def wait_joined(board: Any, radio: int) -> dict[str, str]:
    """wpa_supplicant's status, once it has joined that access point."""
    code = f"""{ASK}
status = dict(line.split("=", 1) for line in ask(b"STATUS").splitlines() if "=" in line)
result = status if (status.get("bssid"), status.get("wpa_state")) == {(bssid(radio), "COMPLETED")} else None"""
    return dict(board.wait(code, 120))


def wait_network(board: Any, state: str) -> dict[str, Any]:
    code = f"import sv; result = [row for row in sv.network() if (row['name'], row['state']) == ('wlan0', {state!r})]"
    return dict(board.wait(code, 90)[0])


def test_the_board_joins_and_gets_an_address(board: Any) -> None:
    row = wait_network(board, "local")
    assert (row["ssid"], row["metric"]) == ("stack-lab", 600)
    assert row["addresses"][0].startswith("10.9.0.")
    assert wait_joined(board, 1)["key_mgmt"] == "WPA2-PSK"
    routes = board.python("result = subprocess.getoutput('ip route')")
    assert routes.index("dev eth0") < routes.index("dev wlan0"), "ethernet before Wi-Fi"
    assert "1 packets received" in board.python("result = subprocess.getoutput('ping -c 1 -W 5 -I wlan0 10.9.0.1')")


def test_every_kind_of_access_point_is_heard(board: Any) -> None:
    told = wait_source(board, "wpa_supplicant")
    hidden = told.pop(bssid(3))
    assert (
        told.items()
        >= {
            bssid(1): (2412, "WPA2", "stack-lab"),
            bssid(2): (2437, "WPA3", printable(ODD.decode(errors="replace"))),
            bssid(4): (2437, "open", "Café am See ⚓"),
        }.items()
    )
    assert hidden in ((2462, "WPA2", None), (2462, "WPA2", "stack-hidden")), "the supplicant asks for it by its name"


def test_one_comes_changes_and_goes(board: Any, record_property: Callable[[str, object], None]) -> None:
    """And how long it takes until an observation with a position is on the bus."""
    delays, names = [], []
    for radio in COMING:
        name, enabled = start_ap(board, radio)
        when, seen = wait_event(board, bssid(radio), "new", enabled)
        assert seen["latitude"]
        assert seen["age"] < 5
        delays.append(when - enabled)
        names.append(name)
    now = board.python("""
subprocess.check_call("ip netns exec ap iw dev wlan5 set txpower fixed 500".split()); result = time.monotonic()""")
    assert wait_event(board, bssid(COMING[0]), "changed", now)[1]["signal"] == -45, "hwsim: -50 dBm and the power"
    gone = board.python(f"import sv; [sv.stop_process(name) for name in {names}]; result = time.monotonic()")
    lost = wait_event(board, bssid(COMING[1]), "lost", gone)
    assert lost[0] - gone > 8, "not before it was missed three times"
    figures = ", ".join(f"{delay:.1f}" for delay in sorted(delays))
    record_property("figure", f"access point on the air -> observation on the bus: {figures} s")


def test_more_than_one_page(board: Any) -> None:
    """SCAN_RESULTS is cut; all are heard nevertheless."""
    name, enabled = start_ap(board, "wlan8")
    names = {bytes.fromhex(ssid).decode(errors="replace") for ssid in NAMES}
    such = f"when > {enabled} and seen['ssid'] in {names}"
    wait_observed(board, f"len({{seen['bssid'] for when, seen in observations() if {such}}}) == {MANY}", 120)
    assert len(ask(board, "SCAN_RESULTS").splitlines()) - 1 < MANY + 4
    board.python(f"import sv; sv.stop_process({name!r})")


def test_a_supplicant_that_hangs_or_dies_is_survived(board: Any) -> None:
    now = board.python("import sv; sv.signal_process('wpa_supplicant', 'STOP'); result = time.monotonic()")
    try:
        wait_log(board, "wifi_scan", "does not answer", now)
    finally:
        board.python("import sv; sv.signal_process('wpa_supplicant', 'CONT')")
    wait_source(board, "wpa_supplicant")
    now = board.python("import sv; sv.signal_process('wpa_supplicant', 'KILL'); result = time.monotonic()")
    wait_log(board, "wifi_scan", "wpa_supplicant answers", now)
    wait_source(board, "wpa_supplicant")
    assert board.python("import sv; result = sv.stats_process('wifi_scan')[0]['restart']") == 0


def test_when_an_access_point_dies_the_next_network_is_joined(board: Any) -> None:
    """WPA3-SAE with a name of odd bytes, then a hidden one, then back."""
    board.python("import sv; sv.stop_process('access_point')")
    assert wait_joined(board, 2)["key_mgmt"] == "SAE"
    board.python("import sv; sv.stop_process('ap_wlan2')")
    assert wait_joined(board, 3)["ssid"] == "stack-hidden"
    board.python("import sv; sv.stop_process('ap_wlan3')")
    wait_network(board, "associating")
    board.python("import sv; [sv.start_process(name) for name in ('access_point', 'ap_wlan2', 'ap_wlan3')]")
    wait_joined(board, 1)
    wait_network(board, "local")


def test_without_a_supplicant_the_kernel_gives_the_same_records(board: Any) -> None:
    before = wait_source(board, "wpa_supplicant")
    board.python("import sv; sv.stop_process('wpa_supplicant')")
    after = wait_source(board, "nl80211")
    hidden = bssid(3)  # the supplicant may know its name
    assert after.pop(hidden)[:2] == before.pop(hidden)[:2]
    assert {name: after[name] for name in (bssid(1), bssid(2), bssid(4))} == {
        name: before[name] for name in (bssid(1), bssid(2), bssid(4))
    }
    board.python("import sv; sv.start_process('wpa_supplicant')")
    wait_source(board, "wpa_supplicant")
