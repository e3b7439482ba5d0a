"""The tokens file: what it holds, who can read it, and that no change is lost."""

from __future__ import annotations

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import ConfigError
from cloud_supervisor.security.tokens import TokenFile, split_token

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def test_a_token_names_its_tenant_until_it_expires(path: Path) -> None:
    token = TokenFile.create(path, "acme", timedelta(days=90), now=NOW)
    assert re.fullmatch(r"chp_[a-z0-9]{12}_[A-Za-z0-9_-]{43}", token)
    parts = split_token(token)
    assert parts is not None
    token_id, secret = parts
    entry = TokenFile.load(path).find(token_id)
    assert entry is not None
    assert (entry.tenant, entry.created, entry.expires) == ("acme", NOW, NOW + timedelta(days=90))
    assert entry.matches(secret)
    assert not entry.matches(secret[:-1] + ("A" if secret[-1] != "A" else "B"))
    assert entry.stands(NOW + timedelta(days=89))
    assert not entry.stands(NOW + timedelta(days=90))


def test_the_file_holds_no_secret_and_is_for_its_owner(path: Path) -> None:
    token = TokenFile.create(path, "acme")
    parts = split_token(token)
    assert parts is not None
    assert parts[1] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    (entry,) = TokenFile.load(path).entries
    assert entry.hash.startswith("$argon2id$")
    assert entry.hash not in repr(entry)
    assert [child.name for child in path.parent.iterdir()] == ["tokens.json"], "no lock is left over"


def test_equal_requests_give_different_tokens(path: Path) -> None:
    tokens = {TokenFile.create(path, "acme") for _ in range(3)}
    assert len(tokens) == 3
    assert [entry.tenant for entry in TokenFile.load(path).entries] == ["acme"] * 3


def test_tokens_that_are_created_at_the_same_time_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = [*pool.map(lambda index: TokenFile.create(path, f"tenant-{index}"), range(24))]
    kept = TokenFile.load(path)
    assert {entry.tenant for entry in kept.entries} == {f"tenant-{index}" for index in range(24)}
    assert all(kept.find((split_token(token) or ("", ""))[0]) for token in tokens)


def test_a_revoked_token_stays_in_the_file(path: Path) -> None:
    token_id = (split_token(TokenFile.create(path, "acme", now=NOW)) or ("", ""))[0]
    TokenFile.create(path, "other", now=NOW)
    revoked = TokenFile.revoke(path, token_id, now=NOW)
    assert revoked.revoked == NOW
    assert TokenFile.revoke(path, token_id).revoked == NOW, "the first time counts"
    first, second = TokenFile.load(path).entries
    assert (first, second.revoked) == (revoked, None)
    assert not first.stands(NOW)
    with pytest.raises(ConfigError, match="there is no token of this id; `chaperone-cloud token list` shows all"):
        TokenFile.revoke(path, "0" * 12)


def test_the_permissions_of_the_operator_stay(path: Path) -> None:
    TokenFile.create(path, "acme")
    path.chmod(0o640)
    TokenFile.create(path, "acme")
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_a_file_that_everybody_can_read_is_reported(
    path: Path, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    TokenFile.create(path, "acme")
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        TokenFile.load(path)
    assert ("run chmod 600" in caplog.text) is warned


@pytest.mark.parametrize("tenant", ["", "Acme", "-x", "a b", "a" * 64, "../x", "anonymous"])
def test_a_malformed_tenant_is_refused(path: Path, tenant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^tenant: {re.escape(repr(tenant))}: "):
        TokenFile.create(path, tenant)
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["", "chp_", "chp_abc_def", "Bearer x", f"chp_{'a' * 12}_{'é' * 43}", "chp_" + "a" * 999]
)
def test_any_other_text_is_no_token(text: str) -> None:
    assert split_token(text) is None


GOOD: dict[str, Any] = {"id": "a" * 12, "tenant": "acme", "hash": "$argon2id$x", "created": "2026-05-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the file: Invalid JSON"),
        ("tokens: []", "the file: Invalid JSON"),
        ("[]", "the file: "),
        ("{}", "tokens: Field required"),
        ({"tokens": [{**GOOD, "id": "x"}]}, "tokens.0.id: "),
        ({"tokens": [{**GOOD, "tenant": "A"}]}, "tokens.0.tenant: it is no name of a tenant"),
        ({"tokens": [{**GOOD, "hash": "plain secret"}]}, "tokens.0.hash: "),
        ({"tokens": [{**GOOD, "created": "2026-05-01T12:00:00"}]}, "tokens.0.created: "),
        ({"tokens": [{**GOOD, "expire": None}]}, "tokens.0.expire: "),
        ({"tokens": [GOOD, GOOD]}, "the id aaaaaaaaaaaa is given twice"),
    ],
)
def test_a_malformed_file_is_reported_with_its_place(path: Path, content: Any, words: str) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    before = path.read_text()
    for use in (TokenFile.load, lambda path: TokenFile.create(path, "acme")):
        with pytest.raises(ConfigError) as caught:
            use(path)
        assert caught.value.message.startswith(f"{path}: ")
        assert words in caught.value.message
        assert "plain secret" not in caught.value.message
    assert path.read_text() == before


def test_a_missing_file_and_a_missing_folder_are_reported(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; make it with `chaperone-cloud token create --tenant NAME"):
        TokenFile.load(path)
    with pytest.raises(ConfigError, match="its folder cannot be opened: No such file or directory; make the folder"):
        TokenFile.create(path / "deeper" / "tokens.json", "acme")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        TokenFile.load(path.parent)
