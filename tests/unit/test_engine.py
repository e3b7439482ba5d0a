"""The engine against a scripted cloud and a draft model without a model; no gRPC, no files, no real time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.simulation import virtual_time
from common.clock import Clock
from common.errors import Cancelled, CloudTimeout, CloudUnavailable, InternalError, Overloaded, ProtocolViolation
from common.gate import Always, Gate, Never
from common.messages import Close, Closed, Draft, Failure, Open, Opened, Verdict
from common.planner import Estimates, FixedPlanner
from common.session import Committed, Drafted, Event, Failed, Finished, Retracted
from common.types import FinishReason, Mode, Origin, SamplingParams, SessionId, Signal
from edge_client.drafter import ChoosingDrafter
from edge_client.engine import Engine, EngineSettings
from edge_client.ports import TEXT_ROW, DraftStep
from tests.contract.fake_link import FakeLink, cloud_of
from tests.contract.fake_target import FakeTarget
from tests.contract.fakes import FakeDraft

PROMPT = (5, 6, 7)
TARGET = FakeTarget()
OPENED = Opened(prefilled=True, context_tokens=512)


class ManualClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds


class Numbers:
    """The text of a token is its number; one of them may complete a stop string."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def push(self, token_id: int) -> tuple[str, bool]:
        return f"{token_id} ", token_id == self.stop_at

    def flush(self) -> str:
        return "."


@dataclass
class EveryFifth:
    """A gate that fires on every fifth token, whatever it is."""

    seen: int = field(default=0)

    def fires(self, signal: Signal) -> bool:
        self.seen += 1
        return self.seen % 5 == 0


class Watched(FakeDraft):
    """A draft model that takes time, remembers what it was fed, and lets a test act while it steps."""

    def __init__(self, clock: Clock, *, disturbance: float = 0.0, step_s: float = 0.010) -> None:
        super().__init__(FakeTarget(disturbance=disturbance))
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
        self._note([token_ids[TEXT_ROW]])
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


