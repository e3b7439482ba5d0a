"""An engine that loses its cloud and reconnects, in virtual time; no gRPC, no files."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.simulation import virtual_time
from chaperone_common.errors import Cancelled, CloudTimeout, CloudUnavailable, Overloaded
from chaperone_common.frames import Draft, Failure, Open, Opened, Verdict
from chaperone_common.session import Committed, Drafted, Retracted
from chaperone_common.types import Mode, Origin, Signal
from edge_client.events import Event
from edge_client.gate import Always, Gate, Never
from edge_client.planner import Estimates
from tests.support.device.engine import (
    OPENED,
    PROMPT,
    TARGET,
    EngineHarness,
    cloud_text,
    failed,
    finished,
    origins,
    written,
)
from tests.support.fakes.link import FakeLink, cloud_of


@dataclass
class EveryFifth(Gate):
    """A gate that fires on every fifth token."""

    seen: int = field(default=0)

    def fires(self, signal: Signal) -> bool:
        self.seen += 1
        return self.seen % 5 == 0


def going_on(*links: FakeLink, **settings: Any) -> tuple[EngineHarness, list[Event], float]:
    """Run with these links, one after the other; return the harness, its events and the seconds."""

    async def play() -> tuple[EngineHarness, list[Event], float]:
        clock = virtual_time.LoopClock()
        harness = EngineHarness(*links, **{"reconnect_timeout_ms": 30_000.0, "clock": clock, **settings})
        return harness, [event async for event in harness.engine.stream()], clock.now()

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
    assert stats.reconnects == sum(count != 0 for count in lasts[1:]), "streams without an answer do not count"
    assert stats.bytes_up == sum(link.bytes_up for link in links), "the lost links' traffic counts"
    assert stats.bytes_down == sum(link.bytes_down for link in links)
    assert [link.cancelled for link in links] == [True] * (len(links) - 1) + [False]


def test_the_new_stream_begins_after_the_tokens_read_by_the_cloud() -> None:
    first, second = FakeLink(cloud_of(TARGET), lasts=3), FakeLink(cloud_of(TARGET))
    harness, events, _ = going_on(first, second, disturbance=0.0)
    (opened, *_), (reopened, *_) = first.sent, second.sent
    assert isinstance(opened, Open)
    assert reopened == replace(opened, committed_token_ids=tuple(cloud_text(5))), "a span of four, and its bonus"
    drafts = [frame for frame in second.sent if isinstance(frame, Draft)]
    assert (drafts[0].revision, drafts[0].start) == (0, 8)
    assert not [event for event in events if isinstance(event, Retracted)], "no provisional token was given up"
    assert len(harness.model.fed) <= 41, "and nothing drafted twice"
    stats = finished(events).stats
    assert stats.round_trips + stats.hidden_round_trips == 1 + len(drafts), (
        "a lost request that is repeated counts once"
    )


def test_retries_during_an_outage_have_growing_pauses() -> None:
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
def test_a_cloud_that_stays_lost_is_reported_with_the_first_error_and_the_attempts(failure: Failure) -> None:
    first = FakeLink()
    first.deliver(OPENED, failure)
    refused = [FakeLink(lasts=0) for _ in range(100)]
    _, events, seconds = going_on(first, *refused)
    error = failed(events).error
    assert type(error) is (CloudUnavailable if failure.status == "UNAVAILABLE" else Overloaded)
    attempts = sum(link.opened_at is not None for link in refused)
    assert error.message.startswith(f"{failure.message}; {attempts} attempts to reconnect within 30000 ms")
    assert "cloud: it went away" in error.message, "the error of the last attempt"
    assert attempts >= 5
    assert 20 < seconds <= 30
    if failure.retry_after_ms is not None:
        assert refused[0].opened_at is not None
        assert refused[0].opened_at >= 9.0, "as the cloud asked"


def test_reconnecting_to_a_silent_cloud_ends_in_time() -> None:
    _, events, seconds = going_on(FakeLink(lasts=0), FakeLink(), open_deadline_ms=90_000.0)
    assert isinstance(failed(events).error, CloudUnavailable)
    assert "no answer within" in failed(events).error.message
    assert seconds == pytest.approx(30.0, abs=0.01)


def test_a_reachable_cloud_may_take_long_for_the_prompt() -> None:
    slow = FakeLink()

    async def play() -> list[Event]:
        harness = EngineHarness(
            FakeLink(lasts=0),
            slow,
            FakeLink(),  # never answers
            clock=virtual_time.LoopClock(),
            reconnect_timeout_ms=5_000.0,
            open_deadline_ms=90_000.0,
        )
        asyncio.get_running_loop().call_later(4.0, slow.deliver, Opened(False, 512))
        asyncio.get_running_loop().call_later(60.0, slow.deliver, OPENED)
        asyncio.get_running_loop().call_later(60.5, slow.deliver, Verdict(1, 3, 63))
        return [event async for event in harness.engine.stream()]

    events = virtual_time.run(play())
    assert written(events) == [63]
    assert isinstance(failed(events).error, CloudTimeout), "the verification deadline, in the end"


def test_a_cloud_that_opens_but_never_judges_times_out() -> None:
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
def test_an_error_without_a_useful_retry_is_reported_at_once(failure: Failure, first: bool) -> None:
    refused = FakeLink()
    refused.deliver(failure)
    never = FakeLink(cloud_of(TARGET))
    links = [refused, never] if first else [FakeLink(lasts=0), refused, never]
    _, events, _ = going_on(*links)
    assert failed(events).error.message == failure.message
    assert never.opened_at is None


def test_the_time_for_reconnecting_starts_again_with_every_loss() -> None:
    """Three outages last a few seconds each, together longer than the timeout."""
    links = lasting(3, *[0] * 6, 3, *[0] * 6, 3, *[0] * 6, None)
    _, events, seconds = going_on(*links, reconnect_timeout_ms=12_000.0)
    assert written(events) == cloud_text(40)
    assert finished(events).stats.reconnects == 3
    assert seconds > 4


def test_drafting_continues_while_reconnecting() -> None:
    links = [FakeLink(lasts=0), *[FakeLink(lasts=0) for _ in range(5)], FakeLink(cloud_of(TARGET))]
    _, events, _ = going_on(*links, run_ahead=16)
    found_at = next(index for index, event in enumerate(events) if isinstance(event, Committed))
    assert sum(isinstance(event, Drafted) for event in events[:found_at]) == 16, "as far as the planner lets it"
    assert written(events) == cloud_text(40)


def test_gated_skips_during_an_outage_and_audits_later() -> None:
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


def test_tokens_written_alone_teach_nothing_about_the_gate() -> None:
    links = [FakeLink(cloud_of(TARGET), lasts=3), *[FakeLink(lasts=0) for _ in range(100)]]
    settings = {"mode": Mode.GATED, "gate": Always(), "continue_without_cloud": True}
    harness, events, _ = going_on(*links, span=1, run_ahead=8, **settings)
    assert finished(events).stats.unverified_tokens > 20
    assert harness.engine.pipeline.estimates.costs().fires > Estimates().costs().fires, "every decision was to ask"


@pytest.mark.parametrize("gate", [Always(), Never()])
def test_a_text_continues_alone_after_failed_reconnecting(gate: Gate) -> None:
    links = [FakeLink(cloud_of(TARGET), lasts=3), *[FakeLink(lasts=0) for _ in range(100)]]
    _, events, seconds = going_on(*links, gate=gate, continue_without_cloud=True, span=1, run_ahead=8)
    assert len(written(events)) == 40
    assert Origin.UNVERIFIED in origins(events) or gate == Never()
    assert finished(events).stats.reconnects == 0
    assert seconds <= 30


def test_cancelling_ends_reconnecting_at_once() -> None:
    async def play() -> tuple[list[Event], float]:
        first = FakeLink()
        first.deliver(OPENED, Failure("RESOURCE_EXHAUSTED", "full", 20_000))
        clock = virtual_time.LoopClock()
        harness = EngineHarness(first, FakeLink(), clock=clock, reconnect_timeout_ms=30_000.0)
        asyncio.get_running_loop().call_later(5.0, harness.engine.cancel)
        return [event async for event in harness.engine.stream()], clock.now()

    events, seconds = virtual_time.run(play())
    assert isinstance(failed(events).error, Cancelled)
    assert seconds == pytest.approx(5.0)


def test_a_loss_while_closing_loses_only_the_audit() -> None:
    link, never = FakeLink(cloud_of(TARGET)), FakeLink(cloud_of(TARGET))

    async def play() -> list[Event]:
        harness = EngineHarness(
            link,
            never,
            gate=Never(),
            clock=virtual_time.LoopClock(),
            closing_audit=True,
            reconnect_timeout_ms=30_000.0,
        )
        harness.model.during_step = lambda step: link.hang_up() if step == 40 else None
        return [event async for event in harness.engine.stream()]

    events = virtual_time.run(play())
    assert len(written(events)) == 40
    assert finished(events).stats.deviation_bound == 1.0
    assert never.opened_at is None


@pytest.mark.parametrize("waits", [True, False])
def test_a_text_that_ends_while_reconnecting_is_audited_if_configured(waits: bool) -> None:
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
