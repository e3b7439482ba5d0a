"""The log-probabilities that an answer of the cloud carries, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import Continuation, Verdict
from chaperone_common.logprobs import ChoiceLogprobs, LogprobSource, TokenLogprobs
from chaperone_common.session.text_token import TextToken
from chaperone_common.session.verdicts import check_ids
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Origin


def of_verdict(
    logprobs: Sequence[ChoiceLogprobs],
    tree: TokenTree,
    num_choices: int,
    *,
    start: int,
    first: int,
    position: int,
    tokens: Sequence[int],
) -> tuple[ChoiceLogprobs, ...]:
    """Return the entries of the tokens that a Verdict makes final: those from position `first` on.

    `logprobs` are those of all choices of a forward: `num_choices` along the chain, for the tokens from position
    `start` on, and one after each branch token. `tokens` are the cloud's own, from `position` on.
    """
    if not logprobs:
        return ()
    found = [*logprobs[first - start : position - start + 1]]
    index = position - 1
    for token_id in tokens[:-1]:  # branch tokens that stand: the next token is the choice after each
        child = tree.child(index, token_id)
        assert child is not None, "a Verdict goes on only along branch tokens"
        found.append(logprobs[num_choices + child - tree.end])
        index = child
    return tuple(found)


class ReceivedLogprobs:
    """The log-probabilities of the answer that a device is applying, and the tokens that they belong to."""

    def __init__(self, wanted: int | None, vocabulary_size: int) -> None:
        """`wanted` is the number of likeliest tokens that the Open asks for; None if it asks for nothing."""
        self._wanted = wanted
        self._vocabulary_size = vocabulary_size
        self._found: dict[int, ChoiceLogprobs] = {}  # by position

    def take(self, frame: Verdict | Continuation) -> None:
        """Take the entries of the next answer; raises ProtocolViolation for more than wanted, or unknown ids."""
        if self._wanted is None:
            return
        for found in frame.logprobs:
            if len(found.top) > self._wanted:
                raise ProtocolViolation(f"logprobs: {len(found.top)} likeliest tokens, {self._wanted} were wanted")
            check_ids([token_id for token_id, _ in found.top], self._vocabulary_size)
        match frame:
            case Verdict():
                start = frame.position + 1 + len(frame.further_token_ids) - len(frame.logprobs)
            case Continuation():
                start = frame.start
        self._found = dict(enumerate(frame.logprobs, start))

    def of_token(self, position: int, token: TextToken, origin: Origin) -> TokenLogprobs | None:
        """Return those of a token that becomes final: the cloud's if it vouches for the token, else the device's.

        Raises ProtocolViolation if the cloud has not sent them, and InvalidRequest if the drafter reports none.
        """
        if self._wanted is None:
            return None
        if origin.judged:
            if position not in self._found:
                raise ProtocolViolation(f"logprobs: the cloud sent none for its token at {position}; update the cloud")
            return TokenLogprobs.of(token.token_id, self._found[position], LogprobSource.CLOUD)
        measured = token.proposal.logprobs if token.proposal is not None else None
        if measured is None:
            raise InvalidRequest("logprobs: this drafter reports none; leave it out, or use ChoosingDrafter")
        return TokenLogprobs.of(token.token_id, measured, LogprobSource.DEVICE)
