"""The questions of the spans in flight: the positions that the cloud is asked about."""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.types import Span


def asked_length(spans: Sequence[Span], sent_length: int) -> int:
    """Return the length up to which the cloud is asked: the sent tokens, and the token that it chooses after them.

    If the last span allows a takeover, the token after it is asked about again: an override there belongs to the next
    span.
    """
    last = spans[-1] if spans else None
    chosen = last is not None and last.end == sent_length and last.asks_next and not last.continuation_tokens
    return sent_length + chosen


def is_asked_about(position: int, spans: Sequence[Span], sent_length: int) -> bool:
    """Return whether a span in flight asks the cloud about a position, so that the token there has to wait."""
    if any(span.end == position and span.asks_next for span in spans):
        return True
    return position < sent_length and not any(span.start <= position < span.final_before for span in spans)
