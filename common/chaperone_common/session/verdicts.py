"""Checks of the cloud's answers on the device: that a Verdict answers its span, and that its values are valid."""

from __future__ import annotations

from collections.abc import Container, Sequence

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Verdict
from chaperone_common.types import Origin, Span


def check_verdict(verdict: Verdict, span: Span, text: Sequence[int], *, limit: int) -> None:
    """Raise ProtocolViolation unless a Verdict can answer a span of the text.

    The cloud chooses no token after a text of `limit` tokens. Its Verdict is then about the last one, final or not.
    """
    first = min(span.final_before, span.end, limit - 1)
    if not first <= verdict.position <= span.end:
        raise ProtocolViolation(f"verdict at position {verdict.position} answers a span from {first} to {span.end}")
    judged = span.final_before <= verdict.position < span.end
    overridden = judged and text[verdict.position] != verdict.token_id
    if verdict.revision != span.revision + overridden:
        raise ProtocolViolation(f"verdict of revision {verdict.revision} answers a span of {span.revision}")


def check_deviations(deviations: Sequence[int], start: int, end: int) -> None:
    """Raise ProtocolViolation unless the deviations are positions of the audited tokens [start, end), in order."""
    lowest = start
    for position in deviations:
        if not lowest <= position < end:
            raise ProtocolViolation(
                f"deviations: {position} is not in the audit from {start} to {end}, in rising order and once"
            )
        lowest = position + 1


def check_ids(token_ids: Sequence[int], vocabulary_size: int) -> None:
    """Raise ProtocolViolation for a token that the device's vocabulary lacks: no model could read it."""
    for token_id in token_ids:
        if not 0 <= token_id < vocabulary_size:
            raise ProtocolViolation(f"token_ids: {token_id} is not in a vocabulary of {vocabulary_size}")


def is_replay(verdict: Verdict, spans: Sequence[Span]) -> bool:
    """Return whether a Verdict below the final length answers a span before `spans`, the ones in flight.

    An answer to the next span has a position after the span's start, if the span has tokens.
    """
    return not spans or verdict.position < spans[0].start + bool(spans[0].token_ids)


def origins(verdict: Verdict, span: Span) -> list[Origin]:
    """Return the origin of each of the Verdict's own tokens, if the device's text does not hold the same token.

    Raises ProtocolViolation if the tokens do not follow the branches of the span.
    """
    tree = span.tree
    index, token_id = verdict.position - 1, verdict.token_id
    own = Origin.OVERRIDE if verdict.position < span.end else Origin.BONUS
    if not verdict.further_token_ids:
        return [own]
    for further in verdict.further_token_ids:
        found = tree.child(index, token_id)
        if found is None:
            raise ProtocolViolation(
                f"further_token_ids: {further} follows {token_id}, which is no branch token there in the span from "
                f"{span.start} to {span.end}"
            )
        index, token_id = found, further
    if tree.child(index, token_id) is not None:  # the text ends with a branch token
        last = Origin.VERIFIED
    else:
        last = Origin.OVERRIDE if any(branch.parent == index for branch in span.branches) else Origin.BONUS
    return [own, *[Origin.VERIFIED] * (len(verdict.further_token_ids) - 1), last]


def begins_takeover(verdict: Verdict, span: Span, *, limit: int, eos_token_ids: Container[int]) -> bool:
    """Return whether the cloud writes on by itself after a Verdict."""
    overridden = verdict.revision > span.revision or not span.token_ids
    last = (verdict.token_id, *verdict.further_token_ids)[-1]
    ended = last in eos_token_ids or verdict.position + 1 + len(verdict.further_token_ids) >= limit
    return overridden and span.continuation_tokens > 0 and not ended
