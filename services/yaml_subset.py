"""The part of YAML 1.2 that cloud-init's files are written in, and nothing else: the standard library has no YAML.

JSON is YAML and is taken as a whole. Of the block style: mappings and lists by indentation with spaces, `- key: value`, texts
without quotes, in 'single' and in "double" quotes (with JSON's escapes), whole numbers, true, false, null, `|` and `|-` for
several lines, `[a, b]` and `{a: b}` within a line, comments, one `---` at the beginning. Everything else is refused with the
number of its line: anchors, aliases, tags, merge keys, folded text (`>`), tabs, and texts such as `yes`, which YAML 1.1 and
1.2 read differently. A number that begins with 0, or has a dot in it, is a text.
"""

from __future__ import annotations

from base.stdlib import TYPE_CHECKING, json

if TYPE_CHECKING:
    from typing import Any

LARGEST = 256 * 1024  # bytes
DEEPEST = 16  # mappings and lists in each other
WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
AMBIGUOUS = ("yes", "no", "on", "off", "y", "n")
INDICATORS = {
    "&": "an anchor",
    "*": "an alias",
    "!": "a tag",
    ">": "folded text",
    "@": "@",
    "`": "`",
    "%": "a directive",
    "?": "a key with ?",
}
CLOSING = {"[": "]", "{": "}"}


class YamlFault(ValueError):
    """What cannot be read, with the number of its line."""


def parse(text: str) -> Any:
    """The value of a document of JSON or of this part of YAML; YamlFault where it is neither, or too large or too deep."""
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST:
        raise YamlFault(f"it has more than {LARGEST} bytes")
    if _nesting(text) <= 4 * DEEPEST:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return _Block(text).document()


def _nesting(text: str) -> int:
    return text.count("[") + text.count("{") if len(text) < 4 * DEEPEST else max(_depths(text), default=0)


def _depths(text: str) -> list[int]:
    depth, found = 0, [0]
    for char in text:
        depth += (char in "[{") - (char in "]}")
        found.append(depth)
    return found


