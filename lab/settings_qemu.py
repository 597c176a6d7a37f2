"""The profile of `make boot`: the Raspberry Pi's table on an emulated machine, with an access point to hear."""

from __future__ import annotations

import settings
from tables.rows import Service, WifiNetwork

HOSTNAME = "qemu"
CONSOLE_LOGIN = "prompt"
FAKE_GPS = "on"
MODULES = ("virtio_net", "mac80211_hwsim", "softdog")
WIFI_NETWORKS = (WifiNetwork("stack-lab", "stack-lab-psk", frequencies=(2412,)),)
DATA_ANYWHERE = True  # tests add a disk of their own
DATA: tuple[str, ...] = ()  # no second disk, unless a test adds one
BOOT_FILES: tuple[str, ...] = ()
_OURS = {
    "ntpd": Service("chronyd", ("chronyd", "-d", "-u", "_chrony", "server 10.0.2.2 iburst", "rtcsync"), after=("network",)),
}
_IN_AP = ("ip", "netns", "exec", "ap")
SERVICES = (
    *(_OURS.get(row.name, row) for row in settings.SERVICES),
    Service("radios", ("lab-radios",), ready="exit", restart="never", after=("modules",)),
    Service("access_point", (*_IN_AP, "hostapd", "/etc/hostapd/wlan1.conf"), after=("radios",)),
    Service("udhcpd", (*_IN_AP, "udhcpd", "-f", "/etc/udhcpd.conf"), after=("radios",)),
)
