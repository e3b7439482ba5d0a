"""Costs of drafting, verifying and streaming in a run, for bounds and simulations of that machine."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.measured.summary import BASELINE, Row
from benchmarks.simulation.bounds import Costs
from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario
from benchmarks.strategies.other_pairs import has_traces, measured_strategy
from chaperone_common.errors import ConfigError
from chaperone_common.types import Mode
from link_emulator.profile import Profile

NO_COSTS = "the costs come from `cloud` and from verified spans; run both, again if this run has no `readings`"


@dataclass(frozen=True, slots=True)
class RunCosts:
    """Averages over a run, in milliseconds.

    `read_ms` is the cloud's time for a forward, by its tokens: those of a span and the one before it. `rows` is the
    cost of further rows of the device's forward. Chunks cost as many steps as they do by default.
    """

    draft_ms: float
    stream_ms: float
    read_ms: Mapping[int, float]
    rows: Curve

    @classmethod
    def of(cls, rows: Sequence[Row], average: Callable[[Iterable[float]], float] = statistics.median) -> Self | None:
        """Return the costs of a run; None if a part is missing.

        Streaming is measured in `cloud`, drafting and verifying in all strategies whose drafts were judged. Strategies
        that measure more while they draft, or have another cloud or device model, do not count. A median is the usual
        cost of a step, a mean (`statistics.fmean`) the cost of a step in the sum of many.
        """
        drafting = [row for row in rows if _spans(row) and row["costs"] is not None and _usual(row["strategy"])]
        streaming = [row["costs"] for row in rows if row["strategy"] == BASELINE and row["costs"] is not None]
        if not drafting or not streaming:
            return None
        stream_ms = average(costs["stream_ms"] for costs in streaming)
        draft_ms = average(row["costs"]["draft_ms"] for row in drafting)
        readings = [reading for row in drafting for reading in _spans(row)]
        read_ms = {1: stream_ms} | _readings(readings, stream_ms, average)
        return cls(draft_ms, stream_ms, read_ms, _rows_of_a_forward(drafting))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the costs of a result of `python -m benchmarks run`; raise ConfigError if they are not in it."""
        try:
            rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["generations"]
            costs = cls.of(rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a result of `python -m benchmarks run` ({error!r})") from None
        if costs is None:
            raise ConfigError(f"{path}: {NO_COSTS}")
        return costs

    def bounds(self, rtt_ms: float) -> Costs:
        """Return the costs in the form of the bounds."""
        return Costs(self.draft_ms, rtt_ms, self.stream_ms, dict(self.read_ms))

    def scenario(self, profile: Profile) -> Scenario:
        """Return a simulation of this machine, over any link."""
        cloud = CloudCosts(read_ms=Curve(tuple(sorted(self.read_ms.items()))))
        return Scenario(profile, cloud, DraftCosts(step_ms=self.draft_ms, rows=self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return the costs as a part of a result."""
        return {
            "draft_ms": round(self.draft_ms, 2),
            "stream_ms": round(self.stream_ms, 2),
            "read_ms": {str(tokens): round(ms, 1) for tokens, ms in self.read_ms.items()},
            "rows": [[rows, round(steps, 3)] for rows, steps in self.rows.points],
        }


def _spans(row: Row) -> list[tuple[int, float]]:
    """Return the cloud's forwards over spans; a hand-over is an empty span and does not count."""
    return [(tokens, read_ms) for tokens, read_ms in row.get("readings", ()) if tokens]


def _usual(name: str) -> bool:
    strategy = measured_strategy(name)
    return has_traces(name) and strategy.lenient_nats is None and not strategy.risk_is_disagreement


def _readings(
    readings: Sequence[tuple[int, float]], least_ms: float, average: Callable[[Iterable[float]], float]
) -> dict[int, float]:
    """Return the times of forwards by length; similar lengths are averaged, and a longer forward takes no less time."""
    alike: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for span_tokens, read_ms in readings:
        alike[round(2 * math.log2(1 + span_tokens))].append((1 + span_tokens, read_ms))
    found: dict[int, float] = {}
    for length in sorted(alike):
        tokens = round(statistics.fmean(tokens for tokens, _ in alike[length]))
        least_ms = found[tokens] = max(least_ms, average(read_ms for _, read_ms in alike[length]))
    return found


def _rows_of_a_forward(rows: Sequence[Row]) -> Curve:
    """Return the cost of further rows of the device's forward, as `exact` measured it, else the default."""
    shares = [row["costs"]["row_ms"] / row["costs"]["draft_ms"] for row in rows if row["strategy"] == str(Mode.EXACT)]
    return Curve.of((1, 1.0), (2, 1.0 + statistics.median(shares))) if shares else DraftCosts().rows
