"""The models that the contract tests use: each fake, and the real one with the tiny pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.artefacts.registry import TinySource
from cloud_supervisor.model.ports import TargetModel
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget
from tests.support.models import contract_drafts, contract_targets
from tests.support.models.contract_drafts import NewSequence

if TYPE_CHECKING:
    from edge_client.model.onnx_model import OnnxModel


@pytest.fixture(params=["fake", "float32", "int8"], scope="module")
def target(request: pytest.FixtureRequest) -> TargetModel:
    if request.param == "fake":
        return FakeTarget(contract_targets.USED_IDS, contract_targets.CONTEXT_TOKENS, encoding_width=8)
    from cloud_supervisor.model.torch_model import TorchModel  # slow to import; the fake's tests don't wait for it
    from tests.support.models.projectors import random_projector

    folder: Path = request.getfixturevalue("tiny_pair") / "cloud"
    vocabulary_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    return TorchModel.load(
        folder,
        dtype=request.param,
        threads=1,
        vocabulary_size=vocabulary_size,
        context_tokens=contract_targets.CONTEXT_TOKENS,
        projector=random_projector(),
    )


@pytest.fixture(params=["fake", "onnx", "portable"], scope="module")
def new_sequence(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewSequence]:
    if request.param == "fake":
        yield partial(
            FakeDraft,
            FakeTarget(vocabulary_size=contract_drafts.USED_IDS, context_tokens=contract_drafts.CONTEXT_TOKENS),
        )
        return
    model = _onnx_model(request, tmp_path_factory)
    yield model.new_sequence
    model.close()


@pytest.fixture(params=["onnx", "portable"], scope="module")
def onnx_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxModel]:
    model = _onnx_model(request, tmp_path_factory)
    yield model
    model.close()


def _onnx_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    from edge_client.model.onnx_model import OnnxModel  # slow to import; the fake's tests don't wait for it

    folder: Path = request.getfixturevalue("tiny_pair") / "edge"
    vocabulary_size = load_manifest(folder, role="edge").vocabulary_size
    if request.param == "portable":
        from cloud_supervisor.export.tiny import build_tiny
        from tests.support.models.portable import export_portably

        folder = tmp_path_factory.mktemp("portable")
        export_portably(build_tiny(TinySource(source="tiny", seed=0, noise=0.03)), folder)
    return OnnxModel.load(
        folder,
        threads=1,
        allow_spinning=False,
        vocabulary_size=vocabulary_size,
        context_tokens=contract_drafts.CONTEXT_TOKENS,
    )
