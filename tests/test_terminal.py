"""A terminal that an app has left raw, on a real pseudo terminal: what PID 1 makes of it."""

from __future__ import annotations

import os
import termios
import tty

from base.terminal import make_sane


def test_a_raw_terminal_becomes_what_it_was() -> None:
    """The kernel's own modes of a new pseudo terminal, asked for by `termios`; the speed is the one that was set."""
    ours, fd = os.openpty()
    fresh = termios.tcgetattr(fd)
    tty.setraw(fd)
    modes = termios.tcgetattr(fd)
    modes[4] = modes[5] = termios.B9600
    modes[6][termios.VINTR] = b"x"
    termios.tcsetattr(fd, termios.TCSANOW, modes)
    make_sane(fd)
    sane = termios.tcgetattr(fd)
    for index, name in ((1, "oflag"), (3, "lflag")):
        assert sane[index] == fresh[index], name
    assert sane[0] == fresh[0] | termios.IUTF8 if hasattr(termios, "IUTF8") else sane[0] & fresh[0] == fresh[0]
    assert sane[6][: termios.VEOL2] == fresh[6][: termios.VEOL2]
    assert sane[4] == termios.B9600
    assert sane[2] & termios.CSIZE == termios.CS8
    os.close(ours)
    os.close(fd)


def test_what_is_no_terminal_stays_as_it_is() -> None:
    reader, writer = os.pipe()
    make_sane(reader)
    os.close(reader)
    os.close(writer)
