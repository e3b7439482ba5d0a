"""The costs that a schedule of spans is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """The times in milliseconds, and the chances, that a planner decides by.

    The cloud reads a span of k tokens in `read_base_ms + k * read_token_ms`.
    """

    draft_ms: float = 20.0  # one token of the text
    row_ms: float = 5.0  # one token of a branch, in the same forward
    rtt_ms: float = 50.0  # the link there and back, without the cloud
    read_base_ms: float = 100.0
    read_token_ms: float = 3.0
    stream_ms: float = 100.0  # one token that the cloud writes by itself
    risk: float = 0.05  # of a token that is not drafted yet
    foresight: float = 0.0  # share of overrides that begin a drafted branch
    branch_tokens: float = 0.0  # tokens in such a branch
    fires: float = 1.0  # share of drafted tokens that the gate asks about
    request_ms: float = 0.0  # price of a request: the time that saving one is worth

    def read_ms(self, tokens: float) -> float:
        """Return the time that the cloud needs for a span."""
        return self.read_base_ms + self.read_token_ms * tokens
