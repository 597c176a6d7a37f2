"""On top of settings_qemu.py, for the emulated Raspberry Pi 3B: its network is on USB, and its watchdog driver restarts it.

The emulated bcm2835_wdt resets at the moment it is opened: softdog comes first and becomes watchdog0.
"""

WATCHDOG = "/dev/watchdog0"
MODULES = ("softdog", "phy-generic", "dwc2", "cdc_ether", "rndis_host", "bcm2835_wdt", "mac80211_hwsim")
