"""What `make install` puts on a board: modes, the names on Python's path, and the one file with PID 1's code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SAYS = "import sys; sys.argv = ['stack.py']; exec(compile(open({launcher!r}).read().split('import stack')[0], 'launcher', 'exec'));"


def install(folder: Path, umask: int = 0o022, **variables: str) -> Path:
    """Install below `folder` for this Python; LIB there."""
    words = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "-s", "install", f"PREFIX={folder}", f"SBINDIR={folder}/sbin", f"TARGET_PYTHON={sys.executable}",
               f"INIT_PYTHON={sys.executable}", f"SITEDIR={folder}/site", *words]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, umask=umask, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "lib" / "stack"


def python(lib: Path, code: str) -> str:
    """What `code` prints after the first lines of the board's /sbin/stack.py."""
    launcher = SAYS.format(launcher=str(lib.parent.parent / "sbin" / "stack.py"))
    command = [sys.executable, "-ESB", "-c", f"{launcher} {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADER = "print(type(sys.modules['{}'].__spec__.loader).__name__)"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("board"))


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode for path in folder.rglob("*")}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(installed: Path, tmp_path: Path, umask: int) -> None:
    """000 made stack.pth and the byte code writable for everybody, 077 made both unreadable for the apps."""
    mine, usual = modes(install(tmp_path, umask).parent.parent), modes(installed.parent.parent)
    assert {name: oct(mode) for name, mode in mine.items()} == {name: oct(mode) for name, mode in usual.items()}
    assert not [name for name, mode in mine.items() if mode & 0o022]


def test_pid_1_loads_its_modules_from_one_file(installed: Path) -> None:
    ours = "[n for n, m in sys.modules.items() if str(getattr(m, '__file__', '')).startswith({!r})]".format(f"{installed}/")
    code = f"import stack; print(*(n for n in {ours} if type(sys.modules[n].__spec__.loader).__name__ != 'Finder'))"
    assert python(installed, code) == ""
    assert python(installed, f"import stack; print(len({ours}))") > "20"


def test_an_edit_on_the_board_runs_at_the_next_start(tmp_path: Path) -> None:
    """Also one that changes no size, which a clock that is wrong could hide."""
    lib = install(tmp_path)
    module = lib / "pid1" / "loop.py"
    module.write_text(module.read_text() + "\nEDITED = 1\n")
    assert python(lib, "import stack, pid1.loop; print(pid1.loop.EDITED)") == "1"
    module = lib / "pid1" / "process.py"
    text = module.read_text()
    assert "HOPELESS_FAILURES = 3" in text
    module.write_text(text.replace("HOPELESS_FAILURES = 3", "HOPELESS_FAILURES = 7"))
    os.utime(module, (2e9, 2e9))
    assert python(lib, "import stack, pid1.process; print(pid1.process.HOPELESS_FAILURES)") == "7"
    assert python(lib, "import stack; " + LOADER.format("pid1.process")) == "SourceFileLoader"
    assert python(lib, "import stack; " + LOADER.format("pid1.spawn")) == "Finder", "the others still come from the bundle"


def test_an_edit_of_an_apps_module_runs_too(tmp_path: Path) -> None:
    lib = install(tmp_path)
    module = lib / "bus.py"
    module.write_text(module.read_text().replace("import", "import", 1) + "\nEDITED = 1\n")
    code = f"import sys; sys.path.insert(0, {str(lib)!r}); import bus; print(bus.EDITED)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "1"


def test_an_image_whose_files_have_one_time_uses_the_bundle(tmp_path: Path) -> None:
    """Buildroot gives all files of a reproducible image the same time."""
    lib = install(tmp_path)
    for path in lib.rglob("*"):
        os.utime(path, (1.7e9, 1.7e9))
    assert python(lib, "import stack; " + LOADER.format("sv")) == "Finder"


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "of another Python", "noise"])
def test_without_a_good_bundle_the_sources_serve(tmp_path: Path, damage: str) -> None:
    lib = install(tmp_path)
    bundle = lib / "pid1.bundle"
    data = bundle.read_bytes()
    bundle.unlink()
    if damage != "gone":
        changed = {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "of another Python": b"\0\0\0\0" + data[4:],
            "noise": data[:4] + b"x" * 999,
        }
        bundle.write_bytes(changed[damage])
    assert python(lib, "import stack; " + LOADER.format("sv")) == "SourceFileLoader"


def test_a_traceback_from_the_bundle_names_file_and_line(installed: Path) -> None:
    code = "import stack, traceback\ntry: stack.parse_options(5)\nexcept TypeError: print(traceback.format_exc())"
    printed = python(installed, f"exec({code!r})")
    assert f'File "{installed}/pid1/options.py", line' in printed
    assert "for name, equals, value in" in printed, "with the line itself"


def test_an_installed_module_of_the_same_name_hides_none_of_ours(installed: Path, tmp_path: Path) -> None:
    """On every Python's path of a board are four names of ours alone; what they import is not searched in site-packages."""
    for name in ("control", "tables", "base", "board", "onboard", "prompt", "services", "network", "bus", "sv"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('somebody else’s')")
    pth = (installed.parent.parent / "site" / "stack.pth").read_text()
    code = f"import sys; sys.path.append({str(tmp_path)!r}); exec({pth!r}); from sv import *; from bus import Bus; print(stats_process.__name__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("stats_process", "")


def test_our_own_programs_find_the_modules_themselves(installed: Path) -> None:
    """Their PYTHONPATH stands behind what the .pth file puts first: the names imported themselves without end."""
    pth = (installed.parent.parent / "site" / "stack.pth").read_text()
    code = f"import sys; exec({pth!r}); import settings, bus; print(settings.__file__)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(installed)})
    assert (done.stdout.strip(), done.stderr) == (f"{installed}/settings.py", "")


def test_our_folders_hide_nobodys_module(installed: Path, tmp_path: Path) -> None:
    """An app of somebody else may well have a module `tables` or `network`."""
    (tmp_path / "tables.py").write_text("theirs = 1")
    pth = (installed.parent.parent / "site" / "stack.pth").read_text()
    code = f"import sys; sys.path.append({str(tmp_path)!r}); exec({pth!r}); import tables; print(tables.theirs)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "1"
