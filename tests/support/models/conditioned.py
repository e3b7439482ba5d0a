"""Tiny models that read encodings: the tiny pair's own files, with one more input of the graph, and a projector."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from chaperone_common.conditioning import Encoding
from cloud_supervisor.export.graph_edits import add_conditioning
from cloud_supervisor.export.tiny import HIDDEN


def conditioned_graph(edge: Path, folder: Path) -> Path:
    """Copy a device's model to `folder`, and let its graph take encodings; return the folder."""
    shutil.copytree(edge, folder)
    add_conditioning(folder / "model.onnx", HIDDEN)
    return folder


def random_encoding(tokens: int, seed: int = 0, scale: float = 0.5) -> Encoding:
    """Return rows for the first tokens of a text."""
    rows = np.random.default_rng(seed).normal(scale=scale, size=(tokens, HIDDEN)).astype(np.float32)
    return Encoding.of(rows)
