"""The flags that name the cloud and the credentials for it, over a configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_common.command.parser import CommandParser
from edge_client.apps.cli.options import add_settings, config_of
from edge_client.config import CloudSettings


def cloud_of(*flags: str) -> CloudSettings:
    parser = CommandParser()
    add_settings(parser)
    parser.set_defaults(closing_audit=False)
    return config_of(parser.parse_args(flags)).cloud


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "edge.yaml"
    path.write_text("cloud:\n  address: 10.0.0.1:1\n  ca_file: ca.pem\n  token_file: token\n  insecure: true\n")
    return str(path)


def test_flags_override_the_file(config: str, tmp_path: Path) -> None:
    files = CloudSettings(
        address="10.0.0.1:1", ca_file=tmp_path / "ca.pem", token_file=tmp_path / "token", insecure=True
    )
    assert cloud_of("--config", config) == files
    flags = ("--cloud", "10.0.0.2:2,10.0.0.3:3", "--tls-ca", "a", "--tls-cert", "b", "--tls-key", "c")
    assert cloud_of("--config", config, *flags, "--token-file", "d") == CloudSettings(
        address="10.0.0.2:2,10.0.0.3:3",
        ca_file=Path("a"),
        cert_file=Path("b"),
        key_file=Path("c"),
        token_file=Path("d"),
        insecure=True,
    )


def test_without_flags_nothing_changes() -> None:
    assert cloud_of() == CloudSettings()
    assert cloud_of("--insecure") == CloudSettings(insecure=True)


def test_a_wrong_list_of_addresses_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cloud_of("--cloud", "10.0.0.1:1,b:x")
    assert "argument --cloud: '10.0.0.1:1,b:x': address 2 of 2, 'b:x': 'x' is no port" in capsys.readouterr().err
