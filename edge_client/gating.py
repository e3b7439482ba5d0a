"""Which gate a generation gets."""

from __future__ import annotations

from common.gate import Always, Budgeted, Calibration, Control, Gate, Never, Promises, Threshold
from common.types import Mode, OnDeviation
from edge_client.config import GateSettings


class Gates:
    """The gates of a client: each generation has one of its own, and those of one promise share its control."""

    def __init__(self, settings: GateSettings, calibration: Calibration | None = None) -> None:
        self._settings = settings
        self._calibration = calibration
        self._controls: dict[Promises, Control] = {}

    def gate(self, mode: Mode, promises: Promises) -> Gate:
        """A gate for one generation."""
        match mode:
            case Mode.EXACT:
                return Always()
            case Mode.GATED:
                return self._gated(promises)
            case Mode.EDGE | Mode.CLOUD:
                return Never()

    def control(self, promises: Promises) -> Control:
        """What keeps a promise, over all generations that were made under it."""
        if promises not in self._controls:
            self._controls[promises] = Control(promises, self._calibration)
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
