"""Tokens of an identity provider: JSON Web Tokens, checked with the provider's public keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jwt

from chaperone_common.clock import Clock
from chaperone_common.errors import ConfigError, PermissionDenied, Unauthenticated
from chaperone_common.suggestion import nearest
from cloud_supervisor.caller import check_tenant
from cloud_supervisor.security.watched import Watched

# Each algorithm with the type and curve of its keys. Only signatures with a public key: a holder of a shared
# secret could also forge tokens.
ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
LEEWAY_S = 30.0  # for clocks that differ

_NOT_VALID = "authorization: the token is not valid"


class VerifiedJwt(NamedTuple):
    """The claims of a token that was checked."""

    tenant: str
    expires_at: float  # seconds since 1970, with the leeway


class _Key(NamedTuple):
    kid: str | None
    algorithm: str
    key: jwt.PyJWK


class JwtVerifier:
    """Checks signature, issuer, audience and time of tokens. The file of keys is read again when it changes."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        algorithms: Sequence[str],
        jwks_file: Path,
        tenant_claim: str = "tenant",
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Read the keys. `wall` returns seconds since 1970. Raises ConfigError, naming the setting."""
        for name, text in (("issuer", issuer), ("audience", audience), ("tenant_claim", tenant_claim)):
            if not text:
                raise ConfigError(f"jwt.{name}: it is empty")
        if not algorithms:
            raise ConfigError(f"jwt.algorithms: there is none; choose from {', '.join(ALGORITHMS)}")
        for algorithm in algorithms:
            if algorithm not in ALGORITHMS:
                raise ConfigError(
                    f"jwt.algorithms: {algorithm!r} is not allowed{nearest(algorithm, ALGORITHMS)}; "
                    f"choose from {', '.join(ALGORITHMS)}"
                )
        self._issuer = issuer
        self._audience = audience
        self._algorithms = tuple(algorithms)
        self._tenant_claim = tenant_claim
        self._wall = wall
        self._keys = Watched(lambda: _read_keys(jwks_file, self._algorithms), [jwks_file], clock)

    @property
    def version(self) -> int:
        """A number that grows when the keys change; results of earlier checks end then."""
        _ = self._keys.value
        return self._keys.version

    def verify(self, token: str) -> VerifiedJwt:
        """Return the tenant that a token names. Takes up to a millisecond.

        Raises Unauthenticated, or PermissionDenied for a valid token without a tenant. No message quotes the token.
        """
        claims = self._claims(token)
        tenant = claims.get(self._tenant_claim)
        problem = f"authorization: the claim {self._tenant_claim!r} of the token names no tenant"
        if not isinstance(tenant, str):
            raise PermissionDenied(f"{problem}; the identity provider has to add it")
        try:
            check_tenant(tenant)
        except ValueError as error:
            raise PermissionDenied(f"{problem}: {error}") from None
        return VerifiedJwt(tenant, float(claims["exp"]) + LEEWAY_S)

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header.get("kid"), header.get("alg"))
            # Time is checked below, with our own clock.
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "require": ["exp", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidIssuerError:
            raise Unauthenticated("authorization: the token has an issuer that this cloud does not accept") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated("authorization: the token is for another audience than this cloud") from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f"authorization: the token lacks the claim {error.claim!r}") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated(_NOT_VALID) from None
        self._check_time(claims)
        return claims

    def _check_time(self, claims: Mapping[str, Any]) -> None:
        now = self._wall()
        expires, begins = claims["exp"], claims.get("nbf", 0)
        if not all(isinstance(when, int | float) for when in (expires, begins)):
            raise Unauthenticated(_NOT_VALID)
        if now >= expires + LEEWAY_S:
            raise Unauthenticated("authorization: the token has expired; get another one")
        if now < begins - LEEWAY_S:
            raise Unauthenticated("authorization: the token is not valid yet; check the clocks of both ends")

    def _key(self, kid: object, algorithm: object) -> jwt.PyJWK:
        """Return the key that a token names; one without a name fits if there is no other key."""
        keys = [key for key in self._keys.value if key.algorithm == algorithm]
        named = [key for key in keys if kid is not None and key.kid == kid]
        if not named and len(keys) == 1 and (kid is None or keys[0].kid is None):
            named = keys
        if not named:
            raise Unauthenticated(
                "authorization: the token is signed with a key or an algorithm that this cloud does not accept"
            )
        return named[0].key


def _read_keys(path: Path, algorithms: Sequence[str]) -> tuple[_Key, ...]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"jwt.jwks_file: {path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"jwt.jwks_file: {path}: not JSON; save the provider's JWKS document there") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ConfigError(f"jwt.jwks_file: {path}: there is no list `keys`; save the provider's JWKS document there")
    keys = tuple(key for jwk in listed if isinstance(jwk, dict) for key in _usable(path, jwk, algorithms))
    if not keys:
        raise ConfigError(
            f"jwt.jwks_file: {path}: none of its keys is for {' or '.join(algorithms)}; correct jwt.algorithms"
        )
    return keys


def _usable(path: Path, jwk: dict[str, Any], algorithms: Sequence[str]) -> list[_Key]:
    """Return the key once for each algorithm that it is for."""
    if jwk.get("kty") == "oct" or "d" in jwk:
        kind = "a shared secret" if jwk.get("kty") == "oct" else "a private key"
        raise ConfigError(f"jwt.jwks_file: {path}: it holds {kind}; give public keys alone")
    if jwk.get("use", "sig") != "sig":
        return []
    kid = jwk.get("kid")
    found = []
    for algorithm in algorithms:
        kind, curve = ALGORITHMS[algorithm]
        if jwk.get("alg", algorithm) != algorithm or jwk.get("kty") != kind or curve not in (None, jwk.get("crv")):
            continue
        try:
            key = jwt.PyJWK(jwk, algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise ConfigError(f"jwt.jwks_file: {path}: its {kind} key cannot be read; get the document again") from None
        found.append(_Key(kid if isinstance(kid, str) else None, algorithm, key))
    return found
