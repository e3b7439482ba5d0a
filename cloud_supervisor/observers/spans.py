"""Traces in OpenTelemetry: a span for each stream, and below it one for its prompt and for each verification."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cloud_supervisor.observation import Answered, Observation, Outcome, Prefilled, StreamBegan, StreamEnded

_EXPORT_TIMEOUT_S = 3.0  # also the longest time that it holds the end of the process up

Attributes = Mapping[str, str | int]


@dataclass(slots=True)
class _Stream:
    """The span of an open stream, and what its takeovers wrote: a span for each of their tokens would be too many."""

    span: Span
    context: Context = field(init=False)
    takeover_tokens: int = 0

    def __post_init__(self) -> None:
        self.context = set_span_in_context(self.span)


class SpanObserver:
    """Makes spans of observations. Their attributes are tenants, positions and counts."""

    def __init__(self, provider: TracerProvider, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("chaperone")
        self._now_ns = now_ns
        self._streams: dict[int, _Stream] = {}  # those that are recorded

    def notice(self, observation: Observation) -> None:
        match observation:
            case StreamBegan():
                self._began(observation)
            case StreamEnded():
                self._ended(observation)
            case Prefilled(stream=stream, tokens=tokens, queue_s=queue_s, compute_s=compute_s):
                attributes = {"chaperone.tokens": tokens}
                self._forward(stream, "chaperone.prefill", attributes, queue_s + compute_s, queue_s, compute_s)
            case Answered():
                self._answered(observation)
            case _:
                pass

    def close(self) -> None:
        """Send the last spans; blocks for seconds if nobody takes them."""
        self._provider.shutdown()

    def _began(self, began: StreamBegan) -> None:
        attributes: dict[str, str | int] = {
            "chaperone.tenant": began.tenant,
            "chaperone.prompt_tokens": began.prompt_tokens,
        }
        carrier = {"traceparent": began.traceparent} if began.traceparent else {}
        parent = TraceContextTextMapPropagator().extract(carrier, context=Context())
        span = self._tracer.start_span(
            "chaperone.supervise", parent, SpanKind.SERVER, attributes, start_time=self._now_ns()
        )
        if span.is_recording():
            self._streams[began.stream] = _Stream(span)

    def _ended(self, ended: StreamEnded) -> None:
        stream = self._streams.pop(ended.stream, None)
        if stream is None:
            return
        stream.span.set_attribute("chaperone.outcome", ended.outcome.value)
        stream.span.set_attribute("chaperone.takeover_tokens", stream.takeover_tokens)
        if ended.outcome is Outcome.FAILED:
            stream.span.set_status(Status(StatusCode.ERROR))
        stream.span.end(self._now_ns())

    def _answered(self, answer: Answered) -> None:
        if answer.takeover:
            if (stream := self._streams.get(answer.stream)) is not None:
                stream.takeover_tokens += answer.takeover
        elif answer.needed_forward:
            attributes = {
                "chaperone.position": answer.start,
                "chaperone.verified": answer.verified,
                "chaperone.accepted": answer.accepted,
                "chaperone.own": answer.own,
                "chaperone.audited": answer.audited,
                "chaperone.deviations": answer.deviations,
            }
            self._forward(
                answer.stream,
                "chaperone.verification",
                attributes,
                answer.duration_s,
                answer.queue_s,
                answer.compute_s,
            )

    def _forward(
        self, number: int, name: str, attributes: Attributes, duration_s: float, queue_s: float, compute_s: float
    ) -> None:
        """Record work that has just ended: it waited in the queue until its forward, which was its last part."""
        stream = self._streams.get(number)
        if stream is None:
            return
        end_ns = self._now_ns()
        began_ns = end_ns - round(duration_s * 1e9)
        forward_ns = max(began_ns, end_ns - round(compute_s * 1e9))
        queued_ns = max(began_ns, forward_ns - round(queue_s * 1e9))
        span = self._tracer.start_span(name, stream.context, attributes=attributes, start_time=began_ns)
        below = set_span_in_context(span)
        for child, start_ns, child_end_ns in (
            ("chaperone.queue", queued_ns, forward_ns),
            ("chaperone.forward", forward_ns, end_ns),
        ):
            self._tracer.start_span(child, below, start_time=start_ns).end(child_end_ns)
        span.end(end_ns)


def otlp_spans(endpoint: str) -> SpanObserver:
    """Return an observer that sends spans to a collector by OTLP over HTTP, in the background."""
    provider = TracerProvider(resource=Resource.create({"service.name": "chaperone-cloud"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)))
    return SpanObserver(provider)
