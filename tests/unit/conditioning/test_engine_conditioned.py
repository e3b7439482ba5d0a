"""Mode `conditioned`: an engine that waits for the encoding of its prompt, and then writes alone. No gRPC, no files."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np
import pytest

from benchmarks.simulation import virtual_time
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import CloudUnavailable, InternalError
from chaperone_common.frames import ClientFrame, Close, Encoded, EncodingRequest, Failure, Open, Opened, ServerFrame
from chaperone_common.session import Unverified
from chaperone_common.types import Mode, Origin
from edge_client.engine.conditioning import Wish
from edge_client.events import Event
from edge_client.link.connection import Route
from tests.support.device.engine import PROMPT, TARGET, EngineHarness, cloud_text, failed, finished, origins, written
from tests.support.fakes.link import Cloud, FakeLink, cloud_of

ROWS = Encoding.of(np.arange(12, dtype=np.float32).reshape(3, 4))
REQUEST = EncodingRequest("sha256:p", 0)


def encoding_cloud(frame: ClientFrame) -> Iterable[ServerFrame]:
    """Answer an Open with the encoding that it asks for, one row in a frame."""
    if isinstance(frame, Open):
        yield Opened(False, 512)
        for row in ROWS.split(1) if frame.encoding is not None else ():
            yield Encoded(row, ROWS.digest() if row.end == len(PROMPT) else b"")
        yield Opened(True, 512)


def failing(status: str) -> Cloud:
    """Return a cloud that answers an Open with some rows, and then with a failure."""

    def serve(frame: ClientFrame) -> Iterable[ServerFrame]:
        yield from [*encoding_cloud(frame)][:2]
        yield Failure(status, "cloud: it has a bug")

    return serve


def conditioned(*links: FakeLink, mode: Mode = Mode.CONDITIONED, **settings: Any) -> tuple[list[Event], list[Encoding]]:
    """Run with these links, one after the other; return the events, and the encodings that were kept."""
    kept: list[Encoding] = []
    wish = Wish(len(PROMPT), Encoding.empty(4), REQUEST, needed=mode is Mode.CONDITIONED, keep=kept.append)

    async def play() -> list[Event]:
        fields = {"reconnect_timeout_ms": 3_000.0, "clock": virtual_time.LoopClock(), **settings}
        harness = EngineHarness(*links, mode=mode, wish=wish, **fields)
        return [event async for event in harness.engine.stream()]

    return virtual_time.run(play()), kept


@pytest.mark.parametrize("lasts", [None, 0, 1, 2, 4])
def test_each_stream_brings_all_rows_and_one_encoding_is_used(lasts: int | None) -> None:
    whole = FakeLink(encoding_cloud)
    links = [whole] if lasts is None else [FakeLink(encoding_cloud, lasts=lasts), whole]
    events, kept = conditioned(*links)
    assert kept == [ROWS]
    stats = finished(events).stats
    assert (stats.conditioned_tokens, stats.round_trips, stats.promises_hold) == (3, 1, None)
    assert len(written(events)) == 40
    assert origins(events) == {Origin.DRAFT}
    asked = [frame.encoding for link in links for frame in link.sent if isinstance(frame, Open)]
    assert asked == [None if lasts == 4 and link is whole else REQUEST for link in links], "whole: asked for once"
    assert whole.sent[1:] == [Close(len(PROMPT), ())]
    assert whole.closed
    assert not whole.cancelled, "the cloud keeps the prompt for a later turn"
    assert stats.bytes_down == sum(link.bytes_down for link in links)


def test_the_error_of_a_cloud_that_stays_away_names_the_attempts_once() -> None:
    links = (FakeLink(encoding_cloud, lasts=2 if index == 0 else 0) for index in count())
    events, kept = conditioned(routes=[Route(links.__next__)])
    error = failed(events).error
    assert isinstance(error, CloudUnavailable)
    assert error.message.count("to reconnect") == 1, error.message
    assert not kept


def test_a_loss_after_the_last_row_does_not_matter() -> None:
    links = (FakeLink(encoding_cloud, lasts=4 if index == 0 else 0) for index in count())
    events, kept = conditioned(routes=[Route(links.__next__)])
    stats = finished(events).stats
    assert kept == [ROWS]
    assert (stats.conditioned_tokens, stats.unverified_tokens) == (3, 0)
    assert origins(events) == {Origin.DRAFT}


@pytest.mark.parametrize("status", ["INTERNAL", "UNAVAILABLE"])
def test_a_loss_before_the_encoding_is_whole_goes_on_without_it_if_the_settings_allow_that(status: str) -> None:
    events, kept = conditioned(FakeLink(failing(status)), continue_without_cloud=True, reconnect_timeout_ms=0.0)
    assert [event.position for event in events if isinstance(event, Unverified)] == [len(PROMPT)]
    stats = finished(events).stats
    assert (stats.conditioned_tokens, stats.unverified_tokens, stats.promises_hold) == (0, 40, None)
    assert origins(events) == {Origin.UNVERIFIED}
    assert not kept


def test_a_bug_of_the_cloud_ends_the_text_where_the_settings_do_not_allow_more() -> None:
    events, _ = conditioned(FakeLink(failing("INTERNAL")))
    assert isinstance(failed(events).error, InternalError)
    assert written(events) == []


def test_a_text_that_can_do_without_asks_no_cloud_again_that_may_have_another_projector() -> None:
    links = [FakeLink(encoding_cloud, lasts=2), FakeLink(cloud_of(TARGET))]
    events, kept = conditioned(*links, mode=Mode.EXACT)
    assert written(events) == cloud_text(40)
    asked = [frame.encoding for link in links for frame in link.sent if isinstance(frame, Open)]
    assert asked == [REQUEST, None]
    assert finished(events).stats.conditioned_tokens == 0
    assert not kept