class Stage:
    """An engine with everything around it."""

    def __init__(
        self,
        *links: FakeLink | None,
        mode: Mode = Mode.EXACT,
        gate: Gate | None = None,
        span: int = 4,
        in_flight: int = 2,
        run_ahead: int = 16,
        takeover_tokens: int = 0,
        new_tokens: int = 40,
        disturbance: float = 0.5,
        step_s: float = 0.010,
        eos: tuple[int, ...] = (),
        stop_at: int | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self.clock = ManualClock()
        self.model = Watched(clock or self.clock, disturbance=disturbance, step_s=step_s)
        opening = Open(SessionId("s"), "", SamplingParams(), new_tokens, eos, PROMPT)
        deadlines = {"open_deadline_ms": 2_000.0, "verification_deadline_ms": 1_000.0}
        self.engine = Engine(
            opening,
            limit=len(PROMPT) + new_tokens,
            drafter=None if mode is Mode.CLOUD else ChoosingDrafter(self.model, SamplingParams()),
            connect=None if links == (None,) else iter([link for link in links if link is not None]).__next__,
            gate=gate or (Never() if mode is Mode.EDGE else Always()),
            planner=FixedPlanner(mode, span, in_flight, run_ahead, takeover_tokens),
            estimates=Estimates(),
            output=Numbers(stop_at),
            clock=clock or self.clock,
            settings=EngineSettings(**{**deadlines, **settings}),
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


@pytest.mark.parametrize("takeover", [0, 3])
@pytest.mark.parametrize(("span", "in_flight", "run_ahead"), [(1, 1, 1), (4, 2, 16), (16, 1, 16), (3, 3, 5)])
def test_exact_writes_what_the_cloud_would(span: int, in_flight: int, run_ahead: int, takeover: int) -> None:
    stage = Stage(
        FakeLink(cloud_of(TARGET)), span=span, in_flight=in_flight, run_ahead=run_ahead, takeover_tokens=takeover
    )
    assert written(stage.run()) == cloud_text(40)


def test_cloud_mode_follows_and_drafts_nothing() -> None:
    events = Stage(FakeLink(cloud_of(TARGET)), mode=Mode.CLOUD).run()
    assert written(events) == cloud_text(40)
    assert not [event for event in events if isinstance(event, Drafted | Retracted)]
    assert origins(events) <= {Origin.BONUS, Origin.OVERRIDE, Origin.TAKEOVER}


def test_edge_mode_writes_alone() -> None:
    events = Stage(None, mode=Mode.EDGE, disturbance=0.0).run()
    assert written(events) == cloud_text(40)
    assert origins(events) == {Origin.DRAFT}
    assert finished(events).stats.bytes_up == 0
    assert finished(events).text == "."


def test_a_verdict_is_applied_before_the_next_token_is_drafted() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    stage = Stage(link, new_tokens=8, run_ahead=8)
    own = 63  # nothing that either model would write here

    def override(step: int) -> None:
        if step == 6:
            link.deliver(Verdict(1, 3, own))
        elif step == 7:
            link.hang_up()

    stage.model.during_step = override
    events = stage.run()
    sixth = next(index for index, event in enumerate(events) if isinstance(event, Drafted) and event.position == 8)
    assert [type(event) for event in events[sixth + 1 : sixth + 3]] == [Retracted, Committed]
    assert stage.model.rewinds == [3]
    assert stage.model.fed[6] == (3, (own,)), "the seventh step feeds the cloud's token"


def test_the_model_always_holds_a_prefix_of_the_text() -> None:
    stage = Stage(FakeLink(cloud_of(TARGET)))
    session = stage.engine.session
    fed_in_place = []

    def check(step: int) -> None:
        position, tokens = stage.model.fed[-1]
        fed_in_place.append(tuple(session.text[position:]) == tokens and position + len(tokens) == len(session.text))

    stage.model.during_step = check
    stage.run()
    assert stage.model.rewinds, "the models differ, so there must be overrides"
    assert all(fed_in_place)


def test_the_link_is_not_awaited_while_there_is_something_to_draft() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    stage = Stage(link, verification_deadline_ms=1.0)
    waits = []
    stage.model.during_step = lambda step: waits.append(link.waits)
    assert isinstance(failed(stage.run()).error, CloudTimeout)
    assert waits == [0] * 16, "sixteen tokens ahead of the cloud, and only then a wait"
    assert link.waits == 1
    assert [type(frame) for frame in link.sent] == [Open, Draft, Draft], "two spans on their way"


@pytest.mark.parametrize(
    ("greeting", "deadline"),
    [([], "cloud.open_deadline_ms"), ([Opened(False, 512)], "20 ms"), ([OPENED], "10 ms")],
)
def test_a_cloud_that_does_not_answer_is_one_failure_at_the_deadline(greeting: list[Opened], deadline: str) -> None:
    link = FakeLink()
    link.deliver(*greeting)
    events = Stage(link, open_deadline_ms=20.0, verification_deadline_ms=10.0).run()
    error = failed(events).error
    assert isinstance(error, CloudTimeout)
    assert deadline in error.message
    assert "verification_deadline_ms" in error.message
    assert "position 3" in error.message
    assert link.cancelled


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.CLOUD])
@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure("UNAVAILABLE", "gone"), CloudUnavailable),
        (Failure("DEADLINE_EXCEEDED", "late"), CloudTimeout),
        (Failure("RESOURCE_EXHAUSTED", "full", 250), Overloaded),
        (Failure("INTERNAL", "a bug"), InternalError),
        (Failure("NONSENSE", "a bug"), InternalError),
    ],
)
def test_a_failure_ends_the_generation_once(mode: Mode, failure: Failure, kind: type[Exception]) -> None:
    link = FakeLink()
    link.deliver(OPENED, failure)
    error = failed(Stage(link, mode=mode).run()).error
    assert type(error) is kind
    assert (error.message, error.retry_after_ms) == (failure.message, failure.retry_after_ms)
    assert link.cancelled


