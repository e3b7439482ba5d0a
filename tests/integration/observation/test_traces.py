"""One trace from the device to the forward, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider

from cloud_supervisor.hosting.entrance import Entrance
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.observers.instruments import Instruments
from cloud_supervisor.observers.spans import SpanObserver
from edge_client import EdgeClient
from tests.support.cloud.watched import NamedCallers
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving


class Recorded:
    """A provider of tracers whose spans stay in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self, name: str = "") -> Sequence[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if name in ("", span.name)]


def generate(target: TorchModel, pair: Path, device: Any, **request: Any) -> tuple[Recorded, Any]:
    """Generate with a traced cloud; return its spans and the result, or the error that ended it."""
    cloud = Recorded()

    async def scenario() -> Any:
        entrance = Entrance(NamedCallers(), None, Instruments(SpanObserver(cloud.provider)))
        async with (
            serving(target, pair, entrance=entrance) as (_, address),
            EdgeClient(config_for(address), tracer=device) as client,
        ):
            return await client.generate("def canary(a, b):", raw=True, max_new_tokens=24, **request)

    return cloud, asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["exact", "gated"])
def test_a_verification_is_one_trace_from_device_to_forward(target: TorchModel, tiny_pair: Path, mode: str) -> None:
    device = Recorded()
    cloud, generation = generate(target, tiny_pair, device.provider.get_tracer("app"), mode=mode)
    (began,), verifications = device.spans("chaperone.generation"), device.spans("chaperone.verification")
    (supervise,), judged = cloud.spans("chaperone.supervise"), cloud.spans("chaperone.verification")
    assert {span.context.trace_id for span in (*device.spans(), *cloud.spans())} == {began.context.trace_id}
    assert began.parent is None
    assert supervise.parent is not None
    assert supervise.parent.span_id == began.context.span_id
    assert verifications
    assert {span.parent.span_id for span in verifications if span.parent} == {began.context.span_id}
    assert {span.parent.span_id for span in judged if span.parent} == {supervise.context.span_id}
    for name in ("chaperone.queue", "chaperone.forward"):
        parents = {span.parent.span_id for span in cloud.spans(name) if span.parent}
        assert {span.context.span_id for span in judged} <= parents
    answered = [span for span in verifications if (span.attributes or {}).get("chaperone.answered", True)]
    answers = [span for span in judged if (span.attributes or {})["chaperone.own"]]
    assert len(answered) == len(answers)
    assert began.attributes is not None
    assert began.attributes["chaperone.prompt_tokens"] == generation.stats.prompt_tokens


def test_a_verification_of_the_device_encloses_that_of_the_cloud(target: TorchModel, tiny_pair: Path) -> None:
    device = Recorded()
    cloud, _ = generate(target, tiny_pair, device.provider.get_tracer("app"), mode="exact")
    first, judged = device.spans("chaperone.verification")[0], cloud.spans("chaperone.verification")[0]
    assert first.start_time is not None
    assert first.end_time is not None
    assert judged.end_time is not None
    assert first.start_time <= judged.end_time <= first.end_time
    assert first.attributes is not None
    assert judged.attributes is not None
    assert first.attributes["chaperone.position"] == judged.attributes["chaperone.position"]


def test_without_a_provider_nothing_travels(target: TorchModel, tiny_pair: Path) -> None:
    for tracer in (None, NoOpTracerProvider().get_tracer("app")):
        cloud, _ = generate(target, tiny_pair, tracer, mode="exact")
        (supervise,) = cloud.spans("chaperone.supervise")
        assert supervise.parent is None


def test_the_span_of_the_application_is_the_parent(target: TorchModel, tiny_pair: Path) -> None:
    device = Recorded()
    tracer = device.provider.get_tracer("app")
    with tracer.start_as_current_span("app.request") as request:
        generate(target, tiny_pair, tracer, mode="cloud")
    (began,) = device.spans("chaperone.generation")
    assert began.parent is not None
    assert began.parent.span_id == request.get_span_context().span_id


def test_no_span_holds_the_text(target: TorchModel, tiny_pair: Path) -> None:
    device = Recorded()
    cloud, generation = generate(target, tiny_pair, device.provider.get_tracer("app"), mode="exact")
    shown = "".join(span.to_json() for span in (*device.spans(), *cloud.spans()))
    assert "canary" not in shown
    assert generation.text.strip() not in shown
