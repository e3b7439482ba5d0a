"""Development certificates: what they name, who can read the keys, and what is not overwritten."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chaperone_common.errors import ConfigError, OutputLost
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.security.x509 import read_client


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_server_is_named_by_its_hosts(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "certs"
    paths = make_certificates(folder, ["cloud.example.com", "10.0.0.1", "::1"])
    assert [path.name for path in paths] == ["ca.pem", "cert.pem", "key.pem"]
    assert {path.name for path in folder.iterdir()} == {"ca.pem", "cert.pem", "key.pem"}
    assert mode_of(folder / "key.pem") == 0o600
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    assert context.cert_store_stats()["x509_ca"] == 1
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(folder / "cert.pem", folder / "key.pem")


def test_a_client_is_named_by_its_tenant(tmp_path: Path) -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    make_certificates(tmp_path, ["127.0.0.1"], client="acme", now=now, lifetime=timedelta(days=9))
    client = read_client((tmp_path / "client.pem").read_bytes())
    assert client.common_name == "acme"
    assert client.uris == ("chaperone://tenant/acme",)
    assert client.expires_at == (now + timedelta(days=9)).timestamp()
    assert mode_of(tmp_path / "client-key.pem") == 0o600


def test_files_are_replaced_only_by_force(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["a"])
    before = (tmp_path / "key.pem").read_bytes()
    (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"ca\.pem: exists; give --force to replace it, or another folder"):
        make_certificates(tmp_path, ["a"], client="acme")
    assert (tmp_path / "key.pem").read_bytes() == before
    assert not (tmp_path / "client.pem").exists()
    make_certificates(tmp_path, ["a"], force=True)
    assert (tmp_path / "key.pem").read_bytes() != before
    assert mode_of(tmp_path / "key.pem") == 0o600


@pytest.mark.parametrize("host", ["", "a:1", "http://a", "a b", "ü.example"])
def test_a_wrong_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="^host: .* is neither a name nor an IP address; give it without a port"):
        make_certificates(tmp_path, [host])
    assert [*tmp_path.iterdir()] == []


def test_a_wrong_client_and_a_folder_that_is_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^client: 'A': it is no name of a tenant"):
        make_certificates(tmp_path, ["a"], client="A")
    with pytest.raises(ConfigError, match="^host: there is none"):
        make_certificates(tmp_path, [])
    (tmp_path / "file").touch()
    with pytest.raises(OutputLost, match="file: cannot be written"):
        make_certificates(tmp_path / "file", ["a"])
