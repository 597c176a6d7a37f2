#!/bin/busybox sh
# Says on the console when everything is ready that the first argument counts (number of apps; 0 is none), the same for each
# init. While it waits it forks nothing: `read -t` of a fifo that stays empty is its sleep, `[ -S ]` is part of the shell.
busybox mkfifo /run/probe
exec 3<>/run/probe
apps=$1 seen='' left='syslog chronyd mosquitto udhcpc wpa_supplicant dropbear'

connected() { # apps that have reached the broker: its accepted connections
    [ "$(busybox grep -c ' 03 .*/run/bus/mqtt.sock$' /proc/net/unix)" -ge "$apps" ]
}
greeted() { # dropbear's first words, without its host key being asked for
    busybox nc -w 10 127.0.0.1 22 <&3 | if read -r banner; then read -r now _ </proc/uptime && echo "bench: ssh $now" >/dev/console; fi
}
while :; do
    read -r now _ </proc/uptime
    todo=''
    for one in $left; do
        case $one in
            syslog) [ -S /dev/log ] ;; # syslogd's, or journald's
            chronyd) [ -S /run/chrony/chronyd.sock ] ;;
            mosquitto) [ -S /run/bus/mqtt.sock ] ;;
            udhcpc) [ -e /run/lease ] ;;
            wpa_supplicant) [ -S /run/wpa_global ] ;;
            dropbear) [ -s /run/dropbear.pid ] && { greeted & } ;; # written once it listens
            apps) connected ;;
        esac && seen="$seen $one=$now" || todo="$todo $one"
    done
    left=$todo
    if [ -z "$left" ]; then
        [ "$apps" -gt 0 ] && case $seen in *apps=*) false ;; esac || break
        left=apps
        continue
    fi
    if [ "$left" = ' apps' ]; then read -r -t 0.25 _ <&3; else read -r -t 0.05 _ <&3; fi # its look at the apps forks
done
while read -r name memory _; do [ "$name" = MemAvailable: ] && break; done </proc/meminfo
echo "bench: ready $now $memory$seen" >/dev/console
wait # for dropbear's words: what a service leaves behind is ended with it
