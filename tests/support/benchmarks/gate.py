"""A calibrated gate without a fitted graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.gate import FEATURES, FEATURES_VERSION
from edge_client.gate.gate_model import GateCard, GateData, GatedModel, GateModel

CARD = GateCard(
    features_version=FEATURES_VERSION,
    edge=GatedModel(name="drafter", digest="sha256:device"),
    cloud=GatedModel(name="writer", digest="sha256:cloud"),
    data=GateData(prompts="none", prompts_sha256="", texts=0, tokens=0, overrides=0, temperature=0.0, seed=0),
    made_at="",
    versions={},
    figures={},
    scores=(0.0, 1.0),
    risks=(0.0, 1.0),
    held_out_risks=(),
    held_out_overrides=(),
)


class FeatureSession:
    """A session of onnxruntime whose score is one of the features."""

    def __init__(self, feature: str) -> None:
        self._column = FEATURES.index(feature)

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="features")]

    def run(self, _: Any, feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return [np.array([[0.0, feeds["features"][0, self._column]]], np.float32)]


def gate_of(feature: str, held_out: Sequence[tuple[float, bool]] = ()) -> GateModel:
    """Return a gate whose risk is a feature, cut to [0, 1].

    A held-out token is its risk, and True if the cloud overrode it.
    """
    proof = {
        "held_out_risks": tuple(risk for risk, _ in held_out),
        "held_out_overrides": tuple(index for index, (_, overridden) in enumerate(held_out) if overridden),
    }
    return GateModel(FeatureSession(feature), CARD.model_copy(update=proof))
