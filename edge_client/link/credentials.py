"""The credentials of this device: settings, files and environment variables, read into a security of the channel.

A setting comes first, and the environment variable is used where it is null. Secrets are never part of a message or a
repr.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from chaperone_common.address import is_loopback
from chaperone_common.errors import ConfigError, Unauthenticated
from edge_client.config import CloudSettings

CA_FILE = "CHAPERONE_CA_FILE"
CERT_FILE = "CHAPERONE_CERT_FILE"
KEY_FILE = "CHAPERONE_KEY_FILE"
TOKEN = "CHAPERONE_TOKEN"

_MAX_TOKEN = 8_000  # characters; gRPC's servers take 8 KiB of metadata
_TOKEN = re.compile(r"[!-~]+")


class TokenSource:
    """The token of this device. A file is read at each use, so that a rotated token is used."""

    def __init__(self, file: Path | None = None, token: SecretStr | None = None) -> None:
        """Take a file, or else a token; raises ConfigError unless there is one now, or none was given."""
        self._file = file
        self._token = token
        try:
            self.read()
        except Unauthenticated as error:
            raise ConfigError(error.message) from None

    def read(self) -> SecretStr | None:
        """Return the token, or None if there is none; raises Unauthenticated if it cannot be read."""
        if self._file is None:
            return self._checked(TOKEN, self._token) if self._token is not None else None
        try:
            text = self._file.read_text(encoding="utf-8")
        except OSError as error:
            raise Unauthenticated(
                f"cloud.token_file: {self._file}: cannot be read: {error.strerror or error}"
            ) from None
        except UnicodeDecodeError:
            raise Unauthenticated(f"cloud.token_file: {self._file}: it is not text; give the file of a token") from None
        return self._checked(f"cloud.token_file: {self._file}", SecretStr(text.strip()))

    @staticmethod
    def _checked(place: str, token: SecretStr) -> SecretStr:
        text = token.get_secret_value()
        if not text:
            raise Unauthenticated(f"{place}: it is empty; give the token that the operator of the cloud made")
        if not _TOKEN.fullmatch(text) or len(text) > _MAX_TOKEN:
            raise Unauthenticated(
                f"{place}: it is no token: one word of ASCII characters, up to {_MAX_TOKEN}; give the "
                "token that the operator of the cloud made"
            )
        return token


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The content of the files for TLS, in PEM."""

    authorities: bytes | None = None  # None: the public ones
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything that a channel needs to reach a cloud, apart from the address. It is the same for all addresses."""

    tls: TlsFiles | None  # None: plain text
    token: TokenSource = field(default_factory=TokenSource, repr=False)


def read_addresses(settings: CloudSettings) -> tuple[str, ...]:
    """Return the addresses that settings name; raises ConfigError. Settings may have been changed after their check."""
    try:
        return settings.addresses
    except ValueError as error:
        raise ConfigError(f"cloud.address: {settings.address!r}: {error}") from None


def read_credentials(settings: CloudSettings, environment: Mapping[str, str]) -> Credentials:
    """Read files and environment variables; raises ConfigError, naming the setting and the remedy."""
    files = _Files(settings, environment)
    if settings.insecure and (settings.tls or files.names):
        contradiction = "cloud.tls: true" if settings.tls else files.names[0]
        raise ConfigError(f"cloud.insecure: it allows plain text, and {contradiction} asks for TLS; remove one of them")
    if settings.tls is False and files.names:
        raise ConfigError(f"cloud.tls: false contradicts {files.names[0]}; remove one of them")
    elsewhere = [address for address in read_addresses(settings) if not is_loopback(address)]
    if settings.tls is False and elsewhere and not settings.insecure:
        raise ConfigError(
            f"cloud.tls: false, but {elsewhere[0]!r} is not on this machine, and without TLS everybody on the way "
            "reads texts and token; use TLS, or allow that with cloud.insecure: true"
        )
    wanted = (
        settings.tls if settings.tls is not None else bool(files.names) or bool(elsewhere and not settings.insecure)
    )
    token = environment.get(TOKEN)
    return Credentials(
        files.read() if wanted else None,
        TokenSource(settings.token_file, SecretStr(token.strip()) if token is not None else None),
    )


class _Files:
    """The files for TLS that settings and environment name."""

    def __init__(self, settings: CloudSettings, environment: Mapping[str, str]) -> None:
        self._ca = _named("cloud.ca_file", settings.ca_file, CA_FILE, environment)
        self._cert = _named("cloud.cert_file", settings.cert_file, CERT_FILE, environment)
        self._key = _named("cloud.key_file", settings.key_file, KEY_FILE, environment)
        for given, missing, name in ((self._cert, self._key, "key_file"), (self._key, self._cert, "cert_file")):
            if given is not None and missing is None:
                raise ConfigError(f"cloud.{name}: it is missing, and belongs to {given[0]}: {given[1]}")

    @property
    def names(self) -> list[str]:
        """The settings that ask for TLS."""
        return [named[0] for named in (self._ca, self._cert) if named is not None]

    def read(self) -> TlsFiles:
        """Read and check the files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authorities = certificate = key = None
        if self._ca is not None:
            authorities = _content(self._ca)
            with _naming(self._ca, "it holds no certificate in PEM"):
                context.load_verify_locations(cafile=self._ca[1])
        if self._cert is not None and self._key is not None:
            certificate, key = _content(self._cert), _content(self._key)
            with _naming(
                self._cert, f"it and {self._key[1]} are no certificate and its key, in PEM, without a passphrase"
            ):
                context.load_cert_chain(self._cert[1], self._key[1], password="")
        return TlsFiles(authorities, certificate, key)


_Named = tuple[str, Path]  # of a setting or environment variable, and of its file


def _named(setting: str, path: Path | None, variable: str, environment: Mapping[str, str]) -> _Named | None:
    if path is not None:
        return setting, path
    given = environment.get(variable)
    return (f"${variable}", Path(given)) if given else None


def _content(named: _Named) -> bytes:
    name, path = named
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {path}: cannot be read: {error.strerror or error}") from None


@contextmanager
def _naming(named: _Named, problem: str) -> Iterator[None]:
    """Turn an error of the TLS library into one that names the setting and its file."""
    try:
        yield
    except (ssl.SSLError, OSError, ValueError):
        raise ConfigError(f"{named[0]}: {named[1]}: {problem}; give the right file") from None
