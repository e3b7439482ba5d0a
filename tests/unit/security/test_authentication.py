"""The caller of a call, by token, JWT or certificate; and what refusals cost and reveal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import Overloaded, PermissionDenied, Unauthenticated
from cloud_supervisor.caller import ANONYMOUS, Caller
from cloud_supervisor.security import authentication
from cloud_supervisor.security.authentication import Authenticator, TokenEnded, peer_address
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.security.jwt_tokens import JwtVerifier
from cloud_supervisor.security.tokens import TokenEntry, TokenFile, split_token
from cloud_supervisor.security.x509 import ClientCertificate
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


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(tmp_path)
    matches = TokenEntry.matches

    def counted(entry: TokenEntry, secret: str) -> bool:
        made.checks.append(entry.id)
        return matches(entry, secret)

    monkeypatch.setattr(TokenEntry, "matches", counted)
    yield made
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


def test_without_credentials_everybody_is_anonymous(rig: Rig) -> None:
    authenticator = rig.authenticator()
    assert authenticator.is_open
    for token in (None, "whatever a device sends"):
        caller = ask(authenticator, token)
        assert caller == Caller(ANONYMOUS, "10.1.2.3")
        assert authenticator.valid(caller)


def test_a_token_names_its_tenant(rig: Rig) -> None:
    token = rig.token("acme")
    authenticator = rig.authenticator(tokens=True)
    assert not authenticator.is_open
    caller = ask(authenticator, token)
    assert caller == Caller("acme", "10.1.2.3", id_of(token))
    assert authenticator.valid(caller)


def test_no_token_is_refused_with_the_remedy(rig: Rig) -> None:
    rig.token()
    with pytest.raises(Unauthenticated, match="^authorization: no token; give --token-file or CHAPERONE_TOKEN$"):
        ask(rig.authenticator(tokens=True))
    with pytest.raises(Unauthenticated, match="^authorization: no token"):
        ask(rig.authenticator(jwt=True))


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Basic eDp5")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer")],
        [("authorization", b"Bearer x")],
        [("authorization", "Bearer x"), ("authorization", "Bearer y")],
    ],
)
def test_anything_but_one_bearer_token_is_refused(rig: Rig, metadata: Any) -> None:
    rig.token()
    authenticator = rig.authenticator(tokens=True)
    with pytest.raises(Unauthenticated, match="^authorization: it is not one `Bearer TOKEN`$"):
        asyncio.run(authenticator.authenticate(metadata, {}, PEER))


def test_the_scheme_is_read_in_any_case(rig: Rig) -> None:
    metadata = [("authorization", f"bearer  {rig.token()}")]
    assert asyncio.run(rig.authenticator(tokens=True).authenticate(metadata, {}, PEER)).tenant == "acme"


def message_of(authenticator: Authenticator, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        ask(authenticator, token)
    assert token not in caught.value.message
    parts = split_token(token)
    assert parts is None or parts[1] not in caught.value.message
    return caught.value.message


def test_an_unknown_id_and_a_wrong_secret_read_alike(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    unknown = f"chp_{'0' * 12}_{'a' * 43}"
    messages = {message_of(authenticator, bad) for bad in (unknown, wrong(token), "chp_x_y", "eyJ.x.y")}
    assert messages == {"authorization: the token is not valid"}
    assert rig.checks == [id_of(token)], "only the wrong secret is hashed"


def test_a_flood_of_one_token_costs_one_hash(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)

    async def flood() -> None:
        for sent in (token, wrong(token)):
            metadata = [("authorization", f"Bearer {sent}")]
            calls = [authenticator.authenticate(metadata, {}, PEER) for _ in range(100)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            again = await asyncio.gather(*(authenticator.authenticate(metadata, {}, PEER),), return_exceptions=True)
            assert {type(outcome) for outcome in (*outcomes, *again)} <= {Caller, Unauthenticated}

    asyncio.run(flood())
    assert rig.checks == [id_of(token)] * 2


def test_a_refused_token_is_checked_again_later(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    for rig.clock.seconds in (0.0, 9.0, 10.0):
        message_of(authenticator, wrong(token))
    assert len(rig.checks) == 2


def test_too_many_different_tokens_are_refused_for_now(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_MOST_WAITING", 2)
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)

    async def flood() -> list[type]:
        sent = [token[:-2] + end for end in ("aa", "bb", "cc", "dd")]
        calls = [authenticator.authenticate([("authorization", f"Bearer {one}")], {}, PEER) for one in sent]
        return [type(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True)]

    assert asyncio.run(flood()) == [Unauthenticated, Unauthenticated, Overloaded, Overloaded]


def test_a_caller_that_leaves_does_not_end_the_check_of_another(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)

    async def leave() -> Caller:
        metadata = [("authorization", f"Bearer {token}")]
        first, second = (asyncio.create_task(authenticator.authenticate(metadata, {}, PEER)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(leave()).tenant == "acme"


def test_only_the_last_tokens_are_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_CACHED", 2)
    tokens = [rig.token(name) for name in ("a", "b", "c")]
    authenticator = rig.authenticator(tokens=True)
    for token in (*tokens, tokens[1], tokens[0]):
        ask(authenticator, token)
    assert rig.checks == [id_of(token) for token in (*tokens, tokens[0])]


def test_a_revocation_ends_a_token_and_its_streams_at_once(rig: Rig) -> None:
    token, other = rig.token(), rig.token("other")
    authenticator = rig.authenticator(tokens=True)
    caller, kept = ask(authenticator, token), ask(authenticator, other)
    rig.revoke(token)
    assert not authenticator.valid(caller)
    assert authenticator.valid(kept)
    assert message_of(authenticator, token) == (
        f"authorization: the token {token[4:16]} was revoked; ask the operator of the cloud for another"
    )
    with pytest.raises(TokenEnded) as ended:
        ask(authenticator, token)
    assert ended.value.token_id == token[4:16]
    assert message_of(authenticator, wrong(token)) == "authorization: the token is not valid", "for strangers"


def test_a_removed_token_is_unknown(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    caller = ask(authenticator, token)
    rig.path.write_text(json.dumps({"tokens": []}))
    assert not authenticator.valid(caller)
    assert message_of(authenticator, token) == "authorization: the token is not valid"


def test_a_token_expires(rig: Rig) -> None:
    token = rig.token(expires_in=timedelta(hours=1))
    authenticator = rig.authenticator(tokens=True)
    caller = ask(authenticator, token)
    rig.wall.seconds += 3_599
    assert authenticator.valid(caller)
    rig.wall.seconds += 1
    assert not authenticator.valid(caller)
    assert message_of(authenticator, token) == (
        f"authorization: the token {token[4:16]} has expired; ask the operator of the cloud for another"
    )
    assert rig.checks == [id_of(token)], "known from before"


def test_a_new_token_works_at_once(rig: Rig) -> None:
    rig.token()
    authenticator = rig.authenticator(tokens=True)
    new = rig.token("new")
    assert ask(authenticator, new).tenant == "new"


def test_a_broken_file_keeps_the_tokens(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    rig.path.write_text("{")
    assert authenticator.valid(ask(authenticator, token))


def test_a_jwt_names_its_tenant_until_it_expires(rig: Rig) -> None:
    authenticator = rig.authenticator(jwt=True)
    token = rig.jwt_token("globex", expires_in_s=60)
    caller = ask(authenticator, token)
    assert (caller.tenant, caller.peer) == ("globex", "10.1.2.3")
    rig.wall.seconds += 89
    assert authenticator.valid(caller)
    assert ask(authenticator, token) == caller
    rig.wall.seconds += 1
    assert not authenticator.valid(caller)
    assert message_of(authenticator, token).startswith("authorization: the token has expired")


def test_tokens_and_jwts_work_at_the_same_time(rig: Rig) -> None:
    token = rig.token("acme")
    authenticator = rig.authenticator(tokens=True, jwt=True)
    assert ask(authenticator, token).tenant == "acme"
    assert ask(authenticator, rig.jwt_token("globex")).tenant == "globex"
    message_of(authenticator, wrong(token))
    message_of(authenticator, "x.y.z")
    only_jwt = rig.authenticator(jwt=True)
    message_of(only_jwt, token)


def test_a_jwt_without_a_tenant_is_not_allowed(rig: Rig) -> None:
    authenticator = rig.authenticator(jwt=True)
    for _ in range(2):
        with pytest.raises(PermissionDenied, match="names no tenant"):
            ask(authenticator, token_of(KEY, "ES256", tenant=None, exp=rig.wall.now() + 60))


def shown(folder: Path, tenant: str, now: datetime = NOW) -> dict[str, list[bytes]]:
    """Return gRPC's description of a connection whose client has shown a certificate for a tenant."""
    make_certificates(folder, ["127.0.0.1"], client=tenant, force=True, now=now, lifetime=timedelta(days=1))
    return {"transport_security_type": [b"ssl"], "x509_pem_cert": [(folder / "client.pem").read_bytes()]}


