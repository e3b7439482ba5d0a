"""JSON Web Tokens: only a provider's signature counts, and each claim is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jwt
import pytest

from chaperone_common.errors import ConfigError, PermissionDenied, Unauthenticated
from cloud_supervisor.security.jwt_tokens import ALGORITHMS, LEEWAY_S, JwtVerifier
from tests.support.fakes.clock import ManualClock
from tests.support.security.jwts import AUDIENCE, ISSUER, jwk_of, new_key, token_of, write_jwks

NOW = 1_000.0
KEY = new_key("ES256")


def verifier(path: Path, **changes: Any) -> JwtVerifier:
    settings = {"issuer": ISSUER, "audience": AUDIENCE, "algorithms": ["ES256"], "wall": lambda: NOW, **changes}
    return JwtVerifier(jwks_file=path, **settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jwks(tmp_path / "jwks.json", jwk_of(KEY, "ES256", kid="one"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_names_the_tenant(tmp_path: Path, algorithm: str) -> None:
    key = new_key(algorithm)
    path = write_jwks(tmp_path / "jwks.json", jwk_of(key, algorithm, kid="one"))
    verified = verifier(path, algorithms=[algorithm]).verify(token_of(key, algorithm, kid="one"))
    assert verified == ("acme", 2_000 + LEEWAY_S)


def test_the_tenant_may_be_another_claim(path: Path) -> None:
    token = token_of(KEY, "ES256", tenant=None, account="globex", aud=["x", AUDIENCE])
    assert verifier(path, tenant_claim="account").verify(token).tenant == "globex"


def test_the_key_is_chosen_by_its_name(tmp_path: Path) -> None:
    other = new_key("ES256")
    path = write_jwks(
        tmp_path / "jwks.json",
        jwk_of(other, "ES256", kid="two", use="enc"),
        jwk_of(other, "ES256", kid="other", alg="ES256"),
        jwk_of(KEY, "ES256", kid="one", use="sig"),
    )
    check = verifier(path)
    assert check.verify(token_of(KEY, "ES256", kid="one")).tenant == "acme"
    assert check.verify(token_of(other, "ES256", kid="other")).tenant == "acme"
    for kid in ("two", "three", None):
        with pytest.raises(Unauthenticated, match="signed with a key or an algorithm that this cloud does not accept"):
            check.verify(token_of(other, "ES256", kid=kid))


def forged(**claims: Any) -> str:
    return token_of(new_key("ES256"), "ES256", kid="one", **claims)


REFUSED = [
    (token_of(KEY, "ES256", exp=969), "the token has expired; get another one"),
    (token_of(KEY, "ES256", nbf=1_031), "the token is not valid yet; check the clocks"),
    (token_of(KEY, "ES256", iss="https://else.example"), "an issuer that this cloud does not accept"),
    (token_of(KEY, "ES256", aud="else"), "for another audience"),
    (token_of(KEY, "ES256", exp=None), "lacks the claim 'exp'"),
    (token_of(KEY, "ES256", iss=None), "lacks the claim 'iss'"),
    (token_of(KEY, "ES256", aud=None), "lacks the claim 'aud'"),
    (token_of(KEY, "ES256", exp="soon"), "the token is not valid"),
    (forged(), "the token is not valid"),
    (forged(exp=1), "the token is not valid"),  # who cannot sign learns nothing about the claims
    ("x" * 32, "the token is not valid"),
    ("a.b.c", "the token is not valid"),
    ("", "the token is not valid"),
    (token_of("s" * 32, "HS256", kid="one"), "a key or an algorithm that this cloud does not accept"),
    (jwt.encode({"tenant": "acme"}, "", "none"), "a key or an algorithm that this cloud does not accept"),
    (token_of(new_key("ES384"), "ES384", kid="one"), "a key or an algorithm that this cloud does not accept"),
]


@pytest.mark.parametrize(("token", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_token_is_refused_without_being_quoted(path: Path, token: str, words: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verifier(path).verify(token)
    assert words in caught.value.message
    assert not token or token not in caught.value.message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "no traceback shows it"


def test_clocks_may_differ_a_little(path: Path) -> None:
    assert verifier(path).verify(token_of(KEY, "ES256", exp=980, nbf=1_020)).expires_at == 1_010


@pytest.mark.parametrize("tenant", [None, 5, "A B", "anonymous"])
def test_a_valid_token_without_a_tenant_is_not_allowed(path: Path, tenant: Any) -> None:
    with pytest.raises(PermissionDenied, match="the claim 'tenant' of the token names no tenant"):
        verifier(path).verify(token_of(KEY, "ES256", tenant=tenant))


def test_new_keys_are_used_without_a_restart(path: Path) -> None:
    clock, other = ManualClock(), new_key("ES256")
    check = verifier(path, clock=clock)
    assert check.version == 0
    write_jwks(path, jwk_of(other, "ES256", kid="new"))
    clock.seconds = 1.0
    assert check.version == 1
    assert check.verify(token_of(other, "ES256", kid="new")).tenant == "acme"
    with pytest.raises(Unauthenticated):
        check.verify(token_of(KEY, "ES256", kid="one"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"issuer": ""}, "jwt.issuer: it is empty"),
        ({"audience": ""}, "jwt.audience: it is empty"),
        ({"tenant_claim": ""}, "jwt.tenant_claim: it is empty"),
        ({"algorithms": []}, "jwt.algorithms: there is none; choose from RS256"),
        ({"algorithms": ["HS256"]}, "jwt.algorithms: 'HS256' is not allowed"),
        ({"algorithms": ["none"]}, "jwt.algorithms: 'none' is not allowed"),
        ({"algorithms": ["RS256"]}, "none of its keys is for RS256; correct jwt.algorithms"),
    ],
)
def test_wrong_settings_are_refused(path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        verifier(path, **changes)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "there is no list `keys`"),
        ('{"keys": []}', "none of its keys is for ES256"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "it holds a shared secret; give public keys alone"),
        ('{"keys": [{"kty": "EC", "crv": "P-256", "x": "!", "y": "!"}]}', "its EC key cannot be read"),
    ],
)
def test_a_wrong_file_of_keys_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        verifier(path)
    assert caught.value.message.startswith(f"jwt.jwks_file: {path}: ")
    assert words in caught.value.message


def test_a_private_key_or_no_file_is_refused(tmp_path: Path) -> None:
    path = write_jwks(tmp_path / "jwks.json", jwk_of(KEY, "ES256", private=True))
    with pytest.raises(ConfigError, match="it holds a private key; give public keys alone"):
        verifier(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        verifier(tmp_path / "nothing")