class _Block:
    """Lines that have something on them, and where we are in them."""

    def __init__(self, text: str) -> None:
        self.raw = text.replace("\r\n", "\n").split("\n")
        self.lines: list[tuple[int, int, str]] = []  # number of the line, its indentation, the rest of it
        self.at = 0
        for number, line in enumerate(self.raw, 1):
            rest = line.lstrip(" ")
            if rest.strip() and rest[0] != "#":
                self.lines.append((number, len(line) - len(rest), rest.rstrip()))

    def document(self) -> Any:
        if self.lines and self.lines[0][2] == "---":
            self.at = 1
        if self.at == len(self.lines):
            return None
        value = self.value(self.lines[self.at][1], 0)
        if self.at < len(self.lines):
            raise self.fault("this line is indented less than those before it, or belongs to nothing")
        return value

    def fault(self, why: str, number: int = 0) -> YamlFault:
        return YamlFault(f"line {number or self.lines[min(self.at, len(self.lines) - 1)][0]}: {why}")

    def value(self, indent: int, depth: int) -> Any:
        """What begins at this line, whose lines are indented so."""
        if depth > DEEPEST:
            raise self.fault(f"more than {DEEPEST} mappings and lists in each other")
        rest = self.lines[self.at][2]
        if rest == "-" or rest.startswith("- "):
            return self.sequence(indent, depth)
        if _key(rest) is not None:
            return self.mapping(indent, depth)
        number, _, rest = self.lines[self.at]
        self.at += 1
        return self.scalar(rest, number)

    def here(self, indent: int) -> str | None:
        """The line at this indentation, or None where the block is over."""
        if self.at == len(self.lines) or self.lines[self.at][1] < indent:
            return None
        number, found, rest = self.lines[self.at]
        if found > indent:
            raise self.fault("this line is indented more than the one that it follows")
        if "\t" in self.raw[number - 1][: found + 1]:
            raise self.fault("a tab; YAML is indented with spaces")
        return rest

    def sequence(self, indent: int, depth: int) -> list[Any]:
        items = []
        while (rest := self.here(indent)) is not None and (rest == "-" or rest.startswith("- ")):
            number = self.lines[self.at][0]
            inner = rest[1:].lstrip(" ")
            if not inner or inner[0] == "#":
                self.at += 1
                items.append(self.below(indent, depth, strict=True))
            else:  # what follows the dash is a block of its own, indented by what stands before it
                self.lines[self.at] = (number, indent + len(rest) - len(inner), inner)
                if _key(inner) is not None or inner == "-" or inner.startswith("- "):
                    items.append(self.value(self.lines[self.at][1], depth + 1))
                else:
                    self.at += 1
                    items.append(self.inline(inner, indent, number))
        return items

    def mapping(self, indent: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (rest := self.here(indent)) is not None:
            number = self.lines[self.at][0]
            pair = _key(rest)
            if pair is None:
                raise self.fault("no `key: value`")
            name = _name(pair[0], self, number)
            if name in found:
                raise self.fault(f"{name[:40]!r} stands here twice")
            self.at += 1
            if not pair[1] or pair[1][0] == "#":
                found[name] = self.below(indent, depth)
            else:
                found[name] = self.inline(pair[1], indent, number)
        return found

    def below(self, indent: int, depth: int, *, strict: bool = False) -> Any:
        """What stands on the lines after `key:` or `-`: indented more, or a list at the same indentation as its key."""
        if self.at == len(self.lines):
            return None
        _, found, rest = self.lines[self.at]
        if found > indent or (not strict and found == indent and (rest == "-" or rest.startswith("- "))):
            return self.value(found, depth + 1)
        return None

    def inline(self, text: str, indent: int, number: int) -> Any:
        """What stands behind `key:` or `-` on their line; `|` takes the lines below."""
        if text.split(" #")[0].rstrip() in ("|", "|-"):
            return self.literal(text[:2] != "|-", indent, number)
        if text[0] == "|":
            raise self.fault("of `|` only `|` and `|-` are read here", number)
        return self.scalar(text, number)

    def literal(self, newline: bool, indent: int, number: int) -> str:
        """The lines below as they are, without the indentation of the first one."""
        taken: list[str] = []
        for line in self.raw[number:]:
            if line.strip() and len(line) - len(line.lstrip(" ")) <= indent:
                break
            taken.append(line)
        while self.at < len(self.lines) and self.lines[self.at][0] <= number + len(taken):
            self.at += 1
        while taken and not taken[-1].strip():
            taken.pop()
        first = next((line for line in taken if line.strip()), "")
        margin = len(first) - len(first.lstrip(" "))
        if any(line.strip() and line[:margin].strip() for line in taken):
            raise self.fault("a line of this text is indented less than its first one", number)
        return "\n".join(line[margin:] for line in taken) + ("\n" if newline and taken else "")

    def scalar(self, text: str, number: int) -> Any:
        """One value within a line."""
        value, rest = _flow(text, self, number, 0)
        if rest and not rest.lstrip(" ").startswith("#"):
            raise self.fault(f"something follows the value: {rest.strip()[:40]!r}", number)
        return value


def _key(rest: str) -> tuple[str, str] | None:
    """Key and value of `key: value`; None where the line is none."""
    if not rest:
        return None
    if rest[0] in "'\"":
        end = _end_of_quotes(rest)
        after = rest[end:] if end else ""
        return (rest[:end], after[1:].strip(" ")) if after[:1] == ":" and after[1:2] in ("", " ") else None
    if rest[0] in "[{":
        return None
    name, colon, value = rest.partition(": ") if ": " in rest else (rest[:-1], rest[-1:], "")
    name = name.rstrip(" ")
    return (name, value.strip(" ")) if colon[:1] == ":" and name and " #" not in name else None


def _end_of_quotes(text: str) -> int:
    """Where the text in quotes ends that this begins with; 0 where it does not."""
    at, quote = 1, text[0]
    while at < len(text):
        if (text[at] == "\\" and quote == '"') or (text[at : at + 2] == "''" and quote == "'"):
            at += 2
        elif text[at] == quote:
            return at + 1
        else:
            at += 1
    return 0


def _name(text: str, block: _Block, number: int) -> str:
    """A key: always a text, whatever it looks like."""
    if text[0] in "'\"":
        return str(_flow(text, block, number, 0)[0])
    if text[0] in INDICATORS or text == "<<":
        raise block.fault(f"{text[:20]!r} as a key is not read here", number)
    return text


def _flow(text: str, block: _Block, number: int, depth: int) -> tuple[Any, str]:
    """A value at the beginning of a text, and what follows it. `depth` > 0: within [ ] or { }, where , ends a value too."""
    text = text.lstrip(" ")
    if depth > DEEPEST:
        raise block.fault(f"more than {DEEPEST} mappings and lists in each other", number)
    if text[:1] in CLOSING:
        return _collection(text, block, number, depth)
    if text[:1] == '"':
        end = _end_of_quotes(text)
        try:
            return json.loads(text[:end]), text[end:]
        except ValueError:
            why = 'a text in "double quotes" that is not closed, or has an escape that JSON does not have'
            raise block.fault(why, number) from None
    if text[:1] == "'":
        end = _end_of_quotes(text)
        if not end:
            raise block.fault("a text in 'single quotes' that is not closed", number)
        return text[1 : end - 1].replace("''", "'"), text[end:]
    stops = [at for stop in ((" #", ",", "]", "}") if depth else (" #",)) if (at := text.find(stop)) >= 0]
    end = min(stops, default=len(text))
    return _plain(text[:end].rstrip(" "), block, number), text[end:]


def _collection(text: str, block: _Block, number: int, depth: int) -> tuple[Any, str]:
    """[a, b] or {a: b}."""
    close = CLOSING[text[0]]
    items: list[Any] = []
    pairs: dict[str, Any] = {}
    rest = text[1:].lstrip(" ")
    while rest[:1] != close:
        if close == "}":
            pair = _key(rest)
            if pair is None:
                raise block.fault("no `key: value` in { }", number)
            name = _name(pair[0], block, number)
            if name in pairs:
                raise block.fault(f"{name[:40]!r} stands here twice", number)
            pairs[name], rest = _flow(pair[1], block, number, depth + 1)
        else:
            value, rest = _flow(rest, block, number, depth + 1)
            items.append(value)
        rest = rest.lstrip(" ")
        if rest[:1] == ",":
            rest = rest[1:].lstrip(" ")
        elif rest[:1] != close:
            raise block.fault(f"{text[0]} has no {close} on its line", number)
    return (pairs if close == "}" else items), rest[1:]


def _plain(text: str, block: _Block, number: int) -> Any:
    """A text without quotes, a number, or a word such as true."""
    if text[:1] in INDICATORS:
        raise block.fault(f"{text[:20]!r}: {INDICATORS[text[0]]} is not read here; put a text in quotes", number)
    if text in WORDS:
        return WORDS[text]
    if text.lower() in (*AMBIGUOUS, *WORDS):
        raise block.fault(
            f"{text!r} is true or false in one YAML and a text in another: write true or false, or put it in quotes", number
        )
    if ": " in text:
        raise block.fault(f"{text[:40]!r} has a colon in it: put it in quotes", number)
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0") and len(digits) < 19:
        return int(text)
    return text
