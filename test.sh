#!/bin/sh
# The tests: pure and namespace rings as whoever calls it; called by root, the namespace ring as an ordinary user too.
# Arguments go to pytest. Without any, files are tested side by side, and then those alone that load the machine or measure it.
set -eu
cd "$(dirname "$0")"
python=$PWD/.venv/bin/python
ALONE="tests/test_console.py tests/test_board.py tests/test_laptop.py tests/test_logd.py tests/test_demo.py tests/test_map_drawn.py tests/test_map.py tests/test_fleet.py tests/test_fleet_updates.py tests/test_chaos.py tests/test_upgrade.py tests/test_soak.py"
status=0

tests() { "$python" -m pytest -q -rs -p no:cacheprovider "$@" || status=1; }

if [ $# = 0 ]; then
    # shellcheck disable=SC2046,SC2086
    tests -n 2 --dist loadfile $(for file in $ALONE; do echo "--ignore=$file"; done) tests
    # shellcheck disable=SC2086
    tests $ALONE
else
    tests "$@"
fi

[ "$(id -u)" = 0 ] || exit $status
if ! setpriv --reuid=65533 --regid=65533 --clear-groups "$python" -c "import os; os.listdir('$PWD/build/root/stack'); os.stat('$python')" 2>/dev/null; then
    echo "skipped: the namespace ring as an ordinary user, who may not read $PWD or run $python"
    exit $status
fi
echo "the namespace ring again, as an ordinary user (uid 65533)"
scratch=$(mktemp -d)
chown 65533 "$scratch"
trap 'rm -rf "$scratch"' EXIT
HOME=$scratch TMPDIR=$scratch PYTHONDONTWRITEBYTECODE=1 setpriv --reuid=65533 --regid=65533 --clear-groups \
    "$python" -m pytest -q -rs -p no:cacheprovider --basetemp="$scratch/pytest" \
    tests/test_init.py tests/test_board.py tests/test_network.py || status=1
exit $status
