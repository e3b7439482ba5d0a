"""A device that pulls from a cloud which has no models, falls silent, or does not keep to the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from chaperone_common.errors import ChaperoneError, CloudTimeout, ModelCorrupt, PeerMismatch
from chaperone_common.wire import (
    FETCH_MODEL,
    GET_CAPABILITIES,
    MAX_MODEL_DATA_BYTES,
    SERVICE,
    encode_capabilities,
    encode_model_data,
)
from edge_client import CloudSettings
from edge_client.artefacts.from_cloud import CloudSource
from edge_client.artefacts.pull import pull
from tests.support.security.servers import CAPABILITIES


@asynccontextmanager
async def another_cloud(answer: Any) -> AsyncIterator[str]:
    """Serve capabilities, and `answer` for FetchModel, or no such method."""

    async def capabilities(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return encode_capabilities(CAPABILITIES)

    methods: dict[str, Any] = {GET_CAPABILITIES: grpc.unary_unary_rpc_method_handler(capabilities)}
    if answer is not None:
        methods[FETCH_MODEL] = grpc.unary_stream_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def pulled_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, *, stall_s: float = 60.0
) -> ChaperoneError:
    """Return the error of a pull from such a cloud."""
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))

    async def run() -> ChaperoneError:
        async with another_cloud(answer) as address:
            source = CloudSource("tiny", CloudSettings(address=address), stall_s=stall_s)
            with pytest.raises(ChaperoneError) as caught:
                await pull("tiny", source, patience_s=0.0)
            await source.close()
            return caught.value

    return asyncio.run(run())


def test_a_cloud_of_an_earlier_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = pulled_from(tmp_path, monkeypatch, None)
    assert isinstance(error, PeerMismatch)
    assert "is of a version that sends no models; update it, or pull from a folder or a URL" in error.message


def test_a_cloud_that_falls_silent_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    error = pulled_from(tmp_path, monkeypatch, silent, stall_s=0.1)
    assert isinstance(error, CloudTimeout)
    assert "sent nothing for 0.1 s" in error.message


def test_a_cloud_that_sends_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        while True:
            yield encode_model_data(bytes(MAX_MODEL_DATA_BYTES))

    error = pulled_from(tmp_path, monkeypatch, endless)
    assert isinstance(error, ModelCorrupt)
    assert "manifest.json: more than 1048576 bytes; use another source" in error.message
