"""`chaperone-cloud`: serve, and manage models and credentials."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version

from chaperone_common.command.completion import add_completion
from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser
from chaperone_common.command.program import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, run_program
from cloud_supervisor.cli.check import add_check
from cloud_supervisor.cli.credentials import add_cert, add_token
from cloud_supervisor.cli.models import Ended, add_models
from cloud_supervisor.cli.serve import add_serve
from cloud_supervisor.cli.values import Commands

PROGRAM = "chaperone-cloud"
OWN_PACKAGES = ("cloud_supervisor", "chaperone_common")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code: 0, 1 for an error, 2 for wrong usage or settings, 130 for Ctrl-C.

    `serve` ends with Ctrl-C or SIGTERM: it lets its streams finish, and returns 0. A second signal ends it at once.
    `models pull` removes its unfinished files when Ctrl-C, SIGTERM or SIGHUP end it.
    """
    console = Console.standard(PROGRAM)
    return run_program(console, lambda: _run(argv, console))


def _run(argv: Sequence[str] | None, console: Console) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("torch").setLevel(logging.WARNING)  # it logs its caches when the process ends
    try:
        arguments.run(console, arguments)
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # some libraries turn Ctrl-C during their import into this
            return EXIT_INTERRUPTED
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:  # a bug: show its traceback
            raise
        console.complain(f"{error}; this command needs more packages: pip install 'chaperone-llm[{arguments.extras}]'")
        return EXIT_ERROR
    except Ended as ended:
        return ended.exit_code
    return EXIT_OK


def _parser() -> CommandParser:
    parser = CommandParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('chaperone-llm')}")
    parser.set_defaults(extras="cloud")
    commands: Commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_serve(commands)
    add_check(commands)
    add_token(commands)
    add_cert(commands)
    add_models(commands)
    add_completion(commands, parser)
    return parser
