"""The device tries to reconnect for all of the configured time, and no longer."""

from __future__ import annotations

from random import Random

import pytest

from chaperone_common.errors import CloudUnavailable, InvalidRequest, Overloaded, PeerMismatch
from edge_client.link.diagnosis import OR_WENT_AWAY, START_IT
from edge_client.link.reconnection import Reconnection
from tests.support.fakes.clock import ManualClock


def attempts(seed: int, timeout_ms: float, *, takes_ms: float = 0.0) -> list[float]:
    """Return the beginnings of the attempts, in milliseconds since the loss; each is refused after `takes_ms`."""
    clock = ManualClock()
    reconnection = Reconnection(clock, Random(seed), timeout_ms=timeout_ms)
    begun: list[float] = []
    while (pause_ms := reconnection.pause_ms(CloudUnavailable("gone"))) is not None:
        clock.seconds += pause_ms / 1e3
        begun.append(clock.seconds * 1e3)
        clock.seconds += takes_ms / 1e3
    return begun


@pytest.mark.parametrize("timeout_ms", [50.0, 400.0, 3_000.0, 30_000.0])
@pytest.mark.parametrize("seed", range(20))
def test_attempts_continue_until_the_time_is_over(seed: int, timeout_ms: float) -> None:
    begun = attempts(seed, timeout_ms)
    shortest_ms = min(100.0, timeout_ms / 10)
    assert timeout_ms - shortest_ms <= begun[-1] <= timeout_ms
    pauses = [after - before for before, after in zip([0.0, *begun], begun, strict=False)]
    assert all(pause <= 5_000 for pause in pauses)
    assert len(begun) < 60, "pauses grow"


def test_the_last_attempt_leaves_time_for_an_answer() -> None:
    for seed in range(20):
        begun = attempts(seed, 3_000.0, takes_ms=450.0)
        assert begun[-1] <= 3_000.0
        assert any(2_000.0 <= at <= 2_550.0 for at in begun), "an answer can arrive before the time is over"


def test_no_attempt_without_time_or_reason() -> None:
    assert attempts(0, 0.0) == []
    for error in (InvalidRequest("bad"), PeerMismatch("another")):
        assert Reconnection(ManualClock(), Random(0), timeout_ms=9e9).pause_ms(error) is None


def test_a_retry_delay_of_the_cloud_is_respected_or_ends_the_attempts() -> None:
    reconnection = Reconnection(ManualClock(), Random(0), timeout_ms=3_000.0)
    pause_ms = reconnection.pause_ms(Overloaded("full", retry_after_ms=1_000))
    assert pause_ms is not None
    assert 1_000 <= pause_ms <= 3_000
    assert reconnection.pause_ms(Overloaded("full", retry_after_ms=3_000)) is None


def test_a_cloud_that_is_given_up_is_reported_with_the_reason() -> None:
    clock = ManualClock()
    reconnection = Reconnection(clock, Random(0), timeout_ms=30_000.0)
    assert reconnection.pause_ms(CloudUnavailable("gone")) is not None
    clock.seconds = 12.0
    full = Overloaded("full", retry_after_ms=19_900)
    assert reconnection.pause_ms(full) is None
    assert reconnection.outcome(full).message == (
        "gone; 1 attempt to reconnect failed, the last one with: full; the 19900 ms that the cloud asks to wait would "
        "pass 30000 ms (cloud.reconnect_timeout_ms)"
    )
    clock.seconds = 30.0
    assert reconnection.outcome(full).message == (
        "gone; 1 attempt to reconnect within 30000 ms (cloud.reconnect_timeout_ms) failed, the last one with: full"
    )


def outcome_of(loss: str, last: str) -> str:
    reconnection = Reconnection(ManualClock(), Random(0), timeout_ms=1_500.0)
    assert reconnection.pause_ms(CloudUnavailable(loss)) is not None
    return reconnection.outcome(CloudUnavailable(last)).message


def test_one_cause_and_one_remedy_are_said_once() -> None:
    closed, refused = (f"cloud: a:1 {OR_WENT_AWAY}{reason}; {START_IT}" for reason in ("it closed", "nobody listens"))
    assert outcome_of(closed, refused) == (
        "cloud: a:1 went away; 1 attempt to reconnect within 1500 ms (cloud.reconnect_timeout_ms) failed: nobody "
        f"listens; {START_IT}"
    )
    elsewhere = refused.replace("a:1", "b:2")
    assert outcome_of(closed, elsewhere) == (
        f"cloud: a:1 {OR_WENT_AWAY}it closed; 1 attempt to reconnect within 1500 ms (cloud.reconnect_timeout_ms) "
        f"failed, the last one with: {elsewhere}"
    )
    assert outcome_of("gone", "gone").endswith("failed, the last one with: gone")
