"""One update on a board whose partitions are files: what is asked first, where the bundle comes from, what a failure leaves.

The web server is Python's over TLS, with a Range; the engine is the real SWUpdate; the firmware is that of test_slots.py.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_bundle import MISSING, NEW, RUNS, Bench
from test_slots import Firmware, card

from onboard import boot_ends, suits, to_pid1
from tables.rows import Interface
from tables.tables import Tables
from updates import engine, fetch, install, trial, word
from updates import ledger as ledgers
from updates.engine import Refused
from updates.health import Seen
from updates.install import Where, begin
from updates.ledger import ledger
from updates.slots import SlotError

__all__ = ["card"]  # a fixture
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here, and only root can install it")]
only_fat12 = pytest.mark.parametrize("card", ["FAT12"], indirect=True)


class Place:
    """A board: its BOOT partition is a FAT in a file, slot A runs, slot B is two files."""

    def __init__(self, folder: Path, card: Path) -> None:
        self.bench = Bench(folder)
        self.firmware = Firmware(card, folder)
        self.slots = self.firmware.start()
        (folder / "release").write_text(f"raspberrypi4_64 {RUNS}\n")
        devices = {3: str(folder / "b_boot"), 6: str(folder / "b_root"), 2: "/nowhere", 5: "/nowhere"}
        for number in (3, 6):
            Path(devices[number]).write_bytes(bytes(2 << 20))
        (folder / "data").mkdir()
        self.data = folder / "data/update"
        certificate = str(folder / "keys/update.pem")
        self.where = Where(str(self.data), certificate, devices, str(folder / "place"), str(folder / "release"))
        self.devices = devices

    def bundle(self, name: str = "good", **options: Any) -> Path:
        """One that writes to the names which the board links."""
        slot, self.bench.folder = self.bench.folder / "slot", self.bench.folder
        if not slot.is_symlink():
            for one in slot.iterdir():
                one.unlink()
            slot.rmdir()
            slot.symlink_to(self.where.place)
        return self.bench.bundle(name, **options)

    def update(self, source: str | Path) -> dict[str, Any]:
        self.said: list[tuple[str, int, int]] = []
        return begin(str(source), self.where, self.slots, lambda *words: self.said.append(words))


@pytest.fixture
def place(tmp_path: Path, card: Path) -> Place:
    return Place(tmp_path, card)


@only_fat12
def test_a_file_is_written_to_the_other_slot_and_the_next_reboot_tries_it(place: Place) -> None:
    found = place.update(place.bundle())
    assert (found["slot"], found["version"], found["instead_of"]) == ("B", NEW, RUNS)
    for number, data in zip((3, 6), place.bench.content.values(), strict=True):
        assert Path(place.devices[number]).read_bytes()[: len(data)] == data
    assert ledger(str(place.data)) == {
        "B": {"state": "written", "version": NEW}, "trial": {"slot": "B", "version": NEW, "from": "A"},
    }  # fmt: skip
    board = place.firmware.reboot()
    assert (board.current(), board.default()) == ("B", "A")
    place.slots = board
    with pytest.raises(SlotError, match="on trial itself"):
        place.update(place.bundle())


@only_fat12
def test_a_slot_on_trial_is_committed_once(place: Place) -> None:
    with pytest.raises(SlotError, match="slot A is not on trial"):
        ledgers.commit(str(place.data), place.slots, "")
    place.update(place.bundle())
    board = place.firmware.reboot()
    assert ledgers.commit(str(place.data), board, "ran a day") == "slot B is committed: ran a day"
    assert ledger(str(place.data)) == {"B": {"state": "good", "version": NEW, "reason": "ran a day"}, "trial": None}
    assert place.firmware.start().current() == "B"
    with pytest.raises(SlotError, match="slot B is not on trial"):
        ledgers.commit(str(place.data), board, "")


@only_fat12
def test_one_that_is_refused_changes_no_start(place: Place) -> None:
    data = place.bundle().read_bytes()
    broken = place.bench.folder / "broken.swu"
    broken.write_bytes(data[:-200_000] + b"!" + data[-199_999:])
    for path, why in ((broken, "damaged"), (place.bundle("other", board="raspberrypi5"), "another board")):
        with pytest.raises(Refused, match=why):
            place.update(path)
        assert ledger(str(place.data))["B"]["state"] == "writing", "nobody may take it for a slot"
        assert ledger(str(place.data))["trial"] is None
        assert place.firmware.reboot().current() == "A"


@only_fat12
def test_what_is_asked_first(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.bundle()
    with install.alone(str(place.data)), pytest.raises(Refused, match="another update is under way"):
        place.update(path)
    hwmon = tmp_path / "hwmon/hwmon0"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("rpi_volt\n")
    (hwmon / "in0_lcrit_alarm").write_text("1\n")
    assert "voltage is too low" in suits.power_fault(str(tmp_path / "hwmon"))
    (hwmon / "in0_lcrit_alarm").write_text("0\n")
    assert suits.power_fault(str(tmp_path / "hwmon")) == suits.power_fault(str(tmp_path / "none")) == ""
    where = place.where
    for changed, why in (
        (where._replace(certificate="/nowhere.pem"), "make update-key"),
        (where._replace(release="/nowhere"), "which version this is"),
    ):
        place.where = changed
        with pytest.raises(Refused, match=why):
            place.update(path)
    place.where = where
    with pytest.raises(Refused, match="there is no file"):
        place.update("/nowhere.swu")
    with pytest.raises(Refused, match="not over TLS"):
        place.update("http://localhost/a.swu")
    monkeypatch.setattr(fetch, "SPARE", 1 << 60)
    with pytest.raises(Refused, match="there is no room"):
        fetch.room(str(tmp_path), 1)
    assert not (place.data / ledgers.LEDGER).exists()


@only_fat12
def test_standard_input_is_taken_in_pieces(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO(place.bundle().read_bytes())
    monkeypatch.setattr("sys.stdin", type("In", (), {"buffer": stream})())
    assert place.update("-")["version"] == NEW
    assert not [name for name in os.listdir(place.data) if name.endswith((".swu", ".part"))], "the bundle is not kept"


class Server(http.server.BaseHTTPRequestHandler):
    """Cuts each connection after `most` bytes, and knows Range and If-Range."""

    content = b""
    tag = '"one"'
    most = 1 << 30
    asked: list[tuple[str | None, str | None]] = []

    def do_GET(self) -> None:
        if self.path.endswith("nowhere"):
            self.send_error(404)
            return
        ranged, tag = self.headers["Range"], self.headers["If-Range"]
        self.asked.append((ranged, tag))
        start = int(ranged[6:-1]) if ranged and tag == self.tag else 0
        if start >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.tag)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.most])
        self.close_connection = True

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server over TLS, whose certificate the board trusts."""
    key, certificate = (str(place.bench.folder / name) for name in ("server.key", "server.pem"))
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    Server.content, Server.most, Server.asked = place.bundle().read_bytes(), 1 << 30, []
    one = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    one.socket = context.wrap_socket(one.socket, server_side=True)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    yield f"https://localhost:{one.server_address[1]}/good.swu"
    one.shutdown()
    one.server_close()


