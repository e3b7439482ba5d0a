"""`chaperone serve`: an OpenAI-compatible endpoint on this device."""

from __future__ import annotations

import argparse
import asyncio
from importlib import import_module
from pathlib import Path
from socket import socket
from types import ModuleType

from chaperone_common.address import host_and_port, is_loopback
from chaperone_common.command.completion import names_files
from chaperone_common.command.console import Console
from chaperone_common.command.parser import checked
from chaperone_common.command.program import EXIT_OK
from chaperone_common.command.signals import ended_at_once
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode
from edge_client.apps.cli.models import pull_if_missing
from edge_client.apps.cli.options import Commands, add_settings, config_of, instead_of_service_flag
from edge_client.apps.cli.values import path, seconds
from edge_client.client import EdgeClient

DEFAULT_LISTEN = "127.0.0.1:11435"
_LEAST_KEY = 16  # characters


def add_serve(commands: Commands) -> None:
    """Add the command."""
    what = "serve an OpenAI-compatible HTTP endpoint on this device"
    serve = commands.add_parser("serve", help=what, description=what, instead=instead_of_service_flag)
    serve.add_argument(
        "--listen",
        type=checked(lambda address: host_and_port(address, any_port=True)),
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help=f"{DEFAULT_LISTEN} by default; port 0 takes a free one. An address that other machines reach needs a key",
    )
    names_files(
        serve.add_argument(
            "--api-key-file", type=path, metavar="FILE", help="a key that clients send as `Authorization: Bearer KEY`"
        )
    )
    serve.add_argument(
        "--client-timeout",
        type=seconds,
        metavar="SECONDS",
        help="longest time for a client to send its request, or to leave an answer unread, before its generation "
        "ends; 30 by default",
    )
    serve.add_argument("--mode", choices=[str(mode) for mode in Mode], help="of requests that name none")
    add_settings(serve)
    serve.set_defaults(run=_run, closing_audit=False)


def _run(console: Console, arguments: argparse.Namespace) -> int:
    try:
        server = load_server()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serve: the package {error.name} is not installed; run `pip install 'chaperone-llm[serve]'`"
        ) from None
    config = config_of(arguments)
    if arguments.mode is not None:
        config = config.model_copy(update={"mode": Mode(arguments.mode)})
    local = is_loopback(arguments.listen)
    api_key = None if arguments.api_key_file is None else _read_key(arguments.api_key_file)
    if not local and api_key is None:
        raise ConfigError(
            f"listen: other machines reach {arguments.listen}, and everybody could use the endpoint; give "
            "--api-key-file, or listen on 127.0.0.1"
        )
    # With a key, a proxy may give requests any host.
    host, _ = host_and_port(arguments.listen, any_port=True)
    hosts = None if api_key is not None else {*server.LOCAL_HOSTS, f"[{host}]" if ":" in host else host.lower()}
    access = server.Access(api_key, hosts)
    client_timeout_s = arguments.client_timeout or server.CLIENT_TIMEOUT_S

    async def serve(listening: socket) -> None:
        async with EdgeClient(config) as client:
            with ended_at_once():
                await client.load()
            await server.serve(
                client,
                access,
                listening,
                lambda url: console.line(f"serving {config.pair} on {url}"),
                client_timeout_s=client_timeout_s,
            )

    pull_if_missing(console, config, config.mode)
    with server.bound(arguments.listen) as listening:  # before the model is loaded
        asyncio.run(serve(listening))
    return EXIT_OK


def load_server() -> ModuleType:
    """Return the server's module, which needs packages that few devices have; raises ModuleNotFoundError."""
    return import_module("edge_client.apps.http_api.server")


def _read_key(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"api_key_file: {file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"api_key_file: {file}: it is not ASCII text; give the file of a key") from None
    if len(key) < _LEAST_KEY or not key.isprintable() or " " in key:
        raise ConfigError(
            f"api_key_file: {file}: a key is one word of at least {_LEAST_KEY} characters; make one with "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return key
