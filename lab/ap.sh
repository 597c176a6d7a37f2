#!/bin/sh
# An access point on the second radio of mac80211_hwsim, in a network namespace of its own, with a DHCP server.
/sbin/ip netns add ap 2>/dev/null
for phy in $(ls /sys/class/ieee80211 | grep -v '^phy0$'); do iw phy "$phy" set netns name ap; done
/sbin/ip netns exec ap /sbin/ip link set lo up
/sbin/ip netns exec ap /sbin/ip addr add 10.9.0.1/24 dev wlan1 2>/dev/null
: >/run/udhcpd.leases
/sbin/ip netns exec ap udhcpd -f /etc/udhcpd.conf &
exec /sbin/ip netns exec ap hostapd $(ls /etc/hostapd/*.conf)
