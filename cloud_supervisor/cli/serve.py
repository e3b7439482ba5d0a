"""`chaperone-cloud serve`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ValidationError

from chaperone_common.artefacts.folders import chaperone_home
from chaperone_common.command.completion import names_files, names_pairs
from chaperone_common.command.console import Console
from chaperone_common.command.parser import CommandParser, checked
from chaperone_common.errors import ConfigError, OutputLost
from chaperone_common.settings import FrozenModel, load_yaml
from cloud_supervisor.cli.values import Commands, path, yaml_file
from cloud_supervisor.config import CloudConfig, check_listen, check_metrics, check_pair_name

# The flags that override a setting, by the name that argparse gives them.
SETTINGS = {
    "listen": "listen",
    "pair": "pair",
    "dtype": "dtype",
    "threads": "threads",
    "tls_cert": "tls.cert_file",
    "tls_key": "tls.key_file",
    "client_ca": "tls.client_ca_file",
    "tokens": "tokens_file",
    "metrics": "metrics",
    "engine": "engine",
    "replicas": "ray.replicas",
    "insecure": "insecure",
    "kv_sharing": "kv_sharing",
}

ConfigT = TypeVar("ConfigT", bound=FrozenModel)


def add_serve(commands: Commands) -> None:
    """Add the command."""
    serve = commands.add_parser("serve", help="supervise devices with one large model")
    add_settings(serve)
    serve.set_defaults(run=_serve)


def add_settings(serve: CommandParser) -> None:
    """Add the flags that override settings."""
    names_files(serve.add_argument("--config", metavar="FILE", type=yaml_file, help="YAML file; flags override it"))
    serve.add_argument("--listen", metavar="HOST:PORT", type=checked(check_listen), help="port 0 takes a free one")
    names_pairs(
        serve.add_argument(
            "--pair",
            metavar="NAME",
            type=checked(check_pair_name),
            help="model pair: tiny, default, or another name of models.yaml",
        )
    )
    serve.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "int8"))
    serve.add_argument("--threads", type=int, help="CPU threads of the model")
    names_files(serve.add_argument("--tls-cert", metavar="FILE", type=path, help="certificate of this server, in PEM"))
    names_files(serve.add_argument("--tls-key", metavar="FILE", type=path, help="key of that certificate"))
    names_files(
        serve.add_argument(
            "--client-ca", metavar="FILE", type=path, help="each device must have a certificate of these authorities"
        )
    )
    names_files(
        serve.add_argument(
            "--tokens", metavar="FILE", type=path, help="file of `token create`; each device needs a token"
        )
    )
    serve.add_argument(
        "--metrics", metavar="HOST:PORT", type=checked(check_metrics), help="serve metrics and readiness over HTTP"
    )
    serve.add_argument(
        "--kv-sharing",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="read texts of a tenant that begin alike once",
    )
    serve.add_argument("--engine", choices=("grpc", "ray"), help="ray: replicas on Ray Serve; needs the extra `ray`")
    serve.add_argument("--replicas", type=int, metavar="N", help="models of the engine ray")
    serve.add_argument("--insecure", action="store_true", default=None, help="allow plain text beyond this machine")


def _serve(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.export.workplace import Workplace
    from cloud_supervisor.observers.log_output import log_output

    config = configuration(arguments)
    if config.engine == "ray":
        from cloud_supervisor.hosting.ray_settings import check_ray, prepare_ray

        arguments.extras = "cloud,ray"
        check_ray(config)
        prepare_ray(config)
        from cloud_supervisor.ray_app import serve
    else:
        from cloud_supervisor.server import serve

    def announce(address: str) -> None:
        with suppress(OutputLost):  # a service may run without anybody reading its output
            console.line(f"chaperone-cloud: serving {config.pair} on {address}")

    Workplace(chaperone_home() / "models", config.pair).restore()  # of a pull that died
    with log_output(config.logs.format):
        serve(config, announce)


def configuration(arguments: argparse.Namespace) -> CloudConfig:
    """Return the settings of the file, if there is one, with those of the flags; raises ConfigError."""
    config = load_yaml(arguments.config, CloudConfig) if arguments.config else CloudConfig()
    return overridden(config, vars(arguments))


def overridden(config: ConfigT, flags: Mapping[str, Any], settings: Mapping[str, str] = SETTINGS) -> ConfigT:
    """Return the configuration with the settings that flags give; None in `flags` gives nothing.

    `settings` maps the name of each flag to that of its setting, such as `tls.cert_file`. Raises ConfigError, naming
    the flag of each wrong value.
    """
    values = config.model_dump(exclude_unset=True)  # what a tenant does not set stays that of `default`
    for flag, setting in settings.items():
        if flags.get(flag) is not None:
            _put(values, setting.split("."), flags[flag])
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        given = {setting: flag for flag, setting in settings.items() if flags.get(flag) is not None}
        flag_of = {setting: f"--{flag.replace('_', '-')}" for setting, flag in given.items()}
        complaints = []
        for details in error.errors():
            setting = ".".join(map(str, details["loc"]))
            value = f"{details['input']!r}: " if setting in flag_of else ""  # that of a table would be all of it
            named = f"{flag_of.get(setting, setting)}: " if setting else ""  # a check of all settings names its field
            complaints.append(f"{named}{value}{details['msg'].removeprefix('Value error, ')}")
        raise ConfigError("\n".join(complaints)) from None


def _put(values: dict[str, Any], names: list[str], value: Any) -> None:
    """Set a value in nested tables; a table that is null becomes one."""
    *tables, last = names
    for name in tables:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
    values[last] = value
