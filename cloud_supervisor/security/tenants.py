"""Names of tenants."""

from __future__ import annotations

import re

from cloud_supervisor.caller import ANONYMOUS

TENANT_URI = "chaperone://tenant/"  # before the name of a tenant, in the alternative names of a certificate

_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def check_tenant(name: str) -> str:
    """Return the name of a tenant; raises ValueError for any other text, without quoting it."""
    if not _TENANT.fullmatch(name):
        raise ValueError("it is no name of a tenant: 1 to 63 lower-case letters, digits, '.', '_' and '-'")
    if name == ANONYMOUS:
        raise ValueError(f"{ANONYMOUS} is the tenant of callers without credentials; choose another name")
    return name
