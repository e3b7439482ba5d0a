"""One generation in the cloud: frames in, forwards between, frames out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chaperone_common.beams.frames import ForestFrame
from chaperone_common.clock import Clock
from chaperone_common.errors import CloudTimeout, CloudUnavailable, InvalidRequest, ProtocolViolation
from chaperone_common.frames import (
    Arrived,
    ClientFrame,
    Close,
    Closed,
    Continuation,
    Draft,
    Open,
    Opened,
    ServerFrame,
    Verdict,
)
from chaperone_common.logprobs import ChoiceLogprobs
from chaperone_common.session import CloudSession, VerificationRequest
from cloud_supervisor.admission import Admission, SessionKey
from cloud_supervisor.caller import Caller
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.inbox import Inbox
from cloud_supervisor.model.ports import ForwardQueue, Urgency
from cloud_supervisor.observation import Answered, Observer, Outcome, Prefilled
from cloud_supervisor.reading import Reading

# A drafter whose tokens almost never stand costs more than streaming. Below this share of its last tokens a device is
# held to spans of one token. A pair of unrelated models still agrees on a fifth of them.
_LEAST_ACCEPTED = 0.05
_RECENT_TOKENS = 32


@dataclass(slots=True, eq=False)
class Stream:
    """A stream, its caller, and how it ended."""

    number: int
    caller: Caller
    inbox: Inbox
    traceparent: str
    began_at: float
    began: bool = False  # its Open was admitted
    outcome: Outcome = Outcome.CANCELLED


@dataclass(frozen=True, slots=True)
class _Answer:
    choices: Sequence[int]
    queue_us: int
    compute_us: int
    logprobs: Sequence[ChoiceLogprobs] = ()  # one for each choice, if the device wants them


class Acceptance:
    """The share of the last tokens of a device that stood."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque()
        self._verified = 0
        self._accepted = 0

    def note(self, verified: int, accepted: int) -> None:
        """Take the outcome of one span."""
        self._recent.append((verified, accepted))
        self._verified += verified
        self._accepted += accepted
        while self._verified - self._recent[0][0] >= _RECENT_TOKENS:
            old_verified, old_accepted = self._recent.popleft()
            self._verified -= old_verified
            self._accepted -= old_accepted

    @property
    def is_hopeless(self) -> bool:
        """Almost none of the last tokens stood."""
        return self._verified >= _RECENT_TOKENS and self._accepted < _LEAST_ACCEPTED * self._verified


