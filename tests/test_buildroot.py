"""The tree for Buildroot: its scripts on trees made for it, its menu, its boards. With BUILDROOT=path of a checkout of
2026.05.1 in the environment, what Buildroot itself says of them too; building an image takes hours and the internet."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kconfiglib
import pytest
from conftest import PYTHON, ROOT

import settings
from updates.slots import BOOT_OF, ROOT_OF

TREE = ROOT / "buildroot"
BOARD = TREE / "board"
BUILDROOT = os.environ.get("BUILDROOT", "")
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
SCRIPTS = sorted(TREE.rglob("*.sh"))
CMDLINES = sorted(TREE.rglob("cmdline*.txt"))
FRAGMENTS = sorted(TREE.rglob("linux.fragment"))
OWNERS = "/run/stack/boot"  # where the files of the card's first partition come into force
FIRMWARE = sorted(TREE.rglob("config_*.txt"))
# What Buildroot 2026.05.1 has in system/skeleton, and the users of its packages: enough for our tables.
PASSWD = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\nchrony:x:100:101:Time daemon:/run/chrony:/bin/false\n"
GROUP = "root:x:0:\ntty:x:5:\ndialout:x:18:\nnetdev:x:82:\nchrony:x:101:\nnobody:x:65534:\n"
SHADOW = "root:*::::::\ndaemon:*:::::::\nnobody:*:::::::\nchrony:*:::::::\n"

_spec = importlib.util.spec_from_file_location("compose", TREE / "compose.py")
assert _spec is not None
compose: Any = importlib.util.module_from_spec(_spec)
assert _spec.loader is not None
_spec.loader.exec_module(compose)
BOARDS = list(compose.BOARDS)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"env": ENVIRONMENT, **options}
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)


def needs(*programs: str) -> None:
    missing = [name for name in programs if not shutil.which(name, path=ENVIRONMENT["PATH"])]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here, and only root can install it")


# --- boards -----------------------------------------------------------------------------------------------------------
def test_stored_configurations_consist_of_their_parts() -> None:
    done = run(PYTHON, TREE / "compose.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (TREE / "configs").iterdir()) == sorted(f"stack_{name}_defconfig" for name in BOARDS)


def test_one_that_does_not_is_named(tmp_path: Path) -> None:
    copy = shutil.copytree(TREE, tmp_path / "buildroot")
    stored = copy / "configs/stack_raspberrypi2_defconfig"
    stored.write_text(stored.read_text().replace("BR2_cortex_a7=y\n", "BR2_cortex_a8=y\n"))
    with (copy / "parts/radio.config").open("a") as file:
        file.write("BR2_aarch64=y\n")
    done = run(PYTHON, copy / "compose.py", "--check")
    assert done.returncode == 1
    assert "stack_raspberrypi2_defconfig lacks 'BR2_cortex_a7=y', which its parts have" in done.stderr
    assert "stack_raspberrypi2_defconfig has 'BR2_cortex_a8=y', which no part has" in done.stderr
    assert "raspberrypi5: two parts set BR2_aarch64" in done.stderr


def test_every_part_is_used_and_every_line_sets_a_symbol() -> None:
    used = {part for parts in compose.BOARDS.values() for part in parts.split()}
    assert used == {path.stem for path in (TREE / "parts").iterdir()}
    for board in BOARDS:
        for line in compose.lines(board):
            assert re.fullmatch(r'BR2_\w+=(y|".*")|# BR2_\w+ is not set', line), line


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_names_files_that_are_there(board: str) -> None:
    text = "\n".join(compose.lines(board))
    paths = re.findall(r"\$\(BR2_EXTERNAL_STACK_PATH\)/([\w./-]+)", text)
    assert {"board/post-build.sh", "board/post-image.sh", "board/linux.fragment"} <= set(paths)
    assert not [path for path in paths if not (TREE / path).exists()]


@pytest.mark.parametrize("path", CMDLINES, ids=lambda path: path.name)
def test_a_command_line_is_one_line_that_starts_us(path: Path) -> None:
    text = path.read_text()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    words = text.split()
    names = [word.split("=")[0] for word in words]
    assert words.count("init=/sbin/stack.py") == names.count("init") == 1
    assert {name: names.count(name) for name in ("root", "rootfstype", "stack.profile", "ro")} == {
        "root": 1, "rootfstype": 1, "stack.profile": 1, "ro": 1,
    }  # fmt: skip
    assert "rootfstype=squashfs" in words
    assert next(word for word in words if word.startswith("root=")).endswith("5"), "slot A's root on the card"
    assert ("cgroup_enable=memory" in words) == (path.parent.name == "raspberrypi")
    profiles = next(word for word in words if word.startswith("stack.profile=")).partition("=")[2].split(",")
    assert profiles[0] == "image"
    assert not [name for name in profiles if not list(TREE.rglob(f"settings_{name}.py"))]


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_kernel_fragment_is_sorted_and_built_in(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.removeprefix("# ").startswith("CONFIG_")]
    assert lines == sorted(lines, key=compose.symbol)
    assert len({compose.symbol(line) for line in lines}) == len(lines)
    assert not [line for line in lines if not re.fullmatch(r"CONFIG_[A-Z0-9_]+=y|# CONFIG_[A-Z0-9_]+ is not set", line)]


def test_the_kernel_has_what_the_root_is_mounted_with() -> None:
    lines = (BOARD / "linux.fragment").read_text().splitlines()
    for name in "SQUASHFS SQUASHFS_XZ EXT4_FS VFAT_FS DEVTMPFS_MOUNT WATCHDOG HW_RANDOM PSTORE_RAM MEMCG CGROUP_PIDS".split():
        assert f"CONFIG_{name}=y" in lines
    assert "CONFIG_BCM2835_WDT=y" in (BOARD / "raspberrypi/linux.fragment").read_text(), "a Raspberry Pi restarts by it"


@pytest.mark.parametrize("path", FIRMWARE, ids=lambda path: path.name)
def test_the_firmware_is_told_its_kernel_once(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert not [line for line in lines if not re.fullmatch(r"#.*|\w+=[\w,.=-]+", line)]
    kernel = [line.partition("=")[2] for line in lines if line.startswith("kernel=")]
    users = [board for board in BOARDS if f"/{path.name}" in compose.stored(board).read_text()]
    assert users, "no board has it"
    for board in users:
        assert kernel == ["Image" if "BR2_aarch64=y" in compose.lines(board) else "zImage"]


# --- the menu -----------------------------------------------------------------------------------------------------------
def selected(text: str) -> list[str]:
    return re.findall(r"^\tselect (\w+)", text, re.M)


def test_selects_stand_in_order() -> None:
    for entry in (TREE / "package/stack/Config.in").read_text().split("\nconfig ")[1:]:
        assert selected(entry) == sorted(selected(entry))


@pytest.fixture
def menu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our menu beside stubs of all of Buildroot's symbols that it names: each a question whose answer is no."""
    text = (TREE / "package/stack/Config.in").read_text()
    foreign = sorted(
        set(re.findall(r"BR2_\w+", text)) - set(re.findall(r"^config (\w+)", text, re.M)) - {"BR2_EXTERNAL_STACK_PATH"}
    )
    stubs = "".join(f'config {name}\n\tbool "{name}"\n\n' for name in foreign)
    monkeypatch.setenv("BR2_EXTERNAL_STACK_PATH", str(TREE))
    (tmp_path / "Config.in").write_text(f'mainmenu "a test"\n\n{stubs}source "{TREE}/Config.in"\n')
    found = kconfiglib.Kconfig(str(tmp_path / "Config.in"), warn_to_stderr=False)
    assert not found.warnings
    return found


