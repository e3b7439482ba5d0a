"""The device's hidden states before each token of a text, read from the tiny pair's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.hidden_states import HiddenStates
from common.errors import ModelCorrupt


def test_each_token_is_scored_from_what_stands_before_it(tiny_pair: Path) -> None:
    reader = HiddenStates(tiny_pair / "edge", threads=1)
    states = reader.before([7, 8, 9], [3, 4, 5])
    assert states.shape[0] == 3
    assert np.abs(states).max() > 0.1
    np.testing.assert_allclose(reader.before([7, 8, 2], [3, 4, 5]), states, atol=1e-4, err_msg="the last is not read")
    np.testing.assert_allclose(reader.before([9], [3, 4, 5, 7, 8]), states[2:], atol=1e-4)
    assert not np.allclose(reader.before([7, 2, 9], [3, 4, 5])[2], states[2], atol=1e-2)


def test_a_graph_that_scores_in_another_way_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Identity", ["states"], ["logits"])]
    shape = (onnx.TensorProto.FLOAT, [1, 2])
    graph = onnx.helper.make_graph(nodes, "other", [value("states", *shape)], [value("logits", *shape)])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ModelCorrupt, match="logits are made by Identity"):
        HiddenStates(tmp_path, threads=1)
