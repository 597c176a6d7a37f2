#!/bin/sh
# `make install-board` and `make uninstall-board`: this board's Debian may boot with init=/sbin/stack.py, and as before without.
# Nothing of systemd's is changed: what we install is beside it, and a daemon that came with us does not start under it.
# What pip and apt-get need (mirrors, proxies, wheels at hand) they take from their own configuration and environment.
set -eu
cd "$(dirname "$0")"
LIB=/usr/lib/stack
MARK=$LIB/installed_by_make # names of the packages that came with us, one a line
LOG=$LIB/apt.log
OWN=$LIB/settings_prod.py

say() { echo "install-board: $*"; }
fail() { echo "install-board: $*" >&2; exit 1; }

check() {
    [ "$(id -u)" = 0 ] || fail "this changes the system: run it as root (sudo make $1)"
    command -v dpkg-query >/dev/null || fail "this is no Debian: make install DESTDIR=... is what an image needs"
}

command_lines() { # where the kernel's command line is written down
    for file in /boot/firmware/cmdline.txt /boot/cmdline.txt /etc/default/grub; do
        [ ! -f $file ] || echo $file
    done
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >$LOG 2>&1; }

have() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q ' installed$'; }

packages() { # the daemons, in Debian's own packages; a clock's keeper only where there is none
    wanted=""
    for name in mosquitto openssh-server wpasupplicant kmod iproute2 procps libudev1 util-linux mount e2fsprogs; do
        have $name || wanted="$wanted $name"
    done
    have chrony || have systemd-timesyncd || wanted="$wanted systemd-timesyncd"
    python3 -m pip --version >/dev/null 2>&1 || wanted="$wanted python3-pip"
    [ -n "$wanted" ] || { say "Debian's packages are there already"; return 0; }
    mkdir -p $LIB
    for name in $wanted; do # before it is installed: systemd shall not start what we have brought, now or at its next boot
        case $name in mosquitto) mask mosquitto ;; esac
        grep -qx "$name" $MARK 2>/dev/null || echo "$name" >>$MARK
    done
    say "installing$wanted"
    # shellcheck disable=SC2086
    apt $wanted || { apt-get update -qq && apt $wanted; } || { cat $LOG >&2; fail "apt-get could not install$wanted"; }
}

mask() {
    mkdir -p /etc/systemd/system
    [ -e "/etc/systemd/system/$1.service" ] || ln -s /dev/null "/etc/systemd/system/$1.service"
}

libraries() { # for our services alone: Debian 12's paho-mqtt (1.6) and pyroute2 (0.7) are too old for them
    stamp=$LIB/site/requirements
    wanted=$(cat requirements.txt; python3 -V)
    [ "$wanted" != "$(cat $stamp 2>/dev/null)" ] || { say "the libraries are there already"; return 0; }
    say "installing libraries into $LIB/site"
    rm -rf $LIB/site
    python3 -m pip install -qq --root-user-action=ignore --disable-pip-version-check --require-hashes --target $LIB/site -r requirements.txt ||
        fail "pip could not install requirements.txt"
    printf '%s\n' "$wanted" >$stamp
}

profile() {
    if [ -e $OWN ]; then
        say "$OWN stays as it is"
        chown 0:0 $OWN && chmod 600 $OWN # as below; before, the apps' user could read it
        return 0
    fi
    cat >$OWN <<'END'
"""This board. `make install-board` has written this once and leaves it alone; `python3 /sbin/stack.py --plan` checks it."""

from profiles.debian import *
from tables.rows import *

# WIFI_NETWORKS = (WifiNetwork("harbour", "the passphrase"),)
# WIFI_COUNTRY = "DE"
# SERVICES += (Service("clock", ("sh", "-c", "while date; do sleep 5; done")),)
END
    chmod 600 $OWN # it may hold passphrases: PID 1 reads it, and tells services what is for them
    say "wrote $OWN: networks, services, names are yours to say there"
}

install_board() {
    check install-board
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$(python3 -V) is too old: 3.11 is what it takes"
    if owner=$(dpkg-query -S /usr/bin/sv 2>/dev/null); then
        fail "/usr/bin/sv is ${owner%%:*}'s; without that package it can be ours"
    fi
    packages
    make -s install DESTDIR= PREFIX=/usr SBINDIR=/sbin
    say "installed $LIB, /sbin/stack.py, /usr/bin/sv and /usr/bin/stack-shell"
    libraries
    profile
    python3 -B /sbin/stack.py --plan >/dev/null || fail "the table has faults: python3 /sbin/stack.py --plan names them"
    say "done. To boot it, add one word to the kernel's command line:  init=/sbin/stack.py"
    files=$(command_lines)
    say "    it is in ${files:-what your boot loader reads} (one line; for GRUB: GRUB_CMDLINE_LINUX, then update-grub)"
    say "Without that word this system boots as before. Wi-Fi networks are named in $OWN, not NetworkManager's."
}

uninstall_board() {
    check uninstall-board
    for file in $(command_lines) /proc/cmdline; do
        if grep -qs 'init=/sbin/stack\.py' "$file"; then
            fail "init=/sbin/stack.py is still in $file: take it out and boot, or the next boot would find no init"
        fi
    done
    brought=$(cat $MARK 2>/dev/null || true)
    if [ -e $OWN ] && ! [ -e /root/settings_prod.py ]; then
        cp -p $OWN /root/settings_prod.py && say "your settings are in /root/settings_prod.py"
    fi
    for site in $(python3 -c 'import site; print(*site.getsitepackages())'); do rm -f "$site/stack.pth"; done
    rm -rf $LIB /sbin/stack.py /usr/bin/sv /usr/bin/stack-shell
    say "removed $LIB, /sbin/stack.py, /usr/bin/sv and /usr/bin/stack-shell"
    if [ -n "$brought" ]; then
        # shellcheck disable=SC2086
        say "packages that came with it, if nothing else needs them: apt-get purge" $brought
        say "(mosquitto stays masked for systemd until: rm /etc/systemd/system/mosquitto.service)"
    fi
}

case ${1:-} in
    install) install_board ;;
    uninstall) uninstall_board ;;
    *) fail "install or uninstall?" ;;
esac
