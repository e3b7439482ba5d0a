"""The models that are held against their contracts: each fake, and the real one with the tiny pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cloud_supervisor.ports import TargetModel
from common.config import load_manifest
from tests.contract import drafts, targets
from tests.contract.drafts import NewSequence
from tests.contract.fake_target import FakeTarget
from tests.contract.fakes import FakeDraft


@pytest.fixture(params=["fake", "torch"], scope="module")
def target(request: pytest.FixtureRequest) -> TargetModel:
    if request.param == "fake":
        return FakeTarget(vocabulary_size=targets.USED_IDS, context_tokens=targets.CONTEXT_TOKENS)
    from cloud_supervisor.torch_model import TorchModel  # slow to import; the fake's tests don't wait for it

    folder: Path = request.getfixturevalue("tiny_pair") / "cloud"
    vocabulary_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    return TorchModel.load(
        folder, dtype="float32", threads=1, vocabulary_size=vocabulary_size, context_tokens=targets.CONTEXT_TOKENS
    )


@pytest.fixture(params=["fake", "onnx"], scope="module")
def new_sequence(request: pytest.FixtureRequest) -> Iterator[NewSequence]:
    if request.param == "fake":
        yield partial(FakeDraft, FakeTarget(vocabulary_size=drafts.USED_IDS, context_tokens=drafts.CONTEXT_TOKENS))
        return
    from edge_client.onnx_model import OnnxModel  # slow to import; the fake's tests don't wait for it

    folder: Path = request.getfixturevalue("tiny_pair") / "edge"
    vocabulary_size = load_manifest(folder, role="edge").vocabulary_size
    model = OnnxModel.load(
        folder, threads=1, allow_spinning=False, vocabulary_size=vocabulary_size, context_tokens=drafts.CONTEXT_TOKENS
    )
    yield model.new_sequence
    model.close()
