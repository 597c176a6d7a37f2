#!/bin/busybox sh
# /init of the small initramfs: load what the root's device needs, mount it read-only, become init= of the command line.
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
root=/dev/vda rootfstype=ext4 init=/sbin/init mounted='' closed='' meminfo=''
for word in $(busybox cat /proc/cmdline); do
    case $word in
        root=* | rootfstype=* | init=*) eval "${word%%=*}='${word#*=}'" ;;
        lab.mounted) mounted=yes ;;
        lab.closed) closed=yes ;;
        lab.meminfo) meminfo=yes ;;
    esac
done
while read -r module; do
    case $module in */squashfs.ko) [ "$rootfstype" = squashfs ] || continue ;; esac
    busybox insmod "/$module"
done </modules
tries=0
until [ -b "$root" ]; do # an SD card takes its time
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { echo "initramfs: no $root after 30 s"; exec busybox sh; }
    busybox usleep 50000
done
busybox mount -t "$rootfstype" -o ro "$root" /newroot
if [ $meminfo ]; then # what bench_boot.py compares with
    while read -r name memory _; do [ "$name" = MemAvailable: ] && break; done </proc/meminfo
    read -r now _ </proc/uptime
    echo "bench: handover $now $memory"
fi
echo "<6>Run $init as init process" >/dev/kmsg # the kernel's own words, for bootchart()
busybox mount --move /dev /newroot/dev
busybox umount /proc
if [ $mounted ]; then # as a richer initramfs leaves it
    for row in proc:/proc sysfs:/sys tmpfs:/run tmpfs:/tmp; do busybox mount -t "${row%%:*}" lab "/newroot${row#*:}"; done
fi
if [ $closed ]; then exec <&- >&- 2>&-; fi # as the kernel does it where there is no console
exec busybox switch_root /newroot "$init"