def test_a_failed_generation_keeps_back_what_its_resume_will_tell() -> None:
    link = FakeLink()
    link.deliver(OPENED, Failure("UNAVAILABLE", "gone"))
    assert failed(Stage(link).run()).text == "", "not the flushed rest"


def test_a_cloud_that_breaks_the_rules_is_one_failure() -> None:
    link = FakeLink()
    link.deliver(OPENED, Verdict(0, 3, 9))
    error = failed(Stage(link).run()).error
    assert isinstance(error, ProtocolViolation)
    assert "answers no span" in error.message
    assert link.cancelled


@pytest.mark.parametrize("gate", [Always(), Never()])
def test_without_the_cloud_it_goes_on_unverified_if_it_may(gate: Gate) -> None:
    link = FakeLink()
    link.deliver(OPENED)
    stage = Stage(link, gate=gate, disturbance=0.0, continue_without_cloud=True)
    stage.model.during_step = lambda step: link.hang_up() if step == 6 else None
    events = stage.run()
    stats = finished(events).stats
    assert written(events) == cloud_text(40)
    expected = {Origin.UNVERIFIED} if gate == Always() else {Origin.DRAFT, Origin.UNVERIFIED}
    assert origins(events) == expected
    assert stats.unverified_tokens + stats.skipped_tokens == 40
    assert stats.deviation_bound == 1.0, "nobody has judged anything"
    assert stats.bytes_up == link.bytes_up > 0, "the lost link's traffic counts"
    assert link.cancelled
    assert not [frame for frame in link.sent if isinstance(frame, Close)]


def test_a_cloud_that_falls_silent_in_a_takeover_can_be_done_without() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    stage = Stage(link, takeover_tokens=8, continue_without_cloud=True, verification_deadline_ms=5.0)
    stage.model.during_step = lambda step: link.deliver(Verdict(1, 3, 63)) if step == 5 else None
    events = stage.run()
    assert finished(events).finish_reason is FinishReason.LENGTH
    assert len(written(events)) == 40
    assert origins(events) == {Origin.OVERRIDE, Origin.UNVERIFIED}


def test_in_cloud_mode_there_is_nothing_to_go_on_with() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    link.hang_up()
    error = failed(Stage(link, mode=Mode.CLOUD, continue_without_cloud=True).run()).error
    assert isinstance(error, CloudUnavailable)


@pytest.mark.parametrize("lost", [True, False])
def test_losing_the_closing_audit_costs_the_audit_only(lost: bool) -> None:
    link = FakeLink()
    link.deliver(OPENED)
    stage = Stage(link, gate=Never(), closing_audit=True, verification_deadline_ms=5.0)
    stage.model.during_step = lambda step: link.hang_up() if lost and step == 40 else None
    events = stage.run()
    stats = finished(events).stats
    assert len(written(events)) == stats.skipped_tokens + stats.unverified_tokens == 40
    assert stats.deviation_bound == 1.0


def test_the_closing_audit_is_counted() -> None:
    link = FakeLink(cloud_of(TARGET))
    events = Stage(link, gate=Never(), closing_audit=True).run()
    text, deviations = list(PROMPT), 0
    for token_id in written(events):
        deviations += token_id != int(TARGET.logits(text).argmax())
        text.append(token_id)
    stats = finished(events).stats
    assert deviations > 0, "the models differ"
    assert stats.deviations == deviations
    assert stats.audited_tokens == stats.skipped_tokens == 40
    assert stats.deviation_bound == deviations / 40
    assert link.sent[-1] == Close(3, tuple(written(events)))


def test_end_of_text_is_never_skipped() -> None:
    eos = cloud_text(40)[12]
    expected = cloud_text(40)[: cloud_text(40).index(eos) + 1]
    events = Stage(FakeLink(cloud_of(TARGET)), gate=Never(), disturbance=0.0, eos=(eos,)).run()
    assert written(events) == expected
    assert finished(events).finish_reason is FinishReason.STOP
    assert finished(events).stats.fired == 1
    last = [event for event in events if isinstance(event, Committed)][-1]
    assert last.origin is Origin.VERIFIED


