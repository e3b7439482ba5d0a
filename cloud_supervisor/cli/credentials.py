"""`chaperone-cloud token` and `chaperone-cloud cert`: credentials for devices, and certificates for development."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from chaperone_common.command.completion import names_files
from chaperone_common.command.console import Console
from chaperone_common.command.parser import checked
from cloud_supervisor.caller import check_tenant
from cloud_supervisor.cli.values import Commands, duration, path

_TENANT = "NAME"


def add_token(commands: Commands) -> None:
    """Add the commands for the tokens file."""
    token = commands.add_parser("token", help="make, list and revoke the tokens of devices")
    token_commands = token.add_subparsers(required=True, metavar="COMMAND")
    create = token_commands.add_parser("create", help="make a token and print it; it cannot be shown again")
    create.add_argument("--tenant", metavar=_TENANT, required=True, type=checked(check_tenant), help="account of it")
    create.add_argument("--expires-in", metavar="TIME", type=duration, help="such as 90d or 12h; never if absent")
    create.set_defaults(run=_create)
    listing = token_commands.add_parser("list", help="list the tokens, without their secrets")
    listing.set_defaults(run=_list)
    revoke = token_commands.add_parser("revoke", help="end a token; its streams end within seconds")
    revoke.add_argument("id", metavar="ID", help="as `token list` shows it: the middle part of a token")
    revoke.set_defaults(run=_revoke)
    for command in (create, listing, revoke):
        names_files(command.add_argument("--tokens", metavar="FILE", required=True, type=path, help="the tokens file"))


def add_cert(commands: Commands) -> None:
    """Add the commands for certificates."""
    cert = commands.add_parser("cert", help="make certificates for development")
    cert_commands = cert.add_subparsers(required=True, metavar="COMMAND")
    dev = cert_commands.add_parser(
        "dev", help="make an authority and a server's certificate: ca.pem, cert.pem, key.pem; valid for a year"
    )
    names_files(dev.add_argument("--out", metavar="FOLDER", required=True, type=path, help="where to write them"))
    dev.add_argument(
        "--host",
        metavar="HOST",
        required=True,
        action="append",
        help="name or IP address by which devices reach the server; may be repeated",
    )
    dev.add_argument(
        "--client",
        metavar=_TENANT,
        type=checked(check_tenant),
        help="also make client.pem and client-key.pem for a device of this tenant",
    )
    dev.add_argument("--force", action="store_true", help="replace files")
    dev.set_defaults(run=_dev)


def _create(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.security.tokens import TokenFile

    console.out.check()  # nobody could ever use a token that cannot be printed
    token = TokenFile.create(arguments.tokens, arguments.tenant, arguments.expires_in)
    console.line(token)
    console.note(f"Keep it: {arguments.tokens} holds only its hash, and nothing can show it again.")


def _list(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.security.tokens import TokenFile

    now = datetime.now(UTC)
    for entry in TokenFile.load(arguments.tokens).entries:
        state = "revoked" if entry.revoked is not None else "expired" if entry.expired(now) else "valid"
        expires = f"{entry.expires.astimezone(UTC):%Y-%m-%d %H:%M}" if entry.expires is not None else "never"
        console.line(
            f"{entry.id}  {entry.tenant:20} {state:8} created {entry.created.astimezone(UTC):%Y-%m-%d %H:%M}  "
            f"expires {expires}"
        )


def _revoke(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.security.tokens import TokenFile

    entry = TokenFile.revoke(arguments.tokens, arguments.id)
    console.line(f"{entry.id} of {entry.tenant} is revoked")


def _dev(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.security.certificates import make_certificates

    made = make_certificates(arguments.out, arguments.host, client=arguments.client, force=arguments.force)
    for file in made:
        console.line(str(file))
