"""The text of one generation on the device: how its tokens become final, and how they are withdrawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from chaperone_common.frames import Open
from chaperone_common.session.events import Committed, Retracted, SessionEvent
from chaperone_common.session.logprobs import ReceivedLogprobs
from chaperone_common.session.questions import asked_length, is_asked_about
from chaperone_common.session.text_token import TextToken, TextTokens
from chaperone_common.stats import Tally
from chaperone_common.types import FinishReason, OnDeviation, Origin, Proposal, Span


class DeviceText:
    """Prompt, final and provisional tokens, and the spans in flight that ask the cloud about some of them.

        text:         [ prompt | final ............ | provisional ................ ]
        sent_length:  all tokens below it were sent to the cloud, or came from it
        read_length:  the cloud has answered that it read all tokens below it, and has audited the skipped ones

    It knows no frame but the Open. `DeviceSession` adds the stream, and decides when tokens are committed.
    """

    def __init__(self, open_frame: Open, *, limit: int, on_deviation: OnDeviation, vocabulary_size: int) -> None:
        """Start from an Open; see `DeviceSession`."""
        self._tokens = TextTokens((*open_frame.prompt_token_ids, *open_frame.committed_token_ids))
        self.text = self._tokens.ids
        self.prompt_length = len(open_frame.prompt_token_ids)
        self.first_new = self.final_length = self.sent_length = self.read_length = len(self.text)
        self.limit = limit
        self.eos_token_ids = frozenset(open_frame.eos_token_ids)
        self.revision = 0
        self.spans: deque[Span] = deque()
        self.finish_reason: FinishReason | None = None
        self.tally = Tally()
        self.skips_are_final = on_deviation is OnDeviation.KEEP
        self._alone = False  # the cloud is lost for good
        self._logprobs = ReceivedLogprobs(open_frame.top_logprobs, vocabulary_size)

    @property
    def exhausted(self) -> bool:
        """True if no token can be drafted: the text is full, or ends with end-of-text."""
        return len(self.text) >= self.limit or (len(self.text) > self.first_new and self.text[-1] in self.eos_token_ids)

    @property
    def unsent_fires(self) -> int:
        """The number of unsent tokens that the cloud has to judge."""
        return sum(1 for _ in self._to_judge(self.sent_length))

    @property
    def has_question(self) -> bool:
        """True if the cloud has to judge a token that no span in flight asks about."""
        return next(self._to_judge(asked_length(self.spans, self.sent_length)), None) is not None

    def token(self, position: int) -> TextToken | None:
        """Return the record of a token of the text; None for one of the prompt or of a resumed text."""
        return self._tokens[position] if position >= self.first_new else None

    def proposal(self, position: int) -> Proposal | None:
        """Return the device's proposal at a provisional position; None for any other position."""
        provisional = self.final_length <= position < len(self.text)
        return self._tokens[position].proposal if provisional else None

    def finish_at(self, length: int) -> list[SessionEvent]:
        """End the text at `length`, because a stop string was completed there; undo the tokens after it.

        They may be final: the string is found only after its frame was applied.
        """
        self.finish_reason = FinishReason.STOP
        self.final_length = length
        self.spans.clear()
        # Only the device's tokens are retracted. The cloud's own tokens after `length` were never shown.
        drafted = [token for token in self._tokens.between(length) if token.proposal is not None]
        self.tally.retracted_tokens += sum(not token.overridden for token in drafted)
        self._cut(length)
        self.tally.forget_committed()
        for token in self._tokens.between(self.first_new):
            self._count_committed(token)
        return [Retracted(length)] if drafted else []

    def lose_cloud(self) -> list[SessionEvent]:
        """Continue without the cloud: commit all provisional and later tokens as unverified."""
        self._alone = True
        self.spans.clear()
        return [self._commit(Origin.UNVERIFIED) for _ in range(self.final_length, len(self.text))]

    def _take(self, position: int, token_id: int, origin: Origin) -> list[SessionEvent]:
        """Commit the cloud's own token at a position, in place of a draft token that differs."""
        if position < self.final_length:  # final when it was sent: the next verdict reports the deviation, if any
            return []
        if self.finish_reason is not None:  # nothing follows the end
            return []
        if position < len(self.text) and self.text[position] == token_id:
            self.sent_length = max(self.sent_length, position + 1)
            return [self._commit(Origin.VERIFIED if origin is not Origin.TAKEOVER else origin)]
        events: list[SessionEvent] = []
        token = TextToken(token_id)
        if position < len(self.text):
            replaced = self._tokens[position]
            token = TextToken(token_id, replaced.proposal, fired=replaced.fired)
            # Spans in flight that hold the position contradict the cloud's token. The cloud raises its revision when it
            # reads the first of them, so both ends agree without a message.
            if self.spans and self.spans[0].start <= position < self.sent_length:
                self.revision += 1
            events.append(self._truncate(position))
            origin = Origin.OVERRIDE if origin is Origin.BONUS else origin
        self._tokens.append(token)
        self.sent_length = position + 1
        return [*events, self._commit(origin)]

    def _commit(self, origin: Origin) -> Committed:
        position = self.final_length
        token = self._tokens[position]
        self.final_length += 1
        token.origin, token.to_judge = origin, False
        token.risk = self._unread_risk(position)
        self._count_committed(token)
        if token.token_id in self.eos_token_ids:
            self.finish_reason = FinishReason.STOP
        elif self.final_length >= self.limit:
            self.finish_reason = FinishReason.LENGTH
        logprobs = self._logprobs.of_token(position, token, origin)
        return Committed(
            position, token.token_id, origin, logprobs=logprobs, proposal=token.proposal, fired=token.fired
        )

    def _count_committed(self, token: TextToken) -> None:
        assert token.origin is not None, "a final token has an origin"
        self.tally.committed(token.origin, token.risk, caught=token.overridden)

    def _commit_skipped(self) -> list[SessionEvent]:
        """Commit drafted tokens up to the next fire, or to a token that the cloud is asked about."""
        events: list[SessionEvent] = []
        if not (self.skips_are_final or self._alone):
            return events
        end = next(self._to_judge(self.final_length), len(self.text))
        while self.final_length < end and not is_asked_about(self.final_length, self.spans, self.sent_length):
            unverified = self._alone or self._tokens[self.final_length].unasked
            events.append(self._commit(Origin.UNVERIFIED if unverified else Origin.DRAFT))
        return events

    def _truncate(self, length: int) -> Retracted:
        """Withdraw the tokens from `length` on, all of them provisional."""
        self.tally.retracted_tokens += len(self.text) - length
        self._cut(length)
        self.spans = deque(span for span in self.spans if span.end <= length)  # the cloud still answers these
        return Retracted(length)

    def _cut(self, length: int) -> None:
        self._tokens.cut(length)
        self.sent_length = min(self.sent_length, length)

    def _to_judge(self, start: int) -> Iterator[int]:
        """Return the provisional positions from `start` on that the cloud has to judge, in order."""
        return self._tokens.to_judge(max(start, self.final_length))

    def _unread_risk(self, position: int) -> float:
        """Return the risk of a drafted token that the cloud has not read; 0 for any other token."""
        token = self.token(position)
        if token is None or token.proposal is None or token.overridden or position < self.read_length:
            return 0.0
        return token.proposal.signal.risk

    def _mark_read(self, length: int) -> None:
        self.read_length = max(self.read_length, length)
