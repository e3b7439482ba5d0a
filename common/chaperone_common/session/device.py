"""The device's end of one generation: the frames that it sends, and those that it applies to its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from chaperone_common.beams.frames import BeamVerdict
from chaperone_common.errors import ChaperoneError, ProtocolViolation, VersionMismatch, error_from_status
from chaperone_common.frames import (
    Close,
    Closed,
    Continuation,
    Draft,
    Encoded,
    Failure,
    Open,
    Opened,
    ServerFrame,
    Verdict,
)
from chaperone_common.ranges import MAX_COUNT
from chaperone_common.session.closing import ClosingAudit
from chaperone_common.session.device_text import DeviceText
from chaperone_common.session.events import Audited, Drafted, SessionEvent
from chaperone_common.session.patience import Patience
from chaperone_common.session.questions import asked_length
from chaperone_common.session.text_token import TextToken
from chaperone_common.session.transitions import State, StreamEvent, step
from chaperone_common.session.verdicts import (
    begins_takeover,
    check_deviations,
    check_ids,
    check_verdict,
    is_replay,
    origins,
)
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import OnDeviation, Origin, Proposal, Span


class DeviceSession(DeviceText):
    """The device's state of one generation: its text, and the stream on which the cloud is asked about it.

    Methods that change the state return a list of `SessionEvent`s, or the frame to send. They send nothing themselves.
    """

    def __init__(
        self,
        open_frame: Open,
        *,
        limit: int,
        on_deviation: OnDeviation = OnDeviation.KEEP,
        vocabulary_size: int = MAX_COUNT + 1,
    ) -> None:
        """Start from an Open; `limit` is the length at which the text is full, prompt included.

        With `OnDeviation.RETRACT` skipped tokens stay provisional, and the cloud judges them like fired ones.
        """
        super().__init__(open_frame, limit=limit, on_deviation=on_deviation, vocabulary_size=vocabulary_size)
        self.opening = open_frame
        self.state = step(State.NEW, StreamEvent.OPEN)
        self.opened = False  # the cloud has answered the Open of this stream
        self.prefilled = False
        self.max_span_tokens: int | None = None  # the cloud's limit for one Draft, from its Opened
        self.prefill_us = 0
        self.cached_tokens: int | None = None  # of the prompt, that the cloud held already; None until it is read
        self._gated = False  # the gate has skipped a token, so that a Draft carries risks
        self._deadline_ms = 0  # the last deadline sent on this stream; 0: none yet
        self._closing = ClosingAudit()
        self._reopened = False  # a new stream was opened, and the cloud has not answered on it
        self._vocabulary_size = vocabulary_size
        self._patience = Patience()

    @property
    def _settled(self) -> int:
        """The position up to which a Draft asks for no judgement: tokens below it are final, or will be.

        They become final once the cloud confirms the spans in flight. If nothing is in flight, an interrupted takeover
        has left provisional tokens, and all of these need a judgement. The token that the cloud chooses after a span
        needs none, unless tokens after it were skipped.
        """
        if not self.skips_are_final or self.following or self.stranded:
            return self.final_length
        asked = asked_length(self.spans, self.sent_length)
        fire = next(self._to_judge(asked), len(self.text))
        return fire if fire > asked else self.final_length

    @property
    def stranded(self) -> bool:
        """True if some of the text is provisional, and nothing in flight can make it final."""
        return not self.spans and not self.following and self.final_length < len(self.text)

    @property
    def outgrown(self) -> bool:
        """True if a span in flight is larger than the cloud's limit, which a reconnection may have lowered."""
        most = self.max_span_tokens
        return most is not None and any(len(span.token_ids) + len(span.branches) > most for span in self.spans)

    @property
    def audit_pending(self) -> bool:
        """True if a Close with tokens to audit was sent, and the cloud has not answered it."""
        return self.state is State.CLOSING and self._closing.pending

    @property
    def closed(self) -> bool:
        """True if the cloud has answered the Close."""
        return self.state is State.DONE

    @property
    def following(self) -> bool:
        """True while the cloud writes, and the device follows."""
        return self.state is State.CLOUD_WRITES

    def draft(self, proposal: Proposal, *, fires: bool, unasked: bool = False) -> list[SessionEvent]:
        """Append a drafted token. After a fire it is provisional, else it is final as soon as all tokens before it are.

        An `unasked` token fired, but the cloud must not be asked about it. It does not count as a fire, and becomes
        final as unverified. With `OnDeviation.RETRACT` each token stays provisional. Raises InvalidRequest if
        log-probabilities are wanted and the proposal has none.
        """
        self._logprobs.check_proposal(proposal)
        position, token_id = len(self.text), proposal.token_id
        self._tokens.append(TextToken(token_id, proposal, fired=fires, unasked=unasked, to_judge=fires))
        if fires:
            self.tally.fired += 1
        else:
            self._gated = self.skips_are_final
        drafted = Drafted(position, token_id, proposal.signal, fires)
        # While the cloud writes, skipped tokens wait for its tokens.
        return [drafted] if self.following else [drafted, *self._commit_skipped()]

    def send(
        self,
        *,
        continuation_tokens: int = 0,
        max_tokens: int | None = None,
        deadline_ms: int = 0,
        branches: Sequence[BranchToken] = (),
    ) -> Draft:
        """Return a Draft of all unsent tokens, at most `max_tokens`. Without any, it asks the cloud to write.

        `branches` are sent with these tokens, parents before their children. They are left out if the cloud judges none
        of the tokens, because it could not reach them. `deadline_ms` is sent only if it differs from the last one; 0
        keeps the last one.
        """
        self.state = step(self.state, StreamEvent.DRAFT)
        end = len(self.text) if max_tokens is None else min(len(self.text), self.sent_length + max_tokens)
        tokens = tuple(self.text[self.sent_length : end])
        final_before = max(self.sent_length, min(self._settled, end + 1))
        reachable = tuple(branches) if final_before < end else ()
        span = Span(self.revision, self.sent_length, tokens, final_before, continuation_tokens, reachable)
        risks = tuple(self._unread_risk(position) for position in range(span.start, end)) if self._gated else ()
        self.spans.append(span)
        self.sent_length = end
        self.tally.requests += 1
        changed_ms = 0 if deadline_ms == self._deadline_ms else deadline_ms
        self._deadline_ms = deadline_ms or self._deadline_ms
        return Draft(span.revision, span.start, tokens, risks, final_before, continuation_tokens, changed_ms, reachable)

    def close(self, *, audit_share: float = 1.0) -> Close:
        """Return a Close with the committed tokens that the cloud has not read, for their audit.

        `audit_share` is the share of such generations that are audited; 0 means that this one is not.
        """
        self.state = step(self.state, StreamEvent.CLOSE)
        start = min(self.read_length, self.final_length)
        self._closing = ClosingAudit(start, self.final_length, audit_share)
        return Close(start, tuple(self.text[start : self._closing.end]))

    def reopen(self, *, lost: bool = True) -> Open:
        """Return the Open of a new stream after a failure. It holds the final tokens that the cloud has read.

        It counts as a reconnection if the cloud was `lost`.
        A takeover ends with its stream. Provisional tokens stay provisional. Tokens that were sent are sent again, and
        judged. With the next Draft, the cloud audits the final tokens that it has not read. Raises ProtocolViolation
        unless the last stream failed while the text was being written.
        """
        if lost and self.finish_reason is not None:
            raise ProtocolViolation(f"reopen: the text has ended at {self.final_length}; nothing is left to write")
        self.state = step(self.state, StreamEvent.REOPEN)
        for token in self._tokens.between(self.final_length, self.sent_length):
            token.to_judge = True
        self.sent_length = self.read_length = min(self.read_length, self.final_length)
        self.tally.requests -= len(self.spans)  # each is asked again
        self.spans.clear()
        self.revision = 0
        self.opened = self.prefilled = False
        self._deadline_ms = 0
        self._reopened = lost
        return replace(self.opening, committed_token_ids=tuple(self.text[self.prompt_length : self.read_length]))

    def fail(self, error: ChaperoneError) -> NoReturn:
        """End the stream with an error, such as a deadline that passed on the device, and raise it."""
        self.state = step(self.state, StreamEvent.FAILURE)
        raise error

    def apply(self, frame: ServerFrame) -> list[SessionEvent]:
        """Apply a frame from the cloud. Raises ProtocolViolation, or the error that a Failure carries.

        The stream fails with VersionMismatch if log-probabilities are wanted and the cloud sends none.
        """
        before = self._progress
        events = self._apply(frame)
        self._patience.note(progress=before != self._progress, tokens_left=self.limit - self.final_length)
        return events

    @property
    def _progress(self) -> tuple[object, ...]:
        lengths = (self.final_length, self.read_length, len(self.spans))
        return (*lengths, self.state, self.opened, self.prefilled)

    def _apply(self, frame: ServerFrame) -> list[SessionEvent]:
        match frame:
            case Opened():
                self.state = step(self.state, StreamEvent.OPENED)
                self.opened = True
                self.prefilled = self.prefilled or frame.prefilled
                self.max_span_tokens = frame.max_span_tokens or self.max_span_tokens
                self._count(frame)
                self.prefill_us += frame.compute_us
                if frame.prefilled and self.cached_tokens is None:
                    self.cached_tokens = frame.cached_tokens
                self.tally.reconnects += self._reopened
                self._reopened = False
            case Encoded():  # not of the text
                pass
            case BeamVerdict():
                raise ProtocolViolation("beams: a verdict on beams, and the Open asked for none; use another cloud")
            case Verdict() if self.state is State.CLOSING:
                self._count(frame)
                self._closing.late(frame.deviations)
            case Continuation() if self.state is State.CLOSING:
                self._count(frame)
            case Verdict():
                self._logprobs.take(frame)
                return self._apply_verdict(frame)
            case Continuation():
                self._logprobs.take(frame)
                return self._apply_continuation(frame)
            case Closed():
                closing = self._closing
                deviations = closing.deviations(frame.deviations)
                self.state = step(self.state, StreamEvent.CLOSED)
                self._count(frame)
                return self._audit(closing.start, closing.end, deviations, closing.weight)
            case Failure():
                self.fail(error_from_status(frame.status, frame.message, retry_after_ms=frame.retry_after_ms))
        return []

    def _apply_verdict(self, verdict: Verdict) -> list[SessionEvent]:
        if verdict.position < self.final_length and is_replay(verdict, self.spans):
            return []
        if not self.spans:
            raise ProtocolViolation(f"verdict at position {verdict.position} answers no span")
        span = self.spans[0]
        check_verdict(verdict, span, self.text, limit=self.limit)
        token_origins = origins(verdict, span)
        tokens = (verdict.token_id, *verdict.further_token_ids)
        already_final = verdict.position < self.final_length
        if already_final and verdict.further_token_ids:
            raise ProtocolViolation(f"further_token_ids: they follow {verdict.position}, which is final already")
        check_ids(tokens, self._vocabulary_size)
        audited = min(span.final_before, span.end)
        unread = min(max(span.start, self.read_length), audited)
        check_deviations(verdict.deviations, unread, audited)
        begins = begins_takeover(verdict, span, limit=self.limit, eos_token_ids=self.eos_token_ids)
        self._require_logprobs(verdict.position + len(tokens))
        self.state = step(self.state, StreamEvent.TAKEOVER if begins else StreamEvent.VERDICT)
        self.spans.popleft()
        upcoming = self.spans[0] if self.spans and verdict.position == span.end else None
        self._count(verdict)
        events = self._audit(unread, audited, verdict.deviations)
        self._mark_read(span.end if already_final else verdict.position + len(tokens))
        while self.final_length < verdict.position:
            events.append(self._commit(Origin.VERIFIED))
        for position, (token_id, origin) in enumerate(zip(tokens, token_origins, strict=True), verdict.position):
            events += self._take(position, token_id, origin)
        if upcoming is not None and not self.spans and not begins:
            self._follow_contradicted(upcoming)
        self.revision = max(self.revision, verdict.revision)
        return events if self.following else events + self._commit_skipped()

    def _follow_contradicted(self, span: Span) -> None:
        """Wait for a takeover if the cloud's token after one span contradicts the next span, which is `span`.

        The cloud treats that token as an override of `span`, and takes over if `span` allows it. Call this only if
        `span` is the next span that the cloud reads.
        """
        if span.continuation_tokens and self.finish_reason is None:
            self.state = step(self.state, StreamEvent.TAKEOVER)

    def _apply_continuation(self, frame: Continuation) -> list[SessionEvent]:
        end = frame.start + len(frame.token_ids)
        if frame.token_ids and end <= self.final_length and tuple(self.text[frame.start : end]) == frame.token_ids:
            return []  # a replay
        if frame.token_ids and frame.start != self.final_length:
            raise ProtocolViolation(f"continuation starts at {frame.start}, the final text ends at {self.final_length}")
        check_ids(frame.token_ids, self._vocabulary_size)
        self._require_logprobs(end)
        self.state = step(self.state, StreamEvent.HAND_BACK if frame.handed_back else StreamEvent.CONTINUATION)
        self._count(frame)
        events: list[SessionEvent] = []
        for token_id in frame.token_ids:
            events += self._take(self.final_length, token_id, Origin.TAKEOVER)
        self._mark_read(min(end, self.final_length))
        if frame.handed_back:
            events += self._commit_skipped()
        return events

    def _require_logprobs(self, end: int) -> None:
        """Check that the answer has those of the tokens up to `end` that it makes final, if they are wanted.

        Without any the stream fails: another replica, which reports none, may have continued it.
        """
        try:
            self._logprobs.require(self.final_length, end)
        except VersionMismatch as error:
            self.fail(error)

    def _audit(self, start: int, end: int, deviations: tuple[int, ...], weight: float = 1.0) -> list[SessionEvent]:
        self.tally.audited_tokens += end - start
        self.tally.deviations += len(deviations)
        return [Audited(start, end, deviations, weight)] if start < end else []

    def _count(self, frame: Opened | Verdict | Continuation | Closed) -> None:
        self.tally.cloud_queue_us += frame.queue_us
        self.tally.cloud_compute_us += frame.compute_us
