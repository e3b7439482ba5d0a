"""An identity provider: keys, their JWKS document, and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://issuer.example"
AUDIENCE = "chaperone"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def new_key(algorithm: str) -> PrivateKey:
    match algorithm[:2]:
        case "RS" | "PS":
            return rsa.generate_private_key(65537, 2048)
        case "ES":
            curves: dict[str, ec.EllipticCurve] = {
                "ES256": ec.SECP256R1(),
                "ES384": ec.SECP384R1(),
                "ES512": ec.SECP521R1(),
            }
            return ec.generate_private_key(curves[algorithm])
        case _:
            return ed25519.Ed25519PrivateKey.generate()


def jwk_of(key: PrivateKey, algorithm: str, *, private: bool = False, **more: Any) -> dict[str, Any]:
    kind = jwt.get_algorithm_by_name(algorithm)
    jwk = kind.to_jwk(key if private else key.public_key(), as_dict=True)
    jwk.pop("key_ops", None)
    return {**jwk, **more}


def write_jwks(path: Path, *jwks: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": jwks}), encoding="utf-8")
    return path


def token_of(key: PrivateKey | str, algorithm: str, *, kid: str | None = None, **claims: Any) -> str:
    """Sign a token; a claim of None is left out."""
    given = {"iss": ISSUER, "aud": AUDIENCE, "exp": 2_000, "tenant": "acme", **claims}
    payload = {name: value for name, value in given.items() if value is not None}
    return jwt.encode(payload, key, algorithm, headers={"kid": kid} if kid else None)
