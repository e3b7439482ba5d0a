"""A device that pulls from a cloud which has no models, falls silent, or does not keep to the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from chaperone_common.errors import (
    ChaperoneError,
    CloudTimeout,
    CloudUnavailable,
    ModelCorrupt,
    Overloaded,
    PeerMismatch,
)
from chaperone_common.wire import (
    FETCH_MODEL,
    GET_CAPABILITIES,
    MAX_MODEL_DATA_BYTES,
    SERVICE,
    encode_capabilities,
    encode_model_data,
)
from cloud_supervisor.server import Server
from edge_client import CloudSettings
from edge_client.artefacts.from_cloud import CloudSource
from edge_client.artefacts.pull import pull
from tests.support.pulling.clouds import edge, play, same_files
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


# --- Several addresses -----------------------------------------------------------------------------------------------


def refusing(status: str, message: str) -> Any:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        await context.abort(grpc.StatusCode[status], message)
        yield b""

    return answer


REFUSALS = {
    "none sent": refusing("PERMISSION_DENIED", "transfers: this cloud sends no models"),
    "full": refusing("RESOURCE_EXHAUSTED", "transfers: 2 are open, the limit is 2"),
    "stopping": refusing("UNAVAILABLE", "the cloud is shutting down"),
    "no model": refusing("FAILED_PRECONDITION", "model_files: no whole device model"),
    "an earlier version": None,
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_another_address_sends_what_the_first_one_refuses(
    home: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    async def scenario(server: Server, address: str) -> None:
        async with another_cloud(REFUSALS[refusal]) as first:
            source = CloudSource("tiny", CloudSettings(address=(first, address)))
            pulled = await pull("tiny", source, patience_s=0.0)
            await source.close()
        assert same_files(pulled.folder, edge(home))

    play(home, monkeypatch, scenario)


@pytest.mark.parametrize(
    ("refusals", "expected"),
    [
        (("none sent", "full"), Overloaded),
        (("no model", "stopping"), CloudUnavailable),
        (("an earlier version", "none sent"), PeerMismatch),
    ],
)
def test_the_error_of_all_addresses_is_one_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: tuple[str, str], expected: type[ChaperoneError]
) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))

    async def run() -> None:
        async with AsyncExitStack() as clouds:
            addresses = [await clouds.enter_async_context(another_cloud(REFUSALS[each])) for each in refusals]
            source = CloudSource("tiny", CloudSettings(address=tuple(addresses)))
            with pytest.raises(expected) as caught:
                await pull("tiny", source, patience_s=0.0)
            await source.close()
        assert all(address in caught.value.message for address in addresses)

    asyncio.run(run())
