"""`chaperone-cloud token` and `chaperone-cloud cert`: their output, their messages and their exit codes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloud_supervisor.cli import main
from cloud_supervisor.security.tokens import TokenFile, split_token


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def created(tokens: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["token", "create", "--tenant", "acme", "--tokens", str(tokens), *flags]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("\n")
    assert split_token(out[:-1]), "the token alone"
    return out[:-1]


def test_a_token_is_printed_once(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = created(tokens, capsys, "--expires-in", "90d")
    (entry,) = TokenFile.load(tokens).entries
    assert entry.expires is not None
    assert abs(entry.expires - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)
    assert main(["token", "list", "--tokens", str(tokens)]) == 0
    out, _ = capsys.readouterr()
    assert re.fullmatch(rf"{entry.id}  acme {{17}}valid    created \S+ \S+  expires \S+ \S+\n", out)
    parts = split_token(token)
    assert parts is not None
    assert parts[1] not in out + tokens.read_text()


def test_a_revoked_and_an_expired_token_are_listed_as_such(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = created(tokens, capsys)
    TokenFile.create(tokens, "old", timedelta(days=1), now=datetime(2020, 1, 1, tzinfo=UTC))
    token_id = (split_token(token) or ("", ""))[0]
    assert main(["token", "revoke", token_id, "--tokens", str(tokens)]) == 0
    assert capsys.readouterr().out == f"{token_id} of acme is revoked\n"
    assert main(["token", "list", "--tokens", str(tokens)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.search(r" revoked .* expires never$", first)
    assert re.search(r" old .* expired .* expires 2020-01-02 00:00$", second)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "--tenant", "A B"], "argument --tenant: 'A B': it is no name of a tenant"),
        (["create", "--tenant", "acme", "--expires-in", "soon"], "argument --expires-in: 'soon': not a time such as"),
        (["create", "--tenant", "acme", "--expires-in", "0d"], "argument --expires-in: '0d': not a time such as"),
        (["create", "--tenant", "acme", "--expires-in", "9999w"], "up to ten years"),
        (["create"], "the following arguments are required: --tenant"),
        (["revoke"], "the following arguments are required: ID"),
    ],
)
def test_wrong_usage_is_refused(
    tokens: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["token", *arguments, "--tokens", str(tokens)])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert not tokens.exists()


def test_a_wrong_file_is_reported_with_its_path(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "list", "--tokens", str(tokens)]) == 2
    assert f"{tokens}: no such file; make it with `chaperone-cloud token create" in capsys.readouterr().err
    tokens.write_text("{}")
    assert main(["token", "create", "--tenant", "acme", "--tokens", str(tokens)]) == 2
    out, err = capsys.readouterr()
    assert (out, tokens.read_text()) == ("", "{}")
    assert f"{tokens}: tokens: Field required; restore it" in err
    assert main(["token", "revoke", "0" * 12, "--tokens", str(tokens)]) == 2


def test_certificates_are_made_and_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    command = ["cert", "dev", "--out", str(folder), "--host", "cloud.example.com", "--host", "10.0.0.1"]
    assert main([*command, "--client", "acme"]) == 0
    names = ["ca.pem", "cert.pem", "key.pem", "client.pem", "client-key.pem"]
    assert capsys.readouterr().out.splitlines() == [str(folder / name) for name in names]
    assert main(command) == 2
    assert "ca.pem: exists; give --force to replace it" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main(["cert", "dev", "--out", str(folder), "--host", "a:1", "--force"]) == 2
    assert "host: 'a:1' is neither a name nor an IP address" in capsys.readouterr().err
