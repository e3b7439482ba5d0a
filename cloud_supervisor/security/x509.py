"""X.509 certificates in PEM: checked for a server, and read from a client."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID


class ClientCertificate(NamedTuple):
    """The parts of a client's certificate that name it."""

    common_name: str | None
    uris: tuple[str, ...]  # of the alternative names
    serial: str  # in hexadecimal
    expires_at: float  # seconds since 1970


def check_certificate(pem: bytes, now: datetime) -> datetime:
    """Return the expiry of the first certificate of a chain; raises ValueError unless it is valid now."""
    first = _certificates(pem)[0]
    if first.not_valid_after_utc <= now:
        raise ValueError(f"it expired at {first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it")
    if first.not_valid_before_utc > now:
        raise ValueError(
            f"it is valid from {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; check the clock of this machine"
        )
    return first.not_valid_after_utc


def check_key(pem: bytes, certificate_pem: bytes) -> None:
    """Raise ValueError unless this is the private key of the chain's first certificate."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("it is encrypted; give a key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it holds no private key in PEM") from None
    mine, certified = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), _certificates(certificate_pem)[0].public_key())
    )
    if mine != certified:
        raise ValueError("it is not the key of the certificate; give the two files that belong together")


def check_authorities(pem: bytes) -> None:
    """Raise ValueError unless there is a certificate of an authority."""
    _certificates(pem)


def read_client(pem: bytes) -> ClientCertificate:
    """Read the certificate that a client has shown; raises ValueError."""
    certificate = _certificates(pem)[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound:
        uris = ()
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    common_name = common_names[0].value if len(common_names) == 1 else None
    return ClientCertificate(
        common_name if isinstance(common_name, str) else None,
        uris,
        f"{certificate.serial_number:x}",
        certificate.not_valid_after_utc.timestamp(),
    )


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError("it holds no certificate in PEM") from None
