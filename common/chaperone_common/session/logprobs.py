"""The log-probabilities that an answer of the cloud carries, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.errors import InvalidRequest, ProtocolViolation, VersionMismatch
from chaperone_common.frames import Continuation, Verdict
from chaperone_common.logprobs import ChoiceLogprobs, LogprobSource, TokenLogprobs
from chaperone_common.session.text_token import TextToken
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import Origin, Proposal


def of_verdict(
    logprobs: Sequence[ChoiceLogprobs],
    tree: TokenTree,
    along_chain: int,
    *,
    first: int,
    position: int,
    tokens: Sequence[int],
) -> tuple[ChoiceLogprobs, ...]:
    """Return the entries of the tokens that a Verdict makes final: those from position `first` on.

    `logprobs` are those of a forward: `along_chain` of them, for the positions from `first` on, and then one after each
    branch token. `tokens` are the cloud's own, from `position` on.
    """
    if not logprobs:
        return ()
    found = [*logprobs[: position - first + 1]]
    index = position - 1
    for token_id in tokens[:-1]:  # branch tokens that stand: the next token is the choice after each
        child = tree.child(index, token_id)
        assert child is not None, "a Verdict goes on only along branch tokens"
        found.append(logprobs[along_chain + child - tree.end])
        index = child
    return tuple(found)


class ReceivedLogprobs:
    """The log-probabilities of the answer that a device is applying, and the tokens that they belong to."""

    def __init__(self, wanted: int | None, vocabulary_size: int) -> None:
        """`wanted` is the number of likeliest tokens that the Open asks for; None if it asks for nothing."""
        self._count = None if wanted is None else min(wanted, vocabulary_size)
        self._vocabulary_size = vocabulary_size
        self._found: dict[int, ChoiceLogprobs] = {}  # by position

    def take(self, frame: Verdict | Continuation) -> None:
        """Take the entries of the next answer.

        Raises ProtocolViolation for another number of likeliest tokens than is wanted, and for unknown ids.
        """
        if self._count is None:
            return
        for found in frame.logprobs:
            if len(found.top) != self._count:
                raise ProtocolViolation(
                    f"logprobs: {len(found.top)} likeliest tokens, {self._count} were wanted; use another cloud"
                )
            for token_id, _ in found.top:
                if not 0 <= token_id < self._vocabulary_size:
                    raise ProtocolViolation(
                        f"logprobs: the likeliest token {token_id} is not in a vocabulary of {self._vocabulary_size}; "
                        "use another cloud"
                    )
        match frame:
            case Verdict():
                start = frame.position + 1 + len(frame.further_token_ids) - len(frame.logprobs)
            case Continuation():
                start = frame.start
        self._found = dict(enumerate(frame.logprobs, start))

    def require(self, start: int, end: int) -> None:
        """Check that the answer has an entry for each position from `start` up to `end`, before these become final.

        Raises VersionMismatch if it has none at all, since earlier clouds report none, else ProtocolViolation.
        """
        if self._count is None:
            return
        missing = [position for position in range(start, end) if position not in self._found]
        if missing and not self._found:
            raise VersionMismatch(f"logprobs: the cloud sent none for its token at {missing[0]}; update the cloud")
        if missing:
            raise ProtocolViolation(
                f"logprobs: the cloud sent {len(self._found)}, and none for its token at {missing[0]}; use another "
                "cloud"
            )

    def check_proposal(self, proposal: Proposal) -> None:
        """Raise InvalidRequest for a proposal without log-probabilities, if they are wanted."""
        if self._count is not None and proposal.logprobs is None:
            raise InvalidRequest("logprobs: this drafter reports none; leave it out, or use ChoosingDrafter")

    def of_token(self, position: int, token: TextToken, origin: Origin) -> TokenLogprobs | None:
        """Return those of a token that becomes final: the cloud's if it vouches for the token, else the device's.

        They must be there: see `require` and `check_proposal`.
        """
        if self._count is None:
            return None
        if origin.judged:
            return TokenLogprobs.of(token.token_id, self._found[position], LogprobSource.CLOUD)
        measured = token.proposal.logprobs if token.proposal is not None else None
        assert measured is not None, "a token that the device vouches for is its proposal, which was checked"
        return TokenLogprobs.of(token.token_id, measured, LogprobSource.DEVICE)
