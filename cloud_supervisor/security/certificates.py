"""Certificates for development: an authority of one's own, and what it signs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaperone_common.address import host_and_port
from chaperone_common.errors import ConfigError, OutputLost
from chaperone_common.files import replace_file
from cloud_supervisor.caller import TENANT_URI, check_tenant

LIFETIME = timedelta(days=365)
_BACKDATED = timedelta(hours=1)  # for clocks that differ


class _Signed(NamedTuple):
    certificate: bytes
    key: bytes


def make_certificates(
    folder: Path,
    hosts: Sequence[str],
    *,
    client: str | None = None,
    force: bool = False,
    now: datetime | None = None,
    lifetime: timedelta = LIFETIME,
) -> list[Path]:
    """Write `ca.pem`, `cert.pem` and `key.pem`, and with a client's tenant also `client.pem` and `client-key.pem`.

    `hosts` are the names and IP addresses by which clients reach the server. Return the paths. The key of the authority
    is not kept, so it signs nothing else. Raises ConfigError for a wrong name, and for files that exist unless `force`.
    """
    alternative_names = [_alternative_name(host) for host in hosts]
    if not hosts:
        raise ConfigError("host: there is none; give the name or IP address by which devices reach the server")
    if client is not None:
        try:
            check_tenant(client)
        except ValueError as error:
            raise ConfigError(f"client: {client!r}: {error}") from None
    begins = (now or datetime.now(UTC)) - _BACKDATED
    authority = _Authority(begins, begins + _BACKDATED + lifetime)
    server = authority.sign(hosts[0], alternative_names, ExtendedKeyUsageOID.SERVER_AUTH)
    contents = {"ca.pem": authority.pem, "cert.pem": server.certificate, "key.pem": server.key}
    if client is not None:
        uri = x509.UniformResourceIdentifier(f"{TENANT_URI}{client}")
        signed = authority.sign(client, [uri], ExtendedKeyUsageOID.CLIENT_AUTH)
        contents |= {"client.pem": signed.certificate, "client-key.pem": signed.key}
    paths = {folder / name: content for name, content in contents.items()}
    if not force and (there := [path for path in paths if path.exists()]):
        raise ConfigError(f"{there[0]}: exists; give --force to replace it, or another folder")
    _write(folder, paths)
    return list(paths)


class _Authority:
    """An authority whose key lives as long as this object."""

    def __init__(self, begins: datetime, ends: datetime) -> None:
        self._begins = begins
        self._ends = ends
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Chaperone development authority")
        builder = self._builder(self._name, self._key.public_key())
        self._certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The certificate of the authority."""
        return self._certificate.public_bytes(Encoding.PEM)

    def sign(
        self, common_name: str, alternative_names: Iterable[x509.GeneralName], usage: x509.ObjectIdentifier
    ) -> _Signed:
        """Make a key and its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name(common_name[:64]), key.public_key())  # X.509 has room for 64 characters
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage([usage]), False),
            (x509.SubjectAlternativeName(alternative_names), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
        ]
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        certificate = builder.sign(self._key, hashes.SHA256())
        return _Signed(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begins)
            .not_valid_after(self._ends)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        name, _ = host_and_port(f"{host}:1")
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(f"host: {host!r} is neither a name nor an IP address; give it without a port") from None


def _write(folder: Path, contents: dict[Path, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in contents:
            path.unlink(missing_ok=True)  # a key must not take over the permissions of the file before
    except OSError as error:
        raise OutputLost(f"{folder}: cannot be written: {error.strerror or error}") from None
    for path, content in contents.items():
        replace_file(path, [content], mode=0o600 if path.name.endswith("key.pem") else None)
