#!/bin/sh
# What Buildroot's skeleton for an init of one's own leaves open. $1 is the tree that becomes the root; run twice, it
# changes nothing the second time.
set -eu
target=$1
python=/usr/bin/python3
shell=/usr/bin/stack-shell

fail() { echo "stack: $*" >&2; exit 1; }

[ -x "$target$python" ] || fail "there is no $python in $target: BR2_PACKAGE_PYTHON3 is what PID 1 runs in"
[ -x "$target/sbin/stack.py" ] || fail "there is no /sbin/stack.py in $target: is BR2_PACKAGE_STACK set?"

# Root's shell is the Python prompt, and /bin/sh for programs; dropbear asks /etc/shells whether it is one.
[ -x "$target$shell" ] || fail "there is no $shell in $target: \`make install\` puts it there"
sed -i "/^root:/s,[^:]*\$,$shell," "$target/etc/passwd"
grep -qsx "$shell" "$target/etc/shells" || echo "$shell" >>"$target/etc/shells"

# Nobody logs in by password: whoever has one here, or needs none, is a mistake of the configuration.
open=$(awk -F: '$2 !~ /^[*!]/ { printf "%s ", $1 }' "$target/etc/shadow")
[ -z "$open" ] || fail "a password would let in: $open(/etc/shadow); unset BR2_TARGET_ENABLE_ROOT_LOGIN, give users none"
chmod 600 "$target/etc/shadow"

# Which board and version this is, and whose updates it takes: `make image` says the one, `make update-key` made the other.
[ -z "${STACK_RELEASE:-}" ] || echo "$STACK_RELEASE" >"$target/etc/stack-release"
certificate=$(dirname "$0")/../../build/update/update.pem
[ ! -f "$certificate" ] || install -m 644 "$certificate" "$target/etc/stack-update.pem"

# What nothing on the board runs: pip's own wheel, a shell for SQLite, the daemon beside libudev. The toolchain's C++ and OpenMP
# libraries go where no program asks for them.
rm -rf "$target"/usr/lib/python3*/ensurepip "$target/usr/bin/sqlite3" "$target/sbin/udevd" "$target/usr/sbin/udevd" "$target/lib/udev/hwdb.d"
for library in libstdc++.so libgomp.so libatomic.so; do
    if ! grep -rlF "$library." "$target/bin" "$target/sbin" "$target/lib" "$target/usr" 2>/dev/null | grep -qv "/$library"; then
        rm -f "$target"/lib/$library* "$target"/usr/lib/$library* "$target"/lib64/$library* "$target"/usr/lib64/$library*
    fi
done

# Places that are mounted over, and links into what can be written. PID 1 has a tmpfs on /var until the data partition comes.
mkdir -p "$target/var/lib" "$target/var/log" "$target/var/tmp"
chmod 1777 "$target/var/tmp"
chmod 700 "$target/root"
link() {
    rm -rf "${target:?}/$2"
    ln -s "$1" "$target/$2"
}
link ../run var/run
link /run/resolv.conf etc/resolv.conf
link /var/lib/dropbear etc/dropbear # host keys are made once, on the data partition

# kitty says TERM=xterm-kitty, and ncurses knows it as kitty.
[ ! -f "$target/usr/share/terminfo/k/kitty" ] || link ../k/kitty usr/share/terminfo/x/xterm-kitty

# The owner's files come from the card's first partition at each boot. What Buildroot's wpa_supplicant brings would join any
# open network. Keys that an overlay has put into the image stay.
link /run/stack/boot/wpa_supplicant.conf etc/wpa_supplicant.conf
if [ -e "$target/root/.ssh/authorized_keys" ]; then
    chmod 700 "$target/root/.ssh"
else
    link /run/stack/boot root/.ssh
fi
