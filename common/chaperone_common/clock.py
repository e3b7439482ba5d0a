"""Time as an argument: whoever needs it is given a `Clock`, so that tests and the simulator decide what it shows."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the seconds since some fixed moment; it never runs backwards, and only differences mean anything."""

    def now(self) -> float:
        """Seconds."""


class MonotonicClock:
    """The machine's own clock, untouched by changes of the date."""

    def now(self) -> float:
        return time.monotonic()
