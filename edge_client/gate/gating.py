"""The gates and risk models of a client's generations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import GateMismatch, ModelError
from chaperone_common.frames import Capabilities
from chaperone_common.settings.packaged import packaged_path
from chaperone_common.types import Mode, OnDeviation, Promises
from edge_client.config import GateSettings
from edge_client.gate import Always, Budgeted, Control, Gate, Never, Threshold
from edge_client.gate.gate_model import GateModel
from edge_client.gate.risk import CalibratedRisk

_LOG = logging.getLogger(__name__)


class Gates:
    """The gates of a client: one for each generation; gates with equal promises share a control."""

    def __init__(self, settings: GateSettings, model: GateModel | None = None) -> None:
        """Use the calibrated risks of `model`; without it, the signals' own risks."""
        self._settings = settings
        self._loaded = model
        self._model = model  # None while the cloud serves another model than the gate was made for
        self._controls: dict[Promises, Control] = {}

    def use_cloud(self, capabilities: Capabilities) -> None:
        """Check the gate model against the model that the cloud serves.

        A gate file that the user set must match; raises GateMismatch. The packaged default is switched off with a
        warning instead, until a cloud comes that it was made for.
        """
        if self._loaded is None:
            return
        fitting: GateModel | None = self._loaded
        try:
            self._loaded.check_cloud(capabilities.model, capabilities.model_digest)
        except GateMismatch as error:
            if self._settings.file != "auto":
                raise
            fitting = None
            if self._model is not None:
                _LOG.warning("gated goes on without a calibrated gate: %s", error)
        if fitting is not self._model:
            self._model = fitting
            self._controls.clear()  # another cloud's corrections are another workload

    def gate(self, mode: Mode, promises: Promises) -> Gate:
        """Return a gate for one generation."""
        match mode:
            case Mode.EXACT:
                return Always()
            case Mode.GATED:
                return self._gated(promises)
            case Mode.EDGE | Mode.CLOUD | Mode.CONDITIONED:
                return Never()

    def risk_model(
        self, mode: Mode, token_text: Callable[[int], str], prompt_length: int, committed_token_ids: Sequence[int] = ()
    ) -> CalibratedRisk | None:
        """Return the risk model of one generation, if there is a calibrated gate for it; see `CalibratedRisk`."""
        if self._model is None or mode is not Mode.GATED:
            return None
        return CalibratedRisk(self._model, token_text, prompt_length, committed_token_ids)

    def control(self, promises: Promises) -> Control:
        """Return the control of all generations with these promises."""
        if promises not in self._controls:
            held_out = self._model.held_out if self._model is not None else None
            self._controls[promises] = Control(promises, held_out)
        return self._controls[promises]

    def _gated(self, promises: Promises) -> Gate:
        match self._settings.policy:
            case "budgeted":
                retracts = self._settings.on_deviation is OnDeviation.RETRACT
                return Budgeted(self.control(promises), stay_provisional=retracts)
            case "threshold":
                return Threshold(self._settings.risk)
            case "always":
                return Always()
            case "never":
                return Never()


def load_gate(settings: GateSettings, manifest: ModelManifest) -> GateModel | None:
    """Return the configured gate model, or the one that is packaged for the pair; None if there is none.

    Raises ModelMissing, ModelCorrupt or GateMismatch for a configured file. A packaged one that does not fit this
    device model is left out with a warning.
    """
    if settings.file is None:
        return None
    if settings.file != "auto":
        return GateModel.load(settings.file, manifest)
    path = packaged_gate(manifest.pair)
    try:
        return GateModel.load(path, manifest) if path.is_file() else None
    except (GateMismatch, ModelError) as error:  # such as one made for another recipe of this pair
        _LOG.warning("gated goes without a calibrated gate: %s", error)
        return None


def packaged_gate(pair: str) -> Path:
    """Return the path of the gate that is packaged for a pair. The file may not exist."""
    return packaged_path(f"gates/{pair}.onnx")
