"""`chaperone-cloud`: serve, and manage models."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cloud_supervisor.config import CloudConfig
from common.config import load_yaml
from common.errors import ChaperoneError, ConfigError, InvalidRequest

OWN_PACKAGES = ("cloud_supervisor", "common")
EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for an error, 2 for wrong usage or settings, 130 for Ctrl-C.

    For `serve`, Ctrl-C and SIGTERM are how it is meant to end: it lets its streams finish, and returns 0.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        arguments.run(arguments)
    except ChaperoneError as error:
        print(f"chaperone-cloud: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, InvalidRequest) else EXIT_ERROR
    except ImportError as error:
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:  # a bug, which needs its traceback
            raise
        remedy = f"pip install 'chaperone-llm[{arguments.extras}]'"
        print(f"chaperone-cloud: {error}; this command needs more packages: {remedy}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaperone-cloud", description=__doc__)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('chaperone-llm')}")
    parser.set_defaults(extras="cloud")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="supervise devices with one large model")
    serve.add_argument("--config", type=Path, help="YAML file; flags override it")
    serve.add_argument("--listen", metavar="HOST:PORT", help="port 0 takes a free one")
    serve.add_argument("--pair", metavar="NAME", help="model pair: tiny, default, or another name of models.yaml")
    serve.add_argument("--dtype", choices=("auto", "float32", "bfloat16"))
    serve.add_argument("--threads", type=int, help="CPU threads of the model")
    serve.set_defaults(run=_serve)

    models = commands.add_parser("models", help="fetch, convert and list models")
    model_commands = models.add_subparsers(required=True, metavar="COMMAND")
    pull = model_commands.add_parser("pull", help="fetch and convert a model pair; does nothing if it is there")
    pull.add_argument("--pair", default="default", metavar="NAME")
    pull.add_argument("--registry", type=Path, help="another models.yaml")
    pull.add_argument("--force", action="store_true", help="build it again")
    pull.set_defaults(run=_pull, extras="cloud,build")
    listing = model_commands.add_parser("list", help="which pairs are known, and which are here")
    listing.add_argument("--registry", type=Path, help="another models.yaml")
    listing.set_defaults(run=_list)
    return parser


def _serve(arguments: argparse.Namespace) -> None:
    from cloud_supervisor.server import serve

    config = load_yaml(arguments.config, CloudConfig) if arguments.config else CloudConfig()
    config = _override(config, arguments, ("listen", "pair", "dtype", "threads"))

    def announce(address: str) -> None:
        print(f"chaperone-cloud: serving {config.pair} on {address}", flush=True)

    asyncio.run(serve(config, announce))


def _pull(arguments: argparse.Namespace) -> None:
    from cloud_supervisor.models.pull import pull

    pull(arguments.pair, registry_path=arguments.registry, force=arguments.force, say=_say)


def _list(arguments: argparse.Namespace) -> None:
    from cloud_supervisor.models.pull import list_pairs

    for state in list_pairs(arguments.registry):
        for role, model, present in (
            ("edge", state.edge_model, state.edge_present),
            ("cloud", state.cloud_model, state.cloud_present),
        ):
            _say(f"{state.pair:12} {role:6} {'here' if present else 'not pulled':11} {model}")


def _say(text: str) -> None:
    print(text, flush=True)


def _override(config: CloudConfig, arguments: argparse.Namespace, names: Sequence[str]) -> CloudConfig:
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    try:
        return CloudConfig.model_validate({**config.model_dump(), **given})
    except ValidationError as error:
        flags = (f"--{details['loc'][0]}: {details['input']!r}: {details['msg']}" for details in error.errors())
        raise ConfigError("\n".join(flags)) from None


if __name__ == "__main__":
    sys.exit(main())
