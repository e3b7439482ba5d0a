"""The parser that all commands share, and the values of their flags."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from chaperone_common.command.console import Console
from chaperone_common.suggestion import cut, nearest

_NUMBER = re.compile(r"-[0-9.]")


class CommandParser(argparse.ArgumentParser):
    """A parser that accepts only whole flag names, says what to give instead of others, and writes through the console.

    `--prompt` is refused, and is not short for `--prompts`.
    """

    def __init__(self, *, instead: Callable[[str], str | None] | None = None, text: str = "", **settings: Any) -> None:
        """Make a parser.

        Args:
            instead: Returns a sentence about a flag that users of other programs know, or None.
            text: The argument that is a text of several words, for which quotation marks may be forgotten.
            settings: As for argparse.
        """
        super().__init__(**settings, allow_abbrev=False)
        self._instead = instead
        self._text = text

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and end the command if an argument is unknown. The parser of a command knows best what it takes."""
        given = list(sys.argv[1:] if args is None else args)
        parsed, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(self._refusal(parsed, unknown, given))
        return parsed, unknown

    def _refusal(self, parsed: argparse.Namespace, unknown: Sequence[str], given: Sequence[str]) -> str:
        """Return the message: flags alone if there are any, since the words around them may be their values."""
        before = given[: given.index("--")] if "--" in given else given
        flags = [word.partition("=")[0] for word in unknown if word in before and _is_flag(word)]
        if flags:
            return "\n".join(self._unknown_flag(flag) for flag in dict.fromkeys(flags))
        first = getattr(parsed, self._text) if self._text else None
        if first is not None:
            whole = shlex.quote(cut(" ".join((first, *unknown))))
            return (
                f"{self._text}: it is one argument, and {1 + len(unknown)} are given; quote the {self._text}: {whole}"
            )
        return f"unrecognized arguments: {' '.join(unknown)}"

    def _unknown_flag(self, flag: str) -> str:
        instead = self._instead(flag) if self._instead is not None else None
        known = [name for name in self._option_string_actions if name.startswith("--")]
        return f"{cut(flag)}: {instead or f'unknown flag{nearest(flag, known)}'}"

    def error(self, message: str) -> NoReturn:
        Console.standard(self.prog).say(f"{self.format_usage()}{self.prog}: error: {message}")
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help through the console, because argparse ignores a full disk."""
        Console.standard(self.prog).text(message)


def _is_flag(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and " " not in word and _NUMBER.match(word) is None


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