def test_a_stop_string_ends_it_there() -> None:
    stop_at = cloud_text(40)[10]
    expected = cloud_text(40)[: cloud_text(40).index(stop_at) + 1]
    link = FakeLink(cloud_of(TARGET))
    events = Stage(link, stop_at=stop_at).run()
    assert written(events) == expected
    assert finished(events).finish_reason is FinishReason.STOP
    assert finished(events).stats.completion_tokens == len(expected)
    assert isinstance(link.sent[-1], Close)


def test_a_request_is_a_round_trip_if_the_device_waited_for_it() -> None:
    link = FakeLink()
    link.deliver(OPENED)
    stage = Stage(link, span=4, in_flight=1, run_ahead=4, disturbance=0.0)
    answers = cloud_of(TARGET)
    list(answers(stage.engine.opening))

    class Slow(FakeLink):
        async def wait(self, timeout_ms: float) -> bool:
            self.deliver(*[frame for sent in self.sent[-1:] for frame in answers(sent)])
            return True

    stage.engine.link = slow = Slow()
    slow.deliver(OPENED)
    stats = finished(stage.run()).stats
    assert stats.round_trips == len([frame for frame in slow.sent if isinstance(frame, Draft)]) == 8
    assert stats.hidden_round_trips == 0


def test_a_request_is_hidden_if_drafting_covered_it() -> None:
    stats = finished(Stage(FakeLink(cloud_of(TARGET)), disturbance=0.0).run()).stats
    assert stats.round_trips == 0
    assert stats.hidden_round_trips == 8, "spans of four and a bonus each, forty tokens"


def test_a_span_is_no_longer_than_the_cloud_allows() -> None:
    link = FakeLink(cloud_of(TARGET))
    events = Stage(link, span=8, max_span_tokens=3).run()
    assert written(events) == cloud_text(40)
    assert max(len(frame.token_ids) for frame in link.sent if isinstance(frame, Draft)) == 3


def test_times_count_from_a_clock_that_begins_at_zero() -> None:
    stage = Stage(FakeLink(cloud_of(TARGET)), disturbance=0.0, span=4, step_s=0.0)

    def tick(step: int) -> None:
        stage.clock.seconds += 0.010 if step > 1 else 0.0

    stage.model.during_step = tick
    stats = finished(stage.run()).stats
    assert stats.ttft_ms == 0.0
    assert stats.ttft_committed_ms == pytest.approx(30.0)
    assert stats.total_ms == pytest.approx(10.0 * (len(stage.model.fed) - 1))
    assert stats.edge_compute_ms == pytest.approx(stats.total_ms)


def test_a_warm_start_drafts_nothing_until_both_ends_hold_the_prompt() -> None:
    link = FakeLink()
    stage = Stage(link, warm_start=True, disturbance=0.0)

    def open_late(step: int) -> None:
        if step == 1:
            link.deliver(Opened(False, 512), OPENED)
        elif step == 2:
            link.hang_up()

    stage.model.during_step = open_late
    stats = failed(stage.run()).stats
    assert stage.model.fed[0] == (0, PROMPT[:-1])
    assert stage.model.fed[1] == (2, PROMPT[-1:])
    assert stats.decode_ms == pytest.approx(10.0)
    assert stats.total_ms == pytest.approx(20.0)


@pytest.mark.parametrize("after", [1, 5])
def test_leaving_early_cancels(after: int) -> None:
    link = FakeLink(cloud_of(TARGET))
    stage = Stage(link)

    async def leave() -> None:
        events = stage.engine.stream()
        for _ in range(after):
            await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert link.cancelled
    assert stage.model.was_closed
    assert not [frame for frame in link.sent if isinstance(frame, Close | Closed)]


