"""The large model of the tiny pair, loaded once, and the digest that both ends must agree on."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from cloud_supervisor.model.torch_model import TorchModel


@pytest.fixture(scope="session")
def target(tiny_pair: Path) -> TorchModel:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    return TorchModel.of_manifest(tiny_pair / "cloud", manifest, dtype="float32", threads=1)


@pytest.fixture(scope="session")
def digest(tiny_pair: Path) -> str:
    return load_manifest(tiny_pair / "cloud", role="cloud").tokenizer_digest
