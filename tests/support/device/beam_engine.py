"""An engine of beams with fakes for its ports: a draft model without a model, and texts of numbers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from chaperone_common.beams.cloud import CloudBeams, Round
from chaperone_common.beams.frames import BeamSettings, BeamVerdict, ForestFrame
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.frames import ClientFrame, Close, Closed, Failure, Open, Opened, ServerFrame
from chaperone_common.session import Failed, Finished
from chaperone_common.types import Mode, SamplingParams, SessionId
from cloud_supervisor.model.ports import ForwardRequest
from edge_client.beams.costs import ForestEstimates
from edge_client.beams.drafting import ForestDrafter
from edge_client.beams.shape import ForestPlanner, Learned, Limits
from edge_client.engine.beam_engine import BeamEngine
from edge_client.engine.settings import EngineSettings
from edge_client.events import Event
from edge_client.link.connection import Route
from edge_client.ports import Cloud
from edge_client.text.output import CommittedText
from tests.support.device.engine import PROMPT, NumberText
from tests.support.fakes.beam_model import FakeBeamModel
from tests.support.fakes.link import FakeLink
from tests.support.fakes.target import FakeTarget


class NumberBeam:
    """The text of a beam: the numbers of its tokens. One of them completes a stop string."""

    def __init__(self, stop_at: int | None = None) -> None:
        self._stop_at = stop_at
        self.stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        self.stopped = self.stopped or token_id == self._stop_at
        return ("" if self.stopped else f"{token_id} "), self.stopped

    def copy(self) -> NumberBeam:
        other = NumberBeam(self._stop_at)
        other.stopped = self.stopped
        return other

    def flush(self) -> str:
        return ""


@dataclass
class BeamClient:
    """Settings, planner and costs that the generations of a client share, and the engine of each."""

    settings: BeamSettings = field(default_factory=lambda: BeamSettings(2))
    sampling: SamplingParams = SamplingParams()
    width: int | None = None
    limits: Limits = field(default_factory=lambda: Limits(8, 8, 64))
    tokens: int = 12
    eos: tuple[int, ...] = ()
    model: Callable[[], FakeBeamModel] | None = None  # None: the cloud draws alone

    def __post_init__(self) -> None:
        self.planner = ForestPlanner(Learned(self.settings.num_beams))
        self.estimates = ForestEstimates()

    def engine(
        self,
        *links: FakeLink,
        cloud: Cloud | None = None,
        clock: Clock | None = None,
        prompt: tuple[int, ...] = PROMPT,
        session: str = "s",
        **settings: Any,
    ) -> BeamEngine:
        clock = clock or MonotonicClock()
        drafter = None
        if self.model is not None:
            drafter = ForestDrafter(
                self.model(), prompt, self.sampling, clock=clock, on_forward=self.estimates.drafted, row_tokens=16
            )
        stop_at = 9 if self.settings.stops else None
        deadlines = {"open_deadline_ms": 20_000.0, "verification_deadline_ms": 10_000.0}
        return BeamEngine(
            Open(SessionId(session), "", self.sampling, self.tokens, self.eos, prompt, beams=self.settings),
            mode=Mode.EXACT,
            width=self.width,
            limit=len(prompt) + self.tokens,
            committed=0,
            drafter=drafter,
            planner=self.planner,
            limits=self.limits,
            estimates=self.estimates,
            routes=[Route(cloud.link if cloud is not None else iter(links).__next__)],
            output=NumberText(stop_at),
            new_text=lambda: cast(CommittedText, NumberBeam(stop_at)),
            clock=clock,
            settings=EngineSettings(**{**deadlines, **settings}),
        )


async def events_of(engine: BeamEngine) -> list[Event]:
    """Run an engine to the end."""
    stream: AsyncGenerator[Event, None] = engine.stream()
    events = [event async for event in stream]
    assert [isinstance(event, Finished | Failed) for event in events] == [False] * (len(events) - 1) + [True]
    return events


class BeamCloud:
    """A cloud that answers each frame at once. It refuses forests of more texts than it has said it takes."""

    def __init__(self, target: FakeTarget, *, most_texts: int = 64, cached_tokens: int = 0) -> None:
        self._target = target
        self._most_texts = most_texts
        self._cached_tokens = cached_tokens
        self._opening: Open | None = None
        self._beams: CloudBeams | None = None
        self.texts: list[int] = []  # of each round

    def __call__(self, frame: ClientFrame) -> Iterator[ServerFrame]:
        match frame:
            case Open():
                yield from self._open(frame)
            case ForestFrame():
                yield from self._answers(frame)
            case Close():
                yield Closed()
            case _:
                raise AssertionError(frame)

    def _open(self, frame: Open) -> Iterator[ServerFrame]:
        assert frame.beams is not None
        target, self._opening = self._target, frame
        self._beams = CloudBeams(
            frame.beams,
            frame.sampling,
            frame.prompt_token_ids,
            frame.max_new_tokens,
            frame.eos_token_ids,
            target.vocabulary_size,
        )
        yield Opened(False, target.context_tokens, max_span_tokens=self._most_texts)
        yield Opened(True, target.context_tokens, cached_tokens=self._cached_tokens)

    def _answers(self, frame: ForestFrame) -> Iterator[ServerFrame]:
        assert self._beams is not None
        asked = self._beams.receive(frame)
        yield self._verdict(asked)
        for _ in range(frame.layers - 1):
            if not self._beams.progress.done:
                yield self._verdict(self._beams.alone())

    def _verdict(self, asked: Round) -> BeamVerdict | Failure:
        self.texts.append(sum(len(text.scoring.nodes) for text in asked.texts))
        if self.texts[-1] > self._most_texts:
            return Failure("INVALID_ARGUMENT", f"forest: {self.texts[-1]} texts to read")
        assert self._beams is not None
        assert self._opening is not None
        pool = self._target.kv_pool
        found = self._target.step(
            [
                ForwardRequest(pool.new_cache(), text.tree, 1, self._opening.sampling, scoring=text.scoring)
                for text in asked.texts
            ]
        )
        return self._beams.answer(asked, found)  # type: ignore[arg-type]
