"""Ports of a service that are no servers of ours: one that never answers, and a proxy without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from chaperone_common.wire import GET_CAPABILITIES, SERVICE, SUPERVISE


@asynccontextmanager
async def silent_port() -> AsyncIterator[str]:
    """Accept connections and never say anything."""
    writers: list[asyncio.StreamWriter] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.transport.abort()


class DeadProxy:
    """A proxy whose server has died: it ends each stream with CANCELLED, before any initial metadata.

    `capabilities` are those that the server reported before, as bytes; None: these requests end in the same way.
    """

    def __init__(self, capabilities: bytes | None = None) -> None:
        self._capabilities = capabilities
        self.requests = self.streams = 0

    async def answer(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self.requests += 1
        if self._capabilities is None:
            await context.abort(grpc.StatusCode.CANCELLED, "upstream request was cancelled")
        return self._capabilities

    async def supervise(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        self.streams += 1
        await context.abort(grpc.StatusCode.CANCELLED, "upstream request was cancelled")
        yield b""  # never reached; makes this a generator


@asynccontextmanager
async def dead_proxy(capabilities: bytes | None = None) -> AsyncIterator[tuple[DeadProxy, str]]:
    proxy, server = DeadProxy(capabilities), grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    methods: dict[str, Any] = {
        GET_CAPABILITIES: grpc.unary_unary_rpc_method_handler(proxy.answer),
        SUPERVISE: grpc.stream_stream_rpc_method_handler(proxy.supervise),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    await server.start()
    try:
        yield proxy, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
