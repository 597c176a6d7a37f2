"""Joins positions and access points into observations: what was heard, how loud, and where."""

from __future__ import annotations

from typing import Any

from bus import Bus, Message

STALE = 10.0  # s: a position older than this is not where the access point was heard


class Analyzer:
    """The last position, and what the scans say since."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.fix: Message | None = None

    def on_gps(self, _topic: str, message: Message) -> None:
        self.fix = message

    def on_scan(self, _topic: str, message: Message) -> None:
        """One observation for each access point of a scan, and for each that it lost: what it was, and where we noticed."""
        where = self.position(message["mono"])
        for point in message["data"]["points"]:
            heard = {name: point[name] for name in ("event", "bssid", "ssid", "frequency", "signal", "security")}
            self.bus.publish(f"wifi/{point['bssid']}", {**where, **heard, "source": message["data"]["source"]})

    def position(self, now: float) -> dict[str, Any]:
        """Latitude and longitude with accuracy (m), age (s) and source; all None without a recent position."""
        data = self.fix["data"] if self.fix else {}
        age = round(max(0.0, now - self.fix["mono"]) + data.get("age", 0.0), 3) if self.fix else STALE
        if age >= STALE:
            return dict.fromkeys(("latitude", "longitude", "accuracy", "age", "position_source"))
        where = {key: data[key] for key in ("latitude", "longitude", "accuracy")}
        return {**where, "age": age, "position_source": data["source"]}


def main() -> None:
    bus = Bus("wifi_analyzer")
    analyzer = Analyzer(bus)
    bus.subscribe("gps", analyzer.on_gps)
    bus.subscribe("scan", analyzer.on_scan)
    bus.run()


if __name__ == "__main__":
    main()
