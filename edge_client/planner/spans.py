"""The near view: how long the next span should be, given the risks of what is drafted.

Values are in tokens. A millisecond of the cloud costs `rate` tokens, so a span of k tokens is worth

    1 + S_1 + ... + S_k - rate (idle + V(k)) + what the span after it is worth, for the best length of that one,

where S_j is the chance that its first j tokens stand, V(k) the reading's time, and idle the time that the cloud waits
because tokens have yet to be drafted. The rate is that of the long view (`schedule.py`), or, where the draft is surer
than usual, the best that a single span makes here: spans would grow for as long as drafting beats the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_client.planner.costs import Costs

LONGEST = 64  # tokens that are planned ahead
_LEAST_CHANCE = 1e-9  # that anything stands, to divide by

Float64s = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """A length, and what it is worth."""

    tokens: int
    value: float


def best_span(risks: Sequence[float], drafts: int, wait_ms: float, costs: Costs, rate: float) -> Plan:
    """The length of the next span, from 1, that is worth most if all tokens before it stand.

    `risks` are those of the unsent tokens; up to `drafts` more can be drafted. A span sent now would wait `wait_ms`.
    """
    unsent = len(risks)
    longest = min(unsent + drafts, max(unsent, LONGEST))
    if not longest:
        return Plan(0, 0.0)
    stands = survivals(risks, longest + 1 + LONGEST, costs.risk)
    lengths = np.arange(1, longest + 1)
    drafting_ms = np.maximum(0, lengths - unsent) * costs.draft_ms
    reading_ms = costs.read_base_ms + costs.read_token_ms * lengths
    spent_ms = np.maximum(0, drafting_ms - wait_ms) + reading_ms
    tokens = np.cumsum(stands)[lengths]
    rate = max(rate, float((tokens / spent_ms).max()))
    free_ms = np.maximum(wait_ms, drafting_ms) + reading_ms
    values = tokens - rate * spent_ms + _span_after(stands, lengths, unsent, free_ms, costs, rate)
    best = int(values.argmax())
    return Plan(best + 1, float(values[best]))


def best_take_back(risks: Sequence[float], written: int, room: int, costs: Costs) -> Plan:
    """The length, from the first token that is not final, of the span that best takes over from a cloud that writes.

    `risks` are those of what is drafted; the cloud will have written `written` tokens when a span sent now comes, and
    one more each `stream_ms` while more is drafted; `room` tokens, more than `written`, are left. A span that
    contradicts what the cloud has written costs nothing, since it is not read and the cloud writes on. So a span is
    worth what it settles if it does not, beyond what the cloud would write in the time of the reading, half a forward
    that has begun included; the best one is worth most for its time.
    """
    drafted = len(risks)
    longest = min(room, max(drafted, written + LONGEST))
    stands = survivals(risks, longest, costs.risk)
    total = np.cumsum(stands)
    lengths = np.arange(written + 1, longest + 1)
    drafting_ms = np.maximum(0, lengths - drafted) * costs.draft_ms
    frontier = np.minimum(written + (drafting_ms / costs.stream_ms).astype(np.int64), lengths)
    reading_ms = costs.stream_ms / 2 + costs.read_base_ms + costs.read_token_ms * (lengths - frontier)
    reached = np.maximum(stands[frontier], _LEAST_CHANCE)
    settled = np.where(frontier < lengths, 1 + (total[lengths] - total[frontier]) / reached, 0.0)
    values = settled - reading_ms / costs.stream_ms
    best = int((values / (drafting_ms + reading_ms)).argmax())
    return Plan(int(lengths[best]), float(values[best]))


def survivals(risks: Sequence[float], length: int, later: float) -> Float64s:
    """The chance that the first k tokens stand, for k from 0 to `length`; `later` is the risk of those not drafted."""
    known = risks[:length]
    steps = np.concatenate(([0.0], known, np.full(length - len(known), later)))
    return np.asarray(np.cumprod(1.0 - steps), np.float64)


def _span_after(
    stands: Float64s, lengths: Counts, unsent: int, free_ms: Float64s, costs: Costs, rate: float
) -> Float64s:
    """What the span after one of each length is worth, for the best length of its own: [lengths].

    It begins behind the bonus, and is drafted while the cloud reads, until `free_ms`, the one before it.
    """
    spans = np.arange(1, LONGEST + 1)
    ends = lengths[:, np.newaxis] + 1 + spans  # [lengths, spans]
    total, begins = np.cumsum(stands), stands[lengths + 1][:, np.newaxis]
    idle_ms = np.maximum(0, (ends - unsent) * costs.draft_ms - free_ms[:, np.newaxis])
    reading_ms = costs.read_base_ms + costs.read_token_ms * spans
    tokens = total[ends] - total[lengths + 1][:, np.newaxis] + begins
    values = tokens - rate * (idle_ms + reading_ms) * begins
    return np.asarray(np.maximum(values.max(axis=1), 0), np.float64)
