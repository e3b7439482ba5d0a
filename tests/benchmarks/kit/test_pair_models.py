"""Records of a pair's models: the exporter may change a graph's bytes, and nothing else may differ."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kit.pair_models import check_models, differences, models_of
from chaperone_common.errors import ConfigError

RECORDED: dict[str, Any] = {
    "edge": {"model": "small", "files": {"model.onnx": "a", "model.onnx.data": "b", "tokenizer.json": "c"}},
    "cloud": {"model": "large", "files": {"model.safetensors": "d"}},
}


def changed(role: str, **files: str) -> dict[str, Any]:
    models = deepcopy(RECORDED)
    models[role]["files"] |= {name.replace("__", "."): digest for name, digest in files.items()}
    return models


def test_another_export_of_the_same_weights_is_the_same_model() -> None:
    assert differences(RECORDED, RECORDED) == []
    assert differences(RECORDED, changed("edge", model__onnx="other", special_tokens__json="new")) == []


def test_other_weights_tokenizers_and_names_are_named() -> None:
    other = changed("edge", model__onnx__data="other", tokenizer__json="other")
    other["cloud"]["model"] = "larger"
    assert differences(RECORDED, other) == ["cloud name", "edge model.onnx.data", "edge tokenizer.json"]
    assert differences({}, RECORDED)[:2] == ["cloud model.safetensors", "cloud name"]


def test_a_graph_that_holds_its_weights_is_compared() -> None:
    here, there = changed("edge", model__onnx="other"), deepcopy(RECORDED)
    for models in (here, there):
        del models["edge"]["files"]["model.onnx.data"]
    assert differences(there, here) == ["edge model.onnx"]


@pytest.mark.usefixtures("tiny_pair")
def test_a_file_of_other_models_is_refused_with_their_names() -> None:
    path, recorded = Path("texts.gz"), models_of("tiny")
    check_models(path, recorded, "tiny", remedy="explore again")
    recorded["cloud"]["files"]["model.safetensors"] = "other"
    words = r"texts.gz: its models are others than those of pair 'tiny' here \(cloud model.safetensors\); explore again"
    with pytest.raises(ConfigError, match=words):
        check_models(path, recorded, "tiny", remedy="explore again")
