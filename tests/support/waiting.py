"""Bounded waits for conditions that another thread or process makes true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 20.0  # of every bounded wait; reached only by a test that fails
START_S = 120.0  # of a wait that spans the start of a process, which takes long on a busy machine


async def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll a condition that another thread or process makes true."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience_s:.0f} s"
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """`until` for tests without an event loop."""
    asyncio.run(until(condition, what, patience_s))
