"""The kernel command line, read as the kernel reads it: `stack.` words, and those that ask any init for a rescue."""

from __future__ import annotations

# What has asked an init for a shell of root's since System V (`man 7 bootparam`, `man 1 init`).
RESCUE_WORDS = ("single", "rescue", "emergency", "1", "S", "s")


def kernel_words(text: str) -> list[str]:
    """Words of /proc/cmdline, up to `--`: what follows that are the init's own arguments (next_arg() in lib/cmdline.c).

    White space within double quotes belongs to the word. Quotes around all of a word, or around all of its value, are no part
    of it.
    """
    words: list[str] = []
    for raw in split(text):
        name, equals, value = raw.removeprefix('"').partition("=")
        if equals and value.startswith('"'):
            value = value[1:].removesuffix('"')
        if raw.startswith('"'):
            name, value = (name, value.removesuffix('"')) if equals else (name.removesuffix('"'), value)
        if name == "--" and not equals:
            break
        words.append(f"{name}{equals}{value}")
    return words


def split(text: str) -> list[str]:
    """Words with their quotes: white space ends a word only outside of them."""
    words, word, quoted = [], "", False
    for char in text:
        if char.isspace() and not quoted:
            words.append(word)
            word = ""
        else:
            word += char
            quoted = quoted != (char == '"')
    return [one for one in (*words, word) if one]


def parse_options(words: list[str]) -> dict[str, str]:
    """`stack.name=value` and `stack.name` words; the last one wins, but what is to be skipped adds up."""
    options: dict[str, str] = {}
    for name, equals, value in (word.partition("=") for word in words):
        if name in RESCUE_WORDS and not equals:
            options["stack.rescue"] = "1"
        elif name == "stack.skip" and name in options:
            options[name] = f"{options[name]},{value}"
        elif name.startswith("stack."):
            options[name] = value if equals else "1"
    return options
