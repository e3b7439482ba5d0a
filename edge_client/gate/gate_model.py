"""A calibrated gate on onnxruntime: the risk of a token from its features, and the record of how the gate was made.

A gate is one ONNX file. The graph takes `FEATURES` and returns a score. The file's metadata hold a `GateCard` in JSON:
it has the curve from scores to probabilities, and the held-out tokens that prove the first thresholds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from pydantic import Field, ValidationError

from chaperone_common.errors import GateMismatch, ModelCorrupt, ModelMissing
from chaperone_common.settings import FrozenModel
from edge_client.gate import FEATURES_VERSION, HeldOutRisks

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is loaded
import onnxruntime

CARD = "chaperone.gate"  # the key in the file's metadata
_REMEDY = "calibrate one with `chaperone calibrate`"


class DeviceModel(Protocol):
    """The identity of a device model; `ModelManifest` has it."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def digest(self) -> str:
        """See `ModelManifest.digest`."""


class GatedModel(FrozenModel):
    """One of the two models that a gate was made for."""

    name: str
    digest: str  # see `ModelManifest.digest`


class GateData(FrozenModel):
    """The data that a gate was made from."""

    prompts: str  # the file's name
    prompts_sha256: str
    texts: int
    tokens: int
    overrides: int
    temperature: float
    seed: int


class GateCard(FrozenModel):
    """The record of a gate, written when it is made, and checked before it is used."""

    format: Literal[1] = 1
    features_version: int
    edge: GatedModel
    cloud: GatedModel
    data: GateData
    made_at: str
    versions: dict[str, str]  # of the packages that made it
    figures: dict[str, float]  # on texts that the model was not fitted to; see docs/gate.md
    scores: tuple[float, ...] = Field(min_length=2)  # outputs of the graph, rising
    risks: tuple[float, ...] = Field(min_length=2)  # at these scores; linear between them
    held_out_risks: tuple[float, ...]
    held_out_overrides: tuple[int, ...]  # indices of the held-out tokens that the cloud overrode


class GateModel:
    """The model of a calibrated gate. Use `load` to make one."""

    def __init__(self, session: Any, card: GateCard) -> None:
        self.card = card
        self._session = session
        self._input = session.get_inputs()[0].name
        self._scores = np.array(card.scores)
        self._risks = np.array(card.risks)

    @classmethod
    def load(cls, path: Path | str, device: DeviceModel) -> Self:
        """Load a gate file. Raises ModelMissing, ModelCorrupt, or GateMismatch if it is for another device model."""
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
        _check(Path(path), card, device)
        return cls(session, card)

    @property
    def held_out(self) -> HeldOutRisks:
        """The tokens that the gate was not fitted to."""
        overridden = np.zeros(len(self.card.held_out_risks), np.bool_)
        overridden[list(self.card.held_out_overrides)] = True
        return HeldOutRisks.of(self.card.held_out_risks, [bool(one) for one in overridden])

    def risk(self, features: list[float]) -> float:
        """Return the probability that the cloud chooses another token, from its `FEATURES`."""
        [score] = self._session.run([_SCORE], {self._input: np.array([features], np.float32)})
        return float(np.interp(float(score[0, 1]), self._scores, self._risks))

    def check_cloud(self, model: str, digest: str) -> None:
        """Raise GateMismatch unless the gate was made for this cloud's model. An empty digest matches any."""
        made_for = self.card.cloud
        if digest and digest != made_for.digest:
            raise GateMismatch(
                f"gate.file: made for a cloud that serves {made_for.name} ({made_for.digest}), this one serves {model} "
                f"({digest}); {_REMEDY}"
            )


_SCORE = "probabilities"  # [rows, 2]


def _check(path: Path, card: GateCard, device: DeviceModel) -> None:
    if card.features_version != FEATURES_VERSION:
        raise GateMismatch(
            f"{path}: it reads features of version {card.features_version}, this device has version "
            f"{FEATURES_VERSION}; {_REMEDY}"
        )
    if card.edge.digest != device.digest:
        raise GateMismatch(
            f"{path}: made for the device model {card.edge.name} ({card.edge.digest}), this one is {device.model} "
            f"({device.digest}); {_REMEDY}"
        )
    if len(card.scores) != len(card.risks) or list(card.scores) != sorted(card.scores):
        raise ModelCorrupt(
            f"{path}: {len(card.scores)} scores and {len(card.risks)} risks; one each, and rising; {_REMEDY}"
        )
    if not all(0 <= index < len(card.held_out_risks) for index in card.held_out_overrides):
        raise ModelCorrupt(f"{path}: an override is none of the {len(card.held_out_risks)} held-out tokens; {_REMEDY}")
