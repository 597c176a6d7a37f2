"""Template services: a row whose name ends in "@" is started by nobody until somebody asks for an instance of it.

`start gps@ttyUSB0` takes the row "gps@" with `{instance}` replaced by "ttyUSB0". An instance is no part of the board's
table: it is forgotten some time after its end, as a command of the prompt is.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING
from onboard.to_pid1 import SVError

if TYPE_CHECKING:
    from tables.rows import Service
    from tables.tables import Tables

LONGEST = 64  # characters of an instance's name: it may come from a device's


def instance_row(tables: Tables, name: str) -> Service:
    """The row of an instance; SVError where it has no template, or a name that nobody should put into a path."""
    base, at, instance = name.partition("@")
    template = tables.templates.get(base + at)
    if template is None:
        raise SVError(f"there is no template {base[:LONGEST] + at!r}; there are {', '.join(tables.templates) or 'none'}")
    rest = instance.translate({ord(char): None for char in "_-."})
    if not rest.isalnum() or not instance.isascii() or not instance[0].isalnum() or len(instance) > LONGEST:
        raise SVError(
            f"{instance[:LONGEST]!r} is not the name of an instance: a letter or digit, then also _-. and at most {LONGEST}"
        )

    def fill(text: str) -> str:
        return text.replace("{instance}", instance)

    return template._replace(
        name=name, argv=tuple(map(fill, template.argv)), groups=tuple(map(fill, template.groups)), user=fill(template.user),
        env=tuple((key, fill(value)) for key, value in template.env), ready=fill(template.ready), cwd=fill(template.cwd),
        tty=fill(template.tty),
    )  # fmt: skip


def fits(pattern: str, name: object) -> bool:
    """Whether it is this name, or, where the pattern ends in "*", begins so; `fnmatch` would cost PID 1 `re`."""
    return isinstance(name, str) and (name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])))
