"""A file of the device's model, from the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc
import grpc.aio

from chaperone_common.errors import CloudTimeout, InvalidRequest, PeerMismatch, ProtocolViolation
from chaperone_common.frames import FetchModel
from chaperone_common.wire import FETCH_MODEL, SERVICE, decode_model_data, encode_fetch_model
from edge_client.link.grpc_link import GrpcCloud, error_of, metadata_of

STALL_S = 60.0  # without a byte


async def fetch_model(
    cloud: GrpcCloud, request: FetchModel, *, stall_s: float = STALL_S
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a file, as they arrive.

    Raises CloudLost or Overloaded where another request may continue, and another ChaperoneError where none can.
    """
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    method = cloud.channel.unary_stream(f"/{SERVICE}/{FETCH_MODEL}")
    call = method(encode_fetch_model(request), metadata=metadata_of(cloud.credentials.token))
    loop, stalled = asyncio.get_running_loop(), False

    def stall() -> None:
        nonlocal stalled
        stalled = True
        call.cancel()

    # Not a timeout around the read: a read that is cancelled leaks memory of gRPC.
    alarm = loop.call_later(stall_s, stall)
    try:
        async for data in call:
            if not (content := decode_model_data(data)):
                continue  # the status follows
            alarm.cancel()
            yield content
            alarm = loop.call_later(stall_s, stall)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise PeerMismatch(
                f"cloud: {cloud.address} is of a version that sends no models; update it, or pull from a folder or a "
                "URL, with --from"
            ) from None
        mapped = error_of(error, cloud.address, cloud.credentials)
        # The request had nothing that the user could correct.
        raise ProtocolViolation(mapped.message) if isinstance(mapped, InvalidRequest) else mapped from None
    except asyncio.CancelledError:
        if not stalled:
            raise
        raise CloudTimeout(f"cloud: {cloud.address} sent nothing for {stall_s:g} s") from None
    finally:
        alarm.cancel()
        call.cancel()
