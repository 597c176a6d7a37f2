"""One app is not another: attacks from the user of one app on the board and on its neighbours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

from onboard.mounts import make_directory
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
    board = load(tmp_path, "SERVICES += (app('hello'),); UPLINK = ('h:1883',)")
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
    board = load(tmp_path, "APP_USER = 'daemon'; UPLINK = ('h:1883',)")
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