class Conversation:
    """The loop of one stream after its Open was admitted."""

    def __init__(
        self,
        key: SessionKey,
        opening: Open,
        session: CloudSession,
        stream: Stream,
        queue: ForwardQueue,
        admission: Admission,
        limits: LimitsConfig,
        observer: Observer,
        clock: Clock,
        keep: Callable[[Sequence[int]], None],
    ) -> None:
        """`keep` receives the text of a session that ends, so that the next turn can refer to it."""
        self._key = key
        self._opening = opening
        self._session = session
        self._stream = stream
        self._inbox = stream.inbox
        self._queue = queue
        self._admission = admission
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._keep = keep
        self._progress_at = clock.now()
        self._acceptance = Acceptance()
        self._held_to_one = False  # the device may send spans of one token only
        self._answered = False

    async def frames(self, context_tokens: int) -> AsyncGenerator[ServerFrame, None]:
        """Answer the device's frames, up to Closed. Raises what ends the stream."""
        session, inbox = self._session, self._inbox
        async with aclosing(self._begin(context_tokens)) as begun:
            async for beginning in begun:
                yield beginning
        while True:
            request: VerificationRequest | None
            arrived_at = self._clock.now()
            if session.writes and inbox.empty:
                request = session.writing()
            else:
                arrived, arrived_at = await self._next()
                frame = _of_one_text(arrived)
                if isinstance(frame, Draft):
                    self._check_size(frame)
                    if inbox.closing:  # the device needs no more verdicts; the Close carries the unread text
                        continue
                    if session.hands_back(frame):
                        yield session.hand_back()
                request = session.receive(frame)
                if isinstance(frame, Close):
                    self._keep([*session.text[: frame.start], *frame.token_ids])
            self._charge(request)
            if request is None:
                continue
            answer = await self._forward(request, arrived_at)
            reply = session.answer(request, answer.choices, answer.queue_us, answer.compute_us, answer.logprobs)
            self._note(request, reply, arrived_at)
            yield reply
            if isinstance(reply, Closed):
                return
            if self._acceptance.is_hopeless and not self._held_to_one:
                self._held_to_one = True
                yield Opened(True, context_tokens, max_span_tokens=1)

    async def _begin(self, context_tokens: int) -> AsyncGenerator[ServerFrame, None]:
        """Read the text, and report that, with the rows of the encoding if the device wants them."""
        yield Opened(False, context_tokens, max_span_tokens=self._limits.max_span_tokens)
        reading = Reading(
            self._key,
            self._opening,
            self._inbox,
            self._queue,
            self._admission,
            chunk_tokens=self._limits.prefill_chunk_tokens,
        )
        async with aclosing(reading.encode()) as rows:
            async for encoded in rows:
                yield encoded
        await reading.rest(self._session.text)
        self._progress_at = self._clock.now()
        if not reading.lacks_rows:  # else the stream closes, and needs no more than that
            yield self._prefilled(reading, context_tokens)

    async def _next(self) -> Arrived[ClientFrame]:
        """Wait for the next frame, while the stream makes progress and is not too old."""
        limits, now = self._limits, self._clock.now()
        left_s = self._stream.began_at + limits.max_stream_s - now
        if left_s <= 0:
            raise CloudUnavailable(
                f"max_stream_s: the stream has been open for {limits.max_stream_s:g} s; open it again", retry_after_ms=1
            )
        idle_s = max(0.0, self._progress_at + limits.idle_timeout_s - now)
        if left_s < idle_s:
            try:
                return await next_frame(self._inbox, left_s, "")
            except CloudTimeout:
                return await self._next()
        return await next_frame(self._inbox, idle_s, "idle_timeout_s: no progress", limits.idle_timeout_s)

    def _prefilled(self, reading: Reading, context_tokens: int) -> Opened:
        """Report what was read before the first Draft."""
        queue_us, compute_us = reading.queue_us, reading.compute_us
        if reading.tokens:
            number, tenant = self._stream.number, self._key.tenant
            self._observer.notice(
                Prefilled(number, tenant, reading.tokens, queue_us / 1e6, compute_us / 1e6, encoded=reading.encoded)
            )
        return Opened(True, context_tokens, queue_us, compute_us, cached_tokens=reading.cached_tokens)

    async def _forward(self, request: VerificationRequest, arrived_at: float) -> _Answer:
        if not request.num_choices:
            return _Answer((), 0, 0)
        deadline_ms = self._session.deadline_ms if isinstance(request.frame, Draft) else 0
        result = await self._queue.forward(
            self._key,
            request.tree,
            request.num_choices,
            self._opening.sampling,
            top_logprobs=None if isinstance(request.frame, Close) else self._opening.top_logprobs,
            first_reported=request.first_reported,
            deadline_ms=self._time_left_ms(deadline_ms, arrived_at),
            tenant=self._key.tenant,
            urgency=Urgency.VERIFY if isinstance(request.frame, Draft) else Urgency.WRITE,
        )
        return _Answer(
            [choice.token_id for choice in result.choices],
            result.queue_us,
            result.compute_us,
            logprobs=[choice.logprobs for choice in result.choices if choice.logprobs is not None],
        )

    def _time_left_ms(self, deadline_ms: int, arrived_at: float) -> float | None:
        """Return the time left until a Draft's deadline, or None without one. It runs from the arrival of the Draft."""
        if not deadline_ms:
            return None
        waited_ms = (self._clock.now() - arrived_at) * 1000
        if waited_ms >= deadline_ms:
            raise CloudTimeout(
                f"deadline_ms: the Draft waited {waited_ms:.0f} ms for the frames before it, longer than its deadline "
                f"of {deadline_ms} ms"
            )
        return deadline_ms - waited_ms

    def _check_size(self, frame: Draft) -> None:
        size = len(frame.token_ids) + len(frame.branches)
        if size > self._limits.max_span_tokens:
            raise InvalidRequest(
                f"token_ids: {size} in one Draft, at most {self._limits.max_span_tokens} are allowed, branches included"
            )

    def _charge(self, request: VerificationRequest | None) -> None:
        """Charge the tenant for the choices of a forward. A frame that needs none, such as a stale one, costs one."""
        self._admission.check_work(self._key.tenant)
        choices = request.num_choices + len(request.tree.branches) if request is not None and request.num_choices else 1
        self._admission.charge(self._key.tenant, choices)

    def _note(self, request: VerificationRequest, reply: ServerFrame, arrived_at: float) -> None:
        """Report an answer, and remember the progress that it is."""
        if not isinstance(reply, Verdict | Continuation | Closed):
            return
        now, judged = self._clock.now(), len(request.judged)
        audited = accepted = own = takeover = 0
        match reply, request.frame:
            case Verdict(), Draft(final_before=final_before) if request.num_choices:
                audited = min(judged, max(0, final_before - request.start))
                accepted = max(0, min(judged, reply.position - request.start) - audited)
                own = 1 + len(reply.further_token_ids)
            case Closed(), Close():
                audited = judged
            case Continuation(), _:
                takeover = len(reply.token_ids)
            case _:
                pass
        verified = judged - audited
        if request.num_choices:
            self._progress_at = now
        if verified:  # tokens after the first that does not stand say nothing
            self._acceptance.note(min(verified, accepted + 1), accepted)
        self._admission.grow(self._key, len(self._session.text))
        self._observer.notice(
            Answered(
                stream=self._stream.number,
                tenant=self._key.tenant,
                start=request.start,
                verified=verified,
                accepted=accepted,
                own=own,
                takeover=takeover,
                audited=audited,
                deviations=0 if isinstance(reply, Continuation) else len(reply.deviations),
                queue_s=reply.queue_us / 1e6,
                compute_s=reply.compute_us / 1e6,
                duration_s=now - arrived_at,
                first=not self._answered,
                since_open_s=now - self._stream.began_at,
            )
        )
        self._answered = True


def _of_one_text(frame: ClientFrame) -> Draft | Close:
    """Return a frame that continues one text, or ends it; raises ProtocolViolation for others."""
    if isinstance(frame, Open):
        raise ProtocolViolation("frame: a second Open in one stream")
    if isinstance(frame, ForestFrame):
        raise ProtocolViolation("forest: the Open asked for no beams; send Drafts")
    return frame


async def next_frame(
    inbox: Inbox, timeout_s: float, missing: str, shown_s: float | None = None
) -> Arrived[ClientFrame]:
    """Wait for a frame for up to `timeout_s`, because a silent stream takes the place of another."""
    try:
        async with asyncio.timeout(timeout_s):
            return await inbox.get()
    except TimeoutError:
        shown_s = timeout_s if shown_s is None else shown_s
        raise CloudTimeout(f"{missing} within {shown_s:g} s; open a new stream") from None
