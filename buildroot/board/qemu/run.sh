#!/bin/sh
# Start what was built for an emulated machine: run.sh IMAGES [OPTION OF QEMU...]. This terminal is its console, Ctrl-A x
# ends it, and port 2222 of this machine is its ssh. It writes into sdcard.img.
set -eu
here=$(dirname "$0")
images=${1:?run.sh IMAGES: the folder with sdcard.img and a kernel}
shift
if [ -f "$images/Image" ]; then
    arch=aarch64 kernel=Image
    set -- -M virt -cpu cortex-a53 "$@"
elif [ -f "$images/bzImage" ]; then
    arch=x86_64 kernel=bzImage
    set -- -M q35 -cpu max "$@"
else
    echo "run.sh: there is neither Image nor bzImage in $images" >&2
    exit 1
fi
exec "qemu-system-$arch" -m 512 -nographic -no-reboot -kernel "$images/$kernel" -append "$(cat "$here/cmdline_$arch.txt")" \
    -drive "if=none,id=card,format=raw,file=$images/sdcard.img" -device virtio-blk-pci,drive=card \
    -netdev user,id=net,hostfwd=tcp:127.0.0.1:2222-:22 -device virtio-net-pci,netdev=net -device virtio-rng-pci "$@"
