"""Observations become spans with times of their own; the trace is the device's."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cloud_supervisor.observation import Answered, Observation, Outcome, Prefilled, StreamBegan, StreamEnded
from cloud_supervisor.observers.spans import SpanObserver

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
NOW_NS = 1_000_000_000
MS = 1_000_000


def answer(verified: int = 8, takeover: int = 0) -> Answered:
    return Answered(
        stream=1,
        tenant="acme",
        start=40,
        verified=verified,
        accepted=min(verified, 5),
        own=1 if verified else 0,
        takeover=takeover,
        audited=0,
        deviations=0,
        queue_s=0.010,
        compute_s=0.020,
        duration_s=0.050,
        first=False,
        since_open_s=0.2,
    )


def spans_of(*observations: Observation) -> Sequence[ReadableSpan]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = SpanObserver(provider, lambda: NOW_NS)
    for observation in observations:
        observer.notice(observation)
    return exporter.get_finished_spans()


def test_a_verification_is_divided_into_queue_and_forward() -> None:
    spans = {
        span.name: span
        for span in spans_of(StreamBegan(1, "acme", 30, PARENT), answer(), StreamEnded(1, "acme", Outcome.CLOSED, 1.0))
    }
    supervise, verification = spans["chaperone.supervise"], spans["chaperone.verification"]
    queue, forward = spans["chaperone.queue"], spans["chaperone.forward"]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert supervise.parent is not None
    assert f"{supervise.parent.span_id:016x}" == PARENT.split("-")[2]
    assert verification.parent == supervise.context
    assert queue.parent == forward.parent == verification.context
    assert (verification.start_time, verification.end_time) == (NOW_NS - 50 * MS, NOW_NS)
    assert (queue.start_time, queue.end_time) == (NOW_NS - 30 * MS, NOW_NS - 20 * MS)
    assert (forward.start_time, forward.end_time) == (NOW_NS - 20 * MS, NOW_NS)
    assert supervise.attributes is not None
    assert supervise.attributes["chaperone.tenant"] == "acme"
    assert verification.attributes == {
        "chaperone.position": 40,
        "chaperone.verified": 8,
        "chaperone.accepted": 5,
        "chaperone.own": 1,
        "chaperone.audited": 0,
        "chaperone.deviations": 0,
    }


def test_a_stream_without_a_trace_begins_one() -> None:
    for traceparent in ("", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        (span,) = spans_of(StreamBegan(1, "acme", 3, traceparent), StreamEnded(1, "acme", Outcome.CLOSED, 1.0))
        assert span.parent is None


def test_a_trace_that_the_device_does_not_record_costs_no_span() -> None:
    unrecorded = PARENT[:-2] + "00"
    assert not spans_of(StreamBegan(1, "acme", 3, unrecorded), answer(), StreamEnded(1, "acme", Outcome.CLOSED, 1.0))


def test_takeovers_are_counted_and_prompts_are_spans() -> None:
    *prefill, supervise = spans_of(
        StreamBegan(1, "acme", 30, ""),
        Prefilled(1, "acme", 29, 0.001, 0.002),
        *(answer(verified=0, takeover=1) for _ in range(5)),
        answer(verified=0),
        StreamEnded(1, "acme", Outcome.FAILED, 1.0),
    )
    assert [span.name for span in prefill] == ["chaperone.queue", "chaperone.forward", "chaperone.prefill"]
    assert supervise.attributes is not None
    assert supervise.attributes["chaperone.takeover_tokens"] == 5
    assert supervise.attributes["chaperone.outcome"] == "failed"
    assert supervise.status.status_code is StatusCode.ERROR
