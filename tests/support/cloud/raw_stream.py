"""A device that breaks the rules: any bytes, in any order, on a stream of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chaperone_common.frames import ClientFrame, Failure, Open, ServerFrame
from chaperone_common.types import SamplingParams, SessionId
from chaperone_common.wire import SERVICE, SUPERVISE, decode_server, encode_client


def opening(digest: str, session: str = "raw", *, prompt: tuple[int, ...] = (5, 6, 7), **fields: object) -> Open:
    """Return a valid Open, with `fields` in place of the valid ones."""
    valid: dict[str, object] = {
        "session_id": SessionId(session),
        "tokenizer_digest": digest,
        "sampling": SamplingParams(),
        "max_new_tokens": 50,
        "eos_token_ids": (),
        "prompt_token_ids": prompt,
    }
    return Open(**{**valid, **fields})  # type: ignore[arg-type]


class RawStream:
    """One `Supervise` call."""

    def __init__(self, channel: grpc.aio.Channel, **metadata: str) -> None:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = channel.stream_stream(f"/{SERVICE}/{SUPERVISE}")
        self._call = method(metadata=tuple(metadata.items()))

    async def send(self, *frames: ClientFrame | bytes) -> None:
        for frame in frames:
            await self._call.write(frame if isinstance(frame, bytes) else encode_client(frame))

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def read(self) -> ServerFrame | None:
        """Return the next frame, or None at the end."""
        data = await self._call.read()
        return decode_server(data) if isinstance(data, bytes) else None

    async def answered(self) -> bool:
        """Return whether another frame arrives before the stream ends or fails."""
        with suppress(grpc.aio.AioRpcError):
            return await self.read() is not None
        return False

    async def failure(self) -> Failure:
        """Read on to the Failure, which must be mirrored in the status and be the last frame."""
        while not isinstance(frame := await self.read(), Failure):
            assert frame is not None, "the stream ended without a Failure"
        assert (await self._call.code()).name == frame.status
        assert await self._call.details() == frame.message
        return frame

    async def status(self) -> str:
        """Return the name of the gRPC status that ended the stream."""
        return (await self._call.code()).name

    async def details(self) -> Status:
        """Return the status with its details, once the stream has ended."""
        trailing = await self._call.trailing_metadata()
        return Status.FromString(dict(trailing or ())["grpc-status-details-bin"])

    def cancel(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def raw_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel with a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel


async def health_of(channel: grpc.aio.Channel) -> str:
    """Return what the health check of a server says."""
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
