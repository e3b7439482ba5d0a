"""The device's credentials: where they come from, when TLS is on, and which settings contradict each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import ConfigError, Unauthenticated
from cloud_supervisor.security.certificates import make_certificates
from edge_client import CloudSettings, EdgeConfig
from edge_client.link.credentials import TokenSource, read_credentials
from tests.support.security.servers import write

REMOTE = "cloud.example.com:443"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["a"], client="acme")
    return folder


def settings(folder: Path, **changes: Any) -> CloudSettings:
    """Return settings; a text ending in .pem is the name of a file in the folder."""
    files = {name: folder / value for name, value in changes.items() if str(value).endswith(".pem")}
    return CloudSettings(**{**changes, **files})


CA, CERT, KEY = {"ca_file": "ca.pem"}, {"cert_file": "client.pem"}, {"key_file": "client-key.pem"}


@pytest.mark.parametrize(
    ("changes", "on"),
    [
        ({}, False),
        ({"address": "unix:/run/c.sock"}, False),
        ({"tls": True}, True),
        (CA, True),
        ({**CERT, **KEY}, True),
        ({"address": REMOTE}, True),
        ({"address": REMOTE, "insecure": True}, False),
        ({"address": REMOTE, "insecure": True, "tls": False}, False),
        ({"address": "127.0.0.1:1,10.0.0.1:1"}, True),
        ({"address": "127.0.0.1:1,127.0.0.2:1"}, False),
        ({"insecure": True}, False),
    ],
)
def test_tls_is_on_where_it_is_needed(folder: Path, changes: dict[str, Any], on: bool) -> None:
    assert (read_credentials(settings(folder, **changes), {}).tls is not None) is on


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address": REMOTE, "tls": False}, "cloud.tls: false, but 'cloud.example.com:443' is not on this machine"),
        ({"tls": False, **CA}, "cloud.tls: false contradicts cloud.ca_file; remove one of them"),
        ({"tls": False, **CERT, **KEY}, "cloud.tls: false contradicts cloud.cert_file"),
        ({"tls": True, "insecure": True}, "cloud.insecure: it allows plain text, and cloud.tls: true asks for TLS"),
        ({"insecure": True, **CA}, "cloud.insecure: it allows plain text, and cloud.ca_file asks for TLS"),
        (CERT, "cloud.key_file: it is missing, and belongs to cloud.cert_file: "),
        (KEY, "cloud.cert_file: it is missing, and belongs to cloud.key_file: "),
        ({"ca_file": "none.pem"}, "cloud.ca_file: {}/none.pem: cannot be read: No such file or directory"),
        ({"ca_file": "key.pem"}, "cloud.ca_file: {}/key.pem: it holds no certificate in PEM"),
        (
            {**CERT, "key_file": "key.pem"},
            "cloud.cert_file: {}/client.pem: it and {}/key.pem are no certificate and its",
        ),
        ({**CERT, "key_file": "none.pem"}, "cloud.key_file: {}/none.pem: cannot be read"),
        ({"token_file": Path("/none")}, "cloud.token_file: /none: cannot be read: No such file or directory"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_credentials(settings(folder, **changes), {})
    assert caught.value.message.startswith(words.replace("{}", str(folder)))


def test_environment_variables_are_used_where_a_setting_is_null(folder: Path, tmp_path: Path) -> None:
    environment = {
        "CHAPERONE_CA_FILE": str(folder / "ca.pem"),
        "CHAPERONE_CERT_FILE": str(folder / "client.pem"),
        "CHAPERONE_KEY_FILE": str(folder / "client-key.pem"),
        "CHAPERONE_TOKEN": " of-the-environment\n",
    }
    credentials = read_credentials(CloudSettings(), environment)
    assert credentials.tls is not None
    assert credentials.tls.authorities == (folder / "ca.pem").read_bytes()
    assert credentials.tls.certificate == (folder / "client.pem").read_bytes()
    assert credentials.tls.key == (folder / "client-key.pem").read_bytes()
    assert shown(credentials.token) == "of-the-environment"
    token_file = write(tmp_path / "token", "of-the-file")
    given = read_credentials(CloudSettings(token_file=token_file, ca_file=folder / "cert.pem"), environment)
    assert given.tls is not None
    assert given.tls.authorities == (folder / "cert.pem").read_bytes()
    assert shown(given.token) == "of-the-file"
    with pytest.raises(ConfigError, match=r"^\$CHAPERONE_CA_FILE: /none: cannot be read"):
        read_credentials(CloudSettings(), {"CHAPERONE_CA_FILE": "/none"})
    assert read_credentials(CloudSettings(), {"CHAPERONE_CA_FILE": ""}).tls is None


def shown(source: TokenSource) -> str | None:
    secret = source.read()
    return None if secret is None else secret.get_secret_value()


def test_a_rotated_token_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "token", "one\n")
    source = TokenSource(path)
    assert shown(source) == "one"
    path.write_text("two\n")
    assert shown(source) == "two"
    path.unlink()
    with pytest.raises(Unauthenticated, match=r"^cloud\.token_file: .*token: cannot be read: No such file"):
        source.read()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty; give the token that the operator of the cloud made"),
        (b" \n", "it is empty"),
        (b"a-secret b-secret", "it is no token: one word of ASCII characters"),
        (b"a-secret\r\nx-header: 1", "it is no token"),
        ("a-secret-é".encode(), "it is no token"),
        (b"a-secret\xff", "it is not text"),
        (b"a-secret" * 1001, "it is no token"),
    ],
)
def test_a_malformed_token_is_refused_without_being_quoted(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        TokenSource(path)
    assert caught.value.message.startswith(f"cloud.token_file: {path}: {words}")
    assert "a-secret" not in caught.value.message


def test_no_repr_shows_a_secret(folder: Path) -> None:
    environment = {"CHAPERONE_TOKEN": "a-secret"}
    credentials = read_credentials(settings(folder, **CERT, **KEY), environment)
    assert credentials.tls is not None
    text = repr((credentials, credentials.tls, credentials.token, credentials.token.read(), vars(credentials.token)))
    assert "a-secret" not in text
    assert "PRIVATE KEY" not in text


def test_paths_are_relative_to_the_configuration_file(tmp_path: Path) -> None:
    names = ("ca_file", "cert_file", "key_file", "token_file")
    config = write(tmp_path / "edge.yaml", "cloud:\n" + "".join(f"  {name}: sub/{name}\n" for name in names))
    loaded = EdgeConfig.load(config).cloud
    assert [getattr(loaded, name) for name in names] == [tmp_path / "sub" / name for name in names]


def test_several_addresses_are_checked_in_the_settings() -> None:
    assert CloudSettings(address="10.0.0.1:1,b:1").addresses == ("10.0.0.1:1", "b:1")
    assert CloudSettings(address="b:1").addresses == ("b:1",)
    assert CloudSettings(address=["10.0.0.1:1", "b:1"]).addresses == ("10.0.0.1:1", "b:1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape("address: '10.0.0.1:1,b': address 2 of 2, 'b': there is no port")):
        CloudSettings(address="10.0.0.1:1,b")
    with pytest.raises(ConfigError, match=re.escape("'b:1' is listed twice; remove one of them")):
        CloudSettings(address=("b:1", "b:1"))
    with pytest.raises(ConfigError, match="neither an address nor a list of addresses"):
        CloudSettings(address=50151)  # type: ignore[arg-type]


def test_a_file_may_list_the_addresses(tmp_path: Path) -> None:
    config = write(tmp_path / "edge.yaml", "cloud:\n  address:\n    - a:1\n    - b:1\n")
    assert EdgeConfig.load(config).cloud == CloudSettings(address=("a:1", "b:1"))
    config = write(tmp_path / "wrong.yaml", "cloud:\n  address: [a:1, a:1]\n")
    with pytest.raises(ConfigError, match=r"wrong\.yaml:2: cloud\.address: .*'a:1' is listed twice"):
        EdgeConfig.load(config)
