"""A virtual machine whose host may ask PID 1 all that root may, over AF_VSOCK: on top of any other profile."""

from __future__ import annotations

VSOCK = ("1024", "2")  # the port, and VMADDR_CID_HOST (`man 7 vsock`)
