"""The log-probabilities in an answer, between values and protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from chaperone_common.errors import ProtocolViolation
from chaperone_common.logprobs import LEAST_LOGPROB, ChoiceLogprobs
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.ranges import MAX_TOP_LOGPROBS


def logprobs_message(values: Sequence[ChoiceLogprobs]) -> pb.Logprobs | None:
    """Return the message of the tokens of an answer; None if there are none."""
    if not values:
        return None
    top = [*chain.from_iterable(value.top for value in values)]
    return pb.Logprobs(
        token_logprobs=[value.logprob for value in values],
        top_token_ids=[token_id for token_id, _ in top],
        top_logprobs=[logprob for _, logprob in top],
    )


def parse_logprobs(message: pb.Logprobs, most: int) -> tuple[ChoiceLogprobs, ...]:
    """Return the values of at most `most` tokens; raises ProtocolViolation."""
    tokens, ids, logprobs = len(message.token_logprobs), len(message.top_token_ids), len(message.top_logprobs)
    if tokens > most or ids != logprobs or ids > MAX_TOP_LOGPROBS * tokens or (tokens and ids % tokens):
        raise ProtocolViolation(
            f"logprobs: {tokens} tokens of {most}, with {ids} likeliest ones and {logprobs} values of these; each "
            f"token has one value, and the same number of likeliest ones, up to {MAX_TOP_LOGPROBS}; use another cloud"
        )
    for logprob in chain(message.token_logprobs, message.top_logprobs):
        if not LEAST_LOGPROB <= logprob <= 0:
            raise ProtocolViolation(f"logprobs: {logprob} is outside [{LEAST_LOGPROB:g}, 0]; use another cloud")
    count = ids // tokens if tokens else 0
    top = [*zip(message.top_token_ids, message.top_logprobs, strict=True)]
    return tuple(
        ChoiceLogprobs(logprob, tuple(top[index * count : (index + 1) * count]))
        for index, logprob in enumerate(message.token_logprobs)
    )
