"""Time as an argument: code that needs the time takes a `Clock`, so that tests and the simulator can replace it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since a fixed but unknown moment. It never runs backwards, and only differences have a meaning."""

    def now(self) -> float:
        """Return the time, in seconds."""


class MonotonicClock:
    """The machine's monotonic clock, which ignores changes of the date."""

    def now(self) -> float:
        return time.monotonic()
