"""What the mothership's word `update` starts: `sv update URL`, and the reboot that tries the slot, as a service named `update`.

PID 1 loads this when the first word comes. It neither downloads nor writes: the service does, with root's rights, a bounded
memory and a low share of the CPU.
"""

from __future__ import annotations

from base.files import read_file
from base.stdlib import TYPE_CHECKING
from onboard.to_pid1 import SVError
from tables.rows import Service

if TYPE_CHECKING:
    from pid1.life import Life

NAME = "update"
RELEASE = "/etc/stack-release"  # "BOARD VERSION", by the image's build
LONGEST = 1024  # characters of an address
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~:/?=&%+,@")
MEMORY = "256M"  # the bundle is streamed; the engine's buffers are small
SCRIPT = 'sv update "$1" && exec sv reboot'  # the address is a word of its own: nothing of it is the shell's


def begin(life: Life, url: str, version: str, now: float) -> str:
    """Start the update. SVError where it is refused: no image of ours, this version runs already, or one is under way."""
    if not url.startswith("https://") or len(url) > LONGEST or not set(url) <= PLAIN:
        raise SVError(f"{url[:100]!r} is no https:// address of at most {LONGEST} plain characters")
    words = read_file(RELEASE).split()
    if len(words) != 2:
        raise SVError(f"{RELEASE} does not say which version this is: only an image of `make image` takes updates")
    if words[1] == version:
        return f"this board runs {version} already"
    if life.sv.stopping is not None:
        raise SVError("the board is shutting down")
    before = life.sv.processes.get(NAME)
    if before is not None and before.pid:
        raise SVError("an update is under way already")
    row = Service(NAME, ("sh", "-c", SCRIPT, NAME, url), restart="never", memory_max=MEMORY, cpu_weight=10)
    if before is not None:
        raise SVError("an update of this boot has ended: its log says how; the next boot takes another")
    life.sv.add(row, now)
    life.sv.settle(now)
    return f"the update to {version[:64]} has begun"
