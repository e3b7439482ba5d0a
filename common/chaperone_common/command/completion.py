"""`completion`: print the script with which a shell completes a command; the only module that knows shtab."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser
from chaperone_common.command.program import EXIT_OK
from chaperone_common.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[CommandParser]

SHELLS = ("bash", "zsh")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}  # as shtab.FILE


def names_files(action: argparse.Action) -> None:
    """Have shells complete the values of a flag as files and folders."""
    action.complete = _FILES  # type: ignore[attr-defined]  # shtab's attribute


def add_completion(commands: Commands, top: CommandParser) -> None:
    """Add the command. `top` is the parser of the whole program, with all of its commands."""
    what = "print the script with which a shell completes this command"
    completion = commands.add_parser("completion", help=what, description=f"{what}. {_usage(top.prog)}")
    completion.add_argument("shell", choices=SHELLS)

    def run(console: Console, arguments: argparse.Namespace) -> int:
        console.text(script(top, arguments.shell))
        return EXIT_OK

    completion.set_defaults(run=run)


def script(top: CommandParser, shell: str) -> str:
    """Return the script of a shell; raises ConfigError if shtab is not installed."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise ConfigError("completion: the package shtab is not installed; run `pip install shtab`") from None
    return f"{shtab.complete(top, shell=shell)}\n"  # nosec B604: it names a shell, and starts none


def _usage(program: str) -> str:
    return f'In bash: `eval "$({program} completion bash)"`; in zsh, write it to `_{program}` in a folder of `fpath`.'
