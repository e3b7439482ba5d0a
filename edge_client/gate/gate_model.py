"""A calibrated gate: how risky a token is by its features, on onnxruntime, and what the gate was made for and from.

A gate is one ONNX file. The graph takes `FEATURES` and gives a score; the file's metadata hold a `GateCard` in JSON,
with the curve that makes a probability of the score, and the tokens that the first thresholds are proved on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import GateMismatch, ModelCorrupt, ModelMissing
from chaperone_common.settings import FrozenModel
from edge_client.gate import FEATURES_VERSION, Calibration

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is loaded
import onnxruntime

CARD = "chaperone.gate"  # the key in the file's metadata
_REMEDY = "calibrate one with `chaperone calibrate`"


class GatedModel(FrozenModel):
    """One of the two models that a gate was made for."""

    name: str
    digest: str  # see `ModelManifest.digest`


class GateData(FrozenModel):
    """What a gate was made from."""

    prompts: str  # the file's name
    prompts_sha256: str
    texts: int
    tokens: int
    overrides: int
    temperature: float
    seed: int


class GateCard(FrozenModel):
    """What a gate is: written once, and read before it is used."""

    format: Literal[1] = 1
    features_version: int
    edge: GatedModel
    cloud: GatedModel
    data: GateData
    made_at: str
    versions: dict[str, str]  # of the packages that made it
    figures: dict[str, float]  # on texts that the model was not fitted to; see docs/gate.md
    scores: tuple[float, ...] = Field(min_length=2)  # of the graph, rising
    risks: tuple[float, ...] = Field(min_length=2)  # at these scores; straight lines in between
    held_out_risks: tuple[float, ...]
    held_out_overrides: tuple[int, ...]  # indices of those tokens that the cloud overrode


class GateModel:
    """Tells the risk of a token; use `load`."""

    def __init__(self, session: Any, card: GateCard) -> None:
        self.card = card
        self._session = session
        self._input = session.get_inputs()[0].name
        self._scores = np.array(card.scores)
        self._risks = np.array(card.risks)

    @classmethod
    def load(cls, path: Path | str, manifest: ModelManifest) -> Self:
        """Read a gate for this device model; raises ModelMissing, ModelCorrupt, or GateMismatch for another model's."""
        if not Path(path).is_file():
            raise ModelMissing(f"{path}: there is no gate; {_REMEDY}, or leave gate.file out")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base class
            raise ModelCorrupt(f"{path}: onnxruntime cannot load it: {error}") from error
        written = session.get_modelmeta().custom_metadata_map.get(CARD)
        if written is None:
            raise ModelCorrupt(f"{path}: an ONNX file, but not a gate: it has no metadata {CARD!r}; {_REMEDY}")
        try:
            card = GateCard.model_validate_json(written)
        except ValidationError as error:
            raise ModelCorrupt(f"{path}: its metadata {CARD!r} are not those of a gate: {error}") from None
        _check(Path(path), card, manifest)
        return cls(session, card)

    @property
    def calibration(self) -> Calibration:
        """The tokens that were held out."""
        overridden = np.zeros(len(self.card.held_out_risks), np.bool_)
        overridden[list(self.card.held_out_overrides)] = True
        return Calibration.of(self.card.held_out_risks, [bool(one) for one in overridden])

    def risk(self, features: list[float]) -> float:
        """The probability that the cloud chooses another token, from `FEATURES`."""
        [score] = self._session.run([_SCORE], {self._input: np.array([features], np.float32)})
        return float(np.interp(float(score[0, 1]), self._scores, self._risks))

    def check_cloud(self, model: str, digest: str) -> None:
        """Raise GateMismatch unless the gate was made for this cloud's model; one that does not tell is trusted."""
        made_for = self.card.cloud
        if digest and digest != made_for.digest:
            raise GateMismatch(
                f"gate.file: made for a cloud that serves {made_for.name} ({made_for.digest}), this one serves {model} "
                f"({digest}); {_REMEDY}"
            )


_SCORE = "probabilities"  # [rows, 2]


def _check(path: Path, card: GateCard, manifest: ModelManifest) -> None:
    if card.features_version != FEATURES_VERSION:
        raise GateMismatch(
            f"{path}: it reads features of version {card.features_version}, this device tells version "
            f"{FEATURES_VERSION}; {_REMEDY}"
        )
    if card.edge.digest != manifest.digest:
        raise GateMismatch(
            f"{path}: made for the device model {card.edge.name} ({card.edge.digest}), this one is {manifest.model} "
            f"({manifest.digest}); {_REMEDY}"
        )
    if len(card.scores) != len(card.risks) or list(card.scores) != sorted(card.scores):
        raise ModelCorrupt(
            f"{path}: {len(card.scores)} scores and {len(card.risks)} risks; one each, and rising; {_REMEDY}"
        )
    if not all(0 <= index < len(card.held_out_risks) for index in card.held_out_overrides):
        raise ModelCorrupt(f"{path}: an override is none of the {len(card.held_out_risks)} held-out tokens; {_REMEDY}")
