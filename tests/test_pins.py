"""Requirements: whoever stands between us and the index can put nothing else in the place of a library."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = sorted(ROOT.glob("requirements*.txt"))


def pins(path: Path) -> dict[str, list[tuple[Requirement, int]]]:
    """Every requirement of a file and of those that it includes, with the number of its hashes."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("-r "):
            for name, others in pins(ROOT / line[3:]).items():
                found.setdefault(name, []).extend(others)
        else:
            words, *hashes = line.split("--hash=sha256:")
            assert all(re.fullmatch(r"[0-9a-f]{64} *", one) for one in hashes), line
            requirement = Requirement(words)
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_requirement_has_one_version_and_a_hash(path: Path) -> None:
    for name, found in pins(path).items():
        assert all(re.fullmatch(r"==[0-9][^,]*", str(requirement.specifier)) for requirement, _ in found), name
        assert all(hashes for _, hashes in found), f"{name} has no hash: make pins"
        assert all(requirement.url is None for requirement, _ in found)
    assert "://" not in path.read_text(), "which index is asked is pip's own setting"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_requirement_needs_has_a_hash_too(path: Path) -> None:
    """As far as it is installed here: pip would refuse the file where one is missing."""
    here = {
        name: requirement for name, found in pins(path).items() for requirement, _ in found
        if requirement.marker is None or requirement.marker.evaluate()
    }  # fmt: skip
    for requirement in here.values():
        try:
            needs = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if need.marker is None or any(need.marker.evaluate(extra) for extra in extras):
                assert canonicalize_name(need.name) in here, f"{requirement.name} needs {need}: make pins"


def test_pip_is_told_to_insist() -> None:
    for script in ("setup.sh", "install_board.sh"):
        for line in (ROOT / script).read_text().splitlines():
            assert "pip install" not in line or "-r " not in line or "--require-hashes" in line, line
