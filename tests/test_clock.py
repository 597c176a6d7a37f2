"""The clock's floor, stamp and state on a clock of the test's own; the random seed on the real pool; both kept by a board."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Board, eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base import files
from onboard import clock
from services import keeper, log_files, seed

BUILT = 1_800_000_000.0
YEAR = 365.25 * 86400


class Time:
    """What clock.py sees of `time`: a wall clock that can be set, and how long the kernel has been up."""

    CLOCK_REALTIME, CLOCK_BOOTTIME = 0, 7

    def __init__(self, wall: float) -> None:
        self.wall, self.up = wall, 5.0
        self.frozen = False

    def time(self) -> float:
        return self.wall

    def clock_gettime(self, _: int) -> float:
        return self.up

    def clock_settime(self, _: int, seconds: float) -> None:
        if self.frozen:
            raise PermissionError(1, "Operation not permitted")
        self.wall = seconds

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds

    def reboots(self, wall: float) -> None:
        self.wall, self.up = wall, 5.0

    def __getattr__(self, name: str) -> object:
        import time

        return getattr(time, name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Time:
    (tmp_path / "build_date").write_text(f"{BUILT:.0f}\n")
    one = Time(0.0)
    monkeypatch.setattr(clock, "time", one)
    monkeypatch.setattr(clock, "BUILD", str(tmp_path / "build_date"))
    monkeypatch.setattr(clock, "STARTED", str(tmp_path / "run" / "clock"))
    monkeypatch.setattr(clock, "synchronised", lambda: False)
    return one


def test_a_board_without_a_battery_starts_at_the_build_date(fake: Time) -> None:
    assert "it is later than 2027-01-15T08:00:00Z" in clock.boot()
    assert fake.wall == BUILT
    for _ in range(3):
        assert clock.state() == "unset"
        fake.passes(86400 * 30)  # the time that passes tells nothing about the time before


def test_a_battery_is_believed_within_reason(fake: Time) -> None:
    for wall, state, after in (
        (BUILT + 10, "plausible", BUILT + 10),
        (BUILT - 1, "unset", BUILT),
        (BUILT + 21 * YEAR, "unset", BUILT),
    ):
        fake.reboots(wall)
        clock.boot()
        assert (clock.state(), fake.wall) == (state, after)


def test_where_the_clock_cannot_be_set_the_board_says_so(fake: Time) -> None:
    fake.frozen = True
    assert "cannot be set: Operation not permitted" in clock.boot()
    assert clock.state() == "unset"


def test_the_stamp_goes_on_where_the_last_boot_ended(fake: Time, tmp_path: Path) -> None:
    clock.boot()
    assert clock.offer(BUILT + YEAR, "gps")
    fake.passes(3600)
    clock.save(str(tmp_path))
    fake.reboots(0.0)
    clock.boot()
    clock.restore(str(tmp_path))
    assert (fake.wall, clock.state()) == (BUILT + YEAR + 3600, "plausible")


def test_the_stamp_of_an_unset_clock_is_a_floor_and_nothing_else(fake: Time, tmp_path: Path) -> None:
    for boot in range(3):
        fake.reboots(0.0)
        clock.boot()
        clock.restore(str(tmp_path))
        assert (round(fake.wall), clock.state()) == (BUILT + boot * 7200, "unset")
        fake.passes(7200)
        clock.save(str(tmp_path))


def test_whoever_sets_the_clock_by_hand_has_set_it(fake: Time) -> None:
    clock.boot()
    fake.clock_settime(0, BUILT + 86400)
    assert clock.state() == "plausible"
    fake.clock_settime(0, BUILT - 86400)
    assert clock.state() == "unset", "before it was built it cannot be"


def test_an_offer_moves_the_clock_forward_and_never_beyond_reason(fake: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.boot()
    fake.passes(100)
    for refused in (BUILT - 1, BUILT + 50, fake.wall + 0.5, BUILT + 21 * YEAR, float("nan"), float("inf")):
        assert not clock.offer(refused, "gps")
    assert fake.wall == BUILT + 100
    assert clock.offer(BUILT + 200, "gps")
    assert (fake.wall, clock.state()) == (BUILT + 200, "plausible")
    monkeypatch.setattr(clock, "synchronised", lambda: True)
    assert not clock.offer(BUILT + 300, "gps"), "NTP knows better"
    assert clock.state() == "synchronised"


@pytest.mark.parametrize(
    "text", ["", "yesterday plausible", f"{BUILT + YEAR}", f"{BUILT + 30 * YEAR} plausible", "nan plausible", "\xff"]
)
def test_a_stamp_that_cannot_be_is_none(fake: Time, tmp_path: Path, text: str) -> None:
    (tmp_path / "clock").write_bytes(text.encode("latin-1"))
    clock.boot()
    clock.restore(str(tmp_path))
    assert (fake.wall, clock.state()) == (BUILT, "unset")
    fake.passes(60)
    clock.save(str(tmp_path))
    assert (tmp_path / "clock").read_text() == f"{BUILT + 60:.3f} unset\n", "and the next one takes its place"


def test_ntp_alone_sets_it_back_and_the_stamp_follows(fake: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.boot()
    clock.offer(BUILT + YEAR, "gps")
    clock.save(str(tmp_path))
    fake.reboots(0.0)
    clock.boot()  # the stamp could not be read this time
    clock.save(str(tmp_path))
    assert float((tmp_path / "clock").read_text().split()[0]) == BUILT + YEAR, "a clock that is known to be behind leaves it"
    fake.clock_settime(0, BUILT + 1000)
    monkeypatch.setattr(clock, "synchronised", lambda: True)
    clock.save(str(tmp_path))
    assert (tmp_path / "clock").read_text() == f"{BUILT + 1000:.3f} synchronised\n"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["boot", "cut", "pass", "offer", "save"]), st.floats(-2 * YEAR, 30 * YEAR)), max_size=12
    )
)
def test_never_backwards(fake: Time, tmp_path: Path, steps: list[tuple[str, float]]) -> None:
    """Whatever happens in whatever order, within a boot time never goes back, and after it not behind the last stamp."""
    (tmp_path / "clock").unlink(missing_ok=True)
    fake.reboots(0.0)
    clock.boot()
    least = fake.wall
    for what, amount in steps:
        if what == "boot":
            fake.reboots(BUILT + amount)
            clock.boot()
            clock.restore(str(tmp_path))
            least = max(BUILT, clock._read_stamp(str(tmp_path))[0])
        elif what == "pass":
            fake.passes(abs(amount) / 1000)
        elif what == "offer":
            clock.offer(BUILT + amount, "gps")
        elif what == "save":
            clock.save(str(tmp_path))
        assert fake.wall >= least
        least = fake.wall


def test_a_record_has_no_time_while_the_clock_is_unset(fake: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bus

    monkeypatch.setattr(bus, "CLOCK_PERIOD", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    one = bus.Bus("test", str(tmp_path / "nobody"))
    clock.boot()
    record = one.envelope("x", 1)
    assert (record["time"], record["clock"]) == (None, "unset")
    clock.offer(BUILT + YEAR, "gps")
    record = one.envelope("x", 1)
    assert (record["time"] is not None, record["clock"]) == (True, "plausible")


# --- the seed -------------------------------------------------------------------------------------------------------
def test_a_seed_is_credited_once_and_replaced_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[bytes, bool, bytes]] = []
    path = tmp_path / "seed"

    def feed(data: bytes, good: bool) -> bool:
        fed.append((data, good, path.read_bytes()))
        return good

    monkeypatch.setattr(seed, "feed", feed)
    seed.restore(str(tmp_path))
    assert fed == [], "there is none yet"
    seed.save(str(tmp_path))
    first = path.read_bytes()
    assert (first[:7], len(first), stat.S_IMODE(path.stat().st_mode)) == (b"credit\n", 39, 0o600)
    seed.restore(str(tmp_path))
    data, credited, then = fed[0]
    assert (first, credited) == (b"credit\n" + data, True)
    assert then.startswith(b"no-credit\n"), "power that goes now does not lead to a second credit"
    assert data not in then
    assert path.read_bytes().startswith(b"credit\n")
    assert len({first[-32:], then[-32:], path.read_bytes()[-32:]}) == 3


def change_mode(path: Path) -> None:
    path.chmod(0o644)


@pytest.mark.parametrize("harm", [
    change_mode,
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(path.read_bytes() + b"x"),
    lambda path: path.write_bytes(b"no-" + path.read_bytes()),
    lambda path: path.write_bytes(os.urandom(512)),
])  # fmt: skip
def test_what_we_have_not_saved_is_not_credited(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    seed.save(str(tmp_path))
    assert seed.read(str(tmp_path / "seed"))[1]
    harm(tmp_path / "seed")
    assert not seed.read(str(tmp_path / "seed"))[1]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    seed.save(str(tmp_path))
    (tmp_path / "seed").rename(tmp_path / "other")
    (tmp_path / "seed").symlink_to(tmp_path / "other")
    assert seed.read(str(tmp_path / "seed")) == (b"", False)


def test_a_seed_that_cannot_be_replaced_is_not_credited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed.save(str(tmp_path))
    fed: list[bool] = []

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    def feed(_: bytes, good: bool) -> bool:
        fed.append(good)
        return good

    monkeypatch.setattr(seed, "feed", feed)
    monkeypatch.setattr(seed, "write_atomically", refuse)
    with pytest.raises(OSError, match="Read-only"):
        seed.restore(str(tmp_path))
    assert fed == [False]
    assert "stays on the disk (Read-only file system): not credited" in capsys.readouterr().err


# --- files ------------------------------------------------------------------------------------------------------------
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is the promise: content, fsync, name, fsync of the folder."""
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        calls.append(f"fsync {os.readlink(f'/proc/self/fd/{fd}')}")
        real_fsync(fd)

    def rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        calls.append(f"rename {Path(f'/proc/self/fd/{src_dir_fd}/{old}').read_bytes()!r}")
        real_rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    path = tmp_path / "deep" / "file"
    for text in ("one", "two"):
        files.write_atomically(str(path), text, 0o600)
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (text, 0o600)
        assert calls == [f"fsync {path}.new", f"rename {text.encode()!r}", f"fsync {path.parent}"]
        calls.clear()
    (path.parent / "file.new").write_text("what a power cut has left")
    files.write_atomically(str(path), b"\xff")
    assert path.read_bytes() == b"\xff"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("where", ["disk", "disk/lib", "disk/lib/stack"])
