"""Encodings for the tiny pair, and its device's model without the input for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx

from chaperone_common.conditioning import Encoding
from cloud_supervisor.export.tiny import HIDDEN

_INPUT = "conditioning"


def without_encodings(edge: Path, folder: Path) -> Path:
    """Copy a device's model to `folder`, and take the input for encodings out of its graph; return the folder."""
    shutil.copytree(edge, folder)
    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    (add,) = [node for node in graph.node if _INPUT in node.input]
    (embeddings,) = [name for name in add.input if name != _INPUT]
    graph.node.remove(add)
    graph.input.remove(next(each for each in graph.input if each.name == _INPUT))
    for node in graph.node:
        node.input[:] = [embeddings if name == add.output[0] else name for name in node.input]
    onnx.save(model, str(path))
    return folder


def random_encoding(tokens: int, seed: int = 0, scale: float = 0.5) -> Encoding:
    """Return rows for the first tokens of a text."""
    rows = np.random.default_rng(seed).normal(scale=scale, size=(tokens, HIDDEN)).astype(np.float32)
    return Encoding.of(rows)
