"""The loop of a generation with beams, with fakes for its ports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from chaperone_common.beams.frames import BeamStep, BeamVerdict, ForestFrame
from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import ClientFrame, Open, Opened, ServerFrame
from chaperone_common.session import Committed, Failed, Finished
from edge_client.events import Event
from tests.support.device.beam_engine import BeamClient, BeamCloud, events_of
from tests.support.fakes.beam_model import FakeBeamModel
from tests.support.fakes.link import FakeLink
from tests.support.fakes.target import FakeTarget

TARGET = FakeTarget()


def client(**settings: object) -> BeamClient:
    return BeamClient(model=lambda: FakeBeamModel(FakeTarget(disturbance=0.03)), **settings)  # type: ignore[arg-type]


def run(of: BeamClient, *links: FakeLink) -> list[Event]:
    return asyncio.run(events_of(of.engine(*links, reconnect_timeout_ms=5_000.0)))


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


def tokens(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Committed)]


_STEP = BeamStep(0, 3, -1.0, -1.0)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (BeamVerdict(0, (_STEP._replace(node=99),), ()), "node: 99 is none of the .* texts of the forest"),
        (BeamVerdict(0, (), (_STEP._replace(node=99),)), "node: 99 is none of the .* texts of the forest"),
        (BeamVerdict(0, (_STEP._replace(token_id=64),), ()), "token_id: 64 is not in a vocabulary of 64"),
        (BeamVerdict(0, (_STEP,), (), live=(9,), needed=(1,)), "needed: .* draws in 1 layers"),
        (BeamVerdict(5, (_STEP,), ()), "round: a verdict on 5, and 0 is the next"),
    ],
)
def test_an_impossible_verdict_ends_the_text_with_its_problem(verdict: BeamVerdict, message: str) -> None:
    def cloud(frame: ClientFrame) -> Iterator[ServerFrame]:
        if isinstance(frame, Open):
            yield Opened(True, 512)
        elif isinstance(frame, ForestFrame):
            yield verdict

    engine = client().engine(FakeLink(cloud), vocabulary_size=64)
    ending = asyncio.run(events_of(engine))[-1]
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, ProtocolViolation)
    with pytest.raises(ProtocolViolation, match=message):
        raise ending.error


def test_after_a_reconnection_forests_keep_to_the_new_clouds_limit() -> None:
    """Its first answer may come after a forest was sent, which it then refuses."""
    whole = run(client(tokens=40), FakeLink(BeamCloud(TARGET)))
    before, smaller, again = BeamCloud(TARGET), BeamCloud(TARGET, most_texts=9), BeamCloud(TARGET, most_texts=9)
    events = run(client(tokens=40), FakeLink(before, lasts=5), FakeLink(smaller), FakeLink(again))
    assert finished(events).stats.reconnects >= 1
    assert max(before.texts) > 9
    assert max(again.texts) <= 9
    assert tokens(events) == tokens(whole)


def test_a_cloud_whose_limit_no_forest_keeps_ends_the_text() -> None:
    ending = run(client(), FakeLink(BeamCloud(TARGET, most_texts=1)), FakeLink(BeamCloud(TARGET, most_texts=1)))[-1]
    assert isinstance(ending, Failed)
    assert ending.error.message.startswith("forest: 2 texts to read")


def test_the_cached_tokens_are_those_of_the_first_stream() -> None:
    links = FakeLink(BeamCloud(TARGET, cached_tokens=2), lasts=5), FakeLink(BeamCloud(TARGET, cached_tokens=3))
    stats = finished(run(client(tokens=40), *links)).stats
    assert stats.reconnects == 1
    assert stats.cloud_cached_tokens == 2
