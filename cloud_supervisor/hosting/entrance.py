"""The entrance of a server: who may come in, how the port is encrypted, and who watches. It needs no model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from chaperone_common.address import is_loopback
from chaperone_common.clock import MonotonicClock
from chaperone_common.errors import ConfigError
from cloud_supervisor.config import CloudConfig, check_listen
from cloud_supervisor.observation import Observer
from cloud_supervisor.observers.instruments import Instruments, build_instruments
from cloud_supervisor.security.authentication import Authenticator
from cloud_supervisor.security.jwt_tokens import JwtVerifier
from cloud_supervisor.security.tls import ServerTls
from cloud_supervisor.service import Callers

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entrance:
    """The parts that a server needs before it has a model."""

    callers: Callers
    tls: ServerTls | None  # None: plain text
    instruments: Instruments = field(default_factory=Instruments)

    @property
    def observer(self) -> Observer:
        """The observer of the whole server."""
        return self.instruments.observer


def build_entrance(config: CloudConfig) -> Entrance:
    """Read certificates and tokens; raises ConfigError for settings that cannot be used."""
    refuse_elsewhere(config)
    clock, tls, jwt = MonotonicClock(), None, None
    if config.tls.cert_file is not None and config.tls.key_file is not None:
        tls = ServerTls(config.tls.cert_file, config.tls.key_file, config.tls.client_ca_file, clock=clock)
    if config.jwt is not None:
        jwt = JwtVerifier(
            issuer=config.jwt.issuer,
            audience=config.jwt.audience,
            algorithms=config.jwt.algorithms,
            jwks_file=config.jwt.jwks_file,
            tenant_claim=config.jwt.tenant_claim,
            clock=clock,
        )
    authenticator = Authenticator(
        tokens_file=config.tokens_file,
        jwt=jwt,
        client_certificates=tls is not None and tls.client_certificates,
        clock=clock,
    )
    if authenticator.is_open and not is_loopback(config.listen):
        _LOG.warning(
            "everybody who reaches %s may use the model: give --tokens, jwt or --client-ca to admit only some",
            config.listen,
        )
    return Entrance(authenticator, tls, build_instruments(config))


def refuse_elsewhere(config: CloudConfig) -> None:
    """Raise ConfigError for an invalid address, or one that other machines can reach without TLS."""
    address = config.listen
    try:
        check_listen(address)
    except ValueError as error:
        raise ConfigError(f"listen: {address!r}: {error}") from None
    if not (is_loopback(address) or config.secure or config.insecure):
        raise ConfigError(
            f"listen: {address!r} can be reached from other machines, which needs TLS; give --tls-cert and --tls-key "
            "(`chaperone-cloud cert dev` makes some for trials), use 127.0.0.1:PORT, or say --insecure if a proxy or a "
            "private network protects the port"
        )