def test_no_symbolic_link_on_a_disk_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    """Whoever wrote the data partition would have root write into the root's own folders."""
    (tmp_path / "etc").mkdir()
    link = tmp_path / where
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "etc")
    with pytest.raises(OSError, match=f"{link.name} is a symbolic link, which is not followed"):
        files.write_atomically(str(tmp_path / "disk/lib/stack/boot.json"), "{}")
    with pytest.raises(OSError, match="is a symbolic link"):
        files.open_folder(str(tmp_path / "disk/lib/stack/x"))
    log_files.File(str(tmp_path / "disk/lib/stack"), "network").write(b"a line\n", 100)
    assert "is a symbolic link" in capsys.readouterr().err
    assert os.listdir(tmp_path / "etc") == []


def test_a_link_in_the_place_of_a_file_is_replaced_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "passwd").write_text("root")
    for name in ("seed", "seed.new", "network.log"):
        (tmp_path / name).symlink_to(tmp_path / "passwd")
    files.write_atomically(str(tmp_path / "seed"), "new")
    assert (tmp_path / "seed").read_text() == "new"
    assert not (tmp_path / "seed").is_symlink()
    log_files.File(str(tmp_path), "network").write(b"a line\n", 100)
    assert "Too many levels" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.log")
    log_files.File(str(tmp_path), "pipe").write(b"a line\n", 100)
    assert "No such device" in capsys.readouterr().err
    assert (tmp_path / "passwd").read_text() == "root"
    with pytest.raises(OSError, match=r"with \.\. in it"):
        files.open_folder(f"{tmp_path}/a/../b")