ASKED = ("BR2_INIT_NONE", "BR2_USE_MMU", "BR2_USE_WCHAR", "BR2_TOOLCHAIN_HAS_THREADS", "BR2_PACKAGE_HAS_UDEV")


def test_the_menu_offers_us_where_everything_is_met(menu: Any) -> None:
    symbols = menu.syms
    symbols["BR2_PACKAGE_STACK"].set_value("y")
    assert symbols["BR2_PACKAGE_STACK"].str_value == "n", "nothing that it depends on is there"
    for name in ASKED:
        symbols[name].set_value("y")
    assert symbols["BR2_PACKAGE_STACK"].str_value == "y"
    for name in selected((TREE / "package/stack/Config.in").read_text()):
        assert symbols[name].str_value == "y", name
    for name in ASKED:
        symbols[name].set_value("n")
        assert symbols["BR2_PACKAGE_STACK"].str_value == "n", f"without {name}"
        symbols[name].set_value("y")
    symbols["BR2_STATIC_LIBS"].set_value("y")
    assert symbols["BR2_PACKAGE_STACK"].str_value == "n"


def test_what_the_menu_leaves_out_is_not_built(menu: Any) -> None:
    symbols = menu.syms
    for name in (*ASKED, "BR2_PACKAGE_STACK"):
        symbols[name].set_value("y")
    for part, package in (("WIFI", "WPA_SUPPLICANT"), ("GPS", "PYTHON3_PYEXPAT"), ("UPLINK", "PYTHON3_UNICODEDATA")):
        assert symbols[f"BR2_PACKAGE_{package}"].str_value == "y"
        symbols[f"BR2_PACKAGE_STACK_{part}"].set_value("n")
        assert symbols[f"BR2_PACKAGE_{package}"].str_value == "n"
    assert symbols["BR2_PACKAGE_MOSQUITTO"].str_value == "y"


