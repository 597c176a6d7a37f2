#!/bin/sh
# Everything that `make run` and `make test` need: a virtual environment with pinned requirements, and mosquitto.
# Does nothing where all of it is there. BASE_PYTHON chooses the interpreter (3.11 or newer), PROGRAMS asks for more. VENV is
# another virtual environment, of something that runs no board and needs no mosquitto (`make mothership`).
set -eu
umask 022
cd "$(dirname "$0")"
needs=${*:-requirements.txt}
venv=${VENV:-.venv}
stamps=build
[ "$venv" = .venv ] || stamps=$venv

have_mosquitto() { PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin command -v mosquitto >/dev/null; }

install_packages() { # without starting their daemons on this machine
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
        trap 'rm -f $policy' EXIT
    fi
    echo "setup: installing $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >build/apt.log 2>&1 ||
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
            >build/apt.log 2>&1 || { echo "setup: apt-get failed, see build/apt.log" >&2; exit 1; }
}

make_venv() { # with the distribution's Python first: other users can run it too
    for python in ${BASE_PYTHON:-/usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11}; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        rm -rf "$venv" "$stamps"/*.stamp
        if "$python" -m venv "$venv" >build/venv.log 2>&1; then
            echo "setup: $venv from $python"
            return
        fi
    done
    echo "setup: no Python 3.11 or newer that can make a virtual environment (Debian: apt-get install python3-venv)" >&2
    exit 1
}

mkdir -p build
if [ "$venv" = .venv ] && ! have_mosquitto; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        install_packages mosquitto
    else
        echo "setup: no mosquitto here and no right to install it: amqtt from PyPI takes its place"
        needs="$needs requirements-broker.txt"
    fi
fi
missing=""
for pair in ${PROGRAMS:-}; do # what else a target needs, as program:package
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086
    install_packages $missing
elif [ -n "$missing" ]; then
    echo "setup: not here, and only root can install them: apt-get install$missing" >&2
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! "$venv/bin/python" -c '' 2>/dev/null; then
    /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
fi
"$venv/bin/python" -c '' 2>/dev/null || make_venv
for file in $needs; do # once for each content of each file
    stamp=$stamps/$file.stamp
    wanted=$(cat requirements*.txt "$file"; "$venv/bin/python" -V)
    if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
        echo "setup: installing $file"
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r "$file"
        printf '%s\n' "$wanted" >"$stamp"
    fi
done
