"""The attention windows of an exported graph, layer by layer.

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
