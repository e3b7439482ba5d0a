"""`chaperone-cloud check`: the settings, files and devices that `serve` would refuse, without loading a model."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from chaperone_common.artefacts.folders import chaperone_home
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.artefacts.registry import known_pair_folder
from chaperone_common.command.console import Console
from cloud_supervisor.cli.serve import add_settings, configuration
from cloud_supervisor.cli.values import Commands
from cloud_supervisor.config import CloudConfig


def add_check(commands: Commands) -> None:
    """Add the command; it takes the flags of `serve`."""
    check = commands.add_parser("check", help="check the settings and files that `serve` would use")
    add_settings(check)
    check.set_defaults(run=_check)


def _check(console: Console, arguments: argparse.Namespace) -> None:
    from cloud_supervisor.export.workplace import Workplace
    from cloud_supervisor.hosting.entrance import build_entrance
    from cloud_supervisor.hosting.ray_settings import check_ray

    config = configuration(arguments)
    if config.engine == "ray":
        check_ray(config)
    entrance = build_entrance(config)
    entrance.callers.close()
    Workplace(chaperone_home() / "models", config.pair).restore()  # as `serve` does
    manifest = load_manifest(known_pair_folder(config.pair, "cloud"), role="cloud")
    if config.device != "cpu":  # which is everywhere
        from cloud_supervisor.model.devices import check_device  # imports torch, which takes seconds

        check_device(config.device)
    transport = "TLS" if entrance.tls is not None else "plain text"
    console.line(f"chaperone-cloud: {config.pair} ({manifest.model}) on {config.listen}, {transport}")
    console.line(f"chaperone-cloud: devices need {needed(config)}")
    if config.tokens_file is not None and config.jwt is None and config.tls.client_ca_file is None:
        for tenant in _without_token(config, config.tokens_file):
            console.line(
                f"chaperone-cloud: quotas.tenants: {tenant} has no valid token; correct the name, or make a token with "
                "`chaperone-cloud token create`"
            )


def needed(config: CloudConfig) -> str:
    """Return the credentials that a device needs. TLS refuses each device without a certificate, if it asks for one."""
    tokens = [name for name, given in (("tokens", config.tokens_file), ("JWTs", config.jwt)) if given is not None]
    if config.tls.client_ca_file is None:
        return " or ".join(tokens) or "no credentials"
    return "certificates" + (f"; {' or '.join(tokens)} are optional" if tokens else "")


def _without_token(config: CloudConfig, tokens_file: Path) -> list[str]:
    """Return the tenants with a quota of their own that no valid token names, in order."""
    from cloud_supervisor.security.tokens import TokenFile

    now = datetime.now(UTC)
    named = {entry.tenant for entry in TokenFile.load(tokens_file).entries if entry.stands(now)}
    return sorted(config.quotas.tenants.keys() - named)
