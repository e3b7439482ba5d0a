"""The device at the other end of a stream, and its tenant."""

from __future__ import annotations

from dataclasses import dataclass

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Caller:
    """The device at the other end of a stream, and its tenant."""

    tenant: str  # the account that the token or certificate names; ANONYMOUS without either
    peer: str  # network address without port, for limits of strangers and for logs
    credential: str = ""  # the id of the token, so that a revocation ends its streams; never the secret


LOCAL = Caller(ANONYMOUS, "local")  # of a host without a network: a test, or a simulator
