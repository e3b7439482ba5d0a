"""The best length of the next span, given the risks of its tokens.

Values are in tokens. A millisecond of the cloud costs `rate` tokens, so a span of k tokens has the value

    1 + S_1 + ... + S_k - rate * (idle + V(k) + price) + value of the best next span

    S_j    chance that its first j tokens stand
    V(k)   time in which the cloud reads it
    idle   time that the cloud waits because tokens are not drafted yet
    price  time that one request less is worth; 0 in `exact`

The rate is that of the schedule (`schedule.py`). If the draft is surer than usual, it is the best rate of a single span
here: otherwise spans would grow as long as drafting is faster than the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chaperone_common.planning.costs import Costs

LONGEST = 64  # tokens that are planned ahead
_LEAST_CHANCE = 1e-9  # keeps a divisor above 0

Float64s = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """The length of a span, and its value in tokens."""

    tokens: int
    value: float


def best_span(risks: Sequence[float], drafts: int, wait_ms: float, costs: Costs, rate: float) -> Plan:
    """Return the length of the next span, from 1, that has the highest value if all tokens before it stand.

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
    spent_ms = np.maximum(0, drafting_ms - wait_ms) + reading_ms + costs.request_ms
    tokens = np.cumsum(stands)[lengths]
    rate = max(rate, float((tokens / spent_ms).max()))
    free_ms = np.maximum(wait_ms, drafting_ms) + reading_ms
    values = tokens - rate * spent_ms + _span_after(stands, lengths, unsent, free_ms, costs, rate)
    best = int(values.argmax())
    return Plan(best + 1, float(values[best]))


def best_take_back(risks: Sequence[float], written: int, room: int, costs: Costs) -> Plan:
    """Return the length of the span that best takes the text back from a cloud that writes.

    Lengths count from the first token that is not final. `risks` are those of the drafted tokens. The cloud will have
    written `written` tokens when a span sent now arrives, and writes another each `stream_ms`. The text has room for
    `room` tokens, which is more than `written`.

        value of a span  =  tokens it makes final  -  tokens that the cloud would write while reading it

    The cloud first finishes the forward that it has begun, half a forward on average. A span that contradicts the
    cloud's text is ignored and costs nothing. The best span has the highest value per millisecond.
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
    """Return the chance that the first k tokens stand, k from 0 to `length`: [length + 1].

    `later` is the risk of tokens that are not drafted yet.
    """
    known = risks[:length]
    steps = np.concatenate(([0.0], known, np.full(length - len(known), later)))
    return np.asarray(np.cumprod(1.0 - steps), np.float64)


def _span_after(
    stands: Float64s, lengths: Counts, unsent: int, free_ms: Float64s, costs: Costs, rate: float
) -> Float64s:
    """Return the value of the best span after a span of each length: [lengths].

    It begins after the bonus. The device drafts it while the cloud reads the span before, until `free_ms`.
    """
    spans = np.arange(1, LONGEST + 1)
    ends = lengths[:, np.newaxis] + 1 + spans  # [lengths, spans]
    total, begins = np.cumsum(stands), stands[lengths + 1][:, np.newaxis]
    idle_ms = np.maximum(0, (ends - unsent) * costs.draft_ms - free_ms[:, np.newaxis])
    reading_ms = costs.read_base_ms + costs.read_token_ms * spans
    tokens = total[ends] - total[lengths + 1][:, np.newaxis] + begins
    values = tokens - rate * (idle_ms + reading_ms + costs.request_ms) * begins
    return np.asarray(np.maximum(values.max(axis=1), 0), np.float64)
