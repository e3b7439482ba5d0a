"""Flags that several commands share, and the settings and parameters that they give."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from chaperone_common.address import split_addresses
from chaperone_common.command.completion import names_files, names_pairs
from chaperone_common.command.console import Console
from chaperone_common.command.pair_name import add_pair_name
from chaperone_common.command.parser import CommandParser, checked
from chaperone_common.errors import InvalidRequest
from edge_client.apps.cli.values import pair, path
from edge_client.config import EdgeConfig
from edge_client.model.onnx_model import check_providers
from edge_client.parameters import RequestParameters, parse_max_cloud_share, parse_params, parse_promises
from edge_client.refused_names import instead_of

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"  # argparse has no public name for it
RunCommand = Callable[[Console, argparse.Namespace], int]  # returns the exit code


# The flags for settings of the cloud, by the name that argparse gives them.
_CLOUD_FLAGS = {
    "cloud": "address",
    "tls_ca": "ca_file",
    "tls_cert": "cert_file",
    "tls_key": "key_file",
    "token_file": "token_file",
    "insecure": "insecure",
}


_FLAGS = {"top_logprobs": "logprobs"}  # of parameters whose flag has another name

# Well-known names that a command answers otherwise than a function does.
_INSTEAD = {
    "output_scores": "give --logprobs K, with --json or --out",
    "output_logits": "give --logprobs K, with --json or --out",
    "top_logprobs": "give --logprobs K, with --json or --out",
    "stream": "text is printed as it is written; leave it out",
    "stream_options": "text is printed as it is written; leave it out",
    "model": "the pair is the model; give --pair NAME",
    "messages": "the prompt is one user message; a batch takes messages, see --prompts",
    "system": "the prompt is one user message; a batch takes messages, see --prompts",
    "input": "give the prompt as an argument, or on standard input",
    "prompt": "give the prompt as an argument, without a flag, or on standard input",
}
_SERVICE_INSTEAD = {"model": _INSTEAD["model"], "host": "give --listen HOST:PORT", "port": "give --listen HOST:PORT"}


_NAMES = {
    name: f"--{_FLAGS.get(name, name.replace('_', '-'))}" for name in (*RequestParameters.__annotations__, "timeout")
}


def instead_of_flag(flag: str) -> str | None:
    """Return what to give instead of a well-known flag of other programs; None if it is not well known."""
    name = _name_of(flag)
    return _INSTEAD.get(name) or instead_of(name, _NAMES)


def instead_of_service_flag(flag: str) -> str | None:
    """Return the same for a service, whose parameters come with each request."""
    name = _name_of(flag)
    if name in RequestParameters.__annotations__:
        return "clients send it with each request; leave it out"
    return _SERVICE_INSTEAD.get(name) or instead_of(name)


def _name_of(flag: str) -> str:
    """Return the parameter that a flag would give, "" for a short flag."""
    return flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""


def add_settings(command: argparse.ArgumentParser, *, takes_name: bool = False) -> None:
    """Add the flags that choose the configuration. With `takes_name`, the pair may be an argument, too."""
    names_files(command.add_argument("--config", type=path, metavar="FILE", help="YAML file; flags override it"))
    command.add_argument(
        "--cloud",
        type=checked(split_addresses),
        metavar="HOST:PORT[,...]",
        help="address of chaperone-cloud, or several of them; see `cloud.address`",
    )
    names_files(
        command.add_argument(
            "--tls-ca", type=path, metavar="FILE", help="certificates that vouch for the cloud's, in PEM"
        )
    )
    names_files(
        command.add_argument("--tls-cert", type=path, metavar="FILE", help="certificate of this device, in PEM")
    )
    names_files(command.add_argument("--tls-key", type=path, metavar="FILE", help="key of that certificate"))
    names_files(
        command.add_argument(
            "--token-file", type=path, metavar="FILE", help="token for the cloud; or set CHAPERONE_TOKEN"
        )
    )
    command.add_argument(
        "--insecure", action="store_true", default=None, help="allow plain text to a cloud that is not on this machine"
    )
    if takes_name:
        add_pair_name(command, pair, what="model pair: tiny, default, or another that the cloud serves")
    else:
        names_pairs(
            command.add_argument(
                "--pair", type=pair, metavar="NAME", help="model pair: tiny, default, or another that was pulled"
            )
        )


def config_of(arguments: argparse.Namespace) -> EdgeConfig:
    """Return the configuration that the flags of `add_settings` choose; raises ConfigError."""
    config = EdgeConfig.load(arguments.config) if arguments.config is not None else EdgeConfig()
    updates: dict[str, Any] = {}
    if arguments.pair is not None:
        updates["pair"] = arguments.pair
    if arguments.closing_audit:
        updates["closing_audit"] = True
    given = {setting: getattr(arguments, flag) for flag, setting in _CLOUD_FLAGS.items()}
    given = {setting: value for setting, value in given.items() if value is not None}
    updates["cloud"] = config.cloud.model_copy(update=given)
    check_providers(config.device.providers)
    return config.model_copy(update=updates)


def parameters_of(arguments: argparse.Namespace, config: EdgeConfig, names: Sequence[str]) -> dict[str, Any]:
    """Return the parameters that flags give, checked before any work begins; raises InvalidRequest."""
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    try:
        for text in given.get("stop", ()):
            check_characters("stop", text)
        parse_params(given, config.generation)
        parse_promises(given, config.gate)
        parse_max_cloud_share(given, config.gate)
    except InvalidRequest as error:
        raise as_flags(error, given) from None
    return given


def as_flags(error: InvalidRequest, given: Mapping[str, object]) -> InvalidRequest:
    """Return the same error about the flag that gave a parameter, if one did."""
    name, colon, rest = error.message.partition(":")
    flag = _FLAGS.get(name, name.replace("_", "-"))
    return type(error)(f"--{flag}{colon}{rest}") if name in given else error


def check_characters(name: str, text: str) -> None:
    """Raise InvalidRequest for bytes of an argument that are not UTF-8; Python keeps them as lone surrogates."""
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InvalidRequest(f"{name}: character {position} is a lone surrogate, from bytes that are not UTF-8")
