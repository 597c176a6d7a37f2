"""A terminal in sane modes, whatever an app has left it in: ioctls by hand, since `import termios` is one more for PID 1.

Numbers and the order of fields are those of asm-generic (`man 2 ioctl_tty`, `man 3 termios`), of all processors but MIPS,
PowerPC, SPARC and Alpha; there the kernel refuses the call, and the terminal stays as it is.
"""

from __future__ import annotations

import sys
from fcntl import ioctl

TCGETS, TCSETS, TCXONC, TIOCNXCL = 0x5401, 0x5402, 0x540A, 0x540D
TCOON = 1
KDSETMODE, KD_TEXT, KDSKBMODE, K_UNICODE = 0x4B3A, 0, 0x4B45, 3  # linux/kd.h
STRUCT = 36  # bytes: four flags of four bytes, the line discipline, 19 control characters
ICRNL, IXON, IUTF8 = 0o400, 0o2000, 0o40000
OPOST, ONLCR = 1, 4
CSIZE, CS8, CREAD, CLOCAL, HUPCL = 0o60, 0o60, 0o200, 0o4000, 0o2000
ISIG, ICANON, ECHO, ECHOE, ECHOK, ECHOCTL, ECHOKE, IEXTEN = 1, 2, 0o10, 0o20, 0o40, 0o1000, 0o4000, 0o100000
# INTR ^C, QUIT ^\, ERASE DEL, KILL ^U, EOF ^D, TIME 0, MIN 1, SWTC, START ^Q, STOP ^S, SUSP ^Z, EOL, REPRINT ^R,
# DISCARD ^O, WERASE ^W, LNEXT ^V, EOL2
CONTROL = bytes((3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0))


def make_sane(fd: int) -> None:
    """Lines, echo, newlines and signals as at boot; its speed stays. Output that ^S has stopped goes on."""
    try:
        old = ioctl(fd, TCGETS, bytes(STRUCT))
    except OSError:  # not a terminal
        return
    cflag = int.from_bytes(old[8:12], sys.byteorder) & ~CSIZE & ~HUPCL | CS8 | CREAD | CLOCAL
    lflag = ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN
    flags = (ICRNL | IXON | IUTF8, OPOST | ONLCR, cflag, lflag)
    modes = b"".join(flag.to_bytes(4, sys.byteorder) for flag in flags) + b"\0" + CONTROL
    for request, argument in (
        (TIOCNXCL, 0), (KDSETMODE, KD_TEXT), (KDSKBMODE, K_UNICODE), (TCSETS, modes), (TCXONC, TCOON),
    ):  # fmt: skip
        try:
            ioctl(fd, request, argument)
        except OSError:  # a serial line has no keyboard
            pass
