"""Projectors for the tiny pair, made at random: their rows mean nothing, but they are the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cloud_supervisor.export.tiny import HIDDEN
from cloud_supervisor.model.projector import ProjectorWeights


def random_projector(
    layers: Sequence[int] = (1, 2), *, width: int = HIDDEN, source: int = HIDDEN, seed: int = 0
) -> ProjectorWeights:
    """Return a projector from these layers, of `source` numbers each, to rows of `width` numbers."""
    draws = torch.Generator().manual_seed(seed)
    hidden, width_in = 16, source * len(layers)
    shapes = {
        "first.weight": (hidden, width_in),
        "first.bias": (hidden,),
        "last.weight": (width, hidden),
        "last.bias": (width,),
    }
    tensors = {name: torch.randn(shape, generator=draws) * 0.2 for name, shape in shapes.items()}
    return ProjectorWeights.of(tuple(layers), tensors)
