"""The patience of a pull, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from benchmarks.simulation import virtual_time
from chaperone_common.errors import ChaperoneError, CloudUnavailable, Overloaded
from edge_client.artefacts.patience import Patience


def attempts(errors: Sequence[ChaperoneError], *, patience_s: float, seed: int = 0, idle_s: float = 0.0) -> list[float]:
    """Return the times of the attempts that fail with these errors. Nothing was asked in the first `idle_s`."""
    times: list[float] = []

    async def play() -> None:
        patience = Patience(patience_s, lambda _: None, Random(seed))
        await asyncio.sleep(idle_s)
        patience.renew()
        for error in errors:
            times.append(asyncio.get_running_loop().time())
            async with patience.losses():
                raise error

    virtual_time.run(play())
    return times


def lost() -> CloudUnavailable:
    return CloudUnavailable("lost")


def busy(retry_after_ms: int = 1000) -> Overloaded:
    return Overloaded("busy", retry_after_ms=retry_after_ms)


def test_patience_ends_after_its_time() -> None:
    with pytest.raises(CloudUnavailable, match="lost; what has arrived is kept, run the same command again to go on"):
        attempts([lost()] * 10, patience_s=10.0)


def test_time_before_the_first_request_is_not_counted() -> None:
    assert attempts([lost()], patience_s=10.0, idle_s=1000.0) == [1000.0]


def test_time_in_which_a_source_was_busy_is_not_counted_as_a_loss() -> None:
    times = attempts([busy(50_000), lost()], patience_s=10.0)
    assert times[1] > 50.0
    with pytest.raises(Overloaded, match="busy; what has arrived is kept"):
        attempts([busy(50_000), lost(), busy(50_000)], patience_s=10.0)


def test_devices_do_not_come_back_together_and_never_before_the_cloud_asked() -> None:
    returns = [attempts([busy(), lost()], patience_s=10.0, seed=seed)[1] for seed in range(100)]
    assert len(set(returns)) == 100
    assert all(1.25 <= time <= 1.5 for time in returns)
    assert max(returns) - min(returns) > 0.2
