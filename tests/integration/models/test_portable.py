"""The portable recipe: standard operators alone, the numbers of torch, and `exact` as with the usual recipe."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from chaperone_common.errors import ModelError
from cloud_supervisor.cli import main
from cloud_supervisor.export.conversion import LoadedModel
from cloud_supervisor.export.tiny import train_tokenizer
from cloud_supervisor.model.architectures import PORTABLE_MODEL_TYPES, refuse_unportable
from edge_client.model.onnx_model import OnnxModel
from tests.support.models import families
from tests.support.models.families import VOCABULARY
from tests.support.models.onnx_scores import scores_along
from tests.support.models.portable import export_portably

FAMILIES = (
    "gemma",
    "llama",
    "llama with linear rope",
    "llama with rope of llama3",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
)
REFUSED = ("gemma2", "granite", "mistral with a window", "phi3 with a window", "phi3 with longrope", "qwen2 with yarn")
TEXT_TOKENS, REWOUND = 120, 70

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_portable_graph_computes_as_torch(family: str, tmp_path: Path) -> None:
    """The text is read whole, token by token after rewinding, and as a branch."""
    plain = families.build(family)
    export_portably(LoadedModel(families.build(family), train_tokenizer()), tmp_path)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    assert {node.domain for node in graph.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 21)]
    text = np.random.default_rng(1).integers(VOCABULARY, size=TEXT_TOKENS).tolist()
    with torch.inference_mode():
        expected = plain(torch.tensor([text]), use_cache=False).logits[0, :, :VOCABULARY].numpy()
    model = OnnxModel.load(tmp_path, threads=1, allow_spinning=False, vocabulary_size=VOCABULARY, context_tokens=512)
    try:
        whole, rewound, branch = asyncio.run(scores_along(model.new_sequence(branches=1), text, REWOUND))
    finally:
        model.close()
    spread = expected.std()
    assert np.sqrt(((whole - expected) ** 2).mean()) < 0.1 * spread  # onnxruntime rounds activations to 8 bits
    np.testing.assert_allclose(rewound, whole[REWOUND:], atol=0.02 * spread)
    np.testing.assert_allclose(branch, whole[REWOUND:], atol=0.02 * spread)


def test_every_portable_architecture_is_here() -> None:
    assert {families.config_of(family).model_type for family in FAMILIES} == PORTABLE_MODEL_TYPES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_architectures_are_accepted(family: str) -> None:
    refuse_unportable(families.config_of(family), "random")


@pytest.mark.parametrize("family", REFUSED)
def test_untested_models_are_refused(family: str) -> None:
    with pytest.raises(ModelError, match="^random: .* is not supported with `exporter: optimum`"):
        refuse_unportable(families.config_of(family), "random")


@pytest.mark.skipif(importlib.util.find_spec("optimum") is not None, reason="the extra `portable` is installed")
def test_without_the_packages_the_recipe_is_refused_before_any_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    assert main(["models", "add", "mine", "--edge", "owner/small", "--cloud", "owner/large", "--portable"]) == 0
    assert main(["models", "pull", "--pair", "mine"]) == 1
    assert capsys.readouterr().err == (
        "chaperone-cloud: `exporter: optimum` needs optimum and optimum-onnx; run `pip install "
        "'chaperone-llm[cloud,build,portable]'`, or leave `exporter` out of the recipe\n"
    )
