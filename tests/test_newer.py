"""What a newer version has left on BOOT and on the data partition does not stop an older one, after a fall-back."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Board

from onboard import boot_ends
from tables.load import load
from tables.rows import Service
from tables.tables import Tables
from updates import ledger, trial
from uplink import outbox_file, outbox_format
from uplink.outbox import Outbox

NEWER = """
from tables.rows import Gadget, Interface, Service, WifiNetwork, changed
HOSTNAME = "mast-2"
SERVICES += (Service("clock", ("date",), colour="red", after=("broker",)),)
SERVICES = changed(SERVICES, "broker", colour="blue", nice=3)
SERVICES += (app("hello", shade=3),)
INTERFACES += (Interface("eth7", metric=777, metred=True),)
WIFI_NETWORKS = (WifiNetwork("harbour", "the passphrase", "psk", roaming=True),)
GADGETS += (Gadget("a", 7),)
if NEW_FLAG:
    HOSTNAME = "wrong"
NEW_SETTING = {"a": 1}
LOG_RATE = 50
"""


def loaded(folder: Path, text: str) -> Tables:
    (folder / "profile.py").write_text(text)
    return load({"stack.profile": str(folder / "profile.py")}, owners="/nowhere")


def test_a_table_of_a_newer_version_keeps_the_board_as_its_owner_wants_it(tmp_path: Path) -> None:
    tables = loaded(tmp_path, NEWER)
    assert (tables.HOSTNAME, tables.LOG_RATE) == ("mast-2", 50)
    assert {"clock", "hello"} <= set(tables.services)
    assert tables.services["broker"].nice == 3
    assert [row.name for row in tables.INTERFACES][-1] == "eth7"
    assert [row.ssid for row in tables.WIFI_NETWORKS] == ["harbour"]
    assert not tables.broken
    assert sorted(tables.rejected) == [
        "GADGETS is not a setting; left out",
        "Interface eth7: metred is not a column; did you mean metered or metric?; left out",
        "NEW_SETTING is not a setting; left out",
        "Service broker: colour is not a column; left out",
        "Service clock: colour is not a column; left out",
        "WifiNetwork harbour: roaming is not a column; left out",
        "app hello: shade is not a column; left out",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SERVICES += (Servise('a', ('b',)),)", "NameError: name 'Servise' is not defined"),
        ("from tables.rows import servise", "ImportError"),
        ("SERVICES += (Service(),)", "TypeError"),
        ("x = len(7)", "TypeError"),
        ("import nowhere", "ModuleNotFoundError"),
        ("SERVICES += (Service('a', ('b',), usr='nobody'),)", "TypeError: Service: usr is not a column; did you mean user?"),
        ("SERVICES += (app('a', capabilitys=()),)", "TypeError: app: capabilitys is not a column; did you mean capabilities?"),
        ("SERVICES = changed(SERVICES, 'broker', wen=None)", "TypeError: Service: wen is not a column; did you mean when?"),
    ],
)
def test_what_is_a_mistake_in_any_version_is_one(text: str, says: str, tmp_path: Path) -> None:
    tables = loaded(tmp_path, f"HOSTNAME = 'mast-2'\n{text}")
    assert tables.broken
    assert any(says in one for one in tables.rejected), tables.rejected


def test_what_is_noted_is_bounded_and_quotes_no_value(tmp_path: Path) -> None:
    tables = loaded(tmp_path, "for n in range(500):\n    Service('a\\n', ('b',), **{f'c{n}': 'secret'})\nENVIRONMENT = ()")
    assert len(tables.rejected) == 40
    assert "secret" not in str(tables.rejected)


def test_only_the_process_that_reads_a_profile_is_so_forgiving(tmp_path: Path) -> None:
    loaded(tmp_path, NEWER)
    unknown: dict[str, Any] = {"colour": "red"}
    with pytest.raises(TypeError):
        Service("a", ("b",), **unknown)


def test_a_board_boots_with_the_owners_file_of_a_newer_version(boot: Callable[..., Board]) -> None:
    board = boot("Service('clock', ('sleep', '1000'), colour='red'),", settings="HOSTNAME = 'mast-2'\nNEW = (1,)").up()
    board.wait_state("clock", "running")
    found = board.ask("board")
    assert found["rejected"] == ["Service clock: colour is not a column; left out", "NEW is not a setting; left out"]


# --- the outbox ----------------------------------------------------------------------------------------------------------
STEP = {1: "ALTER TABLE record ADD COLUMN weight INTEGER NOT NULL DEFAULT 7;\nCREATE TABLE shade (name TEXT)"}


class Card:
    """The data partition's outbox, and versions of the program with it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch, self.said = folder, monkeypatch, []

    said: list[str]

    def version(self, number: int) -> None:
        """From now on the program is of this format."""
        for module in (outbox_file, outbox_format):
            self.monkeypatch.setattr(module, "FORMAT", number)
        tables = {**outbox_file.TABLES, "record": "(?, ?, ?, 7)" if number > 1 else "(?, ?, ?)"}
        self.monkeypatch.setattr(outbox_file, "TABLES", tables)
        self.monkeypatch.setattr(outbox_format, "STEPS", STEP if number > 1 else {})

    def open(self) -> Outbox:
        return Outbox(str(self.folder), 1 << 20, 0, (), self.said.append)

    def opened(self) -> sqlite3.Connection:
        return outbox_format.open_disk(str(self.folder), self.said.append)


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(tmp_path / "box", monkeypatch)


