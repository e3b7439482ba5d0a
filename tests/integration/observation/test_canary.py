"""No output of a server holds a prompt or its tokens: neither log, metrics, spans nor pages, whatever goes wrong."""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chaperone_common.frames import Close, Failure, Open
from chaperone_common.wire import encode_client
from cloud_supervisor.config import CloudConfig, LimitsConfig, QuotasConfig, TenantQuota
from cloud_supervisor.hosting.entrance import Entrance
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.observation import Observers
from cloud_supervisor.observers.instruments import Instruments, build_instruments
from cloud_supervisor.observers.log_output import log_output
from cloud_supervisor.observers.spans import SpanObserver
from cloud_supervisor.server import Server
from tests.support.cloud.metrics import fetch
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.cloud.scenario import draft
from tests.support.cloud.watched import NamedCallers
from tests.support.fakes.target import fake_target
from tests.support.processes.servers import serving
from tests.support.waiting import until

TEXT = "canary-zvxq"  # in fields of the protocol that are text
PROMPT = (417, 389, 471)
SPAN = (433, 467)
SESSION = "session-canary"
IDS = "|".join(map(str, (*PROMPT, *SPAN)))
# As they stand in a list or as the value of a field; the digits of a time or a port do not count.
LEAK = re.compile(rf"{TEXT}|{SESSION}|[\[(]({IDS})[,)\]]|, ({IDS})\b|\b({IDS}) is not|token_ids?\W+({IDS})\b")

Scenario = Callable[[grpc.aio.Channel, str], Awaitable[None]]


class Faulty:
    """Makes the model fail with a message that quotes what it was reading."""

    def __init__(self) -> None:
        self.active = False

    def __call__(self, requests: Sequence[ForwardRequest]) -> None:
        if self.active:
            try:
                raise KeyError([request.tree.token_ids for request in requests])
            except KeyError as error:
                raise ValueError(f"prompt {PROMPT} with {TEXT}") from error


def opened(digest: str, **fields: object) -> Open:
    return opening(digest, SESSION, prompt=PROMPT, **fields)


async def normal(channel: grpc.aio.Channel, digest: str) -> None:
    stream = RawStream(channel)
    await stream.send(opened(digest), draft(*SPAN))
    for _ in range(3):
        assert not isinstance(await stream.read(), Failure)
    await stream.send(Close(3, SPAN))
    await stream.half_close()
    while await stream.answered():
        pass


async def cancelled(channel: grpc.aio.Channel, digest: str) -> None:
    stream = RawStream(channel)
    await stream.send(opened(digest), draft(*SPAN))
    await stream.read()
    stream.cancel()


def refused(*frames: object) -> Scenario:
    async def play(channel: grpc.aio.Channel, digest: str) -> None:
        stream = RawStream(channel)
        await stream.send(*(frame if isinstance(frame, bytes) else frame(digest) for frame in frames))  # type: ignore[operator]
        assert await stream.failure()

    return play


async def too_many(channel: grpc.aio.Channel, digest: str) -> None:
    first, second = RawStream(channel), RawStream(channel)
    await first.send(opened(digest))
    await first.read()
    await second.send(opening(digest, f"{SESSION}-2", prompt=PROMPT))
    assert (await second.failure()).status == "RESOURCE_EXHAUSTED"
    first.cancel()


PATHS: dict[str, Scenario] = {
    "normal": normal,
    "cancelled": cancelled,
    "over a quota": too_many,
    "a wrong digest": refused(lambda digest: opened(TEXT)),
    "a wrong model": refused(lambda digest: opened(digest, model_digest=TEXT)),
    "a wrong version": refused(lambda digest: opened(digest, api_version=9)),
    "unknown tokens in the prompt": refused(lambda digest: opening(digest, SESSION, prompt=(*PROMPT, 417_389))),
    "unknown tokens in a span": refused(opened, lambda digest: draft(417_389)),
    "a gap": refused(opened, lambda digest: draft(*SPAN, start=9)),
    "a long session id": refused(lambda digest: opening(digest, SESSION * 9, prompt=PROMPT)),
    "a second Open": refused(opened, opened),
    "no Open": refused(lambda digest: draft(*SPAN)),
    "no frame": refused(TEXT.encode()),
    "half a frame": refused(lambda digest: encode_client(opened(digest))[:-2]),
}


async def check(server: Server, spans: InMemorySpanExporter) -> None:
    """Look for the canary in the spans and pages of a server."""
    await until(lambda: server.cloud.supervisor.sessions == 0, "all streams ended")
    pages = [
        await asyncio.to_thread(fetch, server.metrics_address, path) for path in ("/metrics", "/healthz", "/readyz")
    ]
    shown = "\n".join([*pages, *(span.to_json() for span in spans.get_finished_spans())])
    assert not LEAK.search(shown), LEAK.search(shown)


@pytest.mark.parametrize("style", ["console", "json"])
def test_no_output_holds_the_canary(tiny_pair: Path, digest: str, style: str, caplog: pytest.LogCaptureFixture) -> None:
    log, spans, faulty = io.StringIO(), InMemorySpanExporter(), Faulty()
    caplog.set_level(logging.DEBUG)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    config = CloudConfig(
        metrics="127.0.0.1:0",
        limits=LimitsConfig(max_span_tokens=16),
        quotas=QuotasConfig(default=TenantQuota(max_sessions=1)),
    )

    async def scenario() -> None:
        usual = build_instruments(config)
        observer = Observers([usual.observer, SpanObserver(provider)])
        entrance = Entrance(NamedCallers(), None, Instruments(observer, usual.metrics))
        async with (
            serving(fake_target(tiny_pair, faulty), tiny_pair, config, entrance=entrance) as (server, address),
            raw_channel(address) as channel,
        ):
            for play in PATHS.values():
                await play(channel, digest)
                await check(server, spans)
            faulty.active = True
            stream = RawStream(channel)
            await stream.send(opened(digest), draft(*SPAN))
            assert (await stream.failure()).status == "INTERNAL"
            abandoned = RawStream(channel)
            await abandoned.send(opened(digest), draft(*SPAN))
            abandoned.cancel()
            await check(server, spans)

    with log_output("json" if style == "json" else "console", log):
        asyncio.run(scenario())
    text = log.getvalue()
    assert "ValueError < __call__ (" in text, "the failure of the model is logged by its place"
    assert "refused" in text
    assert "stream ended" in text
    assert len(spans.get_finished_spans()) > 3
    assert not LEAK.search(text), LEAK.search(text)


@pytest.mark.parametrize(
    "leak", ["[417, 9]", "(3, 467)", "token_ids: 471", "433 is not in a vocabulary", TEXT, f"id={SESSION}"]
)
def test_the_canary_would_be_found(leak: str) -> None:
    assert LEAK.search(f"stream failed: {leak}")
