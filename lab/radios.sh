#!/bin/sh
# All radios of mac80211_hwsim but the first one, whose station is the board's, go to a network namespace of their own.
/sbin/ip netns add ap 2>/dev/null
for phy in $(ls /sys/class/ieee80211 | grep -v '^phy0$'); do iw phy "$phy" set netns name ap; done
/sbin/ip netns exec ap /sbin/ip link set lo up
/sbin/ip netns exec ap /sbin/ip addr add 10.9.0.1/24 dev wlan1
: >/run/udhcpd.leases
