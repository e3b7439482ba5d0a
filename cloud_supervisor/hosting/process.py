"""The process of a host: its files and its port."""

from __future__ import annotations

import logging
import resource
import socket
from pathlib import Path

from chaperone_common.errors import ConfigError
from cloud_supervisor.config import LimitsConfig

_LOG = logging.getLogger(__name__)


def raise_descriptor_limit(limits: LimitsConfig) -> None:
    """Allow as many open files as the system lets this process have: each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < (needed := 2 * limits.max_streams):
        _LOG.warning("only %d files may be open, and %d connections would lock others out (ulimit -n)", hard, needed)


def check_free(address: str) -> None:
    """Raise ConfigError if nothing can listen on an address; called before a model is loaded for seconds."""
    if address.startswith("unix:"):
        folder = Path(address.removeprefix("unix:")).parent
        if not folder.is_dir():
            raise ConfigError(f"listen: {address!r} cannot be bound: {folder} is not a folder")
        return
    host, _, port = address.rpartition(":")
    try:
        candidates = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"listen: {address!r} cannot be bound ({error.strerror}); use 127.0.0.1:PORT") from None
    problem: str | None = None
    for family, kind, protocol, _, where in candidates:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections that were closed
                probe.bind(where)
                return  # gRPC, too, needs only one of several addresses
        except OSError as error:
            problem = error.strerror
    raise ConfigError(f"listen: {address!r} cannot be bound ({problem}); choose a free port")
