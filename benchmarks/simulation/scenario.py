"""A generation in virtual time: real engine, session, gate, planner and supervisor; simulated models and link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from benchmarks.simulation import virtual_time
from benchmarks.simulation.cloud import simulated_supervisor
from benchmarks.simulation.costs import CloudCosts, DraftCosts
from benchmarks.simulation.drafter import SimulatedDrafter
from benchmarks.simulation.link import SimulatedCloud
from benchmarks.simulation.script import Script, ScriptedModels
from benchmarks.simulation.strategy import Strategy
from benchmarks.simulation.trace import Trace, lacking, with_disagreement_as_risk
from benchmarks.simulation.virtual_time import LoopClock
from chaperone_common.errors import ChaperoneError, ConfigError
from chaperone_common.frames import ClientFrame, ServerFrame
from chaperone_common.session import (
    Audited,
    CloudShareReached,
    Committed,
    Drafted,
    Failed,
    Finished,
    Retracted,
    SessionEvent,
    Unverified,
)
from chaperone_common.stats import GenerationStats
from chaperone_common.types import Origin
from cloud_supervisor.config import LimitsConfig
from edge_client.assembly import assemble, engine_settings
from edge_client.config import CloudSettings, EdgeConfig, GateSettings
from edge_client.engine.engine import Engine
from edge_client.events import Beams, Event, Planned
from edge_client.gate.gate_model import GateModel
from edge_client.gate.risk import CalibratedRisk
from edge_client.link.connection import Route
from edge_client.planner import Estimates
from edge_client.ports import RiskModel
from link_emulator.model import Link
from link_emulator.profile import Profile

_WORD = " any"  # the text of tokens that no trace has, such as those after the recorded ones


@dataclass(frozen=True, slots=True)
class Scenario:
    """The conditions of a generation. `seed` draws the link's delays and losses; the traces hold everything else."""

    profile: Profile = field(default_factory=lambda: Profile.fixed(0.0))
    cloud: CloudCosts = field(default_factory=CloudCosts)
    draft: DraftCosts = field(default_factory=DraftCosts)
    seed: int = 0
    warm_start: bool = True  # both ends hold the prompt's KV before anything is drafted


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """An event of the engine, or a frame that left or reached the device, with its milliseconds since the beginning."""

    at_ms: float
    event: Event | ClientFrame | ServerFrame


