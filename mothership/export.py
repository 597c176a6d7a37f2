"""Observations with a position for other programs: WiGLE CSV 1.6, GeoJSON (RFC 7946), KML 2.2.

One row, feature or placemark for each observation: its position is the board's, where the access point was heard. They are
written as they are read. Times are UTC. A name is what was on the air: in the CSV and in KML, whose readers go by lines or
take no control characters, those become U+FFFD. A name such as =cmd() stays as it is: these files are for programs that
take text for text; a spreadsheet does not (import the column as text).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from observations import Observation, observations, stamp, visible
from store import Store

# https://api.wigle.net/csvFormat.html; the third planet, and no moon of it.
WIGLE = "WigleWifi-1.6,appRelease=1,model=stack,release=1,device=stack,display=,board=,brand=stack,star=Sol,body=3,subBody=0"
# As WiGLE's own app writes what Android says: it looks for [WPA-, [WPA2, [WPA3, SAE, [RSN and [WEP.
AUTH_MODES = {
    "open": "[ESS]", "WEP": "[WEP][ESS]", "WPA": "[WPA-PSK][ESS]", "WPA2": "[WPA2][ESS]", "WPA3": "[WPA3][ESS]",
    "OWE": "[RSN-OWE-CCMP][ESS]", "OWE transition": "[RSN-OWE_TRANSITION-CCMP][ESS]", "OSEN": "[OSEN][ESS]",
}  # fmt: skip
COLUMNS = (
    "MAC,SSID,AuthMode,FirstSeen,Channel,Frequency,RSSI,CurrentLatitude,CurrentLongitude,AltitudeMeters,AccuracyMeters,"
    "RCOIs,MfgrId,Type"
)


def wigle(found: Iterable[Observation]) -> Iterator[str]:
    """Altitude is not observed: 0. An unknown accuracy is 0 too, as the column takes numbers only."""
    yield f"{WIGLE}\n{COLUMNS}\n"
    for item in found:
        line = io.StringIO()
        auth = AUTH_MODES.get(item.security, f"[{visible(item.security)}][ESS]")
        seen = stamp(item.at).replace("T", " ").rstrip("Z")
        csv.writer(line, lineterminator="\n").writerow((
            item.bssid, visible(item.ssid or ""), auth, seen, channel(item.frequency), item.frequency or "", round(item.signal),
            f"{item.latitude:.7f}", f"{item.longitude:.7f}", 0, f"{item.accuracy or 0:.1f}", "", "", "WIFI",
        ))  # fmt: skip
        yield line.getvalue()


def channel(frequency: int) -> int:
    """The number that IEEE 802.11 gives a centre frequency in MHz; 0 for none of them."""
    match frequency:
        case 2484:
            return 14
        case 5935:
            return 2
        case _ if 2412 <= frequency <= 2472:
            return (frequency - 2407) // 5
        case _ if 5000 < frequency < 5925:
            return (frequency - 5000) // 5
        case _ if 5950 < frequency <= 7115:
            return (frequency - 5950) // 5
    return 0


def geojson(found: Iterable[Observation]) -> Iterator[str]:
    """A FeatureCollection of points. Longitude comes first (RFC 7946, 3.1.1)."""
    yield '{"type": "FeatureCollection", "features": ['
    comma = "\n"
    for item in found:
        said = item._asdict()
        point = {"type": "Point", "coordinates": [round(said.pop("longitude"), 7), round(said.pop("latitude"), 7)]}
        yield comma + json.dumps({"type": "Feature", "geometry": point, "properties": {**said, "at": stamp(item.at)}})
        comma = ",\n"
    yield "\n]}\n"


def kml(found: Iterable[Observation]) -> Iterator[str]:
    """A Document of placemarks."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<kml xmlns="http://www.opengis.net/kml/2.2"><Document><name>stack</name>\n'
    for item in found:
        said = item._asdict()
        where = f"{said.pop('longitude'):.7f},{said.pop('latitude'):.7f}"
        rows = "".join(
            f'<Data name="{name}"><value>{escape(visible(str(value)))}</value></Data>'
            for name, value in said.items()
            if name != "at" and value is not None
        )
        name = escape(visible(item.ssid or "(hidden)"))
        yield (
            f"<Placemark><name>{name}</name><TimeStamp><when>{stamp(item.at)}</when></TimeStamp>"
            f"<ExtendedData>{rows}</ExtendedData><Point><coordinates>{where}</coordinates></Point></Placemark>\n"
        )
    yield "</Document></kml>\n"


FORMATS: dict[str, Callable[[Iterable[Observation]], Iterator[str]]] = {"wigle": wigle, "geojson": geojson, "kml": kml}


def since(text: str) -> float:
    """A date or time of ISO 8601 (UTC where it names no zone), or seconds since 1970."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        why = f"{text!r} is no time such as 2026-05-01, 2026-05-01T12:00:00+02:00 or 1790000000"
        raise argparse.ArgumentTypeError(why) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def write(parts: Iterable[str], path: str | None) -> None:
    """To a file, which appears when it is whole, or to standard output."""
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        sys.stdout.writelines(parts)
        return
    with open(f"{path}.part", "w", encoding="utf-8", newline="") as file:
        file.writelines(parts)
    os.replace(f"{path}.part", path)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", metavar="DATABASE")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--board", default="", help="only of this board")
    parser.add_argument("--since", type=since, help="only from this time on: ISO 8601, or seconds since 1970")
    parser.add_argument("-o", metavar="FILE", dest="output", help="instead of standard output")
    parser.add_argument("--fake", action="store_true", help="invented positions too (fakegps.py); never in WiGLE's format")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.fake and options.format == "wigle":
        raise SystemExit("WiGLE takes no invented positions: --fake goes with geojson and kml")
    found = observations(Store(options.database, make=False), options.board, options.since, fake=options.fake)
    write(FORMATS[options.format](found), options.output)