def test_a_span_sent_before_the_prompt_is_read_may_wait_for_that() -> None:
    link = FakeLink(cloud_of(FakeTarget()))
    Stage(link).run()
    drafts = [frame for frame in link.sent if isinstance(frame, Draft)]
    assert [draft.deadline_ms for draft in drafts] == [1_000, *[0] * (len(drafts) - 1)], "told once"

    unread = FakeLink()
    Stage(unread, open_deadline_ms=50.0).run()
    (first, *_) = [frame for frame in unread.sent if isinstance(frame, Draft)]
    assert first.deadline_ms == 50


# Losing the cloud and finding it again, in virtual time


def going_on(*links: FakeLink, **settings: Any) -> tuple[Stage, list[Event], float]:
    """Run with these links, one after the other; the last value is the seconds that it took."""

    async def play() -> tuple[Stage, list[Event], float]:
        clock = virtual_time.LoopClock()
        stage = Stage(*links, **{"reconnect_timeout_ms": 30_000.0, "clock": clock, **settings})
        return stage, [event async for event in stage.engine.stream()], clock.now()

    return virtual_time.run(play())


def lasting(*frames: int | None) -> list[FakeLink]:
    return [FakeLink(cloud_of(TARGET), lasts=count) for count in frames]


@pytest.mark.parametrize("lasts", [(0, None), (1, None), (2, None), (3, None), (4, 0, 3, 1, 5, None)])
@pytest.mark.parametrize(("mode", "takeover"), [(Mode.EXACT, 0), (Mode.EXACT, 5), (Mode.CLOUD, 0)])
def test_a_reset_changes_nothing_of_the_text(lasts: tuple[int | None, ...], mode: Mode, takeover: int) -> None:
    links = lasting(*lasts)
    _, events, _ = going_on(*links, mode=mode, takeover_tokens=takeover)
    assert written(events) == cloud_text(40)
    stats = finished(events).stats
    assert stats.reconnects == sum(count != 0 for count in lasts[1:]), "streams on which nobody answered do not count"
    assert stats.bytes_up == sum(link.bytes_up for link in links), "the lost links' traffic counts"
    assert stats.bytes_down == sum(link.bytes_down for link in links)
    assert [link.cancelled for link in links] == [True] * (len(links) - 1) + [False]


def test_the_new_stream_begins_where_the_cloud_is_known_to_have_read() -> None:
    first, second = FakeLink(cloud_of(TARGET), lasts=3), FakeLink(cloud_of(TARGET))
    stage, events, _ = going_on(first, second, disturbance=0.0)
    (opened, *_), (reopened, *_) = first.sent, second.sent
    assert isinstance(opened, Open)
    assert reopened == replace(opened, committed_token_ids=tuple(cloud_text(5))), "a span of four, and its bonus"
    drafts = [frame for frame in second.sent if isinstance(frame, Draft)]
    assert (drafts[0].revision, drafts[0].start) == (0, 8)
    assert not [event for event in events if isinstance(event, Retracted)], "nothing provisional was given up"
    assert len(stage.model.fed) <= 41, "and nothing drafted twice"
    stats = finished(events).stats
    assert stats.round_trips + stats.hidden_round_trips == 1 + len(drafts), "lost requests count once, as asked again"


def test_an_outage_is_waited_out_with_growing_pauses() -> None:
    links = lasting(3, *[0] * 8, None)
    _, events, seconds = going_on(*links)
    assert written(events) == cloud_text(40)
    opened_at = [link.opened_at for link in links if link.opened_at is not None]
    pauses = [after - before for before, after in pairwise(opened_at)]
    assert len(pauses) == 9
    assert all(pause < min(5.0, 0.1 * 2.0**number) for number, pause in enumerate(pauses))
    assert sum(pauses[5:]) > sum(pauses[:5])
    assert seconds < 30


