"""The worth of reading the text again, because an encoding of its prompt has arrived."""

from __future__ import annotations

from chaperone_common.planning.costs import Costs

# Share of a draft's time for each further token of a chunk. Measured on the default pair, where a chunk of 8 takes 3.3
# times as long as one token (DRAFT_CHUNK in benchmarks/simulation/costs.py).
CHUNK_SHARE = 1 / 3


def worth_reading_again(gain: float, tokens_left: int, tokens_read: int, costs: Costs) -> bool:
    """Return whether the overrides that an encoding saves take longer than reading `tokens_read` tokens again.

    `gain` is the number of overrides that it saves for each token. An override costs a round trip and a reading.
    """
    if gain <= 0 or tokens_left <= 0:
        return False
    saved_ms = gain * tokens_left * (costs.rtt_ms + costs.read_ms(1))
    return saved_ms > tokens_read * CHUNK_SHARE * costs.draft_ms
