"""The supervision service as a handler of gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

import grpc
import grpc.aio

from chaperone_common.frames import Failure
from chaperone_common.wire import FETCH_MODEL, GET_CAPABILITIES, SERVICE, SUPERVISE, encode_server
from cloud_supervisor.hosting.status_details import status_code, trailing_metadata
from cloud_supervisor.service import AuthContext, Metadata, SupervisionService

Context = grpc.aio.ServicerContext[bytes, bytes]


class GrpcCall:
    """The `Call` port over the context of a call."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.write = context.write

    @property
    def metadata(self) -> Metadata:
        return tuple(self._context.invocation_metadata() or ())

    @property
    def auth_context(self) -> AuthContext:
        return self._context.auth_context()

    @property
    def peer(self) -> str:
        return self._context.peer()

    def on_end(self, callback: Callable[[], None]) -> None:
        # Its stub is of the synchronous API.
        self._context.add_done_callback(lambda _: callback())  # type: ignore[arg-type]

    async def abort(self, failure: Failure, *, frame_s: float | None = None) -> NoReturn:
        if frame_s is not None:
            async with asyncio.timeout(frame_s):
                await self._context.write(encode_server(failure))
        await self._context.abort(status_code(failure), failure.message, trailing_metadata(failure))
        raise AssertionError("abort returned")


def handler_of(service: SupervisionService) -> grpc.GenericRpcHandler:
    """Return the handler to register in a gRPC server."""

    async def supervise(requests: AsyncIterator[bytes], context: Context) -> None:
        await service.supervise(requests, GrpcCall(context))

    async def get_capabilities(_: AsyncIterator[bytes], context: Context) -> None:
        await service.get_capabilities(GrpcCall(context))

    async def fetch_model(requests: AsyncIterator[bytes], context: Context) -> None:
        await service.fetch_model(requests, GrpcCall(context))

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            SUPERVISE: grpc.stream_stream_rpc_method_handler(supervise),
            # As streams, so that strangers are refused before their request is there; it is the same on the wire.
            GET_CAPABILITIES: grpc.stream_stream_rpc_method_handler(get_capabilities),
            FETCH_MODEL: grpc.stream_stream_rpc_method_handler(fetch_model),
        },
    )


def add_routes(_: object, server: grpc.aio.Server) -> None:
    """Name the methods of the service to Ray Serve's proxy, which sends their calls to replicas."""

    async def never(*_: object) -> bytes:
        raise AssertionError("the proxy has its own handlers")

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        SUPERVISE: grpc.stream_stream_rpc_method_handler(never),
        GET_CAPABILITIES: grpc.unary_unary_rpc_method_handler(never),
        FETCH_MODEL: grpc.unary_stream_rpc_method_handler(never),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
