"""Scenarios on a raw channel: a server with a fake model, and its state afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc.aio

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.frames import Close, Closed, Draft, Opened, Verdict
from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.hosting.entrance import Entrance
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.server import Server
from tests.support.cloud.raw_stream import RawStream, raw_channel
from tests.support.fakes.target import Brake, FakeTarget, fake_target
from tests.support.processes.servers import serving
from tests.support.waiting import until

SMALL = LimitsConfig(max_span_tokens=16, max_message_kib=16, prefill_chunk_tokens=4)
BeforeForward = Callable[[Sequence[ForwardRequest]], None]
Scenario = Callable[[Server, grpc.aio.Channel, str], Awaitable[None]]


def play(
    pair: Path,
    scenario: Scenario,
    limits: LimitsConfig = SMALL,
    brake: BeforeForward | None = None,
    entrance: Entrance | None = None,
    **settings: Any,
) -> None:
    """Run a scenario against a server with a fake model; afterwards the server may hold no session and no KV."""
    config = CloudConfig(limits=limits, **settings)

    async def run() -> None:
        async with (
            serving(fake_target(pair, brake), pair, config, entrance=entrance) as (server, address),
            raw_channel(address) as channel,
        ):
            try:
                await scenario(server, channel, address)
            finally:
                if isinstance(brake, Brake):
                    brake.let_go.set()
            await until(lambda: server.cloud.supervisor.sessions == 0, "all sessions ended")
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "all KV freed")

    asyncio.run(run())


def draft(*token_ids: int, start: int = 3, revision: int = 0, **fields: Any) -> Draft:
    return Draft(revision, start, token_ids, (0.0,) * len(token_ids), fields.pop("final_before", start), **fields)


def load_vocabulary(pair: Path) -> int:
    return load_manifest(pair / "cloud", role="cloud").vocabulary_size


async def write_to_the_end(stream: RawStream, twin: FakeTarget) -> None:
    """Let the cloud write ten tokens one by one, on an open stream after the prompt 5, 6, 7."""
    text = [5, 6, 7]
    for _ in range(10):
        await stream.send(draft(start=len(text)))
        while not isinstance(verdict := await stream.read(), Verdict):
            assert isinstance(verdict, Opened)
        text.append(int(twin.logits(text).argmax()))
        assert (verdict.position, verdict.token_id) == (len(text) - 1, text[-1])
    await stream.send(Close(len(text), ()))
    await stream.half_close()
    assert await stream.read() == Closed()
    assert await stream.read() is None
    assert await stream.status() == "OK"
