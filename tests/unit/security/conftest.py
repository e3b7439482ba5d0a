"""The authenticator of the tests, which counts the tokens that it hashes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_supervisor.security.tokens import TokenEntry
from tests.support.security.authentication import Rig


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(tmp_path)
    matches = TokenEntry.matches

    def counted(entry: TokenEntry, secret: str) -> bool:
        made.checks.append(entry.id)
        return matches(entry, secret)

    monkeypatch.setattr(TokenEntry, "matches", counted)
    yield made
    made.close()
