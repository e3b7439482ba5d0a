"""A strategy: everything the engine decides with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from chaperone_common.types import Mode, OnDeviation, Promises
from edge_client.config import GateSettings
from edge_client.gate import Gate
from edge_client.gate.gating import Gates
from edge_client.planner import AdaptivePlanner, Planner


@dataclass(frozen=True, slots=True)
class Strategy:
    """The way a generation is made: everything that the engine decides with, and the values that models must provide.

    `gate` makes the gate of one generation. Gates of `gated` share what they learn, as those of one client do. With
    `lenient_nats` the cloud accepts a draft token whose cross-entropy under its model is at most that. With
    `risk_is_disagreement` the gate gets `edge_client.model.uncertainty.disagreement` as the risk.
    """

    name: str
    planner: Planner
    gate: Callable[[], Gate]
    continue_without_cloud: bool = False
    lenient_nats: float | None = None
    risk_is_disagreement: bool = False
    on_deviation: OnDeviation = OnDeviation.KEEP

    @property
    def mode(self) -> Mode:
        """The mode that the device is configured with."""
        return self.planner.mode

    @property
    def exact(self) -> bool:
        """True if the strategy promises the cloud's own text."""
        return self.mode is Mode.EXACT and self.lenient_nats is None


def strategy_for(mode: Mode) -> Strategy:
    """Return the default strategy of a mode without a calibrated gate: in `gated` risks follow from the signals."""
    settings = GateSettings()
    promises = Promises(settings.catch, settings.max_deviation)
    return Strategy(str(mode), AdaptivePlanner(mode), partial(Gates(settings).gate, mode, promises))
