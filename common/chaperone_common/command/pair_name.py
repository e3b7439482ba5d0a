"""The name of a model pair in `models` commands: an argument, or the value of `--pair`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from chaperone_common.command.completion import names_pairs

_GIVEN = "given_pair"  # in the namespace: the name that was given so far


def add_pair_name(
    command: argparse.ArgumentParser, kind: Callable[[str], str], *, what: str, default: str | None = None
) -> None:
    """Add both forms of the name; `kind` is its `type=`, and `what` its help. The result is `arguments.pair`."""
    names_pairs(command.add_argument("--pair", action=_PairName, type=kind, default=default, metavar="NAME", help=what))
    names_pairs(command.add_argument("pair", nargs="?", action=_PairName, type=kind, metavar="NAME", help="the same"))
    command.set_defaults(wrong_usage=command.error)


def required_pair(arguments: argparse.Namespace) -> str:
    """Return the name; end the command if it is missing."""
    if arguments.pair is None:
        arguments.wrong_usage("the NAME of a pair is required")
    name: str = arguments.pair
    return name


class _PairName(argparse.Action):
    """Store a name, and refuse another one. An absent argument changes nothing."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is None:
            return
        earlier = getattr(namespace, _GIVEN, values)
        if earlier != values:
            parser.error(f"NAME: {earlier!r} and {values!r} are given; name one pair")
        setattr(namespace, _GIVEN, values)
        setattr(namespace, self.dest, values)
