"""The entrance of a server: who may come in, how the port is encrypted, and who watches. It needs no model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from chaperone_common.address import is_loopback
from chaperone_common.clock import MonotonicClock
from chaperone_common.errors import ConfigError, PermissionDenied
from cloud_supervisor.caller import Caller
from cloud_supervisor.config import CloudConfig, check_listen
from cloud_supervisor.observation import Observer
from cloud_supervisor.observers.instruments import Instruments, build_instruments
from cloud_supervisor.security.authentication import Authenticator, peer_address
from cloud_supervisor.security.jwt_tokens import JwtVerifier
from cloud_supervisor.security.tls import ServerTls
from cloud_supervisor.service import AuthContext, Callers, Metadata

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


class LocalCallers:
    """The callers of this machine, for a port that others reach although it is not for them."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self.valid = callers.valid
        self.close = callers.close

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext, peer: str) -> Caller:
        """Return the caller as the others do; raises PermissionDenied for one of another machine."""
        host = peer_address(peer)
        if not is_loopback(f"[{host}]:0" if ":" in host else f"{host}:0"):
            raise PermissionDenied("listen: this service is only for its own machine")
        return await self._callers.authenticate(metadata, auth_context, peer)


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