def bodies(box: Outbox) -> list[bytes]:
    return [body for (body,) in box.database.execute("SELECT body FROM record ORDER BY number")]


def test_an_older_outbox_is_migrated_and_its_copy_goes_on_after_a_fall_back(card: Card) -> None:
    box = card.open()
    for number in range(3):
        box.put("evt", b"%d" % number, 1.0, urgent=True)
    box.remember("rollout.r", "begun", 9e9, 1.0)
    old = box.sending().identity
    last = box.numbers.given(old)
    box.close(2.0)
    card.version(2)
    newer = card.opened()
    assert newer.execute("SELECT body, weight FROM record ORDER BY number").fetchall() == [(b"0", 7), (b"1", 7), (b"2", 7)]
    newer.execute("INSERT INTO record VALUES (9000, 'evt', x'37', 8)")
    newer.close()
    assert card.opened().execute("PRAGMA user_version").fetchone() == (2,), "once"
    card.version(1)
    box = card.open()
    assert bodies(box) == [b"0", b"1", b"2"]
    assert box.durable
    assert box.result("rollout.r") == "begun", "the word that began it is not carried out again"
    assert "a newer version than this" in card.said[-1]
    assert "the copy of before the update goes on" in card.said[-1]
    box.put("evt", b"3", 3.0, urgent=True)
    assert box.sending().identity == old, "what waits is sent in its own stream, whose numbers the mothership may have"
    assert box.heard(old, last + 1000), "and the newer version may have given more of them"
    box.acknowledged(old, last)
    assert (bodies(box), box.sending().identity == old) == ([b"3"], False)
    box.close(4.0)
    assert (card.folder / "outbox.v2.db").exists(), "for the newer version, or for people"
    card.said.clear()
    box = card.open()
    assert (bodies(box), card.said) == ([b"3"], [])
    box.close(5.0)


def test_a_newer_outbox_without_a_copy_is_kept_and_a_new_one_begins(card: Card) -> None:
    card.version(2)
    card.opened().close()
    card.version(1)
    box = card.open()
    box.put("evt", b"0", 1.0, urgent=True)
    assert (bodies(box), box.durable) == ([b"0"], True)
    assert "a new one begins" in card.said[-1]
    box.close(2.0)
    assert (card.folder / "outbox.v2.db").exists()


@pytest.mark.parametrize("step", ["rename", "fsync", "backup"])
def test_a_power_cut_while_it_is_migrated_loses_nothing(card: Card, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    box = card.open()
    box.put("evt", b"0", 1.0, urgent=True)
    box.close(2.0)
    card.version(2)

    def cut(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "backup":
            patch.setattr(outbox_format, "remove", cut)
        else:
            patch.setattr(f"os.{step}", cut)
        with pytest.raises(KeyboardInterrupt):
            card.opened()
    assert card.opened().execute("SELECT body, weight FROM record").fetchall() == [(b"0", 7)]
    assert outbox_format.version_of(str(card.folder / "outbox.v1.db")) == 1


def test_a_commit_deletes_the_copies_for_older_versions(card: Card) -> None:
    card.open().close(1.0)
    card.version(2)
    card.opened().close()
    assert (card.folder / "outbox.v1.db").exists()
    outbox_format.forget_copies(str(card.folder))
    assert sorted(path.name for path in card.folder.iterdir() if "v1" in path.name) == []


def test_an_outbox_of_before_the_format_was_written_down_is_the_first(card: Card) -> None:
    box = card.open()
    box.put("evt", b"0", 1.0, urgent=True)
    box.close(2.0)
    with contextlib.closing(sqlite3.connect(card.folder / "outbox.db")) as database:
        database.execute("PRAGMA user_version=0")
    box = card.open()
    assert (bodies(box), card.said) == ([b"0"], [])
    assert box.database.execute("PRAGMA user_version").fetchone() == (1,)
    box.close(3.0)


# --- files ---------------------------------------------------------------------------------------------------------------
def test_what_a_newer_version_has_written_of_the_slots_stays(tmp_path: Path) -> None:
    (tmp_path / "slots.json").write_text('{"B": {"state": "bad", "shade": 3}, "shades": [1], "trial": null}')
    ledger.note(str(tmp_path), last={"result": "fell back"})
    known = ledger.ledger(str(tmp_path))
    assert (known["shades"], known["B"]["shade"], known["last"]["result"]) == ([1], 3, "fell back")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"trial": 7}', '{"trial": {"shade": 3}, "last": [], "word": 7}'])
def test_a_ledger_that_cannot_be_read_is_an_empty_one(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_ends, "UPDATE", str(tmp_path / "update"))
    (tmp_path / "slots.json").write_text(text)
    trial.report(str(tmp_path), "A", "A")
    trial.go_on(str(tmp_path))
