"""The device's hidden states before each token of a text, read from the tiny pair's graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from benchmarks.quality.hidden_states import HiddenStates
from chaperone_common.errors import ModelCorrupt
from cloud_supervisor.export.tiny import HIDDEN


def test_the_graphs_last_layer_turns_hidden_states_into_the_scores(tiny_pair: Path) -> None:
    prompt, tokens = [3, 4, 5], [7, 8, 9]
    states = HiddenStates(tiny_pair / "edge", threads=1).before(tokens, prompt)
    assert states.shape[0] == 3
    path = tiny_pair / "edge" / "model.onnx"
    model = onnx.load(path)
    last = next(node for node in model.graph.node if "logits" in node.output)
    named = onnx.helper.make_empty_tensor_value_info
    weights = [one for one in model.graph.initializer if one.name in last.input]
    head = onnx.helper.make_graph([last], "head", [named(last.input[0])], [named("logits")], initializer=weights)
    head.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    alone = onnx.helper.make_model(head, opset_imports=model.opset_import, ir_version=model.ir_version)
    [scores] = run(alone.SerializeToString(), {last.input[0]: states[np.newaxis]})
    read = np.array([[*prompt, *tokens[:-1]]])
    past = {
        value.name: np.zeros([1, *(size.dim_value for size in value.type.tensor_type.shape.dim[1:])], np.float32)
        for value in model.graph.input
        if value.name.startswith("past")
    }
    past |= {"conditioning": np.zeros((1, 1, HIDDEN), np.float32)}
    whole = run(str(path), {"input_ids": read, "attention_mask": np.ones_like(read), **past})[0]
    np.testing.assert_allclose(scores[0], whole[0, 2:], atol=1e-3)


def run(model: str | bytes, fed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores: list[NDArray[Any]] = session.run(["logits"], fed)
    return scores


def test_a_graph_with_another_last_layer_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Identity", ["states"], ["logits"])]
    shape = (onnx.TensorProto.FLOAT, [1, 2])
    graph = onnx.helper.make_graph(nodes, "other", [value("states", *shape)], [value("logits", *shape)])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ModelCorrupt, match="logits are made by Identity"):
        HiddenStates(tmp_path, threads=1)
