"""`chaperone-cloud models`: fetch, convert, list, check, add and remove models."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from chaperone_common.command.completion import names_files
from chaperone_common.command.console import Console
from chaperone_common.command.pair_name import add_pair_name
from chaperone_common.command.parser import checked
from chaperone_common.command.program import EXIT_SIGNAL
from cloud_supervisor.cli.own_pairs import add_own_pairs
from cloud_supervisor.cli.values import Commands, yaml_file
from cloud_supervisor.config import check_pair_name


class Ended(BaseException):
    """A signal ended the command. It is no Exception, as KeyboardInterrupt is none, so that no code handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = EXIT_SIGNAL + number


def add_models(commands: Commands) -> None:
    """Add the commands."""
    models = commands.add_parser("models", help="fetch, convert, list, check, add and remove models")
    model_commands = models.add_subparsers(required=True, metavar="COMMAND")
    pull = model_commands.add_parser("pull", help="fetch and convert a model pair; does nothing if it is there")
    add_pair_name(
        pull,
        checked(check_pair_name),
        what="a pair of the registry, such as tiny (default: %(default)s)",
        default="default",
    )
    names_files(
        pull.add_argument(
            "--registry", type=yaml_file, help="a file in place of the packaged models.yaml and of your own pairs"
        )
    )
    pull.add_argument("--force", action="store_true", help="build it again")
    pull.set_defaults(run=_pull, extras="cloud,build")
    listing = model_commands.add_parser("list", help="which pairs are known, and which are here")
    names_files(
        listing.add_argument(
            "--registry", type=yaml_file, help="a file in place of the packaged models.yaml and of your own pairs"
        )
    )
    listing.set_defaults(run=_list)
    add_own_pairs(model_commands)


def _pull(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.export.pull import pull

    with _ended_by(signal.SIGTERM, signal.SIGHUP):
        pull(
            arguments.pair,
            registry_path=arguments.registry,
            force=arguments.force,
            progress=console.err.is_terminal,
            say=console.line,
        )


def _list(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.pairs.listing import list_pairs

    states = list_pairs(arguments.registry)
    width = max((len(state.pair) for state in states), default=0)
    for state in states:
        for artefact in (state.edge, state.cloud):
            line = f"{state.pair:{width}} {artefact.role:6} {artefact.presence:11} {artefact.model}"
            line += f" with adapter {artefact.adapter}" if artefact.adapter is not None else ""
            line += " and projector" if artefact.projector else ""
            line += "  (of another registry)" if not state.registered else "" if state.tested else "  (not tested)"
            console.line(line + (f"  {artefact.problem}" if artefact.problem else ""))


@contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block let signals end the command in order, so that it removes its temporary files."""

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    kept = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # `nohup` ignores SIGHUP
    for number in kept:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in kept:
            signal.signal(number, signal.SIG_DFL)