@only_fat12
def test_a_download_that_is_cut_goes_on_where_it_was(place: Place, server: str) -> None:
    Server.most = 300_000
    assert place.update(server)["version"] == NEW
    starts = [int(ranged[6:-1]) for ranged, _ in Server.asked if ranged]
    assert len(starts) >= len(Server.content) // 300_000
    assert starts == sorted(set(starts)), "no byte came twice"
    assert Server.asked[0] == (None, None)
    assert ("loading", len(Server.content), len(Server.content)) in place.said


@only_fat12
def test_it_goes_on_after_a_power_cut_unless_the_file_is_another_now(
    place: Place, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path)
    Server.most = 300_000
    monkeypatch.setattr(fetch, "TRIES", 0)
    with pytest.raises(Refused, match="stays for the next try"):
        fetch.download(server, folder, lambda *_: None)
    Server.most = 1 << 30
    Server.asked.clear()
    Server.tag = '"two"'
    Server.content = Server.content[::-1]
    path = fetch.download(server, folder, lambda *_: None)
    assert Path(path).read_bytes() == Server.content, "not a mixture of two files"
    assert Server.asked == [("bytes=300000-", '"one"')]
    Server.tag = '"one"'


@only_fat12
def test_a_server_that_nobody_knows_is_refused(place: Place, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(Refused, match="certificate is not trusted"):
        place.update(server)
    missing = place.where._replace(authority=str(place.bench.folder / "nobody.pem"))
    with pytest.raises(Refused, match="certificate is not trusted"):
        begin(server, missing, place.slots, lambda *_: None)
    known = place.where._replace(authority=str(place.bench.folder / "server.pem"))
    assert begin(server, known, place.slots, lambda *_: None)["version"] == NEW, "the mothership's own authority vouches for it"


def test_the_authority_of_the_uplink_is_trusted_for_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board's profile names it once, in UPLINK_TLS."""
    seen: list[Where] = []

    def stop(source: str, where: Where, *_: object) -> None:
        seen.append(where)
        raise Refused("seen")

    monkeypatch.setattr("onboard.boot_ends.read", lambda path: {"mounted": True})
    monkeypatch.setattr("updates.slots.partitions", dict)
    monkeypatch.setattr("updates.slots.slots", lambda options: None)
    monkeypatch.setattr("updates.health.look", lambda *_: Seen({"options": {}}, [], {}))
    monkeypatch.setattr("updates.health.before", lambda *_: {})
    monkeypatch.setattr(install, "begin", stop)
    for row, path in (((), ""), (("/ca.pem", "/board.pem", "/board.key"), "/ca.pem")):
        values = {"KEEP": "/k", "UPDATE_CERTIFICATE": "/c", "NETWORK_STATE": "/n", "UPLINK_TLS": row}
        with pytest.raises(Refused, match="seen"):
            install.update("x", values, "/control", lambda *_: None)
        assert seen[-1].authority == path


# --- the mothership's word -----------------------------------------------------------------------------------------------
class Board:
    """The service `update` on this bench: PID 1 and the card are replaced, the rest is real."""

    def __init__(self, place: Place, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables = Tables({})
        self.tables.values.update(
            KEEP=str(place.data.parent), INTERFACES=(Interface("wwan0", metered=True),), NETWORK_STATE=str(folder / "network")
        )
        self.asked: list[dict[str, Any]] = []
        for name in ("UPDATE", "RECORD"):
            monkeypatch.setattr(boot_ends, name, str(folder / name))
        monkeypatch.setattr(word, "board_table", lambda: self.tables)
        monkeypatch.setattr(to_pid1, "ask", lambda path, request: self.asked.append(request))

        def update(source: str, values: Any, control: str, say: Any, version: str) -> dict[str, Any]:
            return begin(source, place.where, place.slots, say, None, version)

        monkeypatch.setattr(install, "update", update)

    def told(self) -> dict[str, Any]:
        return boot_ends.read(boot_ends.UPDATE)

    def traffic(self, name: str) -> None:
        row = {"name": name, "metric": 1, "gateway": ["192.0.2.1"]}
        Path(self.tables.values["NETWORK_STATE"]).write_text(json.dumps({"interfaces": [row]}))


@pytest.fixture
def board(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(place, tmp_path, monkeypatch)


@only_fat12
def test_the_word_writes_the_slot_and_reboots(place: Place, server: str, board: Board) -> None:
    word.main([server, NEW])
    assert board.asked == [{"op": "reboot"}]
    known = ledger(str(place.data))
    assert (known["B"]["state"], known["word"]) == ("written", {"url": server, "version": NEW, "begun": 1})


@only_fat12
@pytest.mark.parametrize(
    ("version", "address", "why"),
    [("9.9", "{}", f"it is version {NEW}, and not 9.9"), (NEW, "{}/nowhere", "the server answers 404")],
)
def test_a_word_that_fails_is_told_at_once(
    place: Place, server: str, board: Board, version: str, address: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        word.main([address.format(server), version])
    told = board.told()
    assert (told["state"], told["version"], told["verdict"]["result"]) == ("not written", version, "not written")
    assert why in told["reason"] == told["verdict"]["reason"]
    assert ledger(str(place.data))["word"] is None
    assert board.asked == [], "it does not reboot"
    before = told["verdict"]["id"]
    with pytest.raises(SystemExit):
        word.main([server, "9.9"])
    assert board.told()["verdict"]["id"] != before, "the next one of the same boot is another record"


@only_fat12
def test_a_download_waits_while_the_traffic_is_metered(
    place: Place, server: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(word, "OFTEN", 0.0)
    monkeypatch.setattr(word.Word, "_say", passing(word.Word._say, lambda: board.traffic("wwan0")))

    def rest(seconds: float) -> None:
        seen.append(board.told())
        board.traffic("eth0")

    monkeypatch.setattr(word, "rest", rest)
    word.main([server, NEW])
    assert [(one["state"], one["waits_for"]) for one in seen] == [
        ("waiting", ["a network that is not metered: now the traffic goes over wwan0"])
    ]
    assert Server.asked[1][0] is not None, "it goes on where it was"
    assert board.asked == [{"op": "reboot"}]


def passing(say: Any, first: Any) -> Any:
    """`say`, and before its second call `first`, once."""
    calls: list[int] = []

    def wrapped(self: Any, *words: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            first()
        say(self, *words)

    return wrapped


@only_fat12
def test_a_server_that_is_away_is_tried_again_for_hours(
    place: Place, server: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.split(":")[2].split("/")[0]
    away = server.replace(port, "1")
    monkeypatch.setattr(fetch, "TRIES", 1)
    monkeypatch.setattr(word, "PATIENCE", 0.5)
    monkeypatch.setattr(word, "AGAIN", 0.2)
    with pytest.raises(SystemExit):
        word.main([away, NEW])
    assert "Connection refused" in board.told()["reason"]
    assert "what has come stays for the next try" in board.told()["reason"]


@only_fat12
def test_a_word_that_a_power_cut_has_ended_is_begun_again_by_the_next_boot(place: Place, server: str, board: Board) -> None:
    folder = str(place.data)
    one = word.Word(board.tables, server, NEW)
    assert one._note() == 1  # and then the power is gone
    trial.go_on(folder)
    assert board.asked == [{"op": "update", "url": server, "version": NEW}]
    for begun in range(2, word.BEGINS + 1):
        assert one._note() == begun
    with pytest.raises(SystemExit):
        word.main([server, NEW])
    assert f"it was begun {word.BEGINS} times" in board.told()["reason"]
    board.asked.clear()
    trial.go_on(folder)
    assert board.asked == [], "and then it is over"


@only_fat12
def test_one_that_was_written_and_not_tried_is_begun_again(place: Place, server: str, board: Board) -> None:
    """The power was cut before the reboot: the mothership hears no end of it, since there is none yet."""
    word.main([server, NEW])
    board.asked.clear()
    known = ledger(str(place.data))["trial"]
    ledgers.note(str(place.data), trial={**known, "boot": "the one before"})
    boot_ends.tell(boot_ends.RECORD, {"last_end": {"boot_id": "the one before", "cause": "unknown", "reason": "a power cut"}})
    trial.report(str(place.data), "A", "A")
    assert (board.told()["state"], "verdict" in board.told()) == ("not tried", False)
    trial.go_on(str(place.data))
    assert board.asked == [{"op": "update", "url": server, "version": NEW}]


# --- power cuts ----------------------------------------------------------------------------------------------------------
@only_fat12
@pytest.mark.parametrize("step", ["first note", "write", "written", "sync", "second note", "try_next", "arm"])
def test_a_power_cut_at_each_step_leaves_the_old_slot_and_the_next_update_works(
    place: Place, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the commit are in tests/test_slots.py and tests/test_trial.py; the download's are above."""
    for name in ("UPDATE", "RECORD"):
        monkeypatch.setattr(boot_ends, name, str(tmp_path / name))
    path, real, notes = place.bundle(), engine.install, [0]

    def cut(*words: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    def note(folder: str, **facts: Any) -> None:
        notes[0] += 1
        if notes[0] == (1 if step == "first note" else 2):
            raise KeyboardInterrupt
        ledgers.note(folder, **facts)

    def written(*words: Any) -> None:
        real(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step in ("first note", "second note"):
            patch.setattr(install, "note", note)
        elif step in ("write", "written"):
            patch.setattr(engine, "install", cut if step == "write" else written)
        elif step == "sync":
            patch.setattr("os.sync", cut)
        else:
            patch.setattr(place.slots, "try_next" if step == "try_next" else "_arm", cut)
        with pytest.raises(KeyboardInterrupt):
            place.update(path)
    place.slots = place.firmware.start()
    assert (place.slots.current(), place.slots.default(), place.slots.on_trial()) == ("A", "A", False)
    trial.report(str(place.data), "A", "A")
    known = ledger(str(place.data))
    assert known.get("trial") is None
    assert known.get("B", {}).get("state") in (None, "writing", "written", "bad")
    place.update(path)
    assert ledger(str(place.data))["B"] == {"state": "written", "version": NEW}
    assert place.firmware.reboot().current() == "B"
