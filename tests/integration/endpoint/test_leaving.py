"""Clients that leave, many at once, and a cloud that goes away in the middle of a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloud_supervisor.model.torch_model import TorchModel
from edge_client.apps.http_api.chats import MOST_CHATS
from edge_client.config import CloudSettings
from tests.support.processes.clients import SLOW
from tests.support.processes.endpoints import Endpoint, endpoint
from tests.support.waiting import until


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))


async def begin(
    served: Endpoint, *, stream: bool, tokens: int = 2000
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request for a long text, and return the connection."""
    message = {"role": "user", "content": "the list of a number"}
    body = json.dumps(
        {"model": "tiny", "messages": [message], "stream": stream, "max_tokens": tokens, "temperature": 1.0, "seed": 1}
    ).encode()
    reader, writer = await asyncio.open_connection(*served.where)
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    writer.write("".join(f"{line}\r\n" for line in [*head, ""]).encode() + body)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_both_ends(tiny_pair: Path, target: TorchModel, stream: bool) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            for _ in range(3):
                reader, writer = await begin(served, stream=stream)
                await until(lambda: served.server.cloud.supervisor.sessions == 1, "the text is being written")
                if stream:
                    await reader.readuntil(b'"source"')
                writer.close()
                await until(lambda: served.idle, "both ends have freed the text")
            assert (await served.chat("the list", max_tokens=2)).status == 200

    run(test)


def test_twenty_streams_at_once_are_those_of_each_alone(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:

            async def text(seed: int) -> str:
                answer = await served.chat("the list", max_tokens=12, temperature=0.9, seed=seed, stream=True)
                assert answer.events[-1] == "[DONE]"
                return "".join(event["choices"][0]["delta"].get("content", "") for event in answer.events[:-1])

            together = await asyncio.gather(*map(text, range(20)))
            assert together == [await text(seed) for seed in range(20)]

    run(test)


def test_of_twenty_streams_some_are_read_and_some_are_left(tiny_pair: Path, target: TorchModel) -> None:
    """Each reader gets the text that it gets alone, and nothing of any stream is left on either end."""

    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            alone = (await served.chat("the list", max_tokens=12, temperature=0.9, seed=3, stream=True)).body
            left = [await begin(served, stream=True) for _ in range(10)]
            await until(lambda: served.server.cloud.supervisor.sessions >= 10, "ten texts are being written")
            read = [
                asyncio.create_task(served.chat("the list", max_tokens=12, temperature=0.9, seed=3, stream=True))
                for _ in range(10)
            ]
            for number, (reader, writer) in enumerate(left):
                if number % 2:  # some in the middle, some at once
                    await reader.readuntil(b'"source"')
                writer.close()
            texts = [text_of(answer.body) for answer in await asyncio.gather(*read)]
            assert texts == [text_of(alone)] * 10
            await until(lambda: served.idle, "both ends have freed all texts")
            assert served.server.cloud.supervisor.counters.streams == 21
            kept = [caches for caches in served.client._runs.caches if caches.prompt._kept is not None]
            assert len(kept) <= MOST_CHATS, "of the chats that may go on"

    run(test)


def text_of(body: bytes) -> str:
    """Return the text of the server-sent events of a stream that ended well."""
    *events, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content", "") for delta in deltas)


def test_a_loss_in_the_middle_is_the_last_event(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        cloud = CloudSettings(reconnect_timeout_ms=300.0)
        async with endpoint(target, tiny_pair, planner=SLOW, cloud=cloud) as served:
            reader, writer = await begin(served, stream=True)
            await reader.readuntil(b'"source"')
            await served.server.stop(0)
            rest = (await reader.readuntil(b"0\r\n\r\n")).decode()
            assert '"code":"cloud_unavailable"' in rest
            assert "[DONE]" not in rest
            writer.close()

    run(test)
