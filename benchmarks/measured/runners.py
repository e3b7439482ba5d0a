"""Runners of a run's generations: a device with a strategy, or both models in one process, measured alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

from benchmarks.simulation.strategy import Strategy
from chaperone_common.errors import ChaperoneError
from chaperone_common.session import Committed, Failed, Finished
from chaperone_common.stats import GenerationStats
from chaperone_common.types import Mode, PromptInput, Proposal
from edge_client import EdgeClient, EdgeConfig
from edge_client.model.drafter import ChoosingDrafter
from edge_client.model.uncertainty import disagreement
from edge_client.planner import Decision, Estimates, Pipeline, Planner, Situation
from edge_client.ports import DraftStep

_UNAUDITED = ("deviations", "deviation_bound", "catch")  # a lenient cloud does not report deviations


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one generation."""

    prompt: PromptInput
    temperature: float
    seed: int
    max_new_tokens: int
    warm: bool  # decoding starts when both models hold the prompt's KV


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Milliseconds that a device has learned of its steps and the cloud's; see `edge_client.planner.Costs`."""

    draft_ms: float
    row_ms: float
    rtt_ms: float
    read_base_ms: float
    read_token_ms: float
    stream_ms: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a generation; `commit_ms` has the time of each token's commit since the request.

    `untimed_tokens` were written before the clock of `stats.decode_ms` started. `unmeasured` names the fields of
    `stats` without a meaning. `readings` are the cloud's forwards: draft and branch tokens of a span, and milliseconds.
    """

    token_ids: tuple[int, ...]
    commit_ms: tuple[float, ...]
    stats: GenerationStats
    untimed_tokens: int = 0
    unmeasured: tuple[str, ...] = ()
    costs: StepCosts | None = None
    readings: tuple[tuple[int, float], ...] = ()
    error: ChaperoneError | None = None


class Runner(Protocol):
    """A writer of one text at a time."""

    def prepare(self, text: str) -> PromptInput:
        """Return a user's message as tokens."""

    async def generate(self, request: Request) -> Measured:
        """Write to the end; a failure is part of the result."""

    async def aclose(self) -> None:
        """Close models and connections."""


class WatchedPlanner:
    """Decides as another planner does, and shows the estimates that it decides by."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._pipeline: Pipeline | None = None  # of the last generation
        self._estimates: Estimates | None = None  # observed ones
        self._readings: list[tuple[int, float]] = []  # of that generation

    @property
    def mode(self) -> Mode:
        return self._planner.mode

    def decide(self, situation: Situation) -> Decision:
        self._watch(situation.pipeline)
        return self._planner.decide(situation)

    def _watch(self, pipeline: Pipeline) -> None:
        """Observe a client's estimates; the first decision of a generation comes before its first reading."""
        if pipeline is not self._pipeline:
            self._pipeline = pipeline
            self._readings = []
        if pipeline.estimates is not self._estimates:
            self._estimates = pipeline.estimates
            self._estimates.observe(lambda tokens, read_ms: self._readings.append((tokens, read_ms)))

    def alone(self) -> Self:
        return type(self)(self._planner.alone())

    def costs(self) -> StepCosts | None:
        """Return the learned costs, and the planner's priors for the others."""
        if self._pipeline is None:
            return None
        known = self._pipeline.estimates.costs()
        return StepCosts(**{field.name: getattr(known, field.name) for field in fields(StepCosts)})

    def readings(self) -> tuple[tuple[int, float], ...]:
        """Return the cloud's forwards of the last generation."""
        return tuple(self._readings)


class DisagreementDrafter(ChoosingDrafter):
    """Proposes the choices of the device's model, with its disagreement as the risk that U-HLM's gate decides by."""

    def propose(self, step: DraftStep) -> Proposal:
        proposal = super().propose(step)
        risk = disagreement(step.logits, proposal.token_id)
        return replace(proposal, signal=replace(proposal.signal, risk=risk))


def configured(strategy: Strategy, config: EdgeConfig) -> EdgeConfig:
    """Return the configuration of a strategy's client.

    The product's own gate is as users have it: with the pair's calibrated gate, and with the strategy's promise.
    """
    gate = strategy.gate_settings or config.gate.model_copy(update={"file": None})
    return config.model_copy(update={"mode": strategy.mode, "gate": gate})


class Device:
    """An `EdgeClient` for one strategy, so that no strategy learns from another's generations.

    It loads its own model when it first drafts; a strategy that drafts nothing loads none.
    """

    def __init__(self, strategy: Strategy, config: EdgeConfig) -> None:
        self._strategy = strategy
        self._planner = WatchedPlanner(strategy.planner)
        settings = configured(strategy, config)
        if strategy.gate_settings is not None:
            self._client = EdgeClient(settings, planner=lambda _: self._planner)
            return
        self._client = EdgeClient(
            settings,
            planner=lambda _: self._planner,
            gate=lambda _: strategy.gate(),
            drafter=DisagreementDrafter if strategy.risk_is_disagreement else None,
        )

    def prepare(self, text: str) -> PromptInput:
        return self._client.prepare(text)

    async def generate(self, request: Request) -> Measured:
        asked = self._client.request(
            request.prompt,
            temperature=request.temperature,
            seed=request.seed,
            max_new_tokens=request.max_new_tokens,
            warm_start=request.warm,
        )
        token_ids: list[int] = []
        commit_ms: list[float] = []
        began_s = time.perf_counter()
        async for event in self._client.stream(asked):
            match event:
                case Committed(token_id=token_id):
                    commit_ms.append((time.perf_counter() - began_s) * 1e3)
                    token_ids.append(token_id)
                case Finished(stats=stats):
                    return self._measured(token_ids, commit_ms, stats)
                case Failed(error, stats):
                    return self._measured(token_ids, commit_ms, stats, error)
                case _:
                    pass
        raise RuntimeError("a generation ends in Finished or Failed")

    async def aclose(self) -> None:
        await self._client.aclose()

    def _measured(
        self,
        token_ids: Sequence[int],
        commit_ms: Sequence[float],
        stats: GenerationStats,
        error: ChaperoneError | None = None,
    ) -> Measured:
        return Measured(
            tuple(token_ids),
            tuple(commit_ms),
            stats,
            unmeasured=_UNAUDITED if self._strategy.lenient_nats is not None else (),
            costs=self._planner.costs(),
            readings=self._planner.readings(),
            error=error,
        )
