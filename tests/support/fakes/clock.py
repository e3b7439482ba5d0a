"""A clock that a test sets by hand."""

from __future__ import annotations


class ManualClock:
    """Shows the seconds that the test has set."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return self.seconds
