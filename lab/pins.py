"""`make pins`: writes the hashes of requirements*.txt again, after a version in one of them has been changed by hand.

In each file the libraries that we chose stand first. What those need in turn follows below the mark, with a version too.
Every wheel and source archive of a version is listed, so that one file fits all processors and Pythons. It takes `uv`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "# What those need in turn."
PIN = re.compile(r"^([A-Za-z0-9._-]+)(\[[^]]+\])?==(\S+)( ; [^\\]*?)?(?: \\)?$")


def chosen(path: Path) -> list[str]:
    """The lines of a file without hashes and without what stands below the mark."""
    lines = path.read_text().split(MARK)[0].splitlines()
    return [line.removesuffix(" \\") for line in lines if not line.startswith("    --hash")]


def included(path: Path) -> list[Path]:
    """The files that a file names by `-r`, and those that they name."""
    found = [ROOT / line[3:] for line in chosen(path) if line.startswith("-r ")]
    return [one for direct in found for one in (direct, *included(direct))]


def plain(name: str) -> str:
    """A name as the index knows it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def compiled(files: list[Path], constraints: str = "") -> dict[str, list[str]]:
    """Each library of these files and all that they need, with hashes, by its name."""
    text = "".join(f"{line}\n" for path in files for line in chosen(path) if not line.startswith("-r "))
    limits = ROOT / "build" / "pins-constraints.txt"
    limits.parent.mkdir(exist_ok=True)
    limits.write_text(constraints)
    words = "uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate".split()
    words += ["--no-strip-extras", "--no-emit-index-url", "--no-emit-find-links", "-c", str(limits), "-"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"pins: uv could not solve {', '.join(path.name for path in files)}:\n{done.stderr}")
    found: dict[str, list[str]] = {}
    for block in re.findall(r"^\S.*(?:\n    .*)*", done.stdout, re.M):
        match = PIN.match(block.split("\n")[0])
        if match is None:
            sys.exit(f"pins: uv wrote {block!r}")
        found.setdefault(plain(match[1]), []).append(block)
    return found


def written(path: Path, pins: dict[str, list[str]]) -> str:
    """A file with its hashes: what it chose, then what that needs, without what the files that it includes have already."""
    own = {plain(match[1]) for line in chosen(path) if (match := PIN.match(line))}
    have = {line for one in included(path) for line in one.read_text().splitlines()}
    lines = []
    for line in chosen(path):
        match = PIN.match(line)
        lines += pins[plain(match[1])] if match else [line]
    needed = [block for name in sorted(pins.keys() - own) for block in pins[name]]
    rest = [block for block in needed if block.split("\n")[0] not in have]
    return "\n".join(lines + ([MARK, *rest] if rest else [])) + "\n"


def main() -> None:
    """Each file, after those that it includes."""
    files = sorted(ROOT.glob("requirements*.txt"), key=lambda path: len(included(path)))
    everything = compiled(files)  # one version of each library in all files
    first = [block.splitlines()[0].removesuffix(" \\") for blocks in everything.values() for block in blocks]
    constraints = "".join(f"{line}\n" for line in first)
    constraints = re.sub(r"\[[^]]+\](?===)", "", constraints)
    for path in files:
        text = written(path, compiled([path, *included(path)], constraints))
        path.write_text(text)
        print(f"pins: {path.name} has {text.count('--hash')} hashes")


if __name__ == "__main__":
    main()
