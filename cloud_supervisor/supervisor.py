"""The cloud's end of all generations: it receives frames of many devices, and answers each with frames of the cloud.

It does not depend on gRPC. So its host can be a gRPC server, a test or a simulator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudTimeout,
    InvalidRequest,
    ModelError,
    ModelMismatch,
    Overloaded,
    ProtocolViolation,
    Superseded,
    TokenizerMismatch,
    VersionMismatch,
    status_of,
)
from chaperone_common.frames import (
    API_VERSION,
    Arrived,
    Capabilities,
    ClientFrame,
    Closed,
    Draft,
    Failure,
    Open,
    Opened,
    ServerFrame,
)
from chaperone_common.session import CloudSession, VerificationRequest
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SessionId
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.inbox import Inbox
from cloud_supervisor.model.ports import ForwardQueue

_LOG = logging.getLogger(__name__)

MAX_DIGEST_SHOWN = 80  # characters of a device's text that a message quotes


@dataclass(slots=True)
class Counters:
    """Counts since the start, for operators and tests. The counts of a session are added when its stream ends."""

    streams: int = 0
    refused: int = 0
    cancelled: int = 0  # streams that ended without a Close: the user stopped, or the connection broke
    stale_frames: int = 0
    takeovers: int = 0
    hand_backs: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    choices: Sequence[int]
    queue_us: int
    compute_us: int


class Supervisor:
    """Serves the sessions of one large model."""

    def __init__(
        self, queue: ForwardQueue, capabilities: Capabilities, limits: LimitsConfig, clock: Clock | None = None
    ) -> None:
        """Serve up to `limits.max_sessions` sessions; `queue` holds their requests to the model."""
        self.capabilities = capabilities
        self.counters = Counters()
        self._queue = queue
        self._limits = limits
        self._clock = clock or MonotonicClock()
        self._inboxes: dict[SessionId, Inbox] = {}
        self._grace_timers: dict[SessionId, asyncio.TimerHandle] = {}  # of sessions whose device may reconnect

    @property
    def sessions(self) -> int:
        """Streams that are open now."""
        return len(self._inboxes)

    async def supervise(self, frames: AsyncIterator[ClientFrame]) -> AsyncGenerator[ServerFrame, None]:
        """Serve one generation. The last frame is Closed or Failure; a bug ends this stream only."""
        self.counters.streams += 1
        inbox = Inbox(frames, self._limits.max_frames_waiting, self._clock)
        try:
            async with aclosing(self._serve(inbox)) as answers:
                async for frame in answers:
                    yield frame
            return
        except Cancelled as error:
            failure = self._cancelled(error)
        except (asyncio.CancelledError, GeneratorExit):  # the host ended the stream before the inbox noticed
            self._cancelled(Cancelled("the host ended the stream"))
            raise
        except ModelError as error:  # found in a forward: the device cannot fix it
            _LOG.error("stream failed: %s", error.message)
            self.counters.refused += 1
            failure = Failure("INTERNAL", f"the cloud's {error.message}")
        except ChaperoneError as error:
            _LOG.info("stream refused: %s: %s", status_of(error), error.message)
            self.counters.refused += 1
            failure = _failure(error)
        except Exception:
            _LOG.exception("stream failed")
            self.counters.refused += 1
            failure = Failure("INTERNAL", "the supervisor failed; its log has the details")
        finally:
            await inbox.close()  # before the last frame: the host may end the stream with it
        yield failure

    def _cancelled(self, error: Cancelled) -> Failure:
        """Count a stream that the device or the host ended. This is not a refusal: a device may stop at any time."""
        _LOG.debug("stream cancelled: %s", error.message)
        self.counters.cancelled += 1
        return _failure(error)

    async def _serve(self, inbox: Inbox) -> AsyncGenerator[ServerFrame, None]:
        opening = (await self._next(inbox, self._limits.open_timeout_s, "open_timeout_s: no Open arrived")).frame
        if not isinstance(opening, Open):
            raise ProtocolViolation(f"frame: {type(opening).__name__} before Open")
        session = self._admit(opening, inbox)
        closed = False
        try:
            async with aclosing(self._converse(opening, session, inbox)) as answers:
                async for frame in answers:
                    closed = isinstance(frame, Closed)
                    yield frame
        finally:
            self._count(session)
            if self._inboxes.get(opening.session_id) is inbox:
                del self._inboxes[opening.session_id]
            if opening.session_id not in self._inboxes:  # else a newer stream of the session is open
                self._free(opening.session_id, after_s=0.0 if closed else self._limits.reconnect_grace_s)

    def _count(self, session: CloudSession) -> None:
        self.counters.stale_frames += session.stale_frames
        self.counters.takeovers += session.takeovers
        self.counters.hand_backs += session.hand_backs

    def _free(self, session_id: SessionId, *, after_s: float) -> None:
        """Free a session's KV cache after `after_s`. Until then, a device that lost its connection may reopen it."""
        self._end_grace(session_id)
        if after_s > 0:
            timer = asyncio.get_running_loop().call_later(after_s, self._free_now, session_id)
            self._grace_timers[session_id] = timer
        else:
            self._queue.free(session_id)

    def _free_now(self, session_id: SessionId) -> None:
        del self._grace_timers[session_id]
        self._queue.free(session_id)

    def _end_grace(self, session_id: SessionId) -> None:
        if (timer := self._grace_timers.pop(session_id, None)) is not None:
            timer.cancel()

    async def _converse(self, opening: Open, session: CloudSession, inbox: Inbox) -> AsyncGenerator[ServerFrame, None]:
        context_tokens = self.capabilities.context_tokens
        yield Opened(False, context_tokens, max_span_tokens=self._limits.max_span_tokens)
        prefill = await self._prefill(opening, session, inbox)
        yield Opened(True, context_tokens, prefill.queue_us, prefill.compute_us)
        while True:
            request: VerificationRequest | None
            arrived_at = self._clock.now()
            if session.writes and inbox.empty:
                request = session.writing()
            else:
                arrival = await self._next(inbox, self._limits.idle_timeout_s, "idle_timeout_s: no frame arrived")
                frame, arrived_at = arrival.frame, arrival.at
                if isinstance(frame, Open):
                    raise ProtocolViolation("frame: a second Open in one stream")
                if isinstance(frame, Draft):
                    self._check_size(frame)
                    if inbox.closing:  # the device needs no more verdicts; the Close carries the unread text
                        continue
                    if session.hands_back(frame):
                        yield session.hand_back()
                request = session.receive(frame)
            if request is None:
                continue
            answer = await self._forward(opening, session, request, arrived_at)
            reply = session.answer(request, answer.choices, answer.queue_us, answer.compute_us)
            yield reply
            if isinstance(reply, Closed):
                return

    @staticmethod
    async def _next(inbox: Inbox, timeout_s: float, missing: str) -> Arrived[ClientFrame]:
        """Wait for a frame for up to `timeout_s`, because a silent stream takes the place of another."""
        try:
            async with asyncio.timeout(timeout_s):
                return await inbox.get()
        except TimeoutError:
            raise CloudTimeout(f"{missing} within {timeout_s:g} s; open a new stream") from None

    def _admit(self, opening: Open, inbox: Inbox) -> CloudSession:
        """Check an Open and make it the session's newest stream."""
        if opening.api_version != API_VERSION:
            raise VersionMismatch(
                f"api_version: the device speaks {opening.api_version}, this cloud {API_VERSION}; "
                f"update the {'device' if opening.api_version < API_VERSION else 'cloud'}"
            )
        if opening.tokenizer_digest != self.capabilities.tokenizer_digest:
            raise TokenizerMismatch(
                f"tokenizer_digest: the device has {opening.tokenizer_digest[:MAX_DIGEST_SHOWN]!r}, this cloud "
                f"{self.capabilities.tokenizer_digest}; pull the same model pair on both ends"
            )
        if opening.model_digest not in ("", self.capabilities.model_digest):
            raise ModelMismatch(
                f"model_digest: the text was begun with {opening.model_digest[:MAX_DIGEST_SHOWN]!r}, this cloud serves "
                f"{self.capabilities.model} with {self.capabilities.model_digest!r}; begin the text again, or serve "
                "the model that began it"
            )
        session = CloudSession(
            opening,
            context_tokens=self.capabilities.context_tokens,
            vocabulary_size=self.capabilities.vocabulary_size,
        )
        older = self._inboxes.get(opening.session_id)
        if older is None and len(self._inboxes) >= self._limits.max_sessions:
            raise Overloaded(
                f"sessions: {len(self._inboxes)} are open, the limit is {self._limits.max_sessions}; try again later",
                retry_after_ms=1000,
            )
        if older is not None:
            older.interrupt(Superseded("session_id: a newer stream of this session took over"))
        self._inboxes[opening.session_id] = inbox
        self._end_grace(opening.session_id)
        return session

    async def _prefill(self, opening: Open, session: CloudSession, inbox: Inbox) -> _Answer:
        """Read the prompt, except its last token. The first span's forward reads that token, and chooses the next one.

        Stops as soon as the stream closes: the queue drops the rest of the prompt, and its cost is not reported.
        """
        prompt = TokenTree(tuple(session.text[:-1]))
        if not prompt.token_ids or inbox.closing:
            return _Answer((), 0, 0)
        reading = asyncio.ensure_future(self._queue.forward(opening.session_id, prompt, 0, opening.sampling))
        closing = asyncio.ensure_future(inbox.until_closing())
        try:
            await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return _Answer((), 0, 0)
            result = reading.result()
            return _Answer((), result.queue_us, result.compute_us)
        finally:
            closing.cancel()
            reading.cancel()
            await asyncio.gather(reading, closing, return_exceptions=True)  # before the session is freed

    async def _forward(
        self, opening: Open, session: CloudSession, request: VerificationRequest, arrived_at: float
    ) -> _Answer:
        if not request.num_choices:
            return _Answer((), 0, 0)
        deadline_ms = session.deadline_ms if isinstance(request.frame, Draft) else 0
        result = await self._queue.forward(
            opening.session_id,
            request.tree,
            request.num_choices,
            opening.sampling,
            deadline_ms=self._time_left_ms(deadline_ms, arrived_at),
        )
        return _Answer([choice.token_id for choice in result.choices], result.queue_us, result.compute_us)

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


def _failure(error: ChaperoneError) -> Failure:
    return Failure(status_of(error), error.message, error.retry_after_ms)
