"""The gate protocol, and three gates that need no calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from chaperone_common.session import SessionEvent
from chaperone_common.types import Signal


class Gate(Protocol):
    """A policy that decides on one token of a generation at a time, and may learn from the session's events.

    Derive from this class: `follow` and `close` then do nothing, unless you override them.
    """

    def fires(self, signal: Signal) -> bool:
        """Return True to ask the cloud before this token is final, False to skip."""

    def follow(self, event: SessionEvent) -> None:
        """Take in the next event of the generation."""
        return

    def close(self) -> None:
        """Wait for nothing more: no event follows. The engine calls this once, however the generation ends."""
        return


class GateUntilClosed(Gate):
    """A gate that gets no event after it was closed, and is closed once."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._is_open = True

    def fires(self, signal: Signal) -> bool:
        return self._gate.fires(signal)

    def follow(self, event: SessionEvent) -> None:
        if self._is_open:
            self._gate.follow(event)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            close = getattr(self._gate, "close", None)  # a gate that does not derive from `Gate` may have none
            if close is not None:
                close()


@dataclass(frozen=True, slots=True)
class Always(Gate):
    """Asks about every token: the gate of `exact`."""

    def fires(self, signal: Signal) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Never(Gate):
    """Asks about no token: the gate of `edge`."""

    def fires(self, signal: Signal) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Threshold(Gate):
    """Asks about tokens of at least this `risk`, in [0, 1]."""

    risk: float

    def fires(self, signal: Signal) -> bool:
        return signal.risk >= self.risk
