"""The cloud's end of all generations: it receives frames of many devices, and answers each with frames of the cloud.

It does not depend on gRPC. So its host can be a gRPC server, a test or a simulator.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudUnavailable,
    ModelError,
    ModelMismatch,
    Overloaded,
    PrefixNotFound,
    ProtocolViolation,
    QuotaExceeded,
    Superseded,
    TokenizerMismatch,
    VersionMismatch,
    status_of,
    trace_of,
)
from chaperone_common.frames import API_VERSION, Capabilities, ClientFrame, Closed, Failure, Open, ServerFrame
from chaperone_common.session import CloudSession
from cloud_supervisor.admission import Admission, PromptOverQuota, SessionKey
from cloud_supervisor.caller import LOCAL, Caller
from cloud_supervisor.config import LimitsConfig, QuotasConfig
from cloud_supervisor.conversations.beams import BeamConversation, beams_of, check_beams
from cloud_supervisor.conversations.exchange import Exchange, Stream, next_frame
from cloud_supervisor.conversations.one_text import Conversation
from cloud_supervisor.conversations.reading import check_encoding, check_projector
from cloud_supervisor.inbox import Inbox
from cloud_supervisor.kept_texts import KeptTexts
from cloud_supervisor.model.ports import ForwardQueue
from cloud_supervisor.observation import Observer, Observers, Outcome, PrefixMissed, Refused, StreamBegan, StreamEnded

_LOG = logging.getLogger(__name__)

MAX_DIGEST_SHOWN = 80  # characters of a device's text that a message quotes
_HAND_OVER_MS = 100  # after which a device opens its stream again, on another server if there is one


@dataclass(slots=True)
class Counters:
    """Counts since the start, for operators and tests. The counts of a session are added when its stream ends."""

    streams: int = 0
    refused: int = 0
    prefixes_missed: int = 0  # streams that referred to a text that is not kept
    cancelled: int = 0  # streams that ended without a Close: the user stopped, or the connection broke
    stale_frames: int = 0
    takeovers: int = 0
    hand_backs: int = 0


class Supervisor:
    """Serves the sessions of one large model."""

    def __init__(
        self,
        queue: ForwardQueue,
        capabilities: Capabilities,
        limits: LimitsConfig,
        clock: Clock | None = None,
        *,
        admission: Admission | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Serve the sessions that `admission` admits; `queue` holds their requests to the model."""
        self.counters = Counters()
        self.capabilities = capabilities
        self._queue = queue
        self._limits = limits
        self._clock = clock or MonotonicClock()
        self._admission = admission or Admission(limits, QuotasConfig(), None, self._clock)
        self._observer = observer or Observers()
        self._kept_texts = KeptTexts(limits.max_kept_texts, limits.max_kept_tokens)
        self._numbers = itertools.count(1)
        self._opening: dict[Inbox, None] = {}  # streams without an Open, oldest first
        self._streams: dict[SessionKey, Stream] = {}
        self._grace_timers: dict[SessionKey, asyncio.TimerHandle] = {}  # of sessions whose device may reconnect
        self._draining = False

    @property
    def sessions(self) -> int:
        """Sessions that are open now."""
        return len(self._streams)

    @property
    def full(self) -> bool:
        """No further session is admitted."""
        return self._admission.full

    @property
    def draining(self) -> bool:
        """No new session is admitted, because the cloud is about to stop."""
        return self._draining

    def capabilities_for(self, caller: Caller) -> Capabilities:
        """Return the model and the limits of this cloud, with the quotas of the caller's tenant."""
        return replace(self.capabilities, quotas=self._admission.states(caller.tenant))

    def drain(self) -> None:
        """Refuse new sessions from now on. Open ones go on."""
        self._draining = True

    def hand_over(self) -> int:
        """End all open streams, with a Failure that sends their devices to another server; return their number."""
        streams = tuple(self._streams.values())
        for stream in streams:
            stream.inbox.interrupt(_shutting_down())
        return len(streams)

    def end_where(self, invalid: Callable[[Caller], bool], error: Callable[[], ChaperoneError]) -> None:
        """End the streams of all callers that `invalid` names, such as those whose token was revoked."""
        for stream in tuple(self._streams.values()):
            if invalid(stream.caller):
                stream.inbox.interrupt(error())

    async def supervise(
        self, frames: AsyncIterator[ClientFrame], caller: Caller = LOCAL, traceparent: str = ""
    ) -> AsyncGenerator[ServerFrame, None]:
        """Serve one generation. The last frame is Closed or Failure; a bug ends this stream only."""
        self.counters.streams += 1
        inbox = Inbox(frames, self._limits.max_frames_waiting, self._clock)
        stream = Stream(next(self._numbers), caller, inbox, traceparent, self._clock.now())
        try:
            async with aclosing(self._serve(stream)) as answers:
                async for frame in answers:
                    stream.outcome = Outcome.CLOSED if isinstance(frame, Closed) else stream.outcome
                    yield frame
            return
        except Cancelled as error:
            failure = self._cancelled(error)
        except (asyncio.CancelledError, GeneratorExit):  # the host ended the stream before the inbox noticed
            if stream.outcome is not Outcome.CLOSED:
                self._cancelled(Cancelled("the host ended the stream"))
            raise
        except ModelError as error:  # found in a forward: the device cannot fix it
            _LOG.error("stream failed: %s", trace_of(error))
            failure = self._failed(stream, f"the cloud's {error.message}")
        except ChaperoneError as error:
            failure = self._refused(stream, error)
        except Exception as error:
            _LOG.error("stream failed: %s", trace_of(error))
            failure = self._failed(stream, "the supervisor failed; its log has the details")
        finally:
            self._opening.pop(inbox, None)
            await inbox.close()  # before the last frame: the host may end the stream with it
            if stream.began:
                duration_s = self._clock.now() - stream.began_at
                self._observer.notice(StreamEnded(stream.number, caller.tenant, stream.outcome, duration_s))
        yield failure

    def _cancelled(self, error: Cancelled) -> Failure:
        """Count a stream that the device or the host ended. This is not a refusal: a device may stop at any time."""
        _LOG.debug("stream cancelled: %s", error.message)
        self.counters.cancelled += 1
        return _failure(error)

    def _failed(self, stream: Stream, message: str) -> Failure:
        self.counters.refused += 1
        stream.outcome = Outcome.FAILED
        return Failure("INTERNAL", message)

    def _refused(self, stream: Stream, error: ChaperoneError) -> Failure:
        if isinstance(error, PrefixNotFound):  # the device sends the whole prompt
            self.counters.prefixes_missed += 1
            self._observer.notice(PrefixMissed(stream.caller.tenant))
            return _failure(error)
        self.counters.refused += 1
        if stream.began and isinstance(error, Superseded | CloudUnavailable):  # the device continues on another stream
            stream.outcome = Outcome.MOVED
            return _failure(error)
        stream.outcome = Outcome.REFUSED
        reason = status_of(error).lower()
        if isinstance(error, QuotaExceeded | PromptOverQuota):
            reason = error.quota
        self._observer.notice(Refused(stream.caller.tenant, stream.caller.peer, reason, error.message))
        return _failure(error)

    async def _serve(self, stream: Stream) -> AsyncGenerator[ServerFrame, None]:
        shortened = await self._opened(stream)
        key = SessionKey(stream.caller.tenant, shortened.session_id)
        self._check_peer(shortened)
        opening = self._kept_texts.completed(key.tenant, shortened)
        before = SessionKey(key.tenant, shortened.prefix.session_id) if shortened.prefix is not None else None
        session = self._admit(key, opening, stream)
        try:
            exchange = Exchange(
                key, opening, stream, self._queue, self._admission, self._limits, self._observer, self._clock
            )
            conversation: Conversation | BeamConversation
            if opening.beams is None:
                keep = functools.partial(self._kept_texts.keep, key, in_place_of=before)
                conversation = Conversation(exchange, session, keep)
            else:
                conversation = BeamConversation(exchange, beams_of(opening, opening.beams, session))
            async with aclosing(conversation.frames(self.capabilities.context_tokens)) as answers:
                async for frame in answers:
                    yield frame
        finally:
            self._count(session)
            if self._streams.get(key) is stream:
                del self._streams[key]
                self._admission.release(key)
            if key not in self._streams:  # else a newer stream of the session is open
                closed = stream.outcome is Outcome.CLOSED
                self._free(key, after_s=0.0 if closed else self._limits.reconnect_grace_s)

    async def _opened(self, stream: Stream) -> Open:
        """Wait for the Open. Streams without one give way to newer ones, oldest first, so that they block nobody."""
        self._admission.begin_stream(stream.caller.tenant)
        if len(self._opening) >= self._limits.max_opening:
            limit = self._limits.max_opening
            next(iter(self._opening)).interrupt(
                Overloaded(f"opening: {limit} streams have sent no Open (limits.max_opening); send it at once")
            )
            del self._opening[next(iter(self._opening))]
        self._opening[stream.inbox] = None
        opening = (await next_frame(stream.inbox, self._limits.open_timeout_s, "open_timeout_s: no Open arrived")).frame
        self._opening.pop(stream.inbox, None)
        if not isinstance(opening, Open):
            raise ProtocolViolation(f"frame: {type(opening).__name__} before Open")
        return opening

    def _count(self, session: CloudSession) -> None:
        self.counters.stale_frames += session.stale_frames
        self.counters.takeovers += session.takeovers
        self.counters.hand_backs += session.hand_backs

    def _free(self, key: SessionKey, *, after_s: float) -> None:
        """Free a session's KV cache after `after_s`. Until then, a device that lost its connection may reopen it."""
        self._end_grace(key)
        if after_s > 0:
            self._queue.spare(key)
            self._grace_timers[key] = asyncio.get_running_loop().call_later(after_s, self._free_now, key)
        else:
            self._queue.free(key)

    def _free_now(self, key: SessionKey) -> None:
        del self._grace_timers[key]
        self._queue.free(key)

    def _end_grace(self, key: SessionKey) -> None:
        if (timer := self._grace_timers.pop(key, None)) is not None:
            timer.cancel()

    def _check_peer(self, opening: Open) -> None:
        """Raise an error for a device that this cloud cannot serve."""
        if self._draining:
            raise _shutting_down()
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
        if opening.encoding is not None:
            check_projector(opening.encoding, self.capabilities)
        if opening.beams is not None:
            check_beams(opening, self.capabilities)

    def _admit(self, key: SessionKey, opening: Open, stream: Stream) -> CloudSession:
        """Check an Open and make it the session's newest stream."""
        session = CloudSession(
            opening,
            context_tokens=self.capabilities.context_tokens,
            vocabulary_size=self.capabilities.vocabulary_size,
        )
        check_encoding(opening, self.capabilities)
        beams = opening.beams.num_beams if opening.beams is not None else 1
        longest = session.prompt_length + beams * (session.limit - session.prompt_length)
        self._admission.admit(key, opening, longest=longest)
        if (older := self._streams.get(key)) is not None:
            older.inbox.interrupt(Superseded("session_id: a newer stream of this session took over"))
        self._streams[key] = stream
        self._end_grace(key)
        stream.began = True
        self._observer.notice(StreamBegan(stream.number, key.tenant, session.prompt_length, stream.traceparent))
        return session


def _failure(error: ChaperoneError) -> Failure:
    quota = error.quota if isinstance(error, QuotaExceeded) else ""
    return Failure(status_of(error), error.message, error.retry_after_ms, quota)


def _shutting_down() -> CloudUnavailable:
    return CloudUnavailable(
        "the cloud is shutting down; open the stream again, on another server", retry_after_ms=_HAND_OVER_MS
    )
