"""The caller of a call, by JWT or certificate, alone and next to a token."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from chaperone_common.errors import PermissionDenied, Unauthenticated
from cloud_supervisor.caller import ANONYMOUS, Caller
from cloud_supervisor.security import authentication
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.security.x509 import ClientCertificate
from tests.support.security.authentication import KEY, NOW, Rig, ask, id_of, message_of, wrong
from tests.support.security.jwts import token_of


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
