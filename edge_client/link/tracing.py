"""Traces in OpenTelemetry: a span for each generation that has a cloud, and below it one for each Draft.

The cloud continues the trace, because the stream carries the generation's `traceparent`. No span holds a token or text.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chaperone_common.frames import Arrived, ClientFrame, Draft, Failure, Open, ServerFrame, Verdict
from edge_client.ports import Cloud, CloudLink


class GenerationTrace:
    """The trace of one generation. It begins with the first stream, and ends with the last one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._span: Span | None = None
        self._open: TracedLink | None = None
        self._failure = ""  # the status of the last stream, if it failed

    def link(self, cloud: Cloud) -> CloudLink:
        """Return a new stream to a cloud, not yet opened. It is a plain one where the application records nothing."""
        if self._span is None:
            self._span = self._tracer.start_span("chaperone.generation", kind=SpanKind.CLIENT)
        if not self._span.is_recording():
            return cloud.link()
        self._failure = ""
        carrier: dict[str, str] = {}
        context = set_span_in_context(self._span)
        TraceContextTextMapPropagator().inject(carrier, context)
        self._open = TracedLink(cloud.link((("traceparent", carrier["traceparent"]),)), self)
        return self._open

    def begin(self, frame: Draft) -> Span:
        """Begin the span of a Draft."""
        assert self._span is not None
        attributes = {"chaperone.position": frame.start, "chaperone.tokens": len(frame.token_ids)}
        return self._tracer.start_span("chaperone.verification", set_span_in_context(self._span), attributes=attributes)

    def opened(self, frame: Open) -> None:
        """Note the size of the prompt."""
        assert self._span is not None
        known = frame.prefix.length if frame.prefix is not None else 0
        self._span.set_attribute("chaperone.prompt_tokens", known + len(frame.prompt_token_ids))

    def failed(self, status: str) -> None:
        """Note that a stream failed; another may follow."""
        assert self._span is not None
        self._span.add_event("chaperone.stream_failed", {"chaperone.status": status})
        self._failure = status

    def ended(self, link: TracedLink) -> None:
        """End the span with this stream, unless the generation goes on with another one at once."""
        if link is not self._open or self._span is None:
            return
        span, at_ns = self._span, time.time_ns()

        def end() -> None:
            if self._open is link:
                if self._failure:
                    span.set_status(Status(StatusCode.ERROR, self._failure))
                span.end(at_ns)

        asyncio.get_running_loop().call_soon(end)


class TracedLink:
    """A `CloudLink` whose Drafts have spans, until their Verdicts."""

    def __init__(self, link: CloudLink, trace: GenerationTrace) -> None:
        self._link = link
        self._trace = trace
        self._waiting: deque[tuple[Draft, Span]] = deque()
        self._ended = False

    @property
    def bytes_up(self) -> int:
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._link.bytes_down

    async def open(self, frame: Open) -> None:
        self._trace.opened(frame)
        await self._link.open(frame)

    def send(self, frame: ClientFrame) -> None:
        if isinstance(frame, Draft) and not self._ended:
            self._waiting.append((frame, self._trace.begin(frame)))
        self._link.send(frame)

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        arrived = self._link.ready()
        for frame, _ in arrived:
            if isinstance(frame, Verdict):
                self._answered(frame)
            elif isinstance(frame, Failure) and not self._ended:
                self._trace.failed(frame.status)
        return arrived

    async def wait(self, timeout_ms: float) -> bool:
        return await self._link.wait(timeout_ms)

    def close(self) -> None:
        self._link.close()
        self._end()

    def cancel(self) -> None:
        self._link.cancel()
        self._end()

    def _answered(self, verdict: Verdict) -> None:
        """End the span of the Draft that this answers. Drafts before it, and those of an older revision, get none."""
        while self._waiting:
            frame, span = self._waiting.popleft()
            if frame.start <= verdict.position <= frame.end:
                span.set_attribute("chaperone.accepted", verdict.position - frame.start)
                span.set_attribute("chaperone.deviations", len(verdict.deviations))
                span.end()
                break
            _end_unanswered(span)
        while self._waiting and self._waiting[0][0].revision < verdict.revision:
            _end_unanswered(self._waiting.popleft()[1])

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            while self._waiting:
                _end_unanswered(self._waiting.popleft()[1])
            self._trace.ended(self)


def _end_unanswered(span: Span) -> None:
    span.set_attribute("chaperone.answered", False)
    span.end()
