#!/bin/sh
# The tests: pure and namespace rings as whoever calls it; called by root, the namespace ring as an ordinary user too.
# Arguments go to pytest.
set -eu
cd "$(dirname "$0")"
python=$PWD/.venv/bin/python

"$python" -m pytest -q -rs -p no:cacheprovider "$@"

[ "$(id -u)" = 0 ] || exit 0
if ! setpriv --reuid=65533 --regid=65533 --clear-groups "$python" -c "import os; os.listdir('$PWD/build/root/stack'); os.stat('$python')" 2>/dev/null; then
    echo "skipped: the namespace ring as an ordinary user, who may not read $PWD or run $python"
    exit 0
fi
echo "the namespace ring again, as an ordinary user (uid 65533)"
scratch=$(mktemp -d)
chown 65533 "$scratch"
trap 'rm -rf "$scratch"' EXIT
HOME=$scratch TMPDIR=$scratch PYTHONDONTWRITEBYTECODE=1 setpriv --reuid=65533 --regid=65533 --clear-groups \
    "$python" -m pytest -q -rs -p no:cacheprovider --basetemp="$scratch/pytest" tests/test_init.py tests/test_board.py tests/test_network.py
