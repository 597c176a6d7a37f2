"""The names of all settings and their types, for mypy: `tables.SHUTDOWN_TIMOUT` is an error. PID 1 does not load this file.

tests/test_settings.py says where it differs from settings.py, which has the values and what they mean.
"""

from __future__ import annotations

from tables.rows import Device, Directory, Interface, Mode, Mount, Rule, Service, WifiNetwork


class Settings:
    """A board's settings, each an attribute under its own name."""

    HOSTNAME: str
    CONSOLE: str
    CONSOLE_LOGIN: str
    FAKE_GPS: str
    PATH: str
    ENVIRONMENT: tuple[tuple[str, str], ...]
    LOG: str
    KEEP: str
    LOG_KEEP: str
    LIB: str
    PYTHON: str
    PYTHONPATH: str
    APP_USER: str
    BUS: str
    GPS_BAUD: int
    GPS_ROUTE: str
    WIFI_INTERFACE: str
    WIFI_COUNTRY: str
    WIFI_CONFIG: str
    WIFI_CONTROL: str
    WIFI_GROUP: str
    WIFI_SCAN: str
    WIFI_RECORDING: str
    RESOLV_CONF: str
    NETWORK_STATE: str
    NETLINK_BUFFER: int
    NETWORK_STAMP: str
    UPLINK: tuple[str, ...]
    UPLINK_BOARD: str
    UPLINK_TLS: tuple[str, ...]
    UPLINK_PROTOCOL: str
    UPLINK_TOPICS: tuple[tuple[str, str], ...]
    UPLINK_URGENT: tuple[str, ...]
    OUTBOX: str
    OUTBOX_SIZE: int
    OUTBOX_SPARE: int
    OUTBOX_GIVE_UP: tuple[str, ...]
    VSOCK: tuple[str, ...]
    COMMANDS: tuple[tuple[str, str], ...]
    UPDATE_CERTIFICATE: str
    UPDATE_WINDOW: tuple[str, ...]
    UPDATE_STEADY: float
    UPDATE_DEADLINE: float
    WATCHDOG: str
    WATCHDOG_TIMEOUT: float
    WATCHDOG_SNOOZE_MAX: float
    MOUNTS: tuple[Mount, ...]
    DIRECTORIES: tuple[Directory, ...]
    DEVICES: tuple[Device, ...]
    DATA: tuple[str, ...]
    DATA_OPTIONS: str
    DATA_REMAKE: bool
    DATA_ANYWHERE: bool
    DATA_GROW: bool
    DATA_WAIT: float
    DATA_TIMEOUT: float
    BOOT_FILES: tuple[str, ...]
    BOOT_WAIT: float
    MODULES: tuple[str, ...]
    SYSCTLS: tuple[tuple[str, str], ...]
    RULES: tuple[Rule, ...]
    INTERFACES: tuple[Interface, ...]
    WIFI_NETWORKS: tuple[WifiNetwork, ...]
    SV_COOLDOWN: float
    BACKOFF_FIRST: float
    BACKOFF_MAX: float
    AFTER_TIMEOUT: float
    SHUTDOWN_TIMEOUT: float
    KILL_TIMEOUT: float
    SYNC_TIMEOUT: float
    RESCUE_TIMEOUT: float
    CRITICAL_FAILURES: int
    CRITICAL_WINDOW: float
    CRITICAL_INTERVAL: float
    LOOP_TURN_MAX: float
    FACT_GRACE: float
    NETWORK_RETRY: float
    DHCP_TIMEOUT: float
    ONLINE_TIMEOUT: float
    LADDER_REASSOCIATE: float
    LADDER_SUPPLICANT: float
    LADDER_MODULE: float
    LADDER_REBOOT: float
    LADDER_STEADY: float
    REBOOT_INTERVAL: float
    CONSOLE_LEVEL: int
    LOG_FILE_SIZE: int
    LOG_TOTAL_SIZE: int
    LOG_RATE: int
    LOG_BURST: int
    LOGD: Service
    ZYGOTE: Service
    STORAGE: Service
    BOOT: Service
    PUSHED: Service
    KEEPER: Service
    DROPBEAR: Service
    BROKER: Service
    APPS: tuple[Service, ...]
    SERVICES: tuple[Service, ...]
    MODES: tuple[Mode, ...]
    RESCUE: Service