# --- the package ----------------------------------------------------------------------------------------------------------
def install(folder: Path, *menu: str) -> Path:
    """A target's tree with what stack.mk's own commands put into it, under this machine's Python in place of the host's."""
    source, target = folder / "source", folder / "target"
    files = run(
        "git", "ls-files", "*.py", "data/*", "prompt/shell.sh", "pid1/launcher.py.in", "Makefile", cwd=ROOT
    ).stdout.split()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (folder / "host/bin").mkdir(parents=True)
    (folder / "host/bin/python3").symlink_to(PYTHON)
    variables = {
        "BR2_EXTERNAL_STACK_PATH": TREE, "STACK_PKGDIR": TREE / "package/stack", "HOST_DIR": folder / "host", "TARGET_DIR": target,
        "PYTHON3_VERSION_MAJOR": "3.14", "SED": "sed -i", **{f"BR2_PACKAGE_STACK_{name}": "y" for name in menu},
    }  # fmt: skip
    recipe = (TREE / "package/stack/stack.mk").read_text().replace("$(@D)", str(source))
    recipe += "\nall:\n\t$(STACK_BUILD_CMDS)\n\t$(STACK_INSTALL_TARGET_CMDS)\n"
    (folder / "Makefile").write_text("".join(f"{name} = {value}\n" for name, value in variables.items()) + recipe)
    done = run("make", "-s", "-C", folder, "all")
    assert done.returncode == 0, done.stderr
    skeleton(target)
    return target


