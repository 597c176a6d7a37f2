"""What building and booting an image for real has shown: programs and their options, what is on the root, what a second build does."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_buildroot import (
    BOARD,
    BUILDROOT,
    TREE,
    buildroot,
    configured,
    images,
    make,
    post_build,
    post_image,
    run,
    target,
)

import settings

__all__ = ["configured", "images", "target"]  # fixtures

# The options that the table gives to programs of busybox, and the symbol of its configuration that each one needs. An option
# that is not here is a fault of this table: look it up in busybox's Config.in.
NEEDS = {
    ("klogd", ""): "KLOGD", ("klogd", "-n"): "KLOGD",
    ("syslogd", ""): "SYSLOGD", ("syslogd", "-n"): "SYSLOGD", ("syslogd", "-C"): "FEATURE_IPC_SYSLOG",
}  # fmt: skip
OF_BUSYBOX = {program for program, _ in NEEDS}
ELSEWHERE = {"modprobe", "dropbear", "ntpd", "chronyd", "mosquitto", "{PYTHON}", "logd", "storage", "bootfiles", "keeper"}


def options() -> Iterator[tuple[str, str]]:
    """(program, option) of each row that the image runs by busybox."""
    for row in settings.SERVICES:
        program, *words = row.argv
        assert program in OF_BUSYBOX | ELSEWHERE or row.module, f"{program}: who brings it into the image?"
        if program in OF_BUSYBOX:
            yield program, ""
            yield from ((program, word[:2]) for word in words if word.startswith("-"))


def config(text: str) -> dict[str, str]:
    """What a configuration says of each symbol; the last line wins, as in a merge."""
    found = {name: value for name, value in re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.M)}
    return found | dict.fromkeys(re.findall(r"^# CONFIG_(\w+) is not set$", text, re.M), "n")


def test_the_fragment_turns_on_what_the_tables_options_need() -> None:
    """syslogd -C was an unknown option in every image: a crash a minute for ever."""
    assert {pair for pair in options() if pair not in NEEDS} == set()
    fragment = config((BOARD / "busybox.fragment").read_text())
    assert fragment["FEATURE_IPC_SYSLOG"] == fragment["LOGREAD"] == "y"
    assert all("board/busybox.fragment" in path.read_text() for path in (TREE / "configs").iterdir())


@buildroot
def test_busybox_of_the_image_takes_every_option_of_the_table() -> None:
    theirs = config((Path(BUILDROOT) / "package/busybox/busybox.config").read_text())
    merged = theirs | config((BOARD / "busybox.fragment").read_text())
    assert {NEEDS[pair] for pair in options() if merged.get(NEEDS[pair]) != "y"} == set()
    assert theirs["FEATURE_IPC_SYSLOG"] == "n", "where Buildroot turns it on, the fragment can go"


# --- the root ---------------------------------------------------------------------------------------------------------
def test_what_nothing_needs_is_not_on_the_root(target: Path) -> None:
    unneeded = [
        "usr/lib/python3.14/ensurepip/_bundled/pip.whl",
        "usr/bin/sqlite3",
        "sbin/udevd",
        "lib/libstdc++.so.6",
        "usr/lib/libgomp.so.1",
    ]
    for path in [*unneeded, "usr/lib/libudev.so.1", "usr/lib/libsqlite3.so.0"]:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(f"library {os.path.basename(path)}")
    assert post_build(target).returncode == 0
    assert [path for path in unneeded if (target / path).exists()] == []
    assert (target / "usr/lib/libudev.so.1").exists(), "pyudev loads it"


def test_a_library_that_a_program_asks_for_stays(target: Path) -> None:
    for path, text in (("usr/lib/libstdc++.so.6", "itself"), ("usr/bin/theirs", "\x7fELF NEEDED libstdc++.so.6")):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text)
    assert post_build(target).returncode == 0
    assert (target / "usr/lib/libstdc++.so.6").exists()


# Names of misc/terminfo.src of ncurses 6.6 (2025-12-31), which Buildroot has; a name that is not there ends the build.
IN_NCURSES = {"a/alacritty", "f/foot", "k/kitty", "t/tmux", "t/tmux-256color"}


def test_the_terminals_of_people_are_known_on_the_board(target: Path) -> None:
    """kitty says TERM=xterm-kitty, which ncurses does not have: a link. The build ended at it where it was asked for."""
    line = next(line for line in (TREE / "parts/common.config").read_text().splitlines() if "TERMINFO" in line)
    assert set(line.split('"')[1].split()) == IN_NCURSES
    for name in ("k/kitty", "x/xterm"):
        (target / "usr/share/terminfo" / name).parent.mkdir(parents=True)
        (target / "usr/share/terminfo" / name).write_text(name)
    for _ in range(2):
        assert post_build(target).returncode == 0
    assert (target / "usr/share/terminfo/x/xterm-kitty").read_text() == "k/kitty"


# --- the card ---------------------------------------------------------------------------------------------------------
def test_every_card_has_an_identifier_of_its_own(images: Path) -> None:
    """PARTUUID= of two cards with identifier 0 is the same."""
    found = []
    for _ in range(2):
        assert post_image(images).returncode == 0
        found.append(json.loads(run("sfdisk", "-J", images / "sdcard.img").stdout)["partitiontable"]["id"])
    assert int(found[0], 16) != 0
    assert found[0] != found[1]


# --- kernel and SWUpdate, where their sources are at hand -------------------------------------------------------------
LINUX = os.environ.get("LINUX", "")  # the path of a kernel source of Linux 6.1 or newer
SWUPDATE = os.environ.get("SWUPDATE", "")  # of SWUpdate, in the version that Buildroot has


def unmet(wanted: str, merged: str) -> list[str]:
    """What a fragment asks for and a finished .config does not have."""
    have = config(merged)
    return [name for name, value in config(wanted).items() if have.get(name, "n") != value]


def test_a_fragment_line_that_had_no_effect_is_named() -> None:
    assert unmet(
        "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n# CONFIG_D is not set\n", "CONFIG_A=m\nCONFIG_B=y\nCONFIG_C=y\n"
    ) == ["A", "B"]


@pytest.mark.skipif(not LINUX, reason="LINUX in the environment is not the path of a kernel source")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "arch", ["arm64 defconfig", "arm multi_v7_defconfig", "arm bcm2835_defconfig", "x86_64 x86_64_defconfig"]
)
def test_a_kernel_takes_every_line_of_the_fragments(arch: str, tmp_path: Path) -> None:
    """As Buildroot merges them: a default configuration, the fragments after it, and what Kconfig makes of both. The
    configurations of the Pi's own kernel are for experts, which turns CONFIG_MEDIA_SUPPORT_FILTER off: so are these."""
    arch, name = arch.split()
    wanted = "".join(
        (BOARD / path / "linux.fragment").read_text() for path in (".", "qemu" if arch == "x86_64" else "raspberrypi")
    )
    stored = Path(LINUX, "arch", arch.removesuffix("_64"), "configs", name).read_text()
    (tmp_path / ".config").write_text(f"{stored}CONFIG_EXPERT=y\n{wanted}")
    done = run("make", "-s", "-C", LINUX, f"O={tmp_path}", f"ARCH={arch}", "olddefconfig")
    assert done.returncode == 0, done.stderr
    assert unmet(wanted, (tmp_path / ".config").read_text()) == []


