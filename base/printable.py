"""Text that others chose (network names, log lines, topics, a service's status), made safe for terminals, logs and pages.

What a terminal obeys and does not print goes: control characters (C0, DEL, C1), whatever turns the direction of writing,
breaks the line or has no width, halves of surrogate pairs, and what Unicode has no character for.
"""

from __future__ import annotations

INSTEAD = "?"  # ASCII: every console can print it
BLANKS = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"  # Unicode's Zs
_ASCII = bytes(byte if byte == 9 or 32 <= byte < 127 else ord(INSTEAD) for byte in range(256))


def printable(text: str, instead: str = INSTEAD) -> str:
    """The same text, each character that a terminal might obey replaced, and blanks of any width by a blank."""
    if text.isprintable():  # str.isprintable() is what repr() goes by: no categories "other" and "separator" but the space
        return text
    return "".join(char if char.isprintable() else " " if char in BLANKS else instead for char in text)


def printable_line(line: bytes) -> bytes:
    """A line of a log, in UTF-8 or not: tabs stay, and so do bytes of an old 8-bit encoding that no terminal obeys."""
    if line.isascii():
        return line.translate(_ASCII)
    text = line.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return line
    return "".join(
        char if char.isprintable() or char == "\t" or "\udca0" <= char <= "\udcff" else " " if char in BLANKS else INSTEAD
        for char in text
    ).encode("utf-8", "surrogateescape")
