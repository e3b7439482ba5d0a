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
    """How a generation is made: all that the engine is given to decide with, and what models must tell it.

    `gate` makes that of one generation; those of `gated` share what they learn, as generations of one client do.
    With `lenient_nats` the cloud lets a draft token stand whose cross-entropy under its model is no more; with
    `risk_is_disagreement` the gate is told `edge_client.model.uncertainty.disagreement` as the risk.
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
        """How a device is set for the strategy."""
        return self.planner.mode

    @property
    def exact(self) -> bool:
        """Whether it promises the cloud's own text."""
        return self.mode is Mode.EXACT and self.lenient_nats is None


def strategy_for(mode: Mode) -> Strategy:
    """A mode as a device has it by default, but for a calibrated gate: in `gated` risks are those of the signals."""
    settings = GateSettings()
    promises = Promises(settings.catch, settings.max_deviation)
    return Strategy(str(mode), AdaptivePlanner(mode), partial(Gates(settings).gate, mode, promises))
