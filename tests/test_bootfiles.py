"""What bootfiles.py takes from the boot partition, what it leaves, and what stays in force; and a board that applies it."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_file_checks
from conftest import Board, eventually
from test_file_checks import key

import diagnostic
from services import bootfiles, storage
from tables import load as tables
from tables.accounts import own_number
from tables.tables import Tables

certificates = test_file_checks.certificates
KEY, OTHER = key().encode() + b"\n", key("ssh-ed25519", bytes(32)).encode() + b"\n"
WIFI = b'network={\n    ssid="harbour"\n    psk="long enough"\n}\n'


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bootfiles.BootFiles]:
    """One boot: what is on the partition (None: it cannot be read), on a board whose disk stays from one to the next."""
    asked: list[tuple[str, str]] = []

    def tell(op: str, name: str = "") -> Any:
        asked.append((op, name))
        return [{"alive": True}] if op == "stats" else {}

    monkeypatch.setattr(bootfiles, "told", tell)
    monkeypatch.setattr(bootfiles, "FORCE", str(tmp_path / "force"))
    monkeypatch.setattr(storage, "find", lambda sources, seconds, anywhere: ("/dev/fat1", sources[0]))
    monkeypatch.setenv("STACK_CONTROL", str(tmp_path / "nobody/control"))  # a board of this machine is none of ours
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.ssh").symlink_to(tmp_path / "force")

    def boot(files: dict[str, bytes] | None, *, reboot: bool = True, folder: Path | None = None) -> bootfiles.BootFiles:
        if reboot:
            shutil.rmtree(tmp_path / "force", ignore_errors=True)
        fat = folder or tmp_path / "fat"
        if folder is None:
            shutil.rmtree(fat, ignore_errors=True)
            fat.mkdir()
            for name, data in {"kernel.img": b"x", **(files or {})}.items():
                (fat / name).write_bytes(data)
        monkeypatch.setattr(bootfiles, "mounted_at", lambda device: "" if files is None else str(fat))
        monkeypatch.setattr(bootfiles, "mount", refuse)
        monkeypatch.setattr(bootfiles, "PLACE", str(tmp_path / "place"))
        asked.clear()
        one = bootfiles.BootFiles(tables.load({}), ["LABEL=BOOT"])
        one.kept = str(tmp_path / "kept")
        one.before.values["WIFI_CONFIG"] = f"{tmp_path}/force/wpa_supplicant.conf"
        one.bring_up()
        vars(one)["asked"] = list(asked)
        return one

    return boot


def refuse(*_: object) -> None:
    raise OSError(22, "Invalid argument")


def force(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "force"
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)  # PID 1 and its copies write none (-B), pytest does
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


# --- taking, keeping, leaving -------------------------------------------------------------------------------------------
def test_the_life_of_a_file(tmp_path: Path, look: Callable[..., bootfiles.BootFiles]) -> None:
    one = look({"authorized_keys": b"\xef\xbb\xbf" + KEY.replace(b"\n", b"\r\n")})
    assert (one.files, one.notes, force(tmp_path)) == ({"authorized_keys": "taken"}, [], {"authorized_keys": KEY})
    assert stat.S_IMODE((tmp_path / "force/authorized_keys").stat().st_mode) == 0o600
    kept = tmp_path / "kept/authorized_keys"
    before = kept.stat().st_ino
    one = look({"authorized_keys": KEY})
    assert kept.stat().st_ino == before, "the same again is not written"

    one = look({"authorized_keys": b"nonsense\n"})
    assert (one.files, force(tmp_path)) == ({"authorized_keys": "kept"}, {"authorized_keys": KEY})
    assert one.notes[0].startswith("authorized_keys: line 1: no type of key")

    one = look(None)
    assert (one.files, force(tmp_path)) == ({"authorized_keys": "kept"}, {"authorized_keys": KEY})
    assert one.notes == ["/dev/fat1 cannot be read as FAT: Invalid argument"]

    one = look({"authorized_keys": OTHER})
    assert (one.files, force(tmp_path)) == ({"authorized_keys": "taken"}, {"authorized_keys": OTHER})

    one = look({})
    assert (one.files, one.notes, force(tmp_path)) == ({"authorized_keys": "removed"}, [], {}), "a key must not stay for ever"
    assert not kept.exists()
    assert look(None).files == {}


def test_within_one_boot(tmp_path: Path, look: Callable[..., bootfiles.BootFiles]) -> None:
    """`restart_process("bootfiles")` takes what is there now."""
    look({"authorized_keys": KEY, "wpa_supplicant.conf": WIFI})
    one = look({"authorized_keys": KEY}, reboot=False)
    assert (one.files, one.changed) == ({"authorized_keys": "taken", "wpa_supplicant.conf": "removed"}, {"wpa_supplicant.conf"})
    assert list(force(tmp_path)) == ["authorized_keys"]
    assert vars(one)["asked"] == [("stats", "wpa_supplicant"), ("restart", "wpa_supplicant")]


def test_a_partition_that_has_lost_its_files_takes_nothing_away(
    tmp_path: Path, look: Callable[..., bootfiles.BootFiles]
) -> None:
    look({"authorized_keys": KEY})
    for names in ((), ("\x01\x02\udcff",)):
        fat = tmp_path / f"fat{len(names)}"
        fat.mkdir()
        for name in names:
            (fat / name).write_text("")
        one = look({}, folder=fat)
        assert (one.files, force(tmp_path)) == ({"authorized_keys": "kept"}, {"authorized_keys": KEY})
        assert "has lost its list of files" in one.notes[0]


def test_a_folder_that_cannot_be_listed(tmp_path: Path, look: Callable[..., bootfiles.BootFiles]) -> None:
    look({"authorized_keys": KEY})
    one = look({}, folder=tmp_path / "nowhere")
    assert (one.files, one.notes) == ({"authorized_keys": "kept"}, ["/dev/fat1 cannot be read: No such file or directory"])


@pytest.mark.parametrize(("data", "fault"), [
    (b"", "it is empty"), (b"a\0b", "NUL"), ("x".encode("utf-16"), "UTF-16"), (KEY * 5000, "more than 262144 bytes"),
])  # fmt: skip
def test_no_text_is_taken(look: Callable[..., bootfiles.BootFiles], data: bytes, fault: str) -> None:
    one = look({name: data for name in ("authorized_keys", "settings_prod.py", "wpa_supplicant.conf", "ca.pem", "board.pem")})
    assert one.files == {}
    assert len(one.notes) == 5
    assert all(fault in note or "is missing" in note for note in one.notes), one.notes


def test_what_is_no_file_and_what_windows_calls_txt(tmp_path: Path, look: Callable[..., bootfiles.BootFiles]) -> None:
    fat = tmp_path / "own"
    (fat / "authorized_keys").mkdir(parents=True)
    (fat / "settings_prod.py.txt").write_text("")
    os.mkfifo(fat / "wpa_supplicant.conf")
    one = look({}, folder=fat)
    assert "settings_prod.py.txt is not settings_prod.py: an editor has put .txt behind its name" in one.notes
    assert any(note.startswith("authorized_keys: ") for note in one.notes)
    assert any(note.startswith("wpa_supplicant.conf: it is not a file") for note in one.notes)


def test_half_of_a_pair_is_none(look: Callable[..., bootfiles.BootFiles]) -> None:
    one = look({"board.pem": b"x\n"})
    assert one.notes == ["board.pem and board.key belong together, and board.key is missing; it is not taken"]


def test_the_last_good_one_is_looked_at_too(tmp_path: Path, look: Callable[..., bootfiles.BootFiles]) -> None:
    """A newer image may not take what an older one took."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/authorized_keys").write_bytes(b"rotten\n")
    one = look(None)
    assert (one.files, force(tmp_path)) == ({}, {})
    assert one.notes[1].startswith("the last good one: authorized_keys: line 1: no type of key")


