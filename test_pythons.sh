#!/bin/sh
# `make test-pythons`: the pure and namespace rings under each Python that is here, each in a copy of the tree with a virtual
# environment of its own (build/pythons/VERSION), so that .venv stays as it is. Versions, or paths of interpreters, are the
# arguments; what comes after -- goes to pytest. Without the linters: what they say does not depend on who runs the tests.
set -eu
cd "$(dirname "$0")"

find_python() { # on PATH, if it runs; or where people keep several
    for candidate in "$1" "python$1" "$HOME"/.*/versions/"$1"*/bin/"python$1" "$HOME"/.local/share/uv/python/*/bin/"python$1"; do
        case $candidate in [0-9]*) continue ;; esac # a version is no program
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
        return
    done
    return 1
}

versions=""
while [ $# -gt 0 ]; do
    case $1 in --) shift; break ;; *) versions="$versions $1" ;; esac
    shift
done
failed="" missing="" passed=""
for version in ${versions:-3.11 3.12 3.13 3.14}; do
    python=$(find_python "$version") || { missing="$missing $version"; continue; }
    name=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    copy=build/pythons/$name
    echo "== Python $name: $python"
    mkdir -p "$copy"
    find "$copy" -mindepth 1 -maxdepth 1 ! -name .venv ! -name build -exec rm -rf {} +
    git ls-files --cached --others --exclude-standard |
        while read -r file; do [ ! -e "$file" ] || echo "$file"; done | cpio -pdm --quiet "$copy"
    if BASE_PYTHON=$python make -s -C "$copy" test PYTHON=.venv/bin/python TESTS="-k 'not test_linters' $*"; then
        passed="$passed $name"
    else
        failed="$failed $name"
    fi
done
echo "passed:${passed:- none}; failed:${failed:- none}; not here:${missing:- none}"
[ -z "$failed" ] && [ -n "$passed" ]
