"""The files of a server's TLS are checked before it listens."""

from __future__ import annotations

import logging
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.clock import Clock
from chaperone_common.errors import ConfigError
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.security.tls import ServerTls
from tests.support.fakes.clock import ManualClock

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def tls(folder: Path, *, now: datetime = NOW, clock: Clock | None = None, **files: str) -> ServerTls:
    paths = {name: folder / file for name, file in {"cert_file": "cert.pem", "key_file": "key.pem", **files}.items()}
    return ServerTls(paths["cert_file"], paths["key_file"], paths.get("client_ca_file"), clock=clock, now=lambda: now)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_certificates(tmp_path, ["127.0.0.1"], client="acme", now=NOW, lifetime=timedelta(days=30))
    return tmp_path


def test_the_end_of_the_certificate_is_known(folder: Path) -> None:
    server = tls(folder)
    assert server.expires_at == (NOW + timedelta(days=30)).timestamp()
    assert not server.client_certificates
    assert tls(folder, client_ca_file="ca.pem").client_certificates


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"cert_file": "none.pem"}, "tls.cert_file: {}/none.pem: cannot be read: No such file or directory"),
        ({"key_file": "none.pem"}, "tls.key_file: {}/none.pem: cannot be read: No such file or directory"),
        ({"client_ca_file": "none.pem"}, "tls.client_ca_file: {}/none.pem: cannot be read: No such file"),
        ({"cert_file": "key.pem"}, "tls.cert_file: {}/key.pem: it holds no certificate in PEM"),
        ({"key_file": "cert.pem"}, "tls.key_file: {}/cert.pem: it holds no private key in PEM"),
        ({"client_ca_file": "key.pem"}, "tls.client_ca_file: {}/key.pem: it holds no certificate in PEM"),
        ({"key_file": "client-key.pem"}, "tls.key_file: {}/client-key.pem: it is not the key of the certificate"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(folder: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tls(folder, **files)
    assert caught.value.message.startswith(words.format(folder))


@pytest.mark.parametrize(
    ("days", "words"), [(30, "it expired at 2026-05-31 00:00 UTC; renew it"), (-2, "it is valid from 2026-04-30 23:00")]
)
def test_a_certificate_must_be_valid_now(folder: Path, days: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tls(folder, now=NOW + timedelta(days=days))


def test_a_key_with_a_passphrase_is_refused(folder: Path) -> None:
    encrypted = folder / "encrypted.pem"
    command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", str(folder / "key.pem")]
    subprocess.run([*command, "-out", str(encrypted)], check=True, capture_output=True)
    with pytest.raises(ConfigError, match="it is encrypted; give a key without a passphrase"):
        tls(folder, key_file=encrypted.name)


def test_a_key_that_everybody_can_read_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tls(folder)
        assert caplog.text == ""
        (folder / "key.pem").chmod(0o644)
        tls(folder)
    assert f"run chmod 600 {folder / 'key.pem'}" in caplog.text


def test_a_new_certificate_that_cannot_be_used_is_reported_before_a_handshake(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    server = tls(folder, clock=clock)
    (folder / "cert.pem").write_text("no certificate")
    server.look()
    assert not caplog.records, "files are not read all the time"
    clock.seconds = 1.0
    server.look()
    assert caplog.messages == [
        f"tls.cert_file: {folder}/cert.pem: it holds no certificate in PEM; what was loaded before stays in use"
    ]
