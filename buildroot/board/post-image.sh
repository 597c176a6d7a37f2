#!/bin/sh
# The card: a FAT partition for the owner's files, two slots of a FAT to boot from and a root, and the data partition. $1 is
# the folder with what Buildroot has built; the result is sdcard.img in it, and boot.vfat and rootfs.squashfs are what an
# update brings. QEMU's machines get the same, and start their kernel from outside.
set -eu
images=$1
here=$(dirname "$0")
PATH=$PATH:/usr/sbin:/sbin # where Debian has mke2fs and mkfs.vfat; Buildroot's own come first
limit=67108864 # bytes: 64 MiB, the size of a slot's root on the card

fail() { echo "stack: $*" >&2; exit 1; }

root=$images/rootfs.squashfs
[ -f "$root" ] || fail "there is no $root: BR2_TARGET_ROOTFS_SQUASHFS makes it"
size=$(wc -c <"$root")
if [ "$size" -gt "$limit" ]; then
    fail "the root has $size bytes, which is $((size - limit)) more than a slot's root on the card ($limit): leave packages out, or give it more room in genimage.cfg.in and here"
fi
echo "stack: the root has $size bytes of at most $limit"

cp "$here/README.txt" "$images/README.txt"
boot=$images/rpi-firmware
kernel=$(sed -n 's/^kernel=//p' "$boot/config.txt" 2>/dev/null || true)
for name in ${kernel:-Image bzImage}; do
    [ ! -f "$images/$name" ] || kernel=$name
done
[ -f "$images/${kernel:-Image}" ] || fail "there is no kernel ${kernel:-Image or bzImage} in $images: BR2_LINUX_KERNEL makes it"

# One image for both slots: the firmware's filter [boot_partition=N] picks the command line with that slot's root.
if [ -f "$boot/cmdline.txt" ]; then
    cp "$here/raspberrypi/autoboot.txt" "$images/autoboot.txt"
    sed 's|root=/dev/mmcblk0p[0-9]*|root=/dev/mmcblk0p6|' "$boot/cmdline.txt" >"$boot/cmdline_b.txt"
    grep -q '^cmdline=cmdline_b.txt$' "$boot/config.txt" ||
        printf '[boot_partition=3]\ncmdline=cmdline_b.txt\n[all]\n' >>"$boot/config.txt"
fi

listed() { # the files of these that are there, as genimage lists them
    for file in "$@"; do
        [ ! -e "$file" ] || printf '%s' "\t\t\t\"${file#"$images/"}\",\n"
    done
}
# The ROM of a Raspberry Pi before the 4 loads bootcode.bin from the first partition, which then reads autoboot.txt there.
# tryboot.flg is the flag where no firmware keeps one (docs/updates.md).
owner=$(listed "$images/README.txt" "$images/autoboot.txt" "$images/tryboot.flg" "$boot/bootcode.bin")
files=$(listed "$images/$kernel" "$images"/*.dtb "$boot"/*)
sed "s|#OWNER_FILES#|$owner|; s|#BOOT_FILES#|$files|" "$here/genimage.cfg.in" >"$images/genimage.cfg"

# genimage copies the tree below --rootpath, which none of these partitions needs; what it worked on may not be there.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
genimage --rootpath "$work/root" --tmppath "$work/tmp" --inputpath "$images" --outputpath "$images" \
    --config "$images/genimage.cfg"
echo "stack: $images/sdcard.img is the card"