def test_clock_and_seed_of_another_disk_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever made the stick chose both."""
    steps: list[float] = []
    fed: list[tuple[bytes, bool]] = []
    monkeypatch.setattr(clock, "step", steps.append)
    monkeypatch.setattr(clock, "synchronised", lambda: False)

    def feed(data: bytes, credit: bool) -> bool:
        fed.append((data, credit))
        return credit

    monkeypatch.setattr(seed, "feed", feed)
    monkeypatch.setattr(keeper, "KEPT", (clock, seed))
    monkeypatch.setattr(keeper, "STORAGE", str(tmp_path / "storage.json"))
    files.write_atomically(str(tmp_path / "clock"), f"{time.time() + 86400:.3f} plausible\n")
    files.write_atomically(str(tmp_path / "seed"), seed.GOOD + bytes(32), 0o600)
    assert not keeper.foreign()
    (tmp_path / "storage.json").write_text('{"foreign": true}')
    assert keeper.foreign()
    keeper.each("restore", str(tmp_path), believed=False)
    assert (steps, fed) == ([], [(bytes(32), False)]), "mixed in, without credit"
    files.write_atomically(str(tmp_path / "seed"), seed.GOOD + bytes(32), 0o600)
    keeper.each("restore", str(tmp_path))
    assert (len(steps), fed[1]) == (1, (bytes(32), True)), "from our own disk both count"
    assert "<4>" not in capsys.readouterr().err


# --- a board ----------------------------------------------------------------------------------------------------------
def test_a_board_keeps_its_clock_and_seed(boot: Callable[..., Board]) -> None:
    """In namespaces the clock is the host's and the pool takes no credit: what can be had is had, nothing fails."""
    say = "import sys; sys.path.insert(0, '{LIB}'); from onboard import clock; print('clock:', clock.state(), flush=True)"
    board = boot(
        "KEEPER._replace(after=()), Service('say', ('{PYTHON}', '-c', " + repr(say) + "), restart='never')",
        settings="from settings import KEEPER",
    ).up()
    board.wait_state("keeper", "running")
    assert eventually(lambda: "clock: plausible" in board.log("say") or "clock: synchronised" in board.log("say"))
    board.ask("restart", name="keeper")
    folder = board.root / "var/lib/stack"
    eventually(lambda: "random seed: 256 bits, not credited" in board.log("keeper"))
    assert (folder / "clock").read_text().split()[1] in ("plausible", "synchronised")
    assert "<3>" not in board.log("keeper")
    assert "ERROR" not in board.log("keeper").upper()
