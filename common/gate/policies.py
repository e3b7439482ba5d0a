"""Three policies that need no calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common.types import Mode, Signal


class Gate(Protocol):
    """Decides on one token at a time."""

    def fires(self, signal: Signal) -> bool:
        """True: ask the cloud before this token is final. False: skip."""


@dataclass(frozen=True, slots=True)
class Always:
    """Ask about every token: the gate of `exact`."""

    def fires(self, signal: Signal) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Never:
    """Ask about no token: the gate of `edge`."""

    def fires(self, signal: Signal) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Threshold:
    """Ask where the risk is at or above `risk`, in [0, 1]."""

    risk: float

    def fires(self, signal: Signal) -> bool:
        return signal.risk >= self.risk


def gate_for(mode: Mode, *, risk: float) -> Gate:
    """The gate of a mode; `risk` is the threshold of `gated`."""
    match mode:
        case Mode.EXACT:
            return Always()
        case Mode.GATED:
            return Threshold(risk)
        case Mode.EDGE | Mode.CLOUD:
            return Never()