@buildroot
@pytest.mark.skipif(not SWUPDATE, reason="SWUPDATE in the environment is not the path of a source of SWUpdate")
@pytest.mark.timeout(300)
def test_swupdate_takes_every_line_of_its_configuration(configured: Any, tmp_path: Path) -> None:
    """With the libraries that the image has, as Buildroot tells SWUpdate's own build."""
    told = make(configured("raspberrypi0w"), "printvars", "VARS=SWUPDATE_MAKE_ENV").stdout
    words = re.findall(r"HAVE_\w+=[yn]", told)
    assert {"HAVE_LIBSSL=y", "HAVE_LIBCONFIG=y", "HAVE_LUA=n", "HAVE_LIBSYSTEMD=n"} <= set(words)
    source = shutil.copytree(SWUPDATE, tmp_path / "source", ignore=shutil.ignore_patterns(".git", "*.o"))
    wanted = (BOARD / "swupdate.config").read_text()
    (source / ".config").write_text(wanted)
    done = run("sh", "-c", f"yes '' | env {' '.join(words)} make oldconfig", cwd=source)
    assert done.returncode == 0, done.stderr
    made = (source / ".config").read_text()
    assert unmet(wanted, made) == []
    assert config(made)["BOOTLOADER_DEFAULT_NONE"] == "y", "no environment of U-Boot is asked for"
    assert (
        config(made).get("WEBSERVER", "n")
        == config(made).get("SURICATTA", "n")
        == config(made).get("SHELLSCRIPTHANDLER", "n")
        == "n"
    )


