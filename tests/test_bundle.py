"""Bundles and hostile ones, with the real SWUpdate, which writes into files instead of partitions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from laptop.update_bundle import make_bundle, make_key
from updates import engine
from updates.engine import Refused, described, install, meaning, successful, version_of

MISSING = [name for name in ("swupdate", "openssl", "cpio") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here, and only root can install it")
RUNS = "2026.1120.1"  # what the board runs
NEW = "2026.1125.1"


class Bench:
    """A key, images, and a slot of two files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("images", "slot", "work"):
            (folder / name).mkdir()
        self.content = {"boot.vfat": bytes(range(256)) * 2000, "rootfs.squashfs": b"root" * 300_000}
        for name, data in self.content.items():
            (folder / "images" / name).write_bytes(data)
        self.clear()
        make_key(str(folder / "keys"))

    def clear(self) -> None:
        for part in engine.PARTS:
            (self.folder / "slot" / part).write_bytes(bytes(2 << 20))

    def bundle(self, name: str = "good", board: str = "raspberrypi4_64", version: str = NEW, keys: str = "keys") -> Path:
        out = self.folder / f"{name}.swu"
        folders = [str(self.folder / one) for one in ("images", keys, "slot")]
        make_bundle(folders[0], board, version, folders[1], str(out), folders[2])
        return out

    def install(self, path: Path, board: str = "raspberrypi4_64", version: str = RUNS) -> None:
        install(str(path), str(self.folder / "keys/update.pem"), board, version, str(self.folder / "work"))

    def slot(self) -> list[bytes]:
        return [(self.folder / "slot" / part).read_bytes() for part in engine.PARTS]

    def untouched(self) -> bool:
        return self.slot() == [bytes(2 << 20)] * 2


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_good_bundle_is_written(bench: Bench) -> None:
    path = bench.bundle()
    assert version_of(described(str(path))) == NEW
    seen: list[int] = []
    install(str(path), str(bench.folder / "keys/update.pem"), "raspberrypi4_64", RUNS, str(bench.folder / "work"), seen.append)
    for found, data in zip(bench.slot(), bench.content.values(), strict=True):
        assert found[: len(data)] == data
    assert seen == sorted(seen)
    assert max(seen) <= path.stat().st_size


