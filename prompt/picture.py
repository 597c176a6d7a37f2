"""The chart of the boot as a picture: SVG 1.1, without scripts, fonts or anything from elsewhere."""

from __future__ import annotations

from typing import Any

COLOURS = {"before": "#8a8f98", "python": "#b58900", "step": "#5b7db1", "service": "#2e8b57"}  # by kind
WIDTH, NAMES, ROW, HEAD = 900, 220, 18, 40  # pixels: of the bars, of the names beside them, of a line, above the first
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)  # seconds between two lines of the grid
LINES = 12  # of the grid, at most


def picture(rows: list[dict[str, Any]], latest: float) -> str:
    """Rows of bootchart() as one SVG. What begins more than `latest` seconds after the first is left out."""
    origin = rows[0]["start"] if rows else 0.0
    shown = [row for row in rows if row["start"] - origin < latest]
    end = max((row["start"] if row["end"] is None else min(row["end"], origin + latest) for row in shown), default=0.0)
    length = max(0.001, end - origin)
    scale, height = WIDTH / length, HEAD + ROW * len(shown) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{NAMES + WIDTH + 20}" height="{height}" font-family="sans-serif"'
        ' font-size="11">',
        "<title>The boot, in seconds since the kernel's start</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        *_grid(origin, length, scale, height),
    ]
    for number, row in enumerate(shown):
        parts += _row(row, HEAD + ROW * number, origin, scale)
    return "\n".join([*parts, "</svg>"])


def _grid(origin: float, length: float, scale: float, height: int) -> list[str]:
    step = next((step for step in STEPS if length / step <= LINES), STEPS[-1])
    first = int(origin / step) + 1
    parts = []
    for number in range(first, int((origin + length) / step) + 1):
        x = NAMES + (number * step - origin) * scale
        parts.append(f'<path d="M{x:.1f} {HEAD - 10}V{height - 5}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEAD - 16}" text-anchor="middle" fill="#666">{number * step:g} s</text>')
    return parts


def _row(row: dict[str, Any], y: int, origin: float, scale: float) -> list[str]:
    """A name and its bar; one that has not become ready is open to the right."""
    start = NAMES + (row["start"] - origin) * scale
    ready = row["end"] is not None
    wide = max(1.0, (row["end"] - row["start"]) * scale if ready else NAMES + WIDTH - start)
    look = f'fill="{COLOURS.get(row["kind"], "#888")}"' if ready else 'fill="none" stroke="#c0392b" stroke-dasharray="4 3"'
    took = f"{row['end'] - row['start']:.3f} s" if ready else "not ready"
    name = escape(row["name"])
    return [
        f"<g><title>{name}: {row['kind']}, from {row['start']:.3f} s, {took}</title>",
        f'<text x="{NAMES - 8}" y="{y + 12}" text-anchor="end">{name}</text>',
        f'<rect x="{start:.1f}" y="{y + 3}" width="{min(wide, NAMES + WIDTH - start + 1):.1f}" height="{ROW - 6}" {look}/></g>',
    ]


def escape(text: str) -> str:
    """Text in XML (its specification, 2.4); characters that it does not know are left out."""
    kept = "".join(char for char in text if char >= " " and char not in "\ufffe\uffff")
    return kept.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
