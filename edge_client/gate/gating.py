"""Which gate a generation gets, and what tells it the risk of a token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import GateMismatch, ModelError
from chaperone_common.frames import Capabilities
from chaperone_common.resources import packaged_path
from chaperone_common.types import Mode, OnDeviation, Promises
from edge_client.config import GateSettings
from edge_client.gate import Always, Budgeted, Control, Gate, Never, Threshold
from edge_client.gate.gate_model import GateModel
from edge_client.gate.risk import CalibratedRisk

_LOG = logging.getLogger(__name__)


class Gates:
    """The gates of a client: each generation has one of its own, and those of one promise share its control."""

    def __init__(self, settings: GateSettings, model: GateModel | None = None) -> None:
        """`model` tells calibrated risks; without one, the signals' own are taken."""
        self._settings = settings
        self._loaded = model
        self._model = model  # the one in use: the cloud may be another one than it was made for
        self._controls: dict[Promises, Control] = {}

    def use_cloud(self, capabilities: Capabilities) -> None:
        """A cloud serves this; raises GateMismatch where the configured gate was made for another model.

        One that merely comes with the pair is done without, as long as this cloud is there.
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
        """A gate for one generation."""
        match mode:
            case Mode.EXACT:
                return Always()
            case Mode.GATED:
                return self._gated(promises)
            case Mode.EDGE | Mode.CLOUD:
                return Never()

    def risk_model(
        self, mode: Mode, read: Callable[[int], str], prompt_length: int, committed_token_ids: Sequence[int] = ()
    ) -> CalibratedRisk | None:
        """What tells one generation's risks, where a gate was calibrated; see `CalibratedRisk`."""
        if self._model is None or mode is not Mode.GATED:
            return None
        return CalibratedRisk(self._model, read, prompt_length, committed_token_ids)

    def control(self, promises: Promises) -> Control:
        """What keeps a promise, over all generations that were made under it."""
        if promises not in self._controls:
            calibration = self._model.calibration if self._model is not None else None
            self._controls[promises] = Control(promises, calibration)
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
    """The configured gate for this device model, or the one that comes with the pair.

    Raises ModelMissing, ModelCorrupt or GateMismatch for a configured file; one that merely comes with the pair, and
    cannot be used, is done without.
    """
    if settings.file is None:
        return None
    if settings.file != "auto":
        return GateModel.load(settings.file, manifest)
    path = packaged_gate(manifest.pair)
    try:
        return GateModel.load(path, manifest) if path.is_file() else None
    except (GateMismatch, ModelError) as error:  # of another recipe than this pair, say
        _LOG.warning("gated goes without a calibrated gate: %s", error)
        return None


def packaged_gate(pair: str) -> Path:
    """Where the gate lies that comes with a pair, if there is one."""
    return packaged_path(f"gates/{pair}.onnx")
