"""gRPC in the cloud: decode, call, encode.

gRPC carries frames as bytes, so that our own rules refuse a malformed frame, with a message, on its stream only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import grpc.aio

from chaperone_common.frames import ClientFrame, Failure
from chaperone_common.wire import (
    GET_CAPABILITIES,
    SERVICE,
    SUPERVISE,
    decode_client,
    encode_capabilities,
    encode_server,
)
from cloud_supervisor.supervisor import Supervisor


class SupervisionService:
    """The servicer of `chaperone.v1.SupervisionService`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to register in a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                SUPERVISE: grpc.stream_stream_rpc_method_handler(self.supervise),
                GET_CAPABILITIES: grpc.unary_unary_rpc_method_handler(self.get_capabilities),
            },
        )

    async def supervise(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """Serve one generation; a Failure frame also sets the status of the stream."""
        async with aclosing(self._supervisor.supervise(_decoded(requests))) as answers:
            async for frame in answers:
                yield encode_server(frame)
                if isinstance(frame, Failure):
                    await context.abort(getattr(grpc.StatusCode, frame.status), frame.message)

    async def get_capabilities(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """Return the model and the limits of this cloud."""
        return encode_capabilities(self._supervisor.capabilities)


async def _decoded(requests: AsyncIterator[bytes]) -> AsyncIterator[ClientFrame]:
    async for data in requests:
        yield decode_client(data)
