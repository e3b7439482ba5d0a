"""Durations of the models' forwards in virtual time; the defaults are those of the default pair, on one core each."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curve:
    """Straight lines between points (x, y), in rising order of x: constant before them, extrapolated after them."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, *points: tuple[float, float]) -> Curve:
        return cls(points)

    def at(self, x: float) -> float:
        """Return the height at x."""
        points = self.points
        if len(points) == 1 or x <= points[0][0]:
            return points[0][1]
        right = min(bisect_right(points, (x,)), len(points) - 1)
        (x0, y0), (x1, y1) = points[right - 1], points[right]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


CLOUD_READ_MS = Curve.of((1, 310), (2, 310), (4, 323), (8, 380), (16, 500), (32, 747))
DRAFT_CHUNK = Curve.of((1, 1.0), (4, 1.96), (8, 3.29))
DRAFT_ROWS = Curve.of((1, 1.0), (2, 1.25), (3, 1.7), (4, 1.95))


@dataclass(frozen=True, slots=True)
class CloudCosts:
    """Costs of the large model's forwards, and the load of other devices.

    `load` is the share of the cloud's time that other devices take. Their requests, `other_ms` each, arrive as a
    Poisson process in the same queue: first come, first served.
    """

    read_ms: Curve = CLOUD_READ_MS  # by number of tokens, their choices included
    prefill_ms: float = 36.0  # per token of the prompt
    load: float = 0.0  # in [0, 1)
    other_ms: float = 380.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """Costs of the small model's forwards: a step of one token, a chunk of several, or a batch of rows."""

    step_ms: float = 22.5
    chunk: Curve = DRAFT_CHUNK  # in units of a step
    rows: Curve = DRAFT_ROWS  # in units of a step
    branches: int = 3
    disagreement_ms: float = 3.0  # per proposal (measured), where the gate uses the disagreement as the risk

    def chunk_ms(self, tokens: int) -> float:
        """Return the time to read several tokens of one text at once."""
        return self.step_ms * self.chunk.at(tokens)

    def rows_ms(self, rows: int) -> float:
        """Return the time of one token in each of several rows."""
        return self.step_ms * self.rows.at(rows)