@pytest.mark.parametrize("failure", [Failure("UNAVAILABLE", "gone"), Failure("RESOURCE_EXHAUSTED", "full", 9_000)])
def test_a_cloud_that_stays_lost_is_told_as_it_was_lost_with_the_attempts(failure: Failure) -> None:
    first = FakeLink()
    first.deliver(OPENED, failure)
    refused = [FakeLink(lasts=0) for _ in range(100)]
    _, events, seconds = going_on(first, *refused)
    error = failed(events).error
    assert type(error) is (CloudUnavailable if failure.status == "UNAVAILABLE" else Overloaded)
    attempts = sum(link.opened_at is not None for link in refused)
    assert error.message.startswith(f"{failure.message}; {attempts} attempts to reconnect within 30000 ms")
    assert "cloud: it went away" in error.message, "what the last one met"
    assert attempts >= 5
    assert 20 < seconds <= 30
    if failure.retry_after_ms is not None:
        assert refused[0].opened_at is not None
        assert refused[0].opened_at >= 9.0, "as the cloud asked"


def test_a_cloud_that_says_nothing_on_the_new_stream_is_given_up_in_time() -> None:
    _, events, seconds = going_on(FakeLink(lasts=0), FakeLink(), open_deadline_ms=90_000.0)
    assert isinstance(failed(events).error, CloudUnavailable)
    assert "no answer within" in failed(events).error.message
    assert seconds == pytest.approx(30.0, abs=0.01)


def test_a_cloud_that_is_there_may_take_its_time_for_the_prompt() -> None:
    slow = FakeLink()

    async def play() -> list[Event]:
        stage = Stage(
            FakeLink(lasts=0),
            slow,
            FakeLink(),  # says nothing
            clock=virtual_time.LoopClock(),
            reconnect_timeout_ms=5_000.0,
            open_deadline_ms=90_000.0,
        )
        asyncio.get_running_loop().call_later(4.0, slow.deliver, Opened(False, 512))
        asyncio.get_running_loop().call_later(60.0, slow.deliver, OPENED)
        asyncio.get_running_loop().call_later(60.5, slow.deliver, Verdict(1, 3, 63))
        return [event async for event in stage.engine.stream()]

    events = virtual_time.run(play())
    assert written(events) == [63]
    assert isinstance(failed(events).error, CloudTimeout), "the verification deadline, in the end"


def test_a_cloud_that_opens_and_never_judges_is_given_up() -> None:
    class Mute(FakeLink):
        async def open(self, frame: Open) -> None:
            await super().open(frame)
            self.deliver(OPENED)

    links = [Mute() for _ in range(100)]
    _, events, seconds = going_on(*links)
    assert isinstance(failed(events).error, CloudTimeout)
    assert seconds < 32


