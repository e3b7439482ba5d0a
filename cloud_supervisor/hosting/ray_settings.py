"""The settings of a service on Ray, before Ray is imported."""

from __future__ import annotations

import os
import secrets

from chaperone_common.address import host_and_port, is_loopback
from chaperone_common.errors import ConfigError
from cloud_supervisor.config import CloudConfig

_ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104  # nosec B104 - Ray Serve's proxy always listens there


def check_ray(config: CloudConfig) -> None:
    """Raise ConfigError for settings that Ray Serve's proxy cannot keep."""
    listen = config.listen
    if config.secure:
        raise ConfigError(
            "tls.cert_file: the proxy of Ray Serve speaks plain text only; end TLS in a proxy in front of it, and "
            "leave tls out"
        )
    if listen.startswith("unix:"):
        raise ConfigError(f"listen: {listen!r}: the proxy of Ray Serve has no Unix sockets; give HOST:PORT")
    host, _ = host_and_port(listen, any_port=True)
    if is_loopback(listen) or (host in _ALL_INTERFACES and config.insecure):
        return
    raise ConfigError(
        f"listen: {listen!r}: the proxy of Ray Serve listens on all interfaces, in plain text; give 127.0.0.1:PORT to "
        "serve only this machine, or 0.0.0.0:PORT with --insecure if a proxy with TLS protects the port"
    )


def prepare_ray(config: CloudConfig) -> None:
    """Set environment variables for this process and all that Ray starts, which are read when Ray is imported.

    The variables of the operator stay. A cluster that this process starts gets a secret of its own.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # statistics would be sent to the makers of Ray
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else anybody who reaches a port of Ray can run programs
    os.environ.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(config.limits.max_message_kib << 10))
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of different replicas that are alike would be left out
    if config.ray.cluster is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for: its own ports on 127.0.0.1 only
