"""The parser that all commands share, and the values of their flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from chaperone_common.command.console import Console


class CommandParser(argparse.ArgumentParser):
    """A parser that accepts only whole flag names, and writes through the console.

    `--prompt` is refused, and is not short for `--prompts`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        Console.standard(self.prog).say(f"{self.format_usage()}{self.prog}: error: {message}")
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help through the console, because argparse ignores a full disk."""
        Console.standard(self.prog).text(message)


def checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Turn the check of a setting into the `type=` of a flag; `check` raises ValueError.

    The flag's value is the given text. For a wrong one, argparse names the flag and ends the command.
    """

    def convert(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            refuse(text, str(error))
        return text

    return convert


def refuse(text: str, reason: str) -> NoReturn:
    """Raise the error that argparse reports with the name of the flag."""
    raise argparse.ArgumentTypeError(f"{text!r}: {reason}") from None
