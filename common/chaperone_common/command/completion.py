"""`completion`: print the script with which a shell completes a command; the only module that knows shtab."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chaperone_common.artefacts.folders import PAIR_NAME
from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser
from chaperone_common.command.program import EXIT_OK
from chaperone_common.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[CommandParser]

SHELLS = ("bash", "zsh")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}  # as shtab.FILE
_PAIRS = dict.fromkeys(SHELLS, "_chaperone_pairs")
# Only names of pairs get through, since `compgen -W` expands words as a shell does. The folder is that of
# `artefacts.folders.chaperone_home`.
_FOUND = (
    'command ls -1 "${CHAPERONE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/chaperone}/models" 2>/dev/null '
    f"| LC_ALL=C command grep -Ex '{PAIR_NAME}'"
)
_PREAMBLES = {
    "bash": f'_chaperone_pairs() {{ compgen -W "$({_FOUND})" -- "$1"; }}',
    "zsh": f'_chaperone_pairs() {{ compadd -- ${{(f)"$({_FOUND})"}}; }}',
}


def names_files(action: argparse.Action) -> None:
    """Have shells complete the values of a flag as files and folders."""
    action.complete = _FILES  # type: ignore[attr-defined]  # shtab's attribute


def names_pairs(action: argparse.Action) -> None:
    """Have shells complete the values of a flag or argument as the pairs on this machine."""
    action.complete = _PAIRS  # type: ignore[attr-defined]  # shtab's attribute


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
    return f"{shtab.complete(top, shell=shell, preamble=_PREAMBLES[shell])}\n"  # nosec B604: it names a shell, and starts none


def _usage(program: str) -> str:
    return f'In bash: `eval "$({program} completion bash)"`; in zsh, write it to `_{program}` in a folder of `fpath`.'
