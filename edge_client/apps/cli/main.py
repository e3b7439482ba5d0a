"""`chaperone`: generate text on this device, supervised by the cloud.

Exit codes: 0 done; 1 the generation failed, or a line of a batch did, or results could not be written; 2 wrong usage,
configuration or parameters; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version

from chaperone_common.command.completion import add_completion
from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser
from chaperone_common.command.program import run_program
from edge_client.apps.cli.audit import add_audit
from edge_client.apps.cli.calibrate import add_calibrate
from edge_client.apps.cli.generate import add_generate
from edge_client.apps.cli.models import add_models
from edge_client.apps.cli.options import Commands
from edge_client.apps.cli.serve import add_serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    console = Console.standard("chaperone")
    return run_program(console, lambda: _run(argv, console))


def _run(argv: Sequence[str] | None, console: Console) -> int:
    arguments = _parser().parse_args(argv)
    exit_code: int = arguments.run(console, arguments)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    description, _, exit_codes = (__doc__ or "").partition("\n")
    top = CommandParser(prog="chaperone", description=description)
    top.add_argument("--version", action="version", version=f"%(prog)s {version('chaperone-llm')}")
    commands: Commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_generate(commands, exit_codes)
    add_serve(commands)
    add_calibrate(commands)
    add_audit(commands)
    add_models(commands)
    add_completion(commands, top)
    _add_link(commands, top)
    return top


def _add_link(commands: Commands, top: CommandParser) -> None:
    """Answer `chaperone link` with the name of the script that replaced it."""
    link = commands.add_parser("link", add_help=False, prefix_chars="\0")  # no argument is a flag to this parser
    link.add_argument("rest", nargs=argparse.REMAINDER)

    def refuse_link(console: Console, arguments: argparse.Namespace) -> int:
        top.error(f"`chaperone link` is now `{shlex.join(['chaperone-link', *arguments.rest])}`")

    link.set_defaults(run=refuse_link)


if __name__ == "__main__":
    sys.exit(main())
