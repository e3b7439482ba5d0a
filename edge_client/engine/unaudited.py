"""The part of a text that no audit has reached, as values that outlive its generation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chaperone_common.session import DeviceSession
from chaperone_common.types import Origin, SamplingParams


@dataclass(frozen=True, slots=True)
class UnauditedText:
    """A text whose final tokens from position `start` on the cloud has not read. Positions include the prompt."""

    model_digest: str  # of the large model that began the text; "" accepts any
    tokenizer_digest: str
    sampling: SamplingParams
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # all final ones after the prompt
    start: int  # position of the first unread token
    # Ranges [begin, end) of the unread tokens that the gate skipped. The promises cover these; all others are
    # unverified.
    skipped: tuple[tuple[int, int], ...]
    risk: float  # sum of the risks of the skipped tokens
    weight: float = 1.0  # texts that this one stands for, if only a share of them is audited

    @property
    def end(self) -> int:
        """The position after the last token."""
        return len(self.prompt_token_ids) + len(self.token_ids)

    @property
    def skipped_tokens(self) -> int:
        """The number of unread tokens that the gate skipped."""
        return sum(end - begin for begin, end in self.skipped)


def unaudited_text(session: DeviceSession, start: int, end: int, weight: float) -> UnauditedText:
    """Return the final text of a session up to `end`, with its unread tokens from `start` on."""
    opening, prompt_length = session.opening, session.prompt_length
    skipped: list[tuple[int, int]] = []
    risks = []
    for position in range(start, end):
        token = session.token(position)
        if token is None or token.origin is not Origin.DRAFT or token.proposal is None:
            continue
        risks.append(token.proposal.signal.risk)
        if skipped and skipped[-1][1] == position:
            skipped[-1] = (skipped[-1][0], position + 1)
        else:
            skipped.append((position, position + 1))
    return UnauditedText(
        opening.model_digest,
        opening.tokenizer_digest,
        opening.sampling,
        opening.prompt_token_ids,
        tuple(session.text[prompt_length:end]),
        start,
        tuple(skipped),
        math.fsum(risks),
        weight,
    )
