"""Streams of tokens with known risk, and a control that decides about them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import cycle

import numpy as np

from edge_client.gate import Control, HeldOutRisks
from edge_client.gate.control import Unread

DELAY = 20  # tokens between a skip and its audit


def stream(
    random: np.random.Generator, tokens: int, level: float, *, scale: float = 1.0
) -> Iterator[tuple[float, bool]]:
    """Yield risks and overrides; `level` is their mean, `scale` the error factor of the risks."""
    risks = np.minimum(random.gamma(0.25, level / 0.25, tokens), 0.95)
    overridden = random.random(tokens) < risks
    yield from zip(np.minimum(risks * scale, 1.0).tolist(), overridden.tolist(), strict=True)


def run(
    control: Control, tokens: Iterator[tuple[float, bool]], *, delay: int = DELAY, read_on_firing: bool = True
) -> tuple[int, int, int]:
    """Apply the control's threshold to a stream; return the counts of fired, caught and missed tokens."""
    unread: deque[tuple[float, bool, Unread]] = deque()
    generations = cycle((control.register(), control.register()))  # they take turns
    asked = caught = missed = 0

    def audit() -> None:
        risk, overridden, generation = unread.popleft()
        generation.tokens -= 1
        generation.risk = generation.risk - risk if generation.tokens else 0.0
        control.record_audit(1, int(overridden), expected=risk)

    for risk, overridden in tokens:
        fires = risk >= control.threshold
        control.record_token(risk, skipped=not fires)
        asked += fires
        if fires and overridden:
            caught += 1
            control.record_caught()
        if not fires:
            missed += overridden
            generation = next(generations)
            generation.tokens, generation.risk = generation.tokens + 1, generation.risk + risk
            unread.append((risk, overridden, generation))
        while len(unread) > delay or (read_on_firing and fires and unread):
            audit()
    while unread:
        audit()
    return asked, caught, missed


@cache
def held_out(seed: int, *, level: float = 0.05, tokens: int = 4000) -> HeldOutRisks:
    """Return tokens of another stream, for calibration."""
    drawn = list(stream(np.random.default_rng(seed), tokens, level))
    return HeldOutRisks.of([risk for risk, _ in drawn], [overridden for _, overridden in drawn])
