"""Settings of `serve --engine ray`: refused before anything starts, with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_supervisor.cli import main as cloud
from tests.support.processes.commands import start_python
from tests.support.waiting import START_S

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from cloud_supervisor.cli import main
sys.exit(main(["serve", "--pair", "tiny", "--engine", "ray", "--listen", "127.0.0.1:0"]))
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--listen", "0.0.0.0:0"), "give 127.0.0.1:PORT to serve only this machine, or 0.0.0.0:PORT with --insecure"),
        (("--listen", "10.0.0.1:0", "--insecure"), "listens on all interfaces"),
        (("--listen", "unix:/tmp/socket"), "has no Unix sockets"),
        (("--tls-cert", "cert.pem", "--tls-key", "key.pem"), "end TLS in a proxy in front of it"),
        (("--replicas", "0"), "--replicas: 0: input should be greater than or equal to 1"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_settings_that_the_proxy_cannot_keep_are_refused(
    command: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cloud([command, "--pair", "tiny", "--engine", "ray", *flags]) == 2
    assert message in capsys.readouterr().err.replace("Input", "input")


def test_fewer_replicas_at_most_than_at_least_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "cloud.yaml"
    settings.write_text("engine: ray\nray: {replicas: 3, max_replicas: 2}\n", encoding="utf-8")
    assert cloud(["check", "--pair", "tiny", "--config", str(settings)]) == 2
    assert "max_replicas: 2 is less than replicas 3" in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(tiny_pair: Path) -> None:
    process = start_python("-c", WITHOUT_RAY)
    _, errors = process.communicate(timeout=START_S)
    assert process.returncode == 1
    assert "pip install 'chaperone-llm[cloud,ray]'" in errors.decode()