def test_a_disk_that_cannot_be_written_keeps_nobody_out(tmp_path: Path, look: Callable[..., bootfiles.BootFiles]) -> None:
    (tmp_path / "kept").write_text("no folder")
    one = look({"authorized_keys": KEY})
    assert (one.files, force(tmp_path)) == ({"authorized_keys": "taken"}, {"authorized_keys": KEY})
    assert "kept/authorized_keys" in one.notes[0]


def test_an_image_without_the_links_is_told(tmp_path: Path, look: Callable[..., bootfiles.BootFiles]) -> None:
    (tmp_path / "home/.ssh").unlink()
    one = look({"authorized_keys": KEY})
    assert one.notes == [
        f"authorized_keys has no effect: in this image {tmp_path}/home/.ssh/authorized_keys is no link to "
        f"{tmp_path}/force/authorized_keys"
    ]


# --- Wi-Fi, with wpa_supplicant's own parser ----------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "fault"), [
    (WIFI, ""),
    (b"ctrl_interface=/run/x\nupdate_config=1\n" + WIFI, ""),
    (b"\n" + WIFI.replace(b"psk=", b"pks="), "line 4: unknown network field"),
    (b"update_config=1\nnonsense=4\n" + WIFI, "line 2: unknown global field"),
    (b'network={\nssid="x"\npsk="' + b"0" * 64 + b'"\n}\n', "line 3: psk"),
    (b"network={\nssid=xyz\n}\n", "line 2: "),
])  # fmt: skip
def test_wpa_supplicant_itself_is_asked(look: Callable[..., bootfiles.BootFiles], text: bytes, fault: str) -> None:
    if shutil.which("wpa_supplicant", path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
        pytest.skip("no wpa_supplicant here")
    one = look({"wpa_supplicant.conf": text})
    assert one.notes == ([f"wpa_supplicant.conf: {fault}; it is not taken"] if fault else []) or (
        fault and one.notes[0].startswith(f"wpa_supplicant.conf: {fault}")
    ), one.notes
    assert "xyz" not in str(one.notes)


def test_without_wpa_supplicant_our_own_look_decides(
    look: Callable[..., bootfiles.BootFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "run", lambda *argv, seconds: (127, "no such program"))
    assert look({"wpa_supplicant.conf": WIFI}).files == {"wpa_supplicant.conf": "taken"}
    assert look({"wpa_supplicant.conf": WIFI[:-2]}).notes[0].startswith("wpa_supplicant.conf: line 1: the block is not closed")


def test_no_passphrase_is_quoted() -> None:
    said = "Successfully initialized\nLine 4: Invalid passphrase length 5 (expected: 8..63) 'secret\"'.\n"
    assert bootfiles.supplicant_words(said) == "line 4: Invalid passphrase length 5 (expected: 8..63)"
    assert bootfiles.supplicant_words("nothing\n") == "wpa_supplicant does not read it"


# --- the profile --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "fault"), [
    ("this is no Python", "line 1: SyntaxError"),
    ("x = 1\nraise ValueError('no')", "line 2: ValueError: no"),
    ("import nowhere", "line 1: ModuleNotFoundError"),
    ("raise SystemExit", "line 1: SystemExit"),
    ("import os\nos._exit(0)", "it ends the process that reads it (status 0)"),
    ("import os\nos._exit(3)", "it ends the process that reads it (status 3)"),
    ("import ctypes\nctypes.string_at(0)", "it ends the process that reads it (signal 11)"),
    ("x = bytearray(1 << 40)", "line 1: MemoryError"),
    ("x = []\nwhile True: x.append(' ' * (1 << 20))", "line 2: MemoryError"),
    ("BOOT_FILES = ('/dev/other1',)", "it changes bootfiles, without which it would not be read"),
    ("DATA = ('/dev/other1',)", "it changes storage"),
    ("SERVICES = ()", "it changes storage and bootfiles"),
])  # fmt: skip
def test_a_profile_that_cannot_be_used(tmp_path: Path, look: Callable[..., bootfiles.BootFiles], text: str, fault: str) -> None:
    one = look({"settings_prod.py": text.encode()})
    assert one.files == {}
    assert one.notes[0].startswith(f"settings_prod.py: {fault}"), one.notes
    assert one.notes[0].endswith("it is not taken")
    assert force(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["while True: pass", "while True:\n    try:\n        while True: pass\n    except BaseException: pass"]
)
def test_a_profile_without_end(look: Callable[..., bootfiles.BootFiles], monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The second one swallows every exception, the one of our timer too."""
    monkeypatch.setattr(tables, "PROFILE_SECONDS", 0.3)
    monkeypatch.setattr(bootfiles, "PROFILE_SECONDS", 1.0)
    one = look({"settings_prod.py": text.encode()})
    assert one.files == {}
    assert "took more than 0.3 s" in one.notes[0] or "does not end within 1 s" in one.notes[0], one.notes


def test_a_profile_is_not_judged_by_the_byte_code_of_another(
    tmp_path: Path, look: Callable[..., bootfiles.BootFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are of one size and written within a second, which is all that tells whose byte code it is."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    good, bad = b"HOSTNAME = 'mast'\n", b"HOSTNAME = 'x'+ 1\n"
    assert look({"settings_prod.py": good}).files == {"settings_prod.py": "taken"}
    one = look({"settings_prod.py": bad})
    assert (one.files, len(one.notes)) == ({"settings_prod.py": "kept"}, 1), one.notes
    assert force(tmp_path) == {"settings_prod.py": good}


def test_a_profile_with_one_bad_row_is_taken_and_the_row_named(look: Callable[..., bootfiles.BootFiles]) -> None:
    one = look({"settings_prod.py": b"HOSTNAME = 'mast'\r\nSV_COOLDOWN = -1\r\n"})
    assert one.files == {"settings_prod.py": "taken"}
    assert one.notes[0].startswith("settings_prod.py: SV_COOLDOWN = -1 is not a sane number")
    assert ("reload", "") in vars(one)["asked"]


def test_a_service_that_the_reload_has_started_is_not_started_again(
    look: Callable[..., bootfiles.BootFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile changes hotplug's row, and a setting that others have read: each of them starts once."""
    answers: list[tuple[str, str]] = []

    def told(op: str, name: str = "") -> Any:
        answers.append((op, name))
        if op == "reload":
            return {"started": ["network"], "restarted": ["hotplug"], "stopped": [], "updated": [], "rejected": []}
        return [{"alive": True}]

    monkeypatch.setattr(bootfiles, "told", told)
    loads = iter(({"RULES": 1, "SERVICES": 1}, {"RULES": 2, "SERVICES": 2}))
    one = look(None)
    one.changed = {bootfiles.PROFILE}
    one.before.values = next(loads)
    monkeypatch.setattr("services.bootfiles.tables.load", lambda _: type("Board", (), {"values": next(loads)})())
    monkeypatch.setattr(one, "say_what_is_not_linked", lambda: None)
    answers.clear()
    one.apply()
    assert [pair for pair in answers if pair[0] != "stats"] == [
        ("reload", ""),
        ("restart", "uplink"),
        ("restart", "wpa_supplicant"),
    ]


# --- who is told --------------------------------------------------------------------------------------------------------
def test_diagnostic_complains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "bootfiles.json"
    record.write_text('{"notes": ["authorized_keys: there is no key in it"]}')
    monkeypatch.setattr(diagnostic, "BOOT_FILES", str(record))
    one = diagnostic.Diagnostic()
    assert "authorized_keys: there is no key in it" in one.measure()["warnings"]


# --- a board ------------------------------------------------------------------------------------------------------------
PLANT = """
from tables.rows import Service
from settings import BOOT, DROPBEAR
BOOT_FILES = ('/dev/nothing',)
BOOT_WAIT = 0.3
"""
PLANTED = r"""Service('plant', ('sh', '-c', '''
    mkdir -p /var/lib/stack/boot && cd /var/lib/stack/boot && echo "{text}" >settings_prod.py'''),
    ready='exit', restart='never'), BOOT._replace(after=('plant',)),
    Service('ssh', ('sleep', '1000')), Service('later', ('sleep', '1000'), after=('bootfiles',))"""


def test_a_board_takes_the_last_good_profile(boot: Callable[..., Board]) -> None:
    text = "HOSTNAME = 'mast'; from rows import *; SERVICES += (Service('mine', ('sleep', '1000')),); MOUNTS = MOUNTS[1:]"
    board = boot(PLANTED.replace("{text}", text), settings=PLANT).up()
    board.wait_state("mine", "running")
    before = board.stats("ssh")
    assert before["restart"] == 0, "what has not changed is left alone"
    facts = eventually(lambda: [found for found in [board.ask("board")] if "bootfiles" in found])[0]
    assert (facts["hostname"], facts["rejected"], facts["faults"]) == ("mast", [], [])
    assert facts["profile"][-1] == tables.OWNERS
    record = facts["bootfiles"]
    assert (record["read"], record["files"]) == (False, {"settings_prod.py": "kept"})
    assert record["notes"] == [
        "no boot partition: there is none of /dev/nothing",
        "settings_prod.py: MOUNTS can only be set in the image: the board is up when this is read",
    ]
    board.wait_state("later", "running")
    board.ask("restart", name="bootfiles")
    board.wait_state("bootfiles", "stopped")
    assert board.stats("mine")["restart"] == 0


def test_a_board_goes_on_without_a_profile_that_hangs(boot: Callable[..., Board]) -> None:
    board = boot(PLANTED.replace("{text}", "while True: pass"), settings=PLANT).up()
    board.wait_state("ssh", "running")
    assert board.wait_state("bootfiles", "stopped", seconds=20)["exit"] == "exit 0"
    facts = board.ask("board")
    assert "took more than 4 s" in facts["bootfiles"]["notes"][1], facts["bootfiles"]
    assert facts["loop"]["longest_turn_ms"] < 4000, "it was not PID 1 that waited"
    board.wait_state("later", "running")


def test_a_board_without_such_a_partition_waits_for_nothing(boot: Callable[..., Board]) -> None:
    board = boot("BOOT, Service('ssh', ('sleep', '1000'), after=('bootfiles',))",
                 settings=PLANT.replace("'/dev/nothing',", "")).up()  # fmt: skip
    board.wait_state("ssh", "running")
    assert "bootfiles" not in board.all_stats()


WPA_SUPPLICANT = shutil.which("wpa_supplicant", path="/usr/sbin:/sbin:/usr/bin:/bin")


@pytest.mark.skipif(WPA_SUPPLICANT is None, reason="no wpa_supplicant here")
@pytest.mark.parametrize(
    ("text", "note"),
    [
        (b'network={ # at home\n    ssid="harbour" # ours\n    psk="long enough"\n} # end\n', ""),
        (b'# network={\nnetwork={\nssid="harbour"\nkey_mgmt=NONE\n}\n', ""),
        (b"network = {\nssid=616263\n}\n", "line 1: write network={ without blanks: wpa_supplicant takes nothing else"),
        (b'network={\nssid="harbour"\nno_such_field=1\n}\n', "line 3"),
    ],
)
def test_wpa_supplicant_itself_says_what_it_reads(
    look: Callable[..., bootfiles.BootFiles], monkeypatch: pytest.MonkeyPatch, text: bytes, note: str
) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{os.path.dirname(str(WPA_SUPPLICANT))}")
    first = look({"wpa_supplicant.conf": text})
    said = " ".join(one for one in first.notes if "not taken" in one)
    assert (first.files.get("wpa_supplicant.conf") == "taken") is not bool(note), first.notes
    assert note in said
    assert "harbour" not in said, "what is wrong is said to everybody, what stands there is not"


def test_the_last_good_keys_stay_where_dropbear_would_refuse_the_new_ones(look: Callable[..., bootfiles.BootFiles]) -> None:
    good = f"{key()} me\n".encode()
    assert look({"authorized_keys": good}).files["authorized_keys"] == "taken"
    for bad in (b'from="10.0.0.*" ' + good, good.replace(b" ", b"\t", 1), b"  " + good, b"no_pty " + good):
        again = look({"authorized_keys": bad})
        assert again.files["authorized_keys"] == "kept", bad
        assert (Path(bootfiles.FORCE) / "authorized_keys").read_bytes() == good
        assert (Path(bootfiles.FORCE) / "authorized_keys").stat().st_mode & 0o777 == 0o600, "a secret is root's alone"


def test_what_is_kept_is_roots_alone(look: Callable[..., bootfiles.BootFiles], tmp_path: Path) -> None:
    look({"authorized_keys": f"{key()}\n".encode(), "settings_prod.py": b"HOSTNAME = 'mast'\n"})
    modes = {
        path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in [tmp_path / "kept", *(tmp_path / "kept").iterdir()]
    }
    assert modes == {"kept": "700", "authorized_keys": "600", "settings_prod.py": "600"}
    modes = {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in (tmp_path / "force").iterdir()}
    assert modes == {"authorized_keys": "600", "settings_prod.py": "600"}, "a profile may hold passphrases"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("profile", "reader"), [
    ("", "uplink"), ("SERVICES = changed(SERVICES, 'uplink', user='daemon')\n", "daemon"), ("SERVICES = ()\n", "uplink"),
])  # fmt: skip
def test_the_boards_key_is_handed_to_the_uplink_alone(
    tmp_path: Path, look: Callable[..., bootfiles.BootFiles], certificates: Path, monkeypatch: pytest.MonkeyPatch,
    profile: str, reader: str,
) -> None:  # fmt: skip
    """Whoever the uplink is by the new settings; also on a board that has none now, so that no other user can be given it."""
    real, owners = tables.load, tmp_path / "force/settings_prod.py"
    monkeypatch.setattr(tables, "load", lambda options=None, path=str(owners): real(options, path))
    if profile.endswith("()\n"):
        monkeypatch.setattr(bootfiles, "BEFORE_US", ())
    pem, secret = (certificates / "board.pem").read_bytes(), (certificates / "board.key").read_bytes()
    files = {"ca.pem": pem, "board.pem": pem, "board.key": secret, "authorized_keys": KEY, "settings_prod.py": profile.encode()}
    one = look({name: data for name, data in files.items() if data})
    assert one.notes == []
    group = real(None, str(owners)).owners["uplink"].gid
    assert group == (pwd.getpwnam(reader).pw_gid if reader == "daemon" else own_number(reader))
    found = {path.name: (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode))
             for path in (tmp_path / "force").iterdir() if path.is_file()}  # fmt: skip
    theirs = dict.fromkeys(("ca.pem", "board.pem", "board.key"), (0, group, 0o640))
    assert found == theirs | {name: (0, 0, 0o600) for name in found if name not in theirs}
    assert "authorized_keys" in found


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_key_stays_roots_where_the_uplinks_user_is_none_of_this_board(
    tmp_path: Path, look: Callable[..., bootfiles.BootFiles], certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a user namespace that does not have it; and it is root's from the first moment on, before it is handed out."""
    monkeypatch.setattr(tables, "load", lambda *words, real=tables.load: unmapped(real(*words)))
    pem, secret = (certificates / "board.pem").read_bytes(), (certificates / "board.key").read_bytes()
    one = look({"ca.pem": pem, "board.pem": pem, "board.key": secret})
    assert one.notes == []
    status = (tmp_path / "force/board.key").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o600)


def unmapped(board: Tables) -> Tables:
    board.owners["uplink"] = board.owners["uplink"]._replace(mapped=False)
    return board


def test_each_profile_of_the_image_has_its_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated board with two of them and everything else to start had refused a good file of its owner."""
    given: list[float] = []
    monkeypatch.setattr(bootfiles, "FORCE", str(tmp_path))

    def wait(pid: int, seconds: float) -> int:
        given.append(seconds)
        return os.waitpid(pid, 0)[1]

    monkeypatch.setattr(storage, "wait", wait)
    for profiles in ([], ["qemu", "test", tables.OWNERS]):
        one = bootfiles.BootFiles(tables.load({}), [])
        one.before.profiles = profiles
        assert one.profile_fault(b"HOSTNAME = 'mast'\n") == ""
    assert given == [bootfiles.PROFILE_SECONDS, bootfiles.PROFILE_SECONDS + 2 * tables.PROFILE_SECONDS]
