"""Edits of an exported graph: the attention windows of its layers, and an input for encodings.

The ONNX builder gives one window to all layers, or gives it to the wrong layers: for Gemma 2 to the odd layers instead
of the even ones. Beyond the window the device would then draft from the wrong text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import onnx

from chaperone_common.errors import ModelError

_ATTENTION = "GroupQueryAttention"
_PAST_KEY = re.compile(r"past_key_values\.(\d+)\.key")
_WINDOW, _UNLIMITED = "local_window_size", -1
_CONDITIONING = "conditioning"  # as `edge_client.model.onnx_cache.CONDITIONING`
_SUM = "conditioned_embeddings"
_GATHERS = {"Gather", "GatherBlockQuantized"}
_FLOAT = onnx.TensorProto.FLOAT


def set_windows(path: Path, windows: Sequence[int | None]) -> None:
    """Set the attention window of each layer in a graph file.

    A window counts tokens, the current one included; None is unlimited. Raises ModelError for a graph with another
    number of layers.
    """
    model = onnx.load(str(path), load_external_data=False)
    attention = [node for node in model.graph.node if node.op_type == _ATTENTION]
    nodes = {int(match[1]): node for node in attention for match in map(_PAST_KEY.fullmatch, node.input) if match}
    if sorted(nodes) != [*range(len(windows))]:
        raise ModelError(f"the ONNX builder wrote attention for layers {sorted(nodes)}, not for all {len(windows)}")
    for layer, window in enumerate(windows):
        kept = [attribute for attribute in nodes[layer].attribute if attribute.name != _WINDOW]
        del nodes[layer].attribute[:]
        nodes[layer].attribute.extend([*kept, onnx.helper.make_attribute(_WINDOW, window or _UNLIMITED)])
    onnx.save(model, str(path))


def add_conditioning(path: Path, width: int) -> None:
    """Give a graph file the input `conditioning`, float [rows, tokens, width] or [1, 1, width].

    It is added to the embeddings, as Z is in LLM-to-SLM (Bergner et al. 2024, arXiv 2402.16844). An input of the same
    graph leaves the embeddings quantised, and shared with the output matrix.
    Raises ModelError for a graph whose embeddings are not found, or of another type than float.
    """
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    gathers = [node for node in graph.node if node.op_type in _GATHERS and "input_ids" in node.input]
    if len(gathers) != 1:
        raise ModelError(f"the graph looks up embeddings at {len(gathers)} places, not at one; leave the projector out")
    embeddings = gathers[0].output[0]
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    if (found := types.get(embeddings, _FLOAT)) != _FLOAT:
        name = onnx.TensorProto.DataType.Name(found)
        raise ModelError(f"the graph's embeddings are of type {name}, and encodings are FLOAT; leave the projector out")
    for node in graph.node:
        node.input[:] = [_SUM if name == embeddings else name for name in node.input]
    add = onnx.helper.make_node("Add", [embeddings, _CONDITIONING], [_SUM], name="/model/conditioning/Add")
    graph.node.insert([*graph.node].index(gathers[0]) + 1, add)
    shape: list[str | int | None] = ["conditioned_rows", "conditioned_tokens", width]
    graph.input.append(onnx.helper.make_tensor_value_info(_CONDITIONING, _FLOAT, shape))
    onnx.save(model, str(path))
