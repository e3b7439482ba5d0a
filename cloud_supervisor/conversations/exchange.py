"""The parts of a conversation that every kind has: the stream, its beginning, and the next frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chaperone_common.clock import Clock
from chaperone_common.errors import CloudTimeout, CloudUnavailable
from chaperone_common.frames import Arrived, ClientFrame, Open, Opened, ServerFrame
from cloud_supervisor.admission import Admission, SessionKey
from cloud_supervisor.caller import Caller
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.conversations.reading import Reading
from cloud_supervisor.inbox import Inbox
from cloud_supervisor.model.ports import ForwardQueue
from cloud_supervisor.observation import Observer, Outcome, Prefilled


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


class Exchange:
    """One stream after its Open was admitted: what it may use, and the time it has."""

    def __init__(
        self,
        key: SessionKey,
        opening: Open,
        stream: Stream,
        queue: ForwardQueue,
        admission: Admission,
        limits: LimitsConfig,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self.key = key
        self.opening = opening
        self.stream = stream
        self.queue = queue
        self.admission = admission
        self.limits = limits
        self.observer = observer
        self.clock = clock
        self._progress_at = clock.now()

    def progress(self) -> None:
        """Note that the stream has made progress: it may wait for the next frame as long as a new one."""
        self._progress_at = self.clock.now()

    async def begin(self, text: Sequence[int], context_tokens: int) -> AsyncGenerator[ServerFrame, None]:
        """Read a text, and report that, with the rows of the encoding if the device wants them."""
        yield Opened(False, context_tokens, max_span_tokens=self.limits.max_span_tokens)
        reading = Reading(
            self.key,
            self.opening,
            self.stream.inbox,
            self.queue,
            self.admission,
            chunk_tokens=self.limits.prefill_chunk_tokens,
        )
        async with aclosing(reading.encode()) as rows:
            async for encoded in rows:
                yield encoded
        await reading.rest(text)
        self.progress()
        if not reading.lacks_rows:  # else the stream closes, and needs no more than that
            yield self._prefilled(reading, context_tokens)

    async def next(self) -> Arrived[ClientFrame]:
        """Wait for the next frame, while the stream makes progress and is not too old."""
        limits, now = self.limits, self.clock.now()
        left_s = self.stream.began_at + limits.max_stream_s - now
        if left_s <= 0:
            raise CloudUnavailable(
                f"max_stream_s: the stream has been open for {limits.max_stream_s:g} s; open it again", retry_after_ms=1
            )
        idle_s = max(0.0, self._progress_at + limits.idle_timeout_s - now)
        if left_s < idle_s:
            try:
                return await next_frame(self.stream.inbox, left_s, "")
            except CloudTimeout:
                return await self.next()
        return await next_frame(self.stream.inbox, idle_s, "idle_timeout_s: no progress", limits.idle_timeout_s)

    def time_left_ms(self, deadline_ms: int, arrived_at: float) -> float | None:
        """Return the time left until a Draft's deadline, or None without one. It runs from the arrival of the Draft."""
        if not deadline_ms:
            return None
        waited_ms = (self.clock.now() - arrived_at) * 1000
        if waited_ms >= deadline_ms:
            raise CloudTimeout(
                f"deadline_ms: the Draft waited {waited_ms:.0f} ms for the frames before it, longer than its deadline "
                f"of {deadline_ms} ms"
            )
        return deadline_ms - waited_ms

    def _prefilled(self, reading: Reading, context_tokens: int) -> Opened:
        """Report what was read before the first Draft."""
        queue_us, compute_us = reading.queue_us, reading.compute_us
        if reading.tokens:
            number, tenant = self.stream.number, self.key.tenant
            self.observer.notice(
                Prefilled(number, tenant, reading.tokens, queue_us / 1e6, compute_us / 1e6, encoded=reading.encoded)
            )
        return Opened(True, context_tokens, queue_us, compute_us, cached_tokens=reading.cached_tokens)


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
