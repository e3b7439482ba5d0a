"""An engine with fakes for its ports: a draft model without a model, and texts of numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chaperone_common.clock import Clock
from chaperone_common.frames import Open, Opened
from chaperone_common.session import Committed, Failed, Finished, SessionEvent
from chaperone_common.types import Mode, Origin, SamplingParams, SessionId
from edge_client.assembly import assemble
from edge_client.engine.conditioning import Wish
from edge_client.engine.settings import EngineSettings
from edge_client.events import Event
from edge_client.gate import Always, Gate, Never
from edge_client.link.connection import Route
from edge_client.model.drafter import ChoosingDrafter
from edge_client.planner import Estimates, FixedPlanner, Planner
from edge_client.ports import TEXT_ROW, DraftStep, RiskModel
from tests.support.fakes.clock import ManualClock
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.link import FakeLink
from tests.support.fakes.target import FakeTarget

PROMPT = (5, 6, 7)
TARGET = FakeTarget()
OPENED = Opened(prefilled=True, context_tokens=512)


class NumberText:
    """The text of a token is its number; one of them may complete a stop string."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    @property
    def stopped(self) -> bool:
        return False

    def follow(self, event: SessionEvent) -> tuple[SessionEvent, bool]:
        if not isinstance(event, Committed):
            return event, False
        return replace(event, text=f"{event.token_id} "), event.token_id == self.stop_at

    def flush(self) -> str:
        return "."


class RecordingDraft(FakeDraft):
    """A draft model that takes time, records its input, and lets a test act while it steps."""

    def __init__(
        self,
        clock: Clock,
        *,
        disturbance: float = 0.0,
        step_s: float = 0.010,
        loop_step_s: float = 0.0,
        branches: int = 0,
        seed: int = 0,
    ) -> None:
        """Take `step_s` of a manual clock for a step, and `loop_step_s` of the event loop's time."""
        super().__init__(FakeTarget(seed=seed, disturbance=disturbance), step_s=loop_step_s, branches=branches)
        self._clock = clock
        self._takes_s = step_s
        self.fed: list[tuple[int, tuple[int, ...]]] = []  # (position, tokens)
        self.rewinds: list[int] = []
        self.during_step: Callable[[int], None] = lambda step: None
        self.was_closed = False

    async def step(self, token_ids: Sequence[int]) -> DraftStep:
        self._note(token_ids)
        return await super().step(token_ids)

    async def step_rows(self, token_ids: Mapping[int, int]) -> dict[int, DraftStep]:
        self._note([token_id for row, token_id in token_ids.items() if row == TEXT_ROW])
        return await super().step_rows(token_ids)

    def _note(self, token_ids: Sequence[int]) -> None:
        self.fed.append((self.length, tuple(token_ids)))
        if isinstance(self._clock, ManualClock):
            self._clock.seconds += self._takes_s
        self.during_step(len(self.fed))

    def rewind(self, length: int) -> None:
        self.rewinds.append(length)
        super().rewind(length)

    def close(self) -> None:
        self.was_closed = True
        super().close()


class EngineHarness:
    """An engine with everything around it."""

    def __init__(
        self,
        *links: FakeLink | None,
        routes: Sequence[Route] | None = None,
        mode: Mode = Mode.EXACT,
        gate: Gate | None = None,
        risk_model: RiskModel | None = None,
        planner: Planner | None = None,
        span: int = 4,
        in_flight: int = 2,
        run_ahead: int = 16,
        takeover_tokens: int = 0,
        new_tokens: int = 40,
        disturbance: float = 0.5,
        step_s: float = 0.010,
        loop_step_s: float = 0.0,
        branches: int = 0,
        eos: tuple[int, ...] = (),
        stop_at: int | None = None,
        clock: Clock | None = None,
        seed: int = 0,
        known_to_cloud: tuple[SessionId, int] | None = None,
        wish: Wish | None = None,
        **settings: Any,
    ) -> None:
        self.clock = ManualClock()
        self.model = RecordingDraft(
            clock or self.clock,
            disturbance=disturbance,
            step_s=step_s,
            loop_step_s=loop_step_s,
            branches=branches,
            seed=seed,
        )
        opening = Open(SessionId("s"), "", SamplingParams(), new_tokens, eos, PROMPT)
        deadlines = {"open_deadline_ms": 2_000.0, "verification_deadline_ms": 1_000.0}
        self.engine = assemble(
            opening,
            EngineSettings(**{**deadlines, **settings}),
            limit=len(PROMPT) + new_tokens,
            drafter=ChoosingDrafter(self.model, SamplingParams()),
            routes=() if links == (None,) else routes or [Route(iter([link for link in links if link]).__next__)],
            gate=gate or (Never() if mode is Mode.EDGE else Always()),
            planner=planner or FixedPlanner(mode, span, in_flight, run_ahead, takeover_tokens),
            estimates=Estimates(),
            risk_model=risk_model,
            output=NumberText(stop_at),
            clock=clock or self.clock,
            known_to_cloud=known_to_cloud,
            wish=wish,
        )

    def run(self) -> list[Event]:
        async def collect() -> list[Event]:
            return [event async for event in self.engine.stream()]

        events = asyncio.run(collect())
        assert [isinstance(event, Finished | Failed) for event in events] == [False] * (len(events) - 1) + [True]
        assert self.model.was_closed or self.engine.speculation.drafter is None
        return events


def written(events: Sequence[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Committed)]


def origins(events: Sequence[Event]) -> set[Origin]:
    return {event.origin for event in events if isinstance(event, Committed)}


def cloud_text(count: int) -> list[int]:
    text = list(PROMPT)
    for _ in range(count):
        text.append(int(TARGET.logits(text).argmax()))
    return text[len(PROMPT) :]


def failed(events: Sequence[Event]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


def finished(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]
