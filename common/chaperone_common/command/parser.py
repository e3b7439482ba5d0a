"""What the command lines of both ends share."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from chaperone_common.command.console import Console


class CommandParser(argparse.ArgumentParser):
    """Take flags by their whole names: `--prompt` is not short for `--prompts`. Write through the console."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        Console.standard(self.prog).say(f"{self.format_usage()}{self.prog}: error: {message}")
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help as all else is written; argparse would not mind a full disk."""
        Console.standard(self.prog).text(message)
