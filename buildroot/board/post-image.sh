#!/bin/sh
# The card: a FAT partition to boot from and to put files on, the root, and the data partition. $1 is the folder with
# what Buildroot has built; the result is sdcard.img in it. QEMU's machines get the same, and start their kernel from outside.
set -eu
images=$1
here=$(dirname "$0")
PATH=$PATH:/usr/sbin:/sbin # where Debian has mke2fs and mkfs.vfat; Buildroot's own come first
limit=67108864 # bytes: 64 MiB, the size of the card's second partition

fail() { echo "stack: $*" >&2; exit 1; }

root=$images/rootfs.squashfs
[ -f "$root" ] || fail "there is no $root: BR2_TARGET_ROOTFS_SQUASHFS makes it"
size=$(wc -c <"$root")
if [ "$size" -gt "$limit" ]; then
    fail "the root has $size bytes, which is $((size - limit)) more than the card's second partition ($limit): leave packages out, or give it more room in genimage.cfg.in and here"
fi
echo "stack: the root has $size bytes of at most $limit"

cp "$here/README.txt" "$images/README.txt"
boot=$images/rpi-firmware
kernel=$(sed -n 's/^kernel=//p' "$boot/config.txt" 2>/dev/null || true)
for name in ${kernel:-Image bzImage}; do
    [ ! -f "$images/$name" ] || kernel=$name
done
[ -f "$images/${kernel:-Image}" ] || fail "there is no kernel ${kernel:-Image or bzImage} in $images: BR2_LINUX_KERNEL makes it"

files=""
for file in "$images/README.txt" "$images/$kernel" "$images"/*.dtb "$boot"/*; do
    [ ! -e "$file" ] || files="$files\t\t\t\"${file#"$images/"}\",\n"
done
sed "s|#BOOT_FILES#|$files|" "$here/genimage.cfg.in" >"$images/genimage.cfg"

# genimage copies the tree below --rootpath, which none of these partitions needs; what it worked on may not be there.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
genimage --rootpath "$work/root" --tmppath "$work/tmp" --inputpath "$images" --outputpath "$images" \
    --config "$images/genimage.cfg"
echo "stack: $images/sdcard.img is the card"
