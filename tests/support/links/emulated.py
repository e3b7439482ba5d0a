"""A server on loopback with a proxy in front of it, for the tests of the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from link_emulator import LinkProxy, Profile

PLAIN = Profile.fixed(rtt_ms=2)

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Coroutine[Any, Any, None]]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    serving: list[asyncio.Task[None]] = []

    def begin(reader: Reader, writer: Writer) -> None:
        serving.append(asyncio.ensure_future(serve(reader, writer)))

    listening = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await asyncio.gather(*serving)


@asynccontextmanager
async def linked(serve: Serve, profile: Profile = PLAIN, *, max_connections: int = 256) -> AsyncIterator[LinkProxy]:
    async with (
        server(serve) as address,
        LinkProxy(profile, to=address, seed=3, max_connections=max_connections) as proxy,
    ):
        yield proxy


async def connect(proxy: LinkProxy) -> tuple[Reader, Writer]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def echo(reader: Reader, writer: Writer) -> None:
    with suppress(ConnectionResetError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