def skeleton(target: Path) -> None:
    """What Buildroot's skeleton and its packages have put there before post-build.sh."""
    for name in ("etc", "root", "usr/bin", "sbin", "run"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for name, text in (("passwd", PASSWD), ("group", GROUP), ("shadow", SHADOW), ("shells", "/bin/sh\n")):
        (target / "etc" / name).write_text(text)
    for path in ("usr/bin/python3", "usr/bin/stack-shell", "sbin/stack.py"):
        if not (target / path).exists():
            (target / path).write_text("#!/bin/sh\n")
        (target / path).chmod(0o755)
    (target / "etc/dropbear").symlink_to("/var/run/dropbear")
    (target / "etc/wpa_supplicant.conf").write_text(
        "ctrl_interface=/var/run/wpa_supplicant\nap_scan=1\n\nnetwork={\n  key_mgmt=NONE\n}\n"
    )


def in_tree(target: Path, code: str, python: str = PYTHON) -> subprocess.CompletedProcess[str]:
    """Run a few lines as an installed tree's Python would, with its own users."""
    head = f"""
import sys
sys.path.insert(0, "{target}/usr/lib/stack")
from tables import accounts, load as tables
accounts.read_accounts.__defaults__ = ("{target}/etc",)
"""
    return run(python, "-ESB", "-c", head + code)


def plan(target: Path, profile: str, python: str = PYTHON) -> subprocess.CompletedProcess[str]:
    """`stack.py --plan` of an installed tree."""
    return in_tree(target, f"import stack\nsys.exit(stack.main(['--plan', 'stack.profile={profile}'], 0.0))", python)


def rules(target: Path) -> list[str]:
    """What follows when a device comes, of what is started."""
    return in_tree(target, "print(*(row.start for row in tables.load({'stack.profile': 'image'}).RULES))").stdout.split()


def services(text: str) -> set[str]:
    return {line.split()[1] for line in text.splitlines() if line.startswith(("service ", "template "))}


def test_the_package_installs_what_the_target_starts(tmp_path: Path) -> None:
    target = install(tmp_path, "WIFI", "GPS", "UPLINK")
    launcher = (target / "sbin/stack.py").read_text()
    assert launcher.startswith("#!/usr/bin/python3 -ESB\n")
    assert 'sys.path.insert(0, "/usr/lib/stack")' in launcher
    assert (target / "usr/lib/stack/pid1.bundle").exists()
    pth = (target / "usr/lib/python3.14/site-packages/stack.pth").read_text()
    assert pth == 'import sys; sys.path.insert(0, "/usr/lib/stack/names")\n'
    lib = target / "usr/lib/stack"
    assert {path.name for path in lib.glob("*.py")} == {path.name for path in ROOT.glob("*.py")}
    for folder in (path.name for path in lib.iterdir() if path.is_dir() and path.name not in ("__pycache__", "data", "names")):
        ours = {path.name for path in (ROOT / folder).glob("*.py")} if folder != "laptop" else {"broker.py"}
        assert {path.name for path in (lib / folder).glob("*.py")} == ours | ({"image.py"} if folder == "profiles" else set())
    for path in lib.rglob("*.py"):
        assert list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")), f"{path.name} has no byte code"
    done = plan(target, "image")
    assert (done.returncode, done.stderr) == (0, ""), "a row does not fit Buildroot's users and groups"
    usual = services(plan(target, "").stdout) - {"ntpd", "console"}
    assert services(done.stdout) == usual | {"chronyd", "wifi_scan", "trial"}
    assert "makestep 1 3 rtcsync" in done.stdout


def test_the_default_table_alone_fits_buildroot(tmp_path: Path) -> None:
    done = plan(install(tmp_path, "WIFI", "GPS", "UPLINK"), "")
    assert (done.returncode, done.stderr) == (0, ""), "no group of Debian's is needed"


def test_rows_of_what_was_left_out_are_not_there(tmp_path: Path) -> None:
    target = install(tmp_path)
    done = plan(target, "image")
    assert (done.returncode, done.stderr) == (0, "")
    assert not services(done.stdout) & {"wpa_supplicant", "wifi_scan", "wifi_analyzer", "gps@", "fakegps", "uplink"}
    assert {"dropbear", "broker", "network", "hotplug", "storage", "chronyd"} <= services(done.stdout)
    assert rules(target) == []
    assert rules(install(tmp_path / "whole", "WIFI", "GPS", "UPLINK")) == ["gps@{devname}"] * 2


def test_an_emulated_machine_loads_no_modules(tmp_path: Path) -> None:
    target = install(tmp_path, "GPS", "UPLINK")
    shutil.copytree(BOARD / "qemu/overlay", target, dirs_exist_ok=True)
    assert "module    brcmfmac" in plan(target, "image").stdout
    done = plan(target, "image,emulated")
    assert (done.returncode, done.stderr) == (0, "")
    assert "module    " not in done.stdout


def test_without_sources_pid_1_starts_and_what_is_run_by_its_path_does_not(tmp_path: Path) -> None:
    """Why the image keeps our sources: BR2_PACKAGE_PYTHON3_PYC_ONLY is for /usr/lib/python3 alone, and must not be copied."""
    target = install(tmp_path, "WIFI", "GPS", "UPLINK")
    lib = target / "usr/lib/stack"
    for path in list(lib.rglob("__pycache__")):
        shutil.rmtree(path)
    assert run(PYTHON, "-m", "compileall", "-q", "-b", "--invalidation-mode", "unchecked-hash", lib).returncode == 0
    for path in lib.rglob("*.py"):
        if path != lib / "profiles/image.py":
            path.unlink()
    done = plan(target, "image")
    assert (done.returncode, done.stderr) == (0, "")
    argv = [
        word
        for line in done.stdout.splitlines()
        for word in line.split()
        if word.startswith(f"{lib}/") and word.endswith(".py")
    ]
    assert argv
    assert not [path for path in argv if Path(path).exists()], "apps are named by their sources"
    (lib / "profiles/image.py").unlink()
    done = plan(target, "image")
    assert done.returncode == 1
    assert "profile image" in done.stderr, "a profile is read as a source"


def test_pid_1_starts_where_the_standard_library_is_byte_code_alone(tmp_path: Path) -> None:
    """BR2_PACKAGE_PYTHON3_PYC_ONLY, Buildroot's default: .pyc in place of .py, no __pycache__."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    source = Path(os.__file__).parent
    library = tmp_path / "usr/lib" / version
    for path in [
        *source.glob("*.py"),
        *(one for name in ("encodings", "importlib", "collections", "ctypes") for one in (source / name).rglob("*.py")),
    ]:
        (library / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, library / path.relative_to(source))
    if (source / "lib-dynload").exists():
        (library / "lib-dynload").symlink_to(source / "lib-dynload")
    run(PYTHON, "-m", "compileall", "-q", "-b", library)
    for path in library.rglob("*.py"):
        path.unlink()
    (tmp_path / "usr/bin").mkdir()
    python = str(shutil.copy(os.path.realpath(PYTHON), tmp_path / "usr/bin" / version))
    told = run(python, "-ESB", "-c", "import graphlib; print(graphlib.__file__)")
    if told.stdout.strip() != f"{library}/graphlib.pyc":
        pytest.skip(f"this Python finds its library elsewhere: {told.stdout}{told.stderr}")
    done = plan(install(tmp_path / "board", "WIFI", "GPS", "UPLINK"), "image", python)
    assert (done.returncode, done.stderr) == (0, "")


# --- post-build.sh ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def target(tmp_path: Path) -> Path:
    skeleton(tmp_path / "target")
    return tmp_path / "target"


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and content, or goal, of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        text = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (stat.S_IMODE(path.lstat().st_mode), text)
    return found


def post_build(target: Path) -> subprocess.CompletedProcess[str]:
    return run(BOARD / "post-build.sh", target)


def test_post_build_makes_a_board_of_a_tree(target: Path) -> None:
    done = post_build(target)
    assert (done.returncode, done.stderr) == (0, "")
    etc = target / "etc"
    assert (etc / "passwd").read_text() == PASSWD.replace("/root:/bin/sh", "/root:/usr/bin/stack-shell")
    assert (etc / "shells").read_text() == "/bin/sh\n/usr/bin/stack-shell\n"
    links = {path: os.readlink(target / path) for path in ("var/run", "etc/resolv.conf", "etc/dropbear", "root/.ssh")}
    assert links == {
        "var/run": "../run", "etc/resolv.conf": settings.RESOLV_CONF, "etc/dropbear": "/var/lib/dropbear", "root/.ssh": OWNERS,
    }  # fmt: skip
    assert links["etc/dropbear"] in [row.path for row in settings.DIRECTORIES]
    modes = {path: stat.S_IMODE((target / path).stat().st_mode) for path in ("root", "etc/shadow", "var/tmp")}
    assert modes == {"root": 0o700, "etc/shadow": 0o600, "var/tmp": 0o1777}


def test_keys_of_an_overlay_stay(target: Path) -> None:
    (target / "root/.ssh").mkdir()
    (target / "root/.ssh/authorized_keys").write_text("ssh-ed25519 AAAA\n")
    for _ in range(2):
        assert post_build(target).returncode == 0
        assert (target / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA\n"
        assert stat.S_IMODE((target / "root/.ssh").lstat().st_mode) == 0o700


def test_no_open_network_is_joined(target: Path) -> None:
    """Buildroot's wpa_supplicant has a configuration that joins any, and it would be read as the owner's."""
    path = target / settings.WIFI_CONFIG.lstrip("/")
    assert "key_mgmt=NONE" in path.read_text()
    post_build(target)
    assert os.readlink(path) == f"{OWNERS}/wpa_supplicant.conf"


def test_post_build_changes_nothing_the_second_time(target: Path) -> None:
    post_build(target)
    before = contents(target)
    assert post_build(target).returncode == 0
    assert contents(target) == before


@pytest.mark.parametrize(
    "shadow",
    ["root:::::::\n", "root:$5$salt$hash:::::::\n", "root:*:::::::\nuser:$1$a$b:::::::\n", "root:*:::::::\nuser:::::::\n"],
)
def test_whoever_could_log_in_by_password_ends_the_build(target: Path, shadow: str) -> None:
    (target / "etc/shadow").write_text(shadow)
    done = post_build(target)
    assert done.returncode == 1
    assert "a password would let in: " in done.stderr


@pytest.mark.parametrize("path", ["usr/bin/python3", "sbin/stack.py"])
def test_a_tree_without_pid_1_ends_the_build(target: Path, path: str) -> None:
    (target / path).unlink()
    done = post_build(target)
    assert done.returncode == 1
    assert f"there is no /{path} in" in done.stderr


# --- post-image.sh ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def images(tmp_path: Path) -> Path:
    """What Buildroot leaves for a Raspberry Pi 4."""
    needs("genimage", "mcopy", "mkfs.vfat", "mke2fs", "mksquashfs", "sfdisk")
    folder = tmp_path / "images"
    (folder / "rpi-firmware/overlays").mkdir(parents=True)
    for name in (
        "Image",
        "bcm2711-rpi-4-b.dtb",
        "rpi-firmware/start4.elf",
        "rpi-firmware/fixup4.dat",
        "rpi-firmware/overlays/ramoops.dtbo",
    ):
        (folder / name).write_text(name)
    shutil.copy(BOARD / "raspberrypi/config_64.txt", folder / "rpi-firmware/config.txt")
    shutil.copy(BOARD / "raspberrypi/cmdline.txt", folder / "rpi-firmware/cmdline.txt")
    squash(folder, b"root")
    return folder


def squash(folder: Path, content: bytes) -> None:
    (folder / "tree").mkdir()
    (folder / "tree/file").write_bytes(content)
    run("mksquashfs", folder / "tree", folder / "rootfs.squashfs", "-quiet", "-no-progress", "-comp", "xz")
    shutil.rmtree(folder / "tree")


def post_image(images: Path) -> subprocess.CompletedProcess[str]:
    return run(BOARD / "post-image.sh", images)


def partitions(images: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("sfdisk", "-J", images / "sdcard.img").stdout)["partitiontable"]["partitions"]
    return found


def listing(images: Path, name: str = "boot.vfat") -> set[str]:
    return set(run("mdir", "-/", "-b", "-i", images / name, "::").stdout.replace("::/", "").split("\n")) - {""}


def test_post_image_makes_a_card(images: Path) -> None:
    done = post_image(images)
    assert done.returncode == 0, done.stderr
    assert f"the root has {(images / 'rootfs.squashfs').stat().st_size} bytes of at most 67108864" in done.stdout
    firmware = {"start4.elf", "fixup4.dat", "cmdline.txt", "cmdline_b.txt", "config.txt", "overlays/", "overlays/ramoops.dtbo"}
    assert listing(images) == {"Image", "bcm2711-rpi-4-b.dtb", *firmware}
    assert listing(images, "owner.vfat") == {"README.txt", "autoboot.txt"}
    boot, boot_a, boot_b, extended, root_a, root_b, data = partitions(images)
    assert [row["type"] for row in (boot, boot_a, boot_b, extended, root_a, root_b, data)] == [
        "c",
        "c",
        "c",
        "f",
        "83",
        "83",
        "83",
    ]
    assert boot["bootable"] is True
    assert [row["start"] % 2048 for row in (boot, boot_a, boot_b, root_a, root_b, data)] == [0] * 6
    assert {row["node"][-1] for row in (root_a, root_b)} == {str(number) for number in ROOT_OF.values()}
    assert {row["node"][-1] for row in (boot_a, boot_b)} == {str(number) for number in BOOT_OF}
    card = (images / "sdcard.img").read_bytes()
    content, slot = (images / "rootfs.squashfs").read_bytes(), (images / "boot.vfat").read_bytes()
    for root, its in ((root_a, boot_a), (root_b, boot_b)):
        assert root["size"] * 512 == 64 << 20, "room for any root that the limit lets through"
        assert card[root["start"] * 512 :][: len(content)] == content
        assert card[its["start"] * 512 :][: len(slot)] == slot, "one image serves both slots"
    label = run("blkid", "-p", "-o", "export", "-O", str(boot["start"] * 512), images / "sdcard.img").stdout
    assert "LABEL=BOOT\n" in label
    assert "TYPE=vfat\n" in label


def test_each_slot_starts_with_its_own_root(images: Path) -> None:
    """The firmware reads config.txt from the partition that autoboot.txt names (config_txt/conditional.adoc: [boot_partition=N])."""
    for _ in range(2):  # a second build adds nothing
        assert post_image(images).returncode == 0
    config = run("mtype", "-i", images / "boot.vfat", "::config.txt").stdout
    assert config.endswith("[boot_partition=3]\ncmdline=cmdline_b.txt\n[all]\n")
    assert config.count("cmdline=") == 1
    lines = [run("mtype", "-i", images / "boot.vfat", f"::{name}").stdout for name in ("cmdline.txt", "cmdline_b.txt")]
    roots = [next(word for word in line.split() if word.startswith("root=")) for line in lines]
    assert roots == [f"root=/dev/mmcblk0p{number}" for number in ROOT_OF.values()]
    assert lines[0].replace(roots[0], roots[1]) == lines[1]


def test_the_rom_of_an_older_board_finds_its_next_stage(images: Path) -> None:
    (images / "rpi-firmware/bootcode.bin").write_text("bootcode")
    assert post_image(images).returncode == 0
    assert listing(images, "owner.vfat") == {"README.txt", "autoboot.txt", "bootcode.bin"}


def test_the_data_partition_can_grow_to_a_large_card(images: Path) -> None:
    post_image(images)
    head = dict(re.findall(r"^(.+?): +(.+)$", run("dumpe2fs", "-h", images / "data.ext4").stdout, re.M))
    assert f"LABEL={head['Filesystem volume name']}" == settings.DATA[0]
    assert head["Block size"] == "4096"
    assert {"has_journal", "resize_inode", "64bit", "extent"} <= set(head["Filesystem features"].split())
    assert partitions(images)[-1]["start"] == max(row["start"] for row in partitions(images)), "nothing stands behind it"
    with (images / "data.ext4").open("ab") as file:
        file.truncate(64 << 30)
    done = run("resize2fs", images / "data.ext4")
    assert done.returncode == 0, done.stderr
    assert run("e2fsck", "-f", "-n", images / "data.ext4").returncode == 0


def test_an_emulated_machine_has_the_same_card(images: Path) -> None:
    shutil.rmtree(images / "rpi-firmware")
    (images / "bcm2711-rpi-4-b.dtb").unlink()
    (images / "Image").rename(images / "bzImage")
    done = post_image(images)
    assert done.returncode == 0, done.stderr
    assert (listing(images), listing(images, "owner.vfat")) == ({"bzImage"}, {"README.txt"})
    assert [row["type"] for row in partitions(images)] == ["c", "c", "c", "f", "83", "83", "83"]


def test_it_is_made_again_over_an_older_one(images: Path) -> None:
    post_image(images)
    (images / "rpi-firmware/start4.elf").write_text("newer")
    assert post_image(images).returncode == 0
    assert run("mtype", "-i", images / "boot.vfat", "::start4.elf").stdout == "newer"


def test_a_root_that_is_too_large_ends_the_build(images: Path) -> None:
    with (images / "rootfs.squashfs").open("ab") as file:
        file.truncate((64 << 20) + 1)
    done = post_image(images)
    assert done.returncode == 1
    assert "the root has 67108865 bytes, which is 1 more than a slot's root on the card (67108864)" in done.stderr
    assert not (images / "sdcard.img").exists()


@pytest.mark.parametrize(("path", "words"), [("rootfs.squashfs", "BR2_TARGET_ROOTFS_SQUASHFS"), ("Image", "no kernel Image")])
def test_what_is_missing_is_named(images: Path, path: str, words: str) -> None:
    (images / path).unlink()
    done = post_image(images)
    assert done.returncode == 1
    assert words in done.stderr


def test_the_card_tells_what_may_be_put_on_it() -> None:
    text = (BOARD / "README.txt").read_bytes()
    assert text.isascii()
    words = text.decode()
    for name in ("authorized_keys", "settings_prod.py", "wpa_supplicant.conf", "ca.pem", "board.pem", "board.key"):
        assert re.search(rf"^{re.escape(name)} ", words, re.M), name
    for name in re.findall(r"\b([A-Z][A-Z_]+) = ", words):
        assert hasattr(settings, name)


# --- scripts, and the Makefile ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path: Path) -> None:
    needs("shellcheck")
    done = run("shellcheck", path)
    assert done.returncode == 0, done.stdout
    assert os.access(path, os.X_OK)


def test_run_starts_what_was_built(tmp_path: Path) -> None:
    """An emulator that tells what it was called with, one argument a line."""
    for arch in ("x86_64", "aarch64"):
        (tmp_path / f"qemu-system-{arch}").write_text(f'#!/bin/sh\necho {arch}\nprintf "%s\\n" "$@"\n')
        (tmp_path / f"qemu-system-{arch}").chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    done = run(BOARD / "qemu/run.sh", tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (1, f"run.sh: there is neither Image nor bzImage in {tmp_path}\n")
    for arch, kernel in (("x86_64", "bzImage"), ("aarch64", "Image")):
        (tmp_path / kernel).touch()
        words = run(BOARD / "qemu/run.sh", tmp_path, "-snapshot", env=environment).stdout.splitlines()
        assert words[0] == arch
        assert words[words.index("-kernel") + 1] == f"{tmp_path}/{kernel}"
        assert words[words.index("-append") + 1] == (BOARD / f"qemu/cmdline_{arch}.txt").read_text().strip()
        assert f"if=none,id=card,format=raw,file={tmp_path}/sdcard.img" in words
        assert "-snapshot" in words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "image: no board ''; say BOARD= and one of qemu_aarch64 "),
        (("BOARD=raspberrypi9",), "image: no board 'raspberrypi9'; say BOARD= and one of "),
        (("BOARD=raspberrypi4_64", "BUILDROOT="), "image: no Buildroot in ''; say BUILDROOT= and the path of a checkout"),
        (
            ("BOARD=raspberrypi4_64", "BUILDROOT=/usr"),
            "image: no Buildroot in '/usr'; say BUILDROOT= and the path of a checkout",
        ),
    ],
)
def test_make_image_says_what_is_wrong(words: tuple[str, ...], sentence: str) -> None:
    done = run("make", "-s", "-C", ROOT, "image", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "BUILDROOT" in sentence or all(board in done.stderr for board in BOARDS)


def test_make_image_starts_buildroot_without_our_variables(tmp_path: Path) -> None:
    """A Buildroot of a few lines, which tells what it was called with."""
    (tmp_path / "support/kconfig").mkdir(parents=True)
    (tmp_path / "support/kconfig/merge_config.sh").touch()
    (tmp_path / "Makefile").write_text(
        '%:\n\t@echo "$@ O=$(O) external=$(BR2_EXTERNAL) board=$(BOARD)$$BOARD"\nall:\n\t@echo "all O=$(O) board=$(BOARD)$$BOARD"\n'
    )
    (tmp_path / "Makefile").write_text(".DEFAULT_GOAL = all\n" + (tmp_path / "Makefile").read_text())
    done = run(
        "make",
        "-s",
        "-C",
        ROOT,
        "image",
        "BOARD=raspberrypi2",
        f"BUILDROOT={tmp_path}",
        f"CARDS={tmp_path}/out",
        "FORCE_UNSAFE_CONFIGURE=1",
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "O=" in line]
    assert lines == [f"stack_raspberrypi2_defconfig O={tmp_path}/out external={TREE} board=", f"all O={tmp_path}/out board="]


# --- what Buildroot says -------------------------------------------------------------------------------------------------------
buildroot = pytest.mark.skipif(not BUILDROOT, reason="BUILDROOT in the environment is not the path of a checkout")


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """configured(board): its output folder, made once."""
    made: dict[str, Path] = {}

    def configure(board: str) -> Path:
        if board not in made:
            made[board] = tmp_path_factory.mktemp(board)
            done = make(made[board], f"stack_{board}_defconfig")
            assert (done.returncode, done.stderr) == (0, ""), "Kconfig complains"
        return made[board]

    yield configure


def make(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("BUILDROOT", "MAKEFLAGS")}
    return run("make", "-s", "-C", BUILDROOT, f"O={out}", f"BR2_EXTERNAL={TREE}", *words, env=environment)


@buildroot
@pytest.mark.timeout(300)
@pytest.mark.parametrize("board", BOARDS)
def test_buildroot_takes_every_line_and_saves_the_same(configured: Any, board: str, tmp_path: Path) -> None:
    out = configured(board)
    done = run(f"{BUILDROOT}/support/scripts/check-dotconfig.py", out / ".config", compose.stored(board))
    assert (done.returncode, done.stdout) == (0, "")
    assert make(out, "savedefconfig", f"DEFCONFIG={tmp_path}/saved").returncode == 0
    assert (tmp_path / "saved").read_bytes() == compose.stored(board).read_bytes()


RUNTIME = (
    "busybox ca-certificates chrony dropbear e2fsprogs eudev kmod mosquitto python-paho-mqtt python-pyroute2 python-pyudev python3 readline "
    "skeleton-init-none sqlite swupdate util-linux"
).split()


@buildroot
@pytest.mark.timeout(300)
@pytest.mark.parametrize("board", BOARDS)
def test_buildroot_knows_the_package_and_what_it_needs(configured: Any, board: str) -> None:
    done = make(configured(board), "show-info")
    assert done.returncode == 0, done.stderr
    packages = json.loads(done.stdout)
    assert set(RUNTIME) <= packages.keys()
    assert {"host-python3", "python3", "skeleton", "toolchain"} <= set(packages["stack"]["dependencies"])
    assert packages["stack"]["licenses"] == "MIT"
    assert not {"tzdata", "bash", "systemd", "sysvinit", "initscripts"} & packages.keys()
    radio = "BR2_PACKAGE_STACK_WIFI" not in compose.stored(board).read_text()
    assert ({"wpa_supplicant", "wireless-regdb"} <= packages.keys()) == radio
    assert ("rpi-firmware" in packages) == board.startswith("raspberrypi")
    settled = (configured(board) / ".config").read_text()
    for line in ("BR2_PACKAGE_PYTHON3_CURSES=y", "BR2_PACKAGE_UTIL_LINUX_PARTX=y", "BR2_PACKAGE_E2FSPROGS_RESIZE2FS=y"):
        assert line in settled
    assert "BR2_TARGET_TZ_INFO=y" not in settled


UDEV = "BR2_ROOTFS_DEVICE_CREATION_DYNAMIC_EUDEV=y"
OFFERED = {
    "glibc": (True, "BR2_INIT_NONE=y", UDEV),
    "musl": (True, "BR2_INIT_NONE=y", UDEV, "BR2_TOOLCHAIN_BUILDROOT_MUSL=y"),
    "uclibc": (True, "BR2_INIT_NONE=y", UDEV, "BR2_TOOLCHAIN_BUILDROOT_UCLIBC=y", "BR2_TOOLCHAIN_BUILDROOT_WCHAR=y"),
    "no wide characters": (False, "BR2_INIT_NONE=y", UDEV, "BR2_TOOLCHAIN_BUILDROOT_UCLIBC=y"),
    "no threads": (
        False, "BR2_INIT_NONE=y", UDEV, "BR2_TOOLCHAIN_BUILDROOT_UCLIBC=y", "BR2_TOOLCHAIN_BUILDROOT_WCHAR=y",
        "BR2_PTHREADS_NONE=y",
    ),
    "static": (False, "BR2_INIT_NONE=y", UDEV, "BR2_TOOLCHAIN_BUILDROOT_MUSL=y", "BR2_STATIC_LIBS=y"),
    "no udev": (False, "BR2_INIT_NONE=y"),
    "another init": (False, UDEV),
}  # fmt: skip


@buildroot
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", OFFERED)
def test_buildroot_offers_us_only_where_all_that_we_select_is_met(case: str, tmp_path: Path) -> None:
    """Otherwise Kconfig selects it all the same, and says `unmet direct dependencies`."""
    offered, *lines = OFFERED[case]
    (tmp_path / "parts").write_text("\n".join(["BR2_x86_64=y", *map(str, lines), "BR2_PACKAGE_STACK=y"]) + "\n")
    done = make(tmp_path / "out", "defconfig", f"DEFCONFIG={tmp_path}/parts")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("BR2_PACKAGE_STACK=y" in (tmp_path / "out/.config").read_text().splitlines()) == offered


@buildroot
@pytest.mark.timeout(300)
def test_buildroot_extracts_the_package(configured: Any) -> None:
    done = make(configured("qemu_x86_64"), "stack-extract")
    assert done.returncode == 0, done.stderr
    found = {path.name for path in (configured("qemu_x86_64") / "build/stack-local").iterdir()}
    assert {"Makefile", "LICENSE", "stack.py", "settings.py", "buildroot"} <= found
    assert not found & {".venv", "build", ".git", "__pycache__", ".mypy_cache"}


@buildroot
@pytest.mark.timeout(300)
def test_buildroot_has_every_symbol_that_we_name() -> None:
    known = set()
    for path in [*Path(BUILDROOT).rglob("Config.in*"), *(TREE / "package").rglob("Config.in")]:
        known |= set(re.findall(r"^\s*(?:menu)?config (BR2_\w+)", path.read_text(errors="replace"), re.M))
    named = {compose.symbol(line) for board in BOARDS for line in compose.lines(board)}
    named |= set(re.findall(r"BR2_\w+", (TREE / "package/stack/Config.in").read_text())) - {"BR2_EXTERNAL_STACK_PATH"}
    assert not named - known


@buildroot
@pytest.mark.timeout(300)
def test_buildroot_likes_our_files() -> None:
    if importlib.util.find_spec("magic") is None or importlib.util.find_spec("flake8") is None:
        pytest.skip("check-package needs python-magic and flake8")
    files = [ROOT / name for name in run("git", "ls-files", "buildroot", cwd=ROOT).stdout.split()]
    path = f"{Path(PYTHON).parent}:{ENVIRONMENT['PATH']}"
    done = run(PYTHON, "utils/check-package", "-b", *files, cwd=BUILDROOT, env={**ENVIRONMENT, "PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr


@buildroot
@pytest.mark.timeout(300)
def test_what_we_say_of_buildroots_skeleton_is_so() -> None:
    etc = Path(BUILDROOT, "system/skeleton/etc")
    for name, text in (("passwd", PASSWD), ("group", GROUP)):
        stored = (etc / name).read_text().splitlines()
        assert [line for line in text.splitlines() if line not in stored and not line.startswith("chrony:")] == []
    assert "nogroup" not in (etc / "group").read_text()
    assert "key_mgmt=NONE" in Path(BUILDROOT, "package/wpa_supplicant/wpa_supplicant.conf").read_text()
    assert "$(TARGET_DIR)/usr/lib/python$(PYTHON3_VERSION_MAJOR)" in Path(BUILDROOT, "package/python3/python3.mk").read_text()
    busybox = Path(BUILDROOT, "package/busybox/busybox.config").read_text().splitlines()
    assert {"CONFIG_SYSLOGD=y", "CONFIG_KLOGD=y", "CONFIG_GETTY=y", "# CONFIG_NTPD is not set"} <= set(busybox)
