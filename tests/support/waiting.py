"""Bounded waits for conditions that another thread or process makes true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 20.0  # of every bounded wait; reached only by a test that fails


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition that another thread or process makes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:.0f} s"
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """`until` for tests without an event loop."""
    asyncio.run(until(condition, what))
