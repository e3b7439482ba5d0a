"""TLS of the server: its certificate and key, read again when their files change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc

from chaperone_common.clock import Clock
from chaperone_common.errors import ConfigError
from cloud_supervisor.security.watched import Watched
from cloud_supervisor.security.x509 import check_authorities, check_certificate, check_key

_LOG = logging.getLogger(__name__)


class _Loaded(NamedTuple):
    configuration: grpc.ServerCertificateConfiguration
    expires_at: float


class ServerTls:
    """The certificate of a server.

    New connections get a changed certificate within a second. Open streams keep the one that they began with. If the
    changed files do not fit, the certificate before stays in use.

    With `client_ca_file` every client has to show a certificate that one of these authorities has signed; gRPC cannot
    leave that choice to the client.
    """

    def __init__(
        self,
        cert_file: Path,
        key_file: Path,
        client_ca_file: Path | None = None,
        *,
        clock: Clock | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read and check the files; raises ConfigError, naming the setting and the file."""
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._now = now
        _warn_of_readers(key_file)
        files = [cert_file, key_file, *([client_ca_file] if client_ca_file is not None else [])]
        self._loaded = Watched(self._load, files, clock)

    @property
    def client_certificates(self) -> bool:
        """True if every client shows a certificate."""
        return self._client_ca_file is not None

    @property
    def expires_at(self) -> float:
        """The end of the certificate in use, in seconds since 1970."""
        return self._loaded.value.expires_at

    def look(self) -> None:
        """Read the files again if they have changed. The log says if they cannot be used."""
        _ = self._loaded.current

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials for `add_secure_port`."""
        initial, in_use = self._loaded.current

        def newer() -> grpc.ServerCertificateConfiguration | None:
            """Return the certificate for the next handshakes, or None for no change. gRPC's own threads call this."""
            nonlocal in_use
            loaded, version = self._loaded.current
            if version == in_use:
                return None
            in_use = version
            return loaded.configuration

        return grpc.dynamic_ssl_server_credentials(
            initial.configuration,
            newer,  # type: ignore[arg-type]  # its stub has no None
            require_client_authentication=self.client_certificates,
        )

    def _load(self) -> _Loaded:
        certificate = _read("tls.cert_file", self._cert_file)
        key = _read("tls.key_file", self._key_file)
        authorities = None if self._client_ca_file is None else _read("tls.client_ca_file", self._client_ca_file)
        with _naming("tls.cert_file", self._cert_file):
            expires = check_certificate(certificate, self._now())
        with _naming("tls.key_file", self._key_file):
            check_key(key, certificate)
        if self._client_ca_file is not None and authorities is not None:
            with _naming("tls.client_ca_file", self._client_ca_file):
                check_authorities(authorities)
        configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)
        return _Loaded(configuration, expires.timestamp())


@contextmanager
def _naming(setting: str, path: Path) -> Iterator[None]:
    """Turn a ValueError of the block into a ConfigError that names a setting and its file."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{setting}: {path}: {error}") from None


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: cannot be read: {error.strerror or error}") from None


def _warn_of_readers(key_file: Path) -> None:
    try:
        readable = key_file.stat().st_mode & 0o007
    except OSError:
        return  # reported when it is read
    if readable:
        _LOG.warning("%s: everybody on this machine can read or change it; run chmod 600 %s", key_file, key_file)
