"""`chaperone-cloud`: serve, and manage models."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser, checked
from chaperone_common.command.program import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_SIGNAL, run_program
from chaperone_common.errors import ConfigError, OutputLost
from chaperone_common.settings import load_yaml
from chaperone_common.settings.packaged import found_config
from cloud_supervisor.config import CloudConfig, check_listen, check_pair_name

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
    except _Ended as ended:
        return ended.exit_code
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('chaperone-llm')}")
    parser.set_defaults(extras="cloud")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="supervise devices with one large model")
    serve.add_argument("--config", type=_file, help="YAML file; flags override it")
    serve.add_argument("--listen", metavar="HOST:PORT", type=checked(check_listen), help="port 0 takes a free one")
    serve.add_argument(
        "--pair",
        metavar="NAME",
        type=checked(check_pair_name),
        help="model pair: tiny, default, or another name of models.yaml",
    )
    serve.add_argument("--dtype", choices=("auto", "float32", "bfloat16"))
    serve.add_argument("--threads", type=int, help="CPU threads of the model")
    serve.set_defaults(run=_serve)

    models = commands.add_parser("models", help="fetch, convert and list models")
    model_commands = models.add_subparsers(required=True, metavar="COMMAND")
    pull = model_commands.add_parser("pull", help="fetch and convert a model pair; does nothing if it is there")
    pull.add_argument(
        "--pair",
        default="default",
        metavar="NAME",
        type=checked(check_pair_name),
        help="a pair of the registry, such as tiny (default: %(default)s)",
    )
    pull.add_argument("--registry", type=_file, help="a file in place of the packaged models.yaml")
    pull.add_argument("--force", action="store_true", help="build it again")
    pull.set_defaults(run=_pull, extras="cloud,build")
    listing = model_commands.add_parser("list", help="which pairs are known, and which are here")
    listing.add_argument("--registry", type=_file, help="a file in place of the packaged models.yaml")
    listing.set_defaults(run=_list)
    return parser


def _file(text: str) -> Path:
    path = found_config(text)
    try:
        problem = "it is empty" if not text else "a folder, not a file" if path.is_dir() else ""
        problem = problem or ("" if path.exists() else "no such file")
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    if problem:
        raise argparse.ArgumentTypeError(f"{text!r}: {problem}; give a YAML file")
    return path


def _serve(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.server import serve

    config = load_yaml(arguments.config, CloudConfig) if arguments.config else CloudConfig()
    config = _override(config, arguments, ("listen", "pair", "dtype", "threads"))

    def announce(address: str) -> None:
        with suppress(OutputLost):  # a service may run without anybody reading its output
            console.line(f"{PROGRAM}: serving {config.pair} on {address}")

    serve(config, announce)


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
    from cloud_supervisor.export.listing import list_pairs

    for state in list_pairs(arguments.registry):
        for artefact in (state.edge, state.cloud):
            line = f"{state.pair:12} {artefact.role:6} {artefact.presence:11} {artefact.model}"
            line += "" if state.registered else "  (of another registry)"
            console.line(line + (f"  {artefact.problem}" if artefact.problem else ""))


class _Ended(BaseException):
    """A signal ended the command. It is no Exception, as KeyboardInterrupt is none, so that no code handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = EXIT_SIGNAL + number


@contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block let signals end the command in order, so that it removes its temporary files."""

    def end(number: int, _: FrameType | None) -> None:
        raise _Ended(number)

    kept = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # `nohup` ignores SIGHUP
    for number in kept:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in kept:
            signal.signal(number, signal.SIG_DFL)


def _override(config: CloudConfig, arguments: argparse.Namespace, names: Sequence[str]) -> CloudConfig:
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    try:
        return CloudConfig.model_validate({**config.model_dump(), **given})
    except ValidationError as error:
        flags = (
            f"--{details['loc'][0]}: {details['input']!r}: {details['msg'].removeprefix('Value error, ')}"
            for details in error.errors()
        )
        raise ConfigError("\n".join(flags)) from None


if __name__ == "__main__":
    sys.exit(main())