# --- make image -------------------------------------------------------------------------------------------------------
@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A Buildroot of a few lines, which says what it is asked for. The real one takes hours."""
    (tmp_path / "support/kconfig").mkdir(parents=True)
    (tmp_path / "support/kconfig/merge_config.sh").touch()
    (tmp_path / "Makefile").write_text('.DEFAULT_GOAL = all\n%:\n\t@echo "asked: $@"\nall:\n\t@echo "asked: all"\n')
    return tmp_path


def make_image(buildroot_tree: Path, *words: str) -> tuple[int, list[str], str]:
    out = buildroot_tree / "out"
    done = run("make", "-s", "-C", ROOT, "image", "BOARD=raspberrypi2", f"BUILDROOT={buildroot_tree}", f"CARDS={out}", *words)
    return done.returncode, re.findall(r"^asked: (.*)$", done.stdout, re.M), done.stderr


def test_a_second_make_image_takes_what_has_changed_here(fake: Path) -> None:
    """Buildroot does not look at a local package again: the card had the old software, without a word."""
    as_root = "FORCE_UNSAFE_CONFIGURE=1"
    assert make_image(fake, as_root)[1] == ["stack_raspberrypi2_defconfig", "all"]
    (fake / "out/build/stack-local").mkdir(parents=True)
    assert make_image(fake, as_root)[1] == ["stack_raspberrypi2_defconfig", "stack-dirclean", "all"]


def test_what_an_edit_has_deleted_is_not_on_the_next_card() -> None:
    text = (TREE / "package/stack/stack.mk").read_text()
    first = text.partition("define STACK_INSTALL_TARGET_CMDS\n")[2].splitlines()[0]
    assert shlex.split(first) == ["rm", "-rf", "$(TARGET_DIR)/usr/lib/stack"]


@pytest.mark.skipif(os.getuid() != 0, reason="says something to root alone")
def test_make_image_as_root_says_what_would_stop_it(fake: Path) -> None:
    status, asked, said = make_image(fake, "FORCE_UNSAFE_CONFIGURE=")
    assert status != 0
    assert asked == []
    assert "does not build as root" in said
    assert "FORCE_UNSAFE_CONFIGURE=1" in said


@buildroot
@pytest.mark.timeout(300)
def test_buildroot_itself_takes_an_edit_only_after_dirclean(configured: Any) -> None:
    """Why `make image` asks for stack-dirclean: the real Buildroot keeps the copy that it has."""
    out = configured("qemu_x86_64")
    copy = out / "build/stack-local/settings.py"
    assert make(out, "stack-extract").returncode == 0
    copy.write_text("an older tree's\n")
    assert make(out, "stack-extract").returncode == 0
    assert copy.read_text() == "an older tree's\n"
    assert make(out, "stack-dirclean", "stack-extract").returncode == 0
    assert copy.read_bytes() == (ROOT / "settings.py").read_bytes()
