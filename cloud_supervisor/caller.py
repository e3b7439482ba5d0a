"""The other end of a stream, as the credentials name it."""

from __future__ import annotations

import re
from dataclasses import dataclass

ANONYMOUS = "anonymous"  # the tenant of callers without a token or certificate

TENANT_URI = "chaperone://tenant/"  # before the name of a tenant, in the alternative names of a certificate

_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Caller:
    """The account and the network address at the other end of a stream."""

    tenant: str  # the account that the token or certificate names; ANONYMOUS without either
    peer: str  # network address without port, for logs
    credential: str = ""  # the id of the token, so that a revocation ends its streams; never the secret


LOCAL = Caller(ANONYMOUS, "local")  # of a host without a network: a test, or a simulator


def check_tenant(name: str) -> str:
    """Return the name of a tenant; raises ValueError for any other text, without quoting it."""
    if not _TENANT.fullmatch(name):
        raise ValueError("it is no name of a tenant: 1 to 63 lower-case letters, digits, '.', '_' and '-'")
    if name == ANONYMOUS:
        raise ValueError(f"{ANONYMOUS} is the tenant of callers without credentials; choose another name")
    return name
