"""An authenticator whose clocks the test sets, and calls that it authenticates."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chaperone_common.errors import Unauthenticated
from cloud_supervisor.caller import Caller
from cloud_supervisor.security.authentication import Authenticator
from cloud_supervisor.security.jwt_tokens import JwtVerifier
from cloud_supervisor.security.tokens import TokenFile, split_token
from tests.support.fakes.clock import ManualClock
from tests.support.security.jwts import AUDIENCE, ISSUER, jwk_of, new_key, token_of, write_jwks

PEER = "ipv4:10.1.2.3:4711"
NOW = datetime(2026, 5, 1, tzinfo=UTC)
KEY = new_key("ES256")


class Rig:
    """An authenticator whose clocks the test sets, and the files below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "tokens.json"
        self.clock = ManualClock()
        self.wall = ManualClock(NOW.timestamp())
        self.checks: list[str] = []  # ids of tokens that were hashed
        self._made: list[Authenticator] = []

    def token(self, tenant: str = "acme", expires_in: timedelta | None = None) -> str:
        return TokenFile.create(self.path, tenant, expires_in, now=NOW)

    def revoke(self, token: str) -> None:
        TokenFile.revoke(self.path, id_of(token), now=NOW)

    def jwt(self) -> JwtVerifier:
        path = write_jwks(self.folder / "jwks.json", jwk_of(KEY, "ES256"))
        return JwtVerifier(
            issuer=ISSUER,
            audience=AUDIENCE,
            algorithms=["ES256"],
            jwks_file=path,
            clock=self.clock,
            wall=self.wall.now,
        )

    def jwt_token(self, tenant: str = "acme", *, expires_in_s: float = 60) -> str:
        return token_of(KEY, "ES256", tenant=tenant, exp=self.wall.now() + expires_in_s)

    def authenticator(self, *, tokens: bool = False, jwt: bool = False, certificates: bool = False) -> Authenticator:
        made = Authenticator(
            tokens_file=self.path if tokens else None,
            jwt=self.jwt() if jwt else None,
            client_certificates=certificates,
            clock=self.clock,
            wall=self.wall.now,
        )
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()


def id_of(token: str) -> str:
    parts = split_token(token)
    assert parts is not None
    return parts[0]


def wrong(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


def ask(
    authenticator: Authenticator, token: str | None = None, auth_context: Mapping[str, list[bytes]] | None = None
) -> Caller:
    """Authenticate one call."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    return asyncio.run(authenticator.authenticate(metadata, auth_context or {}, PEER))


def message_of(authenticator: Authenticator, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        ask(authenticator, token)
    assert token not in caught.value.message
    parts = split_token(token)
    assert parts is None or parts[1] not in caught.value.message
    return caught.value.message