@pytest.mark.parametrize(
    "failure",
    [
        Failure("INVALID_ARGUMENT", "bad"),
        Failure("FAILED_PRECONDITION", "other tokenizer"),
        Failure("ABORTED", "superseded"),
        Failure("OUT_OF_RANGE", "a bug"),
        Failure("CANCELLED", "stop"),
        Failure("INTERNAL", "a bug"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_another_try_would_not_mend_is_told_at_once(failure: Failure, first: bool) -> None:
    refused = FakeLink()
    refused.deliver(failure)
    never = FakeLink(cloud_of(TARGET))
    links = [refused, never] if first else [FakeLink(lasts=0), refused, never]
    _, events, _ = going_on(*links)
    assert failed(events).error.message == failure.message
    assert never.opened_at is None


def test_the_time_for_reconnecting_starts_anew_with_every_loss() -> None:
    """Three outages of some seconds each: more in all than one may take."""
    links = lasting(3, *[0] * 6, 3, *[0] * 6, 3, *[0] * 6, None)
    _, events, seconds = going_on(*links, reconnect_timeout_ms=12_000.0)
    assert written(events) == cloud_text(40)
    assert finished(events).stats.reconnects == 3
    assert seconds > 4


def test_drafting_goes_on_while_the_cloud_is_sought() -> None:
    links = [FakeLink(lasts=0), *[FakeLink(lasts=0) for _ in range(5)], FakeLink(cloud_of(TARGET))]
    _, events, _ = going_on(*links, run_ahead=16)
    found_at = next(index for index, event in enumerate(events) if isinstance(event, Committed))
    assert sum(isinstance(event, Drafted) for event in events[:found_at]) == 16, "as far as the planner lets it"
    assert written(events) == cloud_text(40)


def test_gated_skips_on_meanwhile_and_has_it_audited_later() -> None:
    links = lasting(4, 0, 0, None)
    _, events, _ = going_on(*links, mode=Mode.GATED, gate=EveryFifth(), span=1, closing_audit=True)
    text, deviations = list(PROMPT), 0
    for token_id in written(events):
        deviations += token_id != int(TARGET.logits(text).argmax())
        text.append(token_id)
    stats = finished(events).stats
    assert deviations > 0
    assert stats.deviations == deviations
    assert stats.audited_tokens == stats.skipped_tokens > 0
    assert stats.unverified_tokens == 0
    assert stats.reconnects == 1


@pytest.mark.parametrize("gate", [Always(), Never()])
def test_it_goes_on_alone_once_reconnecting_has_failed(gate: Gate) -> None:
    links = [FakeLink(cloud_of(TARGET), lasts=3), *[FakeLink(lasts=0) for _ in range(100)]]
    _, events, seconds = going_on(*links, gate=gate, continue_without_cloud=True, span=1, run_ahead=8)
    assert len(written(events)) == 40
    assert Origin.UNVERIFIED in origins(events) or gate == Never()
    assert finished(events).stats.reconnects == 0
    assert seconds <= 30


def test_cancelling_ends_the_search_at_once() -> None:
    async def play() -> tuple[list[Event], float]:
        first = FakeLink()
        first.deliver(OPENED, Failure("RESOURCE_EXHAUSTED", "full", 20_000))
        clock = virtual_time.LoopClock()
        stage = Stage(first, FakeLink(), clock=clock, reconnect_timeout_ms=30_000.0)
        asyncio.get_running_loop().call_later(5.0, stage.engine.cancel)
        return [event async for event in stage.engine.stream()], clock.now()

    events, seconds = virtual_time.run(play())
    assert isinstance(failed(events).error, Cancelled)
    assert seconds == pytest.approx(5.0)


def test_a_loss_while_closing_costs_the_audit_only() -> None:
    link, never = FakeLink(cloud_of(TARGET)), FakeLink(cloud_of(TARGET))

    async def play() -> list[Event]:
        stage = Stage(
            link,
            never,
            gate=Never(),
            clock=virtual_time.LoopClock(),
            closing_audit=True,
            reconnect_timeout_ms=30_000.0,
        )
        stage.model.during_step = lambda step: link.hang_up() if step == 40 else None
        return [event async for event in stage.engine.stream()]

    events = virtual_time.run(play())
    assert len(written(events)) == 40
    assert finished(events).stats.deviation_bound == 1.0
    assert never.opened_at is None


@pytest.mark.parametrize("waits", [True, False])
def test_a_text_that_ends_while_the_cloud_is_sought_is_audited_if_that_is_waited_for(waits: bool) -> None:
    busy, back = FakeLink(), FakeLink(cloud_of(TARGET))
    busy.deliver(Failure("RESOURCE_EXHAUSTED", "full", 5_000))
    _, events, seconds = going_on(busy, back, mode=Mode.GATED, gate=Never(), closing_audit=waits)
    stats = finished(events).stats
    assert stats.skipped_tokens == 40
    assert stats.audited_tokens == (40 if waits else 0)
    assert (back.opened_at is not None) == waits
    assert (seconds >= 5.0) == waits


def test_prefills_of_all_streams_add_up() -> None:
    first, second = FakeLink(), FakeLink(cloud_of(TARGET))
    first.deliver(Opened(True, 512, queue_us=5_000, compute_us=40_000), Failure("UNAVAILABLE", "gone"))
    second.deliver(Opened(True, 512, compute_us=2_000))
    _, events, _ = going_on(first, second)
    stats = finished(events).stats
    assert (stats.prefill_ms, stats.cloud_compute_ms, stats.cloud_queue_ms) == (42.0, 42.0, 5.0)
