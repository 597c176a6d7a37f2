"""`sv`: the prompt's functions for shell scripts. Each is a command; its arguments are the function's own."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable
from typing import Any

from onboard.to_pid1 import SVError
from prompt import functions
from prompt.shapes import nobody_reads, show

SHORT = {"lines": "-n", "follow": "-f"}  # as tail(1) has them


def commands() -> dict[str, Callable[..., Any]]:
    """Command name -> function: stop_process is `sv stop`."""
    listed = {name: value for name, value in vars(functions).items() if inspect.isfunction(value)}
    return {name.removesuffix("_process"): function for name, function in listed.items()}


def parser() -> argparse.ArgumentParser:
    """The parser, made from the functions' signatures."""
    top = argparse.ArgumentParser(prog="sv", description="talk to PID 1", epilog="sv COMMAND --help explains one")
    top.add_argument("--json", action="store_true", help="print data as JSON")
    choices = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in commands().items():
        text = inspect.getdoc(function) or ""
        sub = choices.add_parser(
            name, help=first_sentence(text), description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for number, parameter in enumerate(inspect.signature(function, eval_str=True).parameters.values()):
            _add(sub, parameter, first=number == 0)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print data as JSON")
    return top


def first_sentence(text: str) -> str:
    """The first sentence of a docstring's first line."""
    return text.partition("\n")[0].partition(". ")[0].rstrip(".")


def _add(sub: argparse.ArgumentParser, parameter: inspect.Parameter, *, first: bool) -> None:
    """Add one parameter: required ones and the first are positional, others are options."""
    name, default = parameter.name, parameter.default
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    kind: Any = next((one for one in (str, int, float) if one in kinds), str)
    if name == "show":  # live lines: as JSON, or as the function prints them
        sub.set_defaults(show=None)
    elif default is parameter.empty:
        sub.add_argument(name, metavar=name.upper())
    elif isinstance(default, bool):
        sub.add_argument(*filter(None, (SHORT.get(name), f"--{name}")), action="store_true", dest=name)
    elif first:
        sub.add_argument(name, metavar=name.upper(), nargs="?", default=default, type=kind)
    else:
        options = filter(None, (SHORT.get(name), f"--{name}"))
        sub.add_argument(*options, metavar=name.upper(), default=default, type=kind, dest=name)


def main(arguments: list[str]) -> int:
    """Call one function and print its value; exit status 1 with the error's sentence where it fails."""
    options = vars(parser().parse_args(arguments))
    as_json, name = options.pop("json"), options.pop("command")
    if as_json and "show" in options:
        options["show"] = lambda value: print(json.dumps(value), flush=True)
    try:
        answer = commands()[name](**options)
        if answer is not None and not (answer == [] and options.get("follow")):
            text = json.dumps(answer) if as_json else show(answer)
            print(text + "\n" if text else "", end="", flush=True)
    except SVError as error:
        print(f"sv: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `sv logs | head`
        _mute()
    except OSError as error:  # a full disk behind `>`
        print(f"sv: {error.filename or 'stdout'}: {error.strerror or error}", file=sys.stderr)
        _mute()
        return 1
    if nobody_reads():
        _mute()
    return 0


def _mute() -> None:
    """For Python's own flush at its end: what is still to be written has no reader."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
