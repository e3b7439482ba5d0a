"""The home of a cloud, in which a test may damage the pair."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def home(tiny_pair: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_pair, tmp_path / "cloud" / "models" / "tiny")
    return tmp_path / "cloud"
