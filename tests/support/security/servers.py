"""A small gRPC server that reports the callers of its streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import grpc.aio

from chaperone_common.errors import ChaperoneError, status_of
from chaperone_common.frames import API_VERSION, Capabilities
from chaperone_common.wire import GET_CAPABILITIES, SERVICE, SUPERVISE, encode_capabilities
from cloud_supervisor.caller import Caller
from cloud_supervisor.security.authentication import Authenticator

CAPABILITIES = Capabilities(API_VERSION, "a model", "sha256:0", 16, 64, 8, "sha256:1")


class Call(NamedTuple):
    """One call that arrived."""

    caller: Caller
    metadata: dict[str, str | bytes]


class GuardedService:
    """Answers `GetCapabilities`, and echoes the bytes of `Supervise`, if the authenticator lets the caller in."""

    def __init__(self, authenticator: Authenticator) -> None:
        self.authenticator = authenticator
        self.calls: list[Call] = []

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                SUPERVISE: grpc.stream_stream_rpc_method_handler(self.supervise),
                GET_CAPABILITIES: grpc.unary_unary_rpc_method_handler(self.get_capabilities),
            },
        )

    async def get_capabilities(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await self.admit(context)
        return encode_capabilities(CAPABILITIES)

    async def supervise(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        await self.admit(context)
        async for data in requests:
            yield data

    async def admit(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        metadata = [*(context.invocation_metadata() or ())]
        try:
            caller = await self.authenticator.authenticate(metadata, context.auth_context(), context.peer())
        except ChaperoneError as error:
            await context.abort(grpc.StatusCode[status_of(error)], error.message)
        self.calls.append(Call(caller, dict(metadata)))


@asynccontextmanager
async def guarded(
    authenticator: Authenticator, credentials: grpc.ServerCredentials | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[GuardedService, str]]:
    """Serve on a free port, with TLS if there are credentials; yield the service and its address."""
    service = GuardedService(authenticator)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handler(),))
    listen = f"{host}:0"
    port = server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
    await server.start()
    try:
        yield service, f"{host}:{port}"
    finally:
        await server.stop(0)
        authenticator.close()


def write(path: Path, text: str) -> Path:
    """Write a file that its owner alone can read, and return its path."""
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")
    return path