def test_a_certificate_names_its_tenant_until_it_expires(rig: Rig) -> None:
    authenticator, context = rig.authenticator(certificates=True), shown(rig.folder, "acme")
    caller = ask(authenticator, auth_context=context)
    assert (caller.tenant, caller.credential[:12]) == ("acme", "certificate ")
    assert authenticator.valid(caller)
    rig.wall.seconds += 86_400
    assert not authenticator.valid(caller)
    with pytest.raises(Unauthenticated, match="^certificate: it has expired"):
        ask(authenticator, auth_context=context)


def test_a_certificate_is_needed_where_nothing_else_is_configured(rig: Rig) -> None:
    with pytest.raises(Unauthenticated, match=r"certificate: none was shown; give cloud.cert_file and cloud.key_file"):
        ask(rig.authenticator(certificates=True), "a token")


def test_a_certificate_that_tls_did_not_verify_is_not_looked_at(rig: Rig) -> None:
    assert ask(rig.authenticator(), auth_context=shown(rig.folder, "acme")).tenant == ANONYMOUS


def test_a_certificate_serves_instead_of_a_token(rig: Rig) -> None:
    token, other = rig.token("acme"), rig.token("other")
    authenticator, context = rig.authenticator(tokens=True, certificates=True), shown(rig.folder, "acme")
    assert ask(authenticator, auth_context=context).tenant == "acme"
    assert ask(authenticator, token, context) == Caller("acme", "10.1.2.3", id_of(token))
    assert ask(authenticator, token).tenant == "acme"
    with pytest.raises(PermissionDenied, match="the token is of tenant other, and the certificate of acme"):
        ask(authenticator, other, context)
    message_of(authenticator, wrong(token))
    with pytest.raises(Unauthenticated):
        ask(authenticator, wrong(token), context)


