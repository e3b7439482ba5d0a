"""A generation of one text: Drafts in, Verdicts and Continuations out."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chaperone_common.beams.frames import ForestFrame
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import (
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
from cloud_supervisor.conversations.exchange import Exchange
from cloud_supervisor.model.ports import Urgency
from cloud_supervisor.observation import Answered

# A drafter whose tokens almost never stand costs more than streaming. Below this share of its last tokens a device is
# held to spans of one token. A pair of unrelated models still agrees on a fifth of them.
_LEAST_ACCEPTED = 0.05
_RECENT_TOKENS = 32


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
    """The loop of one stream that writes one text."""

    def __init__(self, exchange: Exchange, session: CloudSession, keep: Callable[[Sequence[int]], None]) -> None:
        """`keep` receives the text of a session that ends, so that the next turn can refer to it."""
        self._exchange = exchange
        self._session = session
        self._keep = keep
        self._acceptance = Acceptance()
        self._held_to_one = False  # the device may send spans of one token only
        self._answered = False

    async def frames(self, context_tokens: int) -> AsyncGenerator[ServerFrame, None]:
        """Answer the device's frames, up to Closed. Raises what ends the stream."""
        session, inbox = self._session, self._exchange.stream.inbox
        async with aclosing(self._exchange.begin(session.text, context_tokens)) as begun:
            async for beginning in begun:
                yield beginning
        while True:
            request: VerificationRequest | None
            arrived_at = self._exchange.clock.now()
            if session.writes and inbox.empty:
                request = session.writing()
            else:
                arrived, arrived_at = await self._exchange.next()
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

    async def _forward(self, request: VerificationRequest, arrived_at: float) -> _Answer:
        if not request.num_choices:
            return _Answer((), 0, 0)
        deadline_ms = self._session.deadline_ms if isinstance(request.frame, Draft) else 0
        exchange = self._exchange
        result = await exchange.queue.forward(
            exchange.key,
            request.tree,
            request.num_choices,
            exchange.opening.sampling,
            top_logprobs=None if isinstance(request.frame, Close) else exchange.opening.top_logprobs,
            first_reported=request.first_reported,
            deadline_ms=exchange.time_left_ms(deadline_ms, arrived_at),
            tenant=exchange.key.tenant,
            urgency=Urgency.VERIFY if isinstance(request.frame, Draft) else Urgency.WRITE,
        )
        return _Answer(
            [choice.token_id for choice in result.choices],
            result.queue_us,
            result.compute_us,
            logprobs=[choice.logprobs for choice in result.choices if choice.logprobs is not None],
        )

    def _check_size(self, frame: Draft) -> None:
        size, most = len(frame.token_ids) + len(frame.branches), self._exchange.limits.max_span_tokens
        if size > most:
            raise InvalidRequest(f"token_ids: {size} in one Draft, at most {most} are allowed, branches included")

    def _charge(self, request: VerificationRequest | None) -> None:
        """Charge the tenant for the choices of a forward. A frame that needs none, such as a stale one, costs one."""
        admission, tenant = self._exchange.admission, self._exchange.key.tenant
        admission.check_work(tenant)
        choices = request.num_choices + len(request.tree.branches) if request is not None and request.num_choices else 1
        admission.charge(tenant, choices)

    def _note(self, request: VerificationRequest, reply: ServerFrame, arrived_at: float) -> None:
        """Report an answer, and remember the progress that it is."""
        if not isinstance(reply, Verdict | Continuation | Closed):
            return
        exchange, judged = self._exchange, len(request.judged)
        now = exchange.clock.now()
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
            exchange.progress()
        if verified:  # tokens after the first that does not stand say nothing
            self._acceptance.note(min(verified, accepted + 1), accepted)
        exchange.admission.grow(exchange.key, len(self._session.text))
        exchange.observer.notice(
            Answered(
                stream=exchange.stream.number,
                tenant=exchange.key.tenant,
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
                since_open_s=now - exchange.stream.began_at,
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
