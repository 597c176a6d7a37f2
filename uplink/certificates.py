"""When a certificate ends (RFC 5280, 4.1.2.5), and the warning some weeks before."""

from __future__ import annotations

import calendar
import ssl
import time
from collections.abc import Iterator

WARN = 30 * 86400.0  # seconds before its end
DAY = 86400.0
SEQUENCE, VERSION, UTC_TIME = 0x30, 0xA0, 0x17  # tags (ITU-T X.690)


def until(der: bytes) -> float:
    """When a certificate in DER ends, in seconds since 1970; ValueError if it is no certificate."""
    try:
        certificate = next(_parts(der))[1]
        fields = list(_parts(next(_parts(certificate))[1]))
        validity = fields[4 if fields[0][0] == VERSION else 3][1]
        tag, text = list(_parts(validity))[1]
        form = "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ"
        return float(calendar.timegm(time.strptime(text.decode("ascii"), form)))
    except (StopIteration, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"no certificate: {error!r}") from None


def until_of(path: str) -> float | None:
    """When the certificate in a PEM file ends; None if the file cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(1 << 20)
        start = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", start)
        return until(ssl.PEM_cert_to_DER_cert(text[start:end] + "-----END CERTIFICATE-----"))
    except (OSError, ValueError):
        return None


def warning(whose: str, end: float | None, now: float) -> str:
    """The warning for people; "" while there is time."""
    if end is None or end - now > WARN:
        return ""
    day = time.strftime("%Y-%m-%d", time.gmtime(end))
    if end <= now:
        return f"{whose} has expired on {day}: make a new one with mothership/certificate.sh"
    return f"{whose} is valid until {day}, {(end - now) / DAY:.0f} days from now: make a new one with mothership/certificate.sh"


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and contents of each element in a sequence of DER."""
    while data:
        tag, length, start = data[0], data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start], "big")
        if start + length > len(data):
            raise ValueError("no certificate: it is cut")
        yield tag, data[start : start + length]
        data = data[start + length :]