@pytest.mark.parametrize(
    ("common_name", "uris", "outcome"),
    [
        ("acme", (), "acme"),
        ("Acme Ltd", ("chaperone://tenant/acme", "https://acme.example"), "acme"),
        ("acme", ("chaperone://tenant/acme", "chaperone://tenant/other"), "it names several tenants"),
        ("acme", ("chaperone://tenant/",), "neither a URI"),
        ("Acme Ltd", (), "neither a URI"),
        (None, (), "neither a URI"),
    ],
)
def test_the_tenant_of_a_certificate(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    common_name: str | None,
    uris: tuple[str, ...],
    outcome: str,
) -> None:
    certificate = ClientCertificate(common_name, uris, "1", NOW.timestamp() + 9)
    monkeypatch.setattr(authentication, "read_client", lambda _: certificate)
    authenticator = rig.authenticator(certificates=True)
    if outcome == "acme":
        assert ask(authenticator, auth_context={"x509_pem_cert": [b"any"]}).tenant == "acme"
    else:
        with pytest.raises(PermissionDenied, match=f"^certificate: {outcome}"):
            ask(authenticator, auth_context={"x509_pem_cert": [b"any"]})


def test_a_certificate_of_any_name_leaves_the_tenant_to_the_token(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway in front of the cloud has a certificate with its own common name."""
    certificate = ClientCertificate("gateway-1", (), "1", NOW.timestamp() + 9)
    monkeypatch.setattr(authentication, "read_client", lambda _: certificate)
    token = rig.token("acme")
    assert ask(rig.authenticator(tokens=True, certificates=True), token, {"x509_pem_cert": [b"any"]}).tenant == "acme"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50151", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50151", "::1"),
        ("ipv6:[2001:db8::1]:50151", "2001:db8::1"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4711", "10.0.0.1"),
        ("unix:/run/c.sock", "unix"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_is_its_address_without_the_port(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def test_no_repr_shows_a_secret(rig: Rig) -> None:
    token = rig.token()
    authenticator = rig.authenticator(tokens=True)
    show: Callable[[object], str] = repr
    parts = split_token(token)
    assert parts is not None
    assert parts[1] not in show(ask(authenticator, token)) + show(authenticator)