@dataclass(frozen=True, slots=True)
class Simulation:
    """The result of a generation. `link_bytes_*` are all bytes on the link, headers included."""

    stats: GenerationStats
    token_ids: tuple[int, ...]
    origins: tuple[Origin, ...]
    error: ChaperoneError | None
    timeline: tuple[TimedEvent, ...]
    link_bytes_up: int
    link_bytes_down: int

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed from the warm start if there was one, else from the request."""
        stats = self.stats
        elapsed_ms = stats.total_ms if stats.decode_ms is None else stats.decode_ms
        return stats.completion_tokens / elapsed_ms * 1e3 if elapsed_ms else 0.0


def simulate(trace: Trace, scenario: Scenario, strategy: Strategy, estimates: Estimates | None = None) -> Simulation:
    """Generate one trace's text. It depends on the arguments, and on what the strategy's gate has learned.

    `estimates` are those of a client that has generated before, and learn from this generation, too. Raises ConfigError
    if the trace lacks a value that the strategy decides by.
    """
    if strategy.risk_is_disagreement:
        trace = with_disagreement_as_risk(trace)
    risk_model = None if strategy.gate_model is None else _calibrated(strategy.gate_model, trace)
    script = Script(trace, strategy.lenient_nats)
    return virtual_time.run(play(script, scenario, strategy, estimates or Estimates(), risk_model))


async def play(
    models: ScriptedModels,
    scenario: Scenario,
    strategy: Strategy,
    estimates: Estimates,
    risk_model: Callable[[int], RiskModel] | None = None,
) -> Simulation:
    """Generate one text inside a virtual loop, where other texts may be generated at the same time.

    `risk_model` makes the source of risks from the length of the prompt.
    """
    supervisor = simulated_supervisor({models.opening().session_id: models}, scenario.cloud)
    link = Link(scenario.profile, scenario.seed)
    loop = asyncio.get_running_loop()
    timeline: list[TimedEvent] = []
    cloud = SimulatedCloud(supervisor, link, tap=lambda frame: timeline.append(TimedEvent(loop.time() * 1e3, frame)))
    engine = _engine(models, cloud, scenario, strategy, estimates, risk_model)
    follower = Follower(models)
    ending: Event | None = None
    async with aclosing(engine.stream()) as events:
        async for event in events:
            timeline.append(TimedEvent(loop.time() * 1e3, event))
            follower.follow(event)
            ending = event
    await cloud.close()
    assert isinstance(ending, Finished | Failed), "every generation ends in exactly one of them"
    committed = [moment.event for moment in timeline if isinstance(moment.event, Committed)]
    return Simulation(
        ending.stats,
        tuple(event.token_id for event in committed),
        tuple(event.origin for event in committed),
        ending.error if isinstance(ending, Failed) else None,
        tuple(timeline),
        link.up.wire_bytes,
        link.down.wire_bytes,
    )


def _calibrated(gate: GateModel, trace: Trace) -> Callable[[int], RiskModel]:
    """Return the source of a trace's calibrated risks.

    Raises ConfigError if the trace lacks values that the gate reads, or is another device model's.
    """
    if trace.device is None:
        raise lacking(trace, "varentropies and token texts")
    if trace.device.digest != gate.card.edge.digest:
        raise ConfigError(
            f"{trace.source}: trace {trace.id} is of the device model {trace.device.digest}, the gate was made for "
            f"{gate.card.edge.digest}; give the files of one device model"
        )
    texts = trace.device.token_texts
    return partial(CalibratedRisk, gate, lambda token_id: texts.get(token_id, _WORD))


def _engine(
    models: ScriptedModels,
    cloud: SimulatedCloud,
    scenario: Scenario,
    strategy: Strategy,
    estimates: Estimates,
    risk_model: Callable[[int], RiskModel] | None,
) -> Engine:
    config = EdgeConfig(
        closing_audit=True,  # so that everything that the cloud computes is counted
        cloud=CloudSettings(on_loss="continue" if strategy.continue_without_cloud else "fail"),
        gate=strategy.gate_settings or GateSettings(),
    )
    opening = models.opening()
    return assemble(
        opening,
        engine_settings(
            config,
            strategy.mode,
            max_span_tokens=LimitsConfig().max_span_tokens,
            warm_start=scenario.warm_start,
        ),
        limit=models.limit,
        drafter=_drafter(models, scenario.draft, strategy),
        routes=[Route(cloud.link)],
        gate=strategy.gate(),
        planner=strategy.planner,
        estimates=estimates,
        risk_model=risk_model(len(opening.prompt_token_ids)) if risk_model is not None else None,
        output=_NoText(),
        clock=LoopClock(),
    )


def _drafter(models: ScriptedModels, costs: DraftCosts, strategy: Strategy) -> SimulatedDrafter:
    return SimulatedDrafter(models, costs, measuring_ms=costs.disagreement_ms if strategy.risk_is_disagreement else 0.0)


class Follower:
    """Reports to the models which of the device's tokens are kept: those that the gate skipped."""

    def __init__(self, models: ScriptedModels) -> None:
        self._models = models

    def follow(self, event: Event) -> None:
        """Take the next event before the engine continues."""
        match event:
            case Drafted(position, fired=fired):
                if not fired:
                    self._models.keep(position)
            case Committed(position):
                self._models.keep(position)
            case Retracted(position):
                self._models.drop(position)
            case Audited() | Unverified() | CloudShareReached() | Beams() | Planned() | Finished() | Failed():
                pass


class _NoText:
    """An `OutputText` for tokens that have none."""

    stopped = False

    def follow(self, event: SessionEvent) -> tuple[SessionEvent, bool]:
        return event, False

    def flush(self) -> str:
        return ""
