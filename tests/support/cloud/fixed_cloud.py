"""A cloud that answers every stream with the same frames, whatever it receives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.frames import API_VERSION, Capabilities, ServerFrame
from chaperone_common.wire import GET_CAPABILITIES, SERVICE, SUPERVISE, encode_capabilities, encode_server

CONTEXT_TOKENS = 1000


@asynccontextmanager
async def fixed_cloud(
    pair: Path, frames: Iterable[ServerFrame | bytes], *, max_span_tokens: int = 64, **fields: Any
) -> AsyncIterator[str]:
    """Serve on a free port, and yield the address; `fields` are further ones of the capabilities."""
    manifest = load_manifest(pair / "edge", role="edge")
    capabilities = Capabilities(
        API_VERSION,
        "bad",
        manifest.tokenizer_digest,
        manifest.vocabulary_size,
        CONTEXT_TOKENS,
        max_span_tokens,
        **fields,
    )

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return encode_capabilities(capabilities)

    async def supervise(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        async for _ in requests:
            break
        for frame in frames:
            yield frame if isinstance(frame, bytes) else encode_server(frame)
        async for _ in requests:
            continue

    server = grpc.aio.server()
    methods: dict[str, Any] = {
        GET_CAPABILITIES: grpc.unary_unary_rpc_method_handler(answer),
        SUPERVISE: grpc.stream_stream_rpc_method_handler(supervise),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
