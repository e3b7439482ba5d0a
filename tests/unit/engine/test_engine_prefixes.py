"""An Open that refers to an earlier text: if the cloud does not hold that, the device sends the whole prompt, once."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.simulation import virtual_time
from chaperone_common.errors import InternalError, ProtocolViolation
from chaperone_common.frames import Close, Failure, Open
from chaperone_common.session import Audited
from chaperone_common.types import Mode, SessionId
from edge_client.events import Event
from edge_client.gate import Never
from tests.support.device.engine import PROMPT, TARGET, EngineHarness, cloud_text, failed, finished, written
from tests.support.fakes.link import FakeLink, cloud_of

KNOWN = (SessionId("earlier"), 2)
MISSED = Failure("NOT_FOUND", "prefix: this cloud does not hold these 2 tokens; send the whole prompt")


def opening_of(link: FakeLink) -> Open:
    opening = link.sent[0]
    assert isinstance(opening, Open)
    return opening


def play(*answers: FakeLink | Failure, **settings: Any) -> tuple[list[Event], list[FakeLink]]:
    """Run an engine over these links; a Failure is the only answer of a link of its own."""

    async def run() -> tuple[list[Event], list[FakeLink]]:
        links = [answer if isinstance(answer, FakeLink) else FakeLink() for answer in answers]
        for link, answer in zip(links, answers, strict=True):
            if isinstance(answer, Failure):
                link.deliver(answer)
        harness = EngineHarness(*links, clock=virtual_time.LoopClock(), **settings)
        return [event async for event in harness.engine.stream()], links

    return virtual_time.run(run())


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED, Mode.CLOUD])
@pytest.mark.parametrize("warm_start", [False, True])
def test_the_whole_prompt_follows_a_miss(mode: Mode, warm_start: bool) -> None:
    cloud = FakeLink(cloud_of(TARGET))
    events, (first, second) = play(MISSED, cloud, mode=mode, known_to_cloud=KNOWN, warm_start=warm_start)
    assert written(events) == cloud_text(40)
    short, whole = opening_of(first), opening_of(second)
    assert short.prefix is not None
    assert (short.prefix.session_id, short.prompt_token_ids) == ("earlier", PROMPT[2:])
    assert (whole.prefix, whole.prompt_token_ids) == (None, PROMPT)
    assert finished(events).stats.reconnects == 0


def test_a_cloud_that_holds_the_text_gets_the_rest() -> None:
    events, (link,) = play(FakeLink(cloud_of(TARGET, held=PROMPT)), known_to_cloud=KNOWN)
    assert written(events) == cloud_text(40)
    assert opening_of(link).prompt_token_ids == PROMPT[2:]


@pytest.mark.parametrize("known", [None, KNOWN])
def test_a_miss_of_nothing_ends_the_generation(known: tuple[SessionId, int] | None) -> None:
    events, links = play(MISSED, MISSED, MISSED, known_to_cloud=known)
    assert isinstance(failed(events).error, ProtocolViolation)
    assert not links[2].opened.is_set()


def test_a_service_that_is_not_found_is_no_miss() -> None:
    """Ray Serve's proxy reports that for an application that was removed."""
    gone = Failure("NOT_FOUND", "Application 'chaperone' not found.")
    events, links = play(gone, FakeLink(), known_to_cloud=KNOWN)
    assert isinstance(failed(events).error, InternalError)
    assert not links[1].opened.is_set()


def test_a_text_that_ends_before_the_miss_is_audited() -> None:
    async def run() -> None:
        first, second = FakeLink(), FakeLink(cloud_of(TARGET))
        harness = EngineHarness(
            first,
            second,
            mode=Mode.GATED,
            gate=Never(),
            new_tokens=4,
            clock=virtual_time.LoopClock(),
            known_to_cloud=KNOWN,
        )
        text = written([event async for event in harness.engine.stream()])
        assert len(text) == 4
        assert harness.engine.audit_pending
        assert harness.engine.text_of_cloud == (), "the cloud may not have it"
        first.deliver(MISSED)
        audited = await harness.engine.audit()
        assert [type(event) for event in audited] == [Audited]
        (closing,) = [frame for frame in second.sent if isinstance(frame, Close)]
        assert (closing.start, closing.token_ids) == (len(PROMPT), tuple(text))
        assert [*harness.engine.text_of_cloud] == [*PROMPT, *text]

    virtual_time.run(run())
