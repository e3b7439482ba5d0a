"""A strategy: everything the engine decides with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from chaperone_common.types import Mode, Promises
from edge_client.config import GateSettings
from edge_client.gate import Gate
from edge_client.gate.gate_model import GateModel
from edge_client.gate.gating import Gates
from edge_client.planner import AdaptivePlanner, Planner


@dataclass(frozen=True, slots=True)
class Strategy:
    """The way a generation is made: everything that the engine decides with, and the values that models must provide.

    `gate` makes the gate of one generation. Gates of `gated` share what they learn, as those of one client do. With
    `lenient_nats` the cloud accepts a draft token whose cross-entropy under its model is at most that. With
    `risk_is_disagreement` the gate gets `edge_client.model.uncertainty.disagreement` as the risk.

    `gate_settings` are those that a client makes the same gate from; None if no settings do. With a `gate_model` the
    gate gets its calibrated risks, without one the signals' own.
    """

    name: str
    planner: Planner
    gate: Callable[[], Gate]
    continue_without_cloud: bool = False
    lenient_nats: float | None = None
    risk_is_disagreement: bool = False
    gate_settings: GateSettings | None = None
    gate_model: GateModel | None = None

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
    return _client_strategy(str(mode), mode, GateSettings(), None)


def gated_strategy(name: str, settings: GateSettings, gate_model: GateModel | None) -> Strategy:
    """Return mode `gated` with these settings, and the calibrated risks of `gate_model` if there is one."""
    return _client_strategy(name, Mode.GATED, settings, gate_model)


def _client_strategy(name: str, mode: Mode, settings: GateSettings, gate_model: GateModel | None) -> Strategy:
    gates, promises = Gates(settings, gate_model), Promises(settings.catch, settings.max_deviation)
    return Strategy(
        name,
        AdaptivePlanner(mode),
        partial(gates.gate, mode, promises),
        gate_settings=settings,
        gate_model=gate_model,
    )