def test_the_key_is_readable_by_its_owner_alone_and_never_replaced(bench: Bench) -> None:
    assert (bench.folder / "keys/update.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SystemExit, match="there is one in"):
        make_key(str(bench.folder / "keys"))


def test_another_key_another_board_and_an_older_version_are_refused_before_a_byte_is_written(bench: Bench) -> None:
    make_key(str(bench.folder / "theirs"))
    for path, why in (
        (bench.bundle("key", keys="theirs"), "its signature is not by this board's key"),
        (bench.bundle("board", board="raspberrypi5"), "it is for another board than this, which is raspberrypi4_64"),
        (bench.bundle("old", version="2026.1119.9"), f"it is older than what runs, {RUNS}"),
    ):
        with pytest.raises(Refused, match=why):
            bench.install(path)
        assert bench.untouched(), why


def test_a_certificate_that_has_ended_is_refused(bench: Bench) -> None:
    if not shutil.which("faketime"):
        pytest.skip("no faketime here, and only root can install it")
    shutil.rmtree(bench.folder / "keys")
    code = "import sys; from laptop.update_bundle import make_key; make_key(sys.argv[1], 1)"
    words = ["faketime", "2026-01-01", sys.executable, "-c", code, str(bench.folder / "keys")]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    path = bench.bundle()
    with pytest.raises(Refused, match="has expired on 2026-01-02"):
        bench.install(path)
    assert bench.untouched()


def test_a_truncated_bundle_is_refused_wherever_it_ends(bench: Bench) -> None:
    data = bench.bundle().read_bytes()
    for length in (0, 50, 200, 700, 3000, 400_000, len(data) // 2, len(data) * 9 // 10):
        path = bench.folder / "short.swu"
        path.write_bytes(data[:length])
        with pytest.raises(Refused):
            bench.install(path)


def test_a_flipped_bit_is_refused_wherever_it_is(bench: Bench) -> None:
    """In a header, the description, the signature, the images. What was written by then is not started: install() has raised."""
    data = bench.bundle().read_bytes()
    description = data.index(b"version")
    signature = data.index(b"sw-description.sig\0") + 200
    images = [data.index(bench.content[name][:1000]) + 999 for name in bench.content]
    for at in (3, description + 12, data.index(b"hardware") + 30, signature, *images, images[1] + 500_000):
        path = bench.folder / "flipped.swu"
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(Refused):
            bench.install(path)


def test_a_member_with_a_path_writes_nothing_outside(bench: Bench) -> None:
    """cpio itself would follow it; and one of the name of an image, before the signed one, is compared with what was signed."""
    good = bench.bundle()
    tree = bench.folder / "tree"
    (tree / "below").mkdir(parents=True)
    subprocess.run(["cpio", "--quiet", "-id"], cwd=tree, stdin=good.open("rb"), check=True)
    (bench.folder / "escaped").write_text("out")
    for number, (extra, text) in enumerate(((f"{bench.folder}/escaped2", "absolute"), ("../../escaped3", "up"))):
        target = tree / "below" / extra if extra.startswith("..") else Path(extra)
        target.write_text(text)
        names = ["../sw-description", "../sw-description.sig", extra, "../boot.vfat", "../rootfs.squashfs"]
        made = subprocess.run(["cpio", "--quiet", "-o", "-H", "crc"], cwd=tree / "below", input="\n".join(names).encode(),
                              capture_output=True, check=True).stdout  # fmt: skip
        for name in ("sw-description.sig", "sw-description", "boot.vfat", "rootfs.squashfs"):
            made = made.replace(f"../{name}\0".encode(), f"{name}\0\0\0\0".encode())
        target.unlink()
        path = bench.folder / f"path{number}.swu"
        path.write_bytes(made)
        try:
            bench.install(path)
        except Refused:
            pass
        assert not target.exists()
    swapped = bench.folder / "swapped.swu"
    (tree / "boot.vfat").write_bytes(b"evil" * 1000)
    listed = b"sw-description\nsw-description.sig\nboot.vfat\nrootfs.squashfs\n"
    with swapped.open("wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "crc"], cwd=tree, input=listed, stdout=out, check=True)
    with pytest.raises(Refused, match="it is damaged"):
        bench.install(swapped)


@pytest.mark.parametrize("data", [b"", b"070702" + b"0" * 104, b"070701" + b"f" * 104, b"PK\3\4" + bytes(200)])
def test_what_is_no_bundle_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "some").write_bytes(data)
    with pytest.raises(Refused, match="no update bundle"):
        described(str(tmp_path / "some"))


def test_the_engines_word_counts_and_not_its_exit_status() -> None:
    """As it was seen on a busy machine: status 1, and nothing wrong."""
    text = "[INFO ] : SWUPDATE started :  Software Update started !\n[INFO ] : SWUPDATE successful ! SWUPDATE successful !\n"
    assert successful(text)
    assert not successful(text + "[ERROR] : SWUPDATE failed [0] ERROR : HASH mismatch\n")
    assert not successful(text.replace("successful", "running"))


def test_a_complaint_that_we_do_not_know_is_passed_on() -> None:
    text = "[ERROR] : SWUPDATE failed [0] ERROR : Something new\n"
    assert meaning(text, "b", "1") == "swupdate: Something new"
    assert meaning("", "b", "1", 3) == "swupdate: it ended with status 3 and names no error"


@pytest.mark.parametrize(("board", "version"), [("a b", "1"), ("a", "1.2.3.4.5"), ("a", "70000"), ("a", '1"; x'), ("", "1")])
def test_a_name_or_a_version_that_would_break_the_description_is_refused(tmp_path: Path, board: str, version: str) -> None:
    with pytest.raises(SystemExit, match="is no"):
        make_bundle(str(tmp_path), board, version, str(tmp_path), str(tmp_path / "out"))
