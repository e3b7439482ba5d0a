"""The other end of a stream, as the credentials name it."""

from __future__ import annotations

from dataclasses import dataclass

ANONYMOUS = "anonymous"  # the tenant of callers without a token or certificate


@dataclass(frozen=True, slots=True)
class Caller:
    """The account and the network address at the other end of a stream."""

    tenant: str  # the account that the token or certificate names; ANONYMOUS without either
    peer: str  # network address without port, for limits of strangers and for logs
    credential: str = ""  # the id of the token, so that a revocation ends its streams; never the secret


LOCAL = Caller(ANONYMOUS, "local")  # of a host without a network: a test, or a simulator
