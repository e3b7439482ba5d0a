"""A service with TLS and tokens, as commands: with a token a device writes in all modes, and without it in none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from cloud_supervisor.cli import main as cloud
from cloud_supervisor.security.tokens import TokenFile
from edge_client.apps.cli.main import main as device
from tests.support.processes.commands import server_process

SHORT = ("--pair", "tiny", "--max-new-tokens", "12", "--seed", "3")
PROMPT = "the list of a number is"


class Secured(NamedTuple):
    """A running service, and its operator's files."""

    address: str
    pki: Path
    tokens: Path
    token: str


@pytest.fixture(scope="module")
def secured(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    pki, tokens = folder / "pki", folder / "tokens"
    for out in (pki, folder / "other"):
        assert cloud(["cert", "dev", "--out", str(out), "--host", "127.0.0.1"]) == 0
    token = TokenFile.create(tokens, "acme")
    files = ("--tls-cert", str(pki / "cert.pem"), "--tls-key", str(pki / "key.pem"), "--tokens", str(tokens))
    with server_process(*files, fake_model=True) as (_, address):
        yield Secured(address, pki, tokens, token)


def generate(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, token: str | None, *options: str, ca: str | None = "pki"
) -> int:
    """Run `chaperone generate` with a token in the environment; without `ca` in plain text."""
    monkeypatch.delenv("CHAPERONE_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("CHAPERONE_TOKEN", token)
    trust = ("--tls-ca", str(secured.pki.parent / ca / "ca.pem")) if ca is not None else ()
    return device(["generate", "--cloud", secured.address, *trust, *SHORT, *options, PROMPT])


def test_a_device_with_a_token_writes_in_all_modes(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = {}
    for mode in ("exact", "cloud", "gated", "edge"):
        assert generate(secured, monkeypatch, secured.token, "--mode", mode) == 0
        texts[mode] = capsys.readouterr().out
    assert texts["exact"] == texts["cloud"]
    assert all(texts.values())
    file = tmp_path / "token"
    file.write_text(secured.token + "\n")
    assert generate(secured, monkeypatch, None, "--mode", "exact", "--token-file", str(file)) == 0
    assert capsys.readouterr().out == texts["exact"]


@pytest.mark.parametrize("kind", ["none", "wrong", "expired", "revoked"])
def test_a_device_without_a_valid_token_is_refused(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    revoked = TokenFile.create(secured.tokens, "acme")
    TokenFile.revoke(secured.tokens, revoked.split("_")[1])
    token, words = {
        "none": (None, "no token; give --token-file or CHAPERONE_TOKEN"),
        "wrong": (secured.token[:-4] + "AAAA", "the token is not valid"),
        "expired": (
            TokenFile.create(secured.tokens, "acme", timedelta(days=1), now=long_ago),
            "has expired; ask",
        ),
        "revoked": (revoked, "was revoked; ask"),
    }[kind]
    assert generate(secured, monkeypatch, token, "--mode", "exact") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "chp_" not in err


def test_a_device_that_trusts_another_authority_or_speaks_plain_text_learns_what_to_change(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(secured, monkeypatch, secured.token, "--mode", "exact", ca="other") == 1
    assert "cloud.ca_file" in capsys.readouterr().err
    assert generate(secured, monkeypatch, secured.token, "--mode", "exact", ca=None) == 1
    assert "cloud.tls" in capsys.readouterr().err


def test_the_flags_and_files_of_a_service_are_checked_before_it_starts(
    secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everywhere = ["check", "--pair", "tiny", "--listen", "0.0.0.0:0"]
    certificate = ["--tls-cert", str(secured.pki / "cert.pem")]
    key, other = str(secured.pki / "key.pem"), str(secured.pki.parent / "other" / "key.pem")
    assert cloud(everywhere) == 2
    assert "which needs TLS; give --tls-cert and --tls-key" in capsys.readouterr().err
    assert cloud([*everywhere, *certificate]) == 2
    assert "tls.key_file: missing" in capsys.readouterr().err
    assert cloud([*everywhere, *certificate, "--tls-key", other]) == 2
    assert "tls.key_file" in capsys.readouterr().err
    assert cloud([*everywhere, *certificate, "--tls-key", key, "--tokens", str(tmp_path / "none")]) == 2
    assert "no such file; make it with `chaperone-cloud token create" in capsys.readouterr().err
    assert cloud([*everywhere, *certificate, "--tls-key", key, "--tokens", str(secured.tokens)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "chaperone-cloud: devices need tokens"
    quotas = tmp_path / "quotas.yaml"
    quotas.write_text("quotas: {tenants: {acme: {max_sessions: 2}, acne: {max_sessions: 2}}}", encoding="utf-8")
    assert cloud(["check", "--pair", "tiny", "--config", str(quotas), "--tokens", str(secured.tokens)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "chaperone-cloud: quotas.tenants: acne has no valid token; correct the name, or make a token with "
        "`chaperone-cloud token create`"
    )
    assert cloud([*everywhere, "--insecure"]) == 0
    both = ["--client-ca", str(secured.pki / "ca.pem"), "--tokens", str(secured.tokens)]
    assert cloud([*everywhere, *certificate, "--tls-key", key, *both]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "chaperone-cloud: devices need certificates; tokens are optional"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("pair: tinny", "pair: 'tinny' is not in models.yaml (did you mean 'tiny'?); known: default, "),
        ("pair: tiny\ndevice: gpuu", "device: 'gpuu' is not on this machine; there is cpu"),
        ("pair: tiny\ndevice: cuda:99", "device: 'cuda:99' is not on this machine; there is cpu"),
    ],
)
def test_a_pair_and_a_device_that_are_nowhere_are_found(
    tiny_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, words: str
) -> None:
    config = tmp_path / "cloud.yaml"
    config.write_text(settings, encoding="utf-8")
    assert cloud(["check", "--config", str(config)]) == 2
    assert words in capsys.readouterr().err
