"""The rules of the house are executable: who imports what, names, sizes, linters, and what may not be written."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PYTHON, ROOT

OURS = {path.stem for path in ROOT.glob("*.py")}
PID1 = set(
    "lean native rows settings _log syscalls cgroup clock spawn process loop logpipe readiness control events netrows rulerows servicerows tables templates relatives sv mounts rescue ending teardown watchdog stack".split()
)
# Who may import what of ours: each line only what stands above it, and of that what it names.
ALLOWED = {
    "lean": set(),
    "native": set(),
    "_log": set(),
    "rows": {"lean"},
    "settings": {"rows"},
    "settings_laptop": {"rows", "settings"},
    "settings_debian": {"rows", "settings"},
    "syscalls": {"lean", "native"},
    "durable": set(),
    "clock": {"durable", "native", "syscalls"},
    "seed": {"durable"},
    "loop": {"_log", "lean"},
    "process": {"_log", "lean", "rows"},
    "spawn": {"lean", "rows", "syscalls"},
    "netrows": {"lean", "rows"},
    "cgroup": {"_log", "lean", "syscalls"},
    "rulerows": {"lean", "netrows", "rows"},
    "servicerows": {"cgroup", "lean", "netrows", "process", "syscalls"},
    "control": {"_log", "lean", "loop", "syscalls"},
    "tables": {"control", "lean", "netrows", "process", "rows", "rulerows", "servicerows", "settings", "spawn"},
    "logpipe": {"lean", "loop"},
    "readiness": {"_log", "lean", "loop", "process", "syscalls"},
    "bootchart": {"lean"},
    "ending": {"lean"},
    "events": {"clock", "lean"},
    "prompt": {"bootchart", "cgroup", "control", "ending", "readiness", "settings"},
    "relatives": {"_log", "lean", "process", "spawn"},
    "templates": {"control", "lean", "process", "rows", "tables"},
    "sv": {
        "_log",
        "cgroup",
        "control",
        "lean",
        "logpipe",
        "loop",
        "process",
        "prompt",
        "readiness",
        "relatives",
        "rows",
        "spawn",
        "tables",
        "templates",
    },
    "mounts": {"lean", "rows", "spawn", "syscalls", "tables"},
    "rescue": {"control", "lean", "process", "syscalls"},
    "teardown": {"_log", "lean", "syscalls"},
    "watchdog": {"_log", "ending", "lean", "syscalls", "teardown"},
    "plan": {"lean", "tables"},
    "stack": {
        "_log",
        "clock",
        "control",
        "ending",
        "events",
        "lean",
        "loop",
        "mounts",
        "plan",
        "rescue",
        "rows",
        "spawn",
        "sv",
        "syscalls",
        "tables",
        "teardown",
        "watchdog",
    },
    "logd": {"lean", "native", "syscalls"},
    "wellformed": set(),
    "storage": {"ending", "lean", "mounts", "syscalls", "tables"},
    "bootrecord": {"durable", "ending", "lean", "mounts"},
    "keeper": {"bootrecord", "clock", "ending", "lean", "readiness", "seed"},
    "bus": {"_log", "clock", "settings"},
    "outbox": set(),
    "wire": set(),
    "commands": {"control", "outbox", "wire"},
    "uplink": {"bus", "clock", "commands", "control", "ending", "events", "outbox", "syscalls", "tables", "wire"},
    "supplicant": {"durable", "rows", "tables"},
    "bootfiles": {"control", "durable", "ending", "lean", "storage", "supplicant", "syscalls", "tables", "wellformed"},
    "links": {"netrows", "rows"},
    "netlink": {"links", "syscalls"},
    "network": {"bus", "control", "durable", "links", "netlink", "netrows", "supplicant", "tables"},
    "devices": {"rows"},
    "hotplug": {"bus", "control", "devices", "durable", "rows", "tables"},
    "fakegps": {"bus"},
    "gps": {"bus", "clock"},
    "wifi_scan": {"bus", "supplicant"},
    "wifi_analyzer": {"bus"},
    "diagnostic": {"bus", "ending", "sv"},
    "broker_amqtt": {"readiness"},
    "laptop": {"syscalls"},
}
APPS = {"uplink", "network", "hotplug", "gps", "fakegps", "wifi_scan", "wifi_analyzer", "diagnostic"} | (OURS - set(ALLOWED))
THIRD_PARTY = {"paho": "bus", "amqtt": "broker_amqtt", "pyroute2": "netlink", "pyudev": "hotplug"}
# What PID 1's own files may take from the standard library, besides __future__.
AFFORDABLE = {"gc", "faulthandler", "os", "sys", "time", "select", "errno", "fcntl", "ctypes", "graphlib", "resource", "_signal", "_socket", "_json",
              "_collections", "_frozen_importlib_external"}  # fmt: skip


def imports(name: str) -> set[str]:
    """Every module that a file of ours imports at run time: what only type checkers see does not count."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for otherwise in node.orelse:
                visit(otherwise)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found - {"__future__"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_imports_point_down(name: str) -> None:
    """A module that the table above does not know is an app."""
    assert imports(name) & OURS <= ALLOWED.get(name, {"_log", "bus", "settings", "sv"})
    order = list(ALLOWED)
    if name in ALLOWED:
        assert all(order.index(other) < order.index(name) for other in ALLOWED[name]), "a module stands above what it imports"


@pytest.mark.parametrize("name", sorted(PID1))
def test_pid_1_takes_only_what_it_can_afford(name: str) -> None:
    assert imports(name) - OURS <= AFFORDABLE | ({"logging"} if name == "_log" else set())  # for apps, when they ask for it


def test_what_pid_1_really_loads() -> None:
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; import stack; print(*sys.modules)"
    loaded = set(subprocess.run([PYTHON, "-ESB", "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert {name for name in loaded if name in OURS} == PID1 - {"settings"}
    dear = "json re enum typing collections logging socket signal subprocess asyncio dataclasses threading argparse"
    assert not set(dear.split()) & loaded
    assert "sysconfig" not in loaded


def test_who_needs_sysconfig_finds_the_real_one() -> None:
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; import native, sysconfig; print(sysconfig.get_path('purelib'))"
    for before in ("", "import sysconfig; "):
        assert subprocess.run([PYTHON, "-ESB", "-c", before + code], capture_output=True, text=True, check=True).stdout.strip()


def test_only_one_module_loads_ctypes() -> None:
    """What it does first comes too late after another's."""
    assert {name for name in OURS if "ctypes" in imports(name)} == {"laptop", "native"}


def test_apps_never_import_apps_and_nobody_imports_stack() -> None:
    for name in OURS:
        assert "stack" not in imports(name)
        if name in APPS:
            assert not imports(name) & APPS


def test_each_third_party_library_has_one_owner() -> None:
    for library, owner in THIRD_PARTY.items():
        assert {name for name in OURS if library in imports(name)} == {owner}
    outside = {module for name in OURS for module in imports(name)} - OURS - set(sys.stdlib_module_names)
    assert outside - set(THIRD_PARTY) <= {"_frozen_importlib_external"}


def test_no_file_takes_a_name_of_python() -> None:
    assert not OURS & set(sys.stdlib_module_names)
    for name in OURS:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert Path(str(spec.origin)).parent == ROOT, "an installed module has this name"


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_file_is_read_in_one_sitting(name: str) -> None:
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    assert len((ROOT / f"{name}.py").read_text().splitlines()) <= 480
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and not getattr(node, "name", "").startswith("_"):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} does not fit a screen"
            if not isinstance(node, ast.FunctionDef):
                assert ast.get_docstring(node), f"{getattr(node, 'name', name)} says nothing of itself"


def test_global_state_is_not_changed() -> None:
    for name in OURS:
        assert not [node for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())) if isinstance(node, ast.Global)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [("ruff", "check"), ("ruff", "format", "--check"), ("mypy", "*.py", "bench", "buildroot", "lab", "mothership", "tests")],
    ids=lambda command: " ".join(command),
)
def test_linters(command: tuple[str, ...]) -> None:
    words = [str(path) for word in command for path in (sorted(ROOT.glob(word)) if "*" in word else [word])]
    done = subprocess.run([PYTHON, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_repository_speaks_of_the_project_alone() -> None:
    """No registry's host name, no path of the machine that it was made on."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in files:
        text = (ROOT / name).read_text(errors="replace") if (ROOT / name).exists() else ""
        words = "pypi" + r"\.org|" + "python" + "hosted" + r"|deb\." + "debian|/" + "work/|" + "py" + "env"
        found = re.search(words, text)
        assert found is None, f"{name}: {found}"
