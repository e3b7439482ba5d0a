"""gRPC on the device: one channel to each address of the cloud, one stream for each generation.

Frames cross as bytes, which `wire` encodes and decodes. gRPC's errors become Failure frames here.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # we report a lost cloud ourselves

import asyncio
from collections import deque
from collections.abc import Sequence

import grpc
import grpc.aio

from chaperone_common.address import is_loopback
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.errors import (
    ChaperoneError,
    CloudTimeout,
    CloudUnavailable,
    InvalidRequest,
    ProtocolViolation,
    Unauthenticated,
    error_from_status,
    status_of,
)
from chaperone_common.frames import Arrived, Capabilities, ClientFrame, Closed, Failure, Open, ServerFrame
from chaperone_common.wire import (
    GET_CAPABILITIES,
    RETRY_AFTER,
    SERVICE,
    SUPERVISE,
    decode_capabilities,
    decode_server,
    encode_capabilities_request,
    encode_client,
)
from edge_client.config import CloudSettings
from edge_client.link.addresses import routing_key
from edge_client.link.credentials import Credentials, TokenSource, read_credentials
from edge_client.link.diagnosis import (
    MAY_LOAD,
    OR_WENT_AWAY,
    START_IT,
    NeverConnects,
    connection_problem,
    handshake_problem,
    not_in_time,
    reason_of,
)
from edge_client.ports import Metadata

_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # what the keepalive waits for, whatever the option above says
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.per_message_decompression", 0),  # no cloud compresses its frames
    # Every client has its own connection, so that closing one cannot disturb another.
    ("grpc.use_local_subchannel_pool", 1),
    # The engine decides when to try again, and how long; a channel must not add a backoff of its own.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # also the limit for one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_DRAIN_SECONDS = 5.0
_LONGEST_RETRY_MS = 3_600_000
_ASK_AGAIN_S, _ASK_AGAIN_MOST_S = 0.1, 1.0  # pauses between requests to a cloud that is not ready
_LOOK_FIRST_S, _LOOK_AGAIN_S = 0.05, 0.5  # after which a connection that does not come about is looked into

_Metadata = tuple[tuple[str, str], ...]


class GrpcCloud:
    """The channel to one address."""

    def __init__(self, address: str, credentials: Credentials | None = None, clock: Clock | None = None) -> None:
        """Make the channel; it connects when it is first used.

        Without credentials they are those of the default settings, and no environment variable is read.
        """
        self.address = address
        self._credentials = credentials or read_credentials(CloudSettings(address=address), {})
        self._clock = clock or MonotonicClock()
        self._channel = _channel(address, self._credentials)
        self._draining: set[asyncio.Task[None]] = set()
        self._closed = False
        self._reason = ""  # why the last attempt to connect failed

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, for calls that are neither a text nor a request for capabilities."""
        return self._channel

    @property
    def credentials(self) -> Credentials:
        """The credentials of each call."""
        return self._credentials

    @property
    def connected(self) -> bool:
        """True if the connection is up; it ends with the server."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        """Return the cloud's models and limits. Waits for a connection until the time is up.

        Raises CloudLost, also at once if no wait can help, or another error with which the cloud refuses.
        """
        self._reason = ""
        requesting = asyncio.create_task(self._request_capabilities(timeout_ms))
        looking = asyncio.create_task(self._look_into_connection())
        try:
            await asyncio.wait((requesting, looking), return_when=asyncio.FIRST_COMPLETED)
            if not requesting.done():
                raise CloudUnavailable(looking.result())
            return await requesting
        finally:
            requesting.cancel()
            looking.cancel()
            await asyncio.gather(requesting, looking, return_exceptions=True)

    async def ask(self, timeout_ms: float) -> Capabilities:
        """Return what `capabilities` does, but wait for nothing except one attempt to connect and the answer.

        Raises CloudLost as soon as that fails, `NeverConnects` if waiting cannot help, or another error of the cloud.
        """
        return await self._ask(timeout_ms, timeout_ms / 1e3, waits=False)

    async def _request_capabilities(self, timeout_ms: float) -> Capabilities:
        """Ask again while the cloud loads its model, stops, or goes away during the request."""
        loop = asyncio.get_running_loop()
        ends_at, pause_s = loop.time() + timeout_ms / 1e3, _ASK_AGAIN_S
        while True:
            try:
                return await self._ask(timeout_ms, ends_at - loop.time())
            except CloudUnavailable as error:
                wait_s = max(pause_s, (error.retry_after_ms or 0) / 1e3)
                if self._closed:
                    raise
                if loop.time() + wait_s >= ends_at:
                    raise not_in_time(error, timeout_ms) from None
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, _ASK_AGAIN_MOST_S)

    async def _ask(self, timeout_ms: float, timeout_s: float, *, waits: bool = True) -> Capabilities:
        """Ask once, with `timeout_s` left of `timeout_ms`; `waits` for a connection for all of that time."""
        request = encode_capabilities_request()
        method = self._get_capabilities()
        try:
            metadata = metadata_of(self._credentials.token)
            # Ready: after a loss a channel backs off, and would refuse at once although the cloud is back.
            answer: bytes = await method(request, timeout=timeout_s, metadata=metadata, wait_for_ready=waits)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not self.connected:
                reason = f": {self._reason}" if self._reason else ""
                limit = " (cloud.connect_timeout_ms)" if waits else ""
                raise CloudUnavailable(
                    f"cloud: {self.address} cannot be reached within {timeout_ms:g} ms{limit}{reason}; {MAY_LOAD}"
                ) from None
            if not waits and error.code() is grpc.StatusCode.UNAVAILABLE and _retry_after_ms(error) is None:
                raise await self._unreachable(error.details() or "no details") from None
            mapped = error_of(error, self.address, self._credentials)
            # The request had nothing that the caller could correct.
            raise ProtocolViolation(mapped.message) if isinstance(mapped, InvalidRequest) else mapped from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CloudUnavailable(f"cloud: the channel to {self.address} was closed during the request") from None
        return decode_capabilities(answer)

    async def _unreachable(self, details: str) -> CloudUnavailable:
        """Return the error of an attempt to connect that failed."""
        problem = await connection_problem(details, self.address, self._credentials.tls)
        if problem is not None:
            return NeverConnects(problem)
        return CloudUnavailable(f"cloud: {self.address} cannot be reached: {reason_of(details) or details}; {MAY_LOAD}")

    async def _look_into_connection(self) -> str:
        """Return when no connection can come about however long one waits: the problem, and its remedy."""
        pause_s = _LOOK_FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_AGAIN_S)
            if self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                continue
            try:
                # A call that does not wait ends at once, with the reason. It carries no token.
                await self._get_capabilities()(encode_capabilities_request(), timeout=_LOOK_AGAIN_S)
            except grpc.aio.AioRpcError as error:
                self._reason = reason_of(error.details() or "") or self._reason
                problem = await connection_problem(error.details() or "", self.address, self._credentials.tls)
                if problem is not None and error.code() is grpc.StatusCode.UNAVAILABLE:
                    return problem

    def _get_capabilities(self) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        return self._channel.unary_unary(f"/{SERVICE}/{GET_CAPABILITIES}")

    def link(self, metadata: Metadata = ()) -> GrpcLink:
        """Return a new stream, not yet opened."""
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = self._channel.stream_stream(f"/{SERVICE}/{SUPERVISE}")
        return GrpcLink(method, self.address, self._credentials, self._draining, self._clock, metadata)

    async def close(self) -> None:
        """Wait a moment for the answers to ended streams, then close the channel."""
        if self._draining:
            await asyncio.wait(self._draining, timeout=_DRAIN_SECONDS)
        self._closed = True
        await self._channel.close()


class GrpcLink:
    """The `CloudLink` port over one gRPC stream."""

    def __init__(
        self,
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes],
        address: str,
        credentials: Credentials,
        draining: set[asyncio.Task[None]],
        clock: Clock,
        metadata: Metadata = (),
    ) -> None:
        self._method = method
        self._metadata = tuple(metadata)
        self._clock = clock
        self._address = address
        self._credentials = credentials
        self._draining = draining
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._inbox: deque[Arrived[ServerFrame]] = deque()
        self._arrived = asyncio.Event()
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._closed = False
        self._bytes_up = 0
        self._bytes_down = 0

    @property
    def bytes_up(self) -> int:
        return self._bytes_up

    @property
    def bytes_down(self) -> int:
        return self._bytes_down

    async def open(self, frame: Open) -> None:
        try:
            # The session id is also in the Open frame; here routers can read it, and Ray Serve's by its own name.
            key = routing_key(frame.session_id)
            session = tuple((name, key) for name in ("x-session-id", "session_id"))
            metadata = (*metadata_of(self._credentials.token), *session, *self._metadata)
        except Unauthenticated as error:
            self._closed = True
            self._put(Failure(status_of(error), error.message))
            return
        self._call = call = self._method(metadata=metadata)
        writer, reader = asyncio.create_task(self._write(call)), asyncio.create_task(self._read(call))
        for task in (writer, reader):
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

        def ended(_: object) -> None:
            writer.cancel()  # grpc.aio never wakes a write that waits for the metadata of a call that has ended

        call.add_done_callback(ended)
        self.send(frame)

    def send(self, frame: ClientFrame) -> None:
        if self._closed:
            return
        data = encode_client(frame)
        self._bytes_up += len(data)
        self._outbox.put_nowait(data)

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        self._arrived.clear()
        frames = tuple(self._inbox)
        self._inbox.clear()
        return frames

    async def wait(self, timeout_ms: float) -> bool:
        try:
            async with asyncio.timeout(timeout_ms / 1e3):  # `wait_for` loses a cancellation that coincides with a frame
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outbox.put_nowait(None)

    def cancel(self) -> None:
        self.close()
        if self._call is not None:
            self._call.cancel()

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        try:
            while (data := await self._outbox.get()) is not None:
                await call.write(data)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            return  # the stream is over; the reader reports why
        except asyncio.CancelledError:
            if not call.done():  # this task is cancelled, not the stream
                raise

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        ended = False
        try:
            # Not `call.read()`: after a write at the stream's end it drops received frames, and with them the reason.
            async for data in call:
                self._bytes_down += len(data)
                if not ended:  # nothing follows a Failure or Closed
                    frame = decode_server(data)
                    ended = isinstance(frame, Failure | Closed)
                    self._put(frame)
            if not ended:
                self._put(Failure("UNAVAILABLE", f"cloud: {self._address} ended the stream without a reason"))
        except ChaperoneError as error:
            self._put(Failure(status_of(error), error.message))
            call.cancel()
        except grpc.aio.AioRpcError as error:
            if not ended:
                mapped = error_of(error, self._address, self._credentials)
                self._put(Failure(status_of(mapped), mapped.message, mapped.retry_after_ms))
        except asyncio.CancelledError:
            if not ended:
                self._put(Failure("CANCELLED", "generation: it was cancelled on this device"))
            if not call.cancelled():
                raise

    def _put(self, frame: ServerFrame) -> None:
        self._inbox.append(Arrived(frame, self._clock.now()))
        self._arrived.set()


def _channel(address: str, credentials: Credentials) -> grpc.aio.Channel:
    tls = credentials.tls
    # Without TLS nothing goes to a proxy, and on this machine there is none.
    proxied = tls is not None and not is_loopback(address)
    options: list[tuple[str, str | int]] = [*_OPTIONS, ("grpc.enable_http_proxy", int(proxied))]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    files = grpc.ssl_channel_credentials(tls.authorities, tls.key, tls.certificate)
    return grpc.aio.secure_channel(address, files, options=options)


def metadata_of(token: TokenSource) -> _Metadata:
    """Return the metadata of each call; raises Unauthenticated if the token cannot be read."""
    secret = token.read()
    return (("authorization", f"Bearer {secret.get_secret_value()}"),) if secret is not None else ()


def error_of(error: grpc.aio.AioRpcError, address: str, credentials: Credentials) -> ChaperoneError:
    """Return the error that the status of a call reports."""
    details = error.details() or "no details"
    retry_after_ms = _retry_after_ms(error)
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if retry_after_ms is not None:  # the cloud itself says so
            return CloudUnavailable(f"cloud: {address}: {details}", retry_after_ms=retry_after_ms)
        # A stopping server leaves CANCELLED, and so does a proxy whose server dies, often before initial metadata. What
        # this device cancels itself is no AioRpcError. A write at the stream's end becomes INTERNAL in grpc.aio; a bug
        # in our own server arrives as a Failure frame.
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.INTERNAL:
            return CloudUnavailable(
                handshake_problem(details, address, credentials.tls)
                or f"cloud: {address} {OR_WENT_AWAY}{reason_of(details) or details}; {START_IT}"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return CloudTimeout(f"cloud: {address} did not answer in time; raise cloud.connect_timeout_ms")
        case code:
            kind = type(error_from_status(code.name, details))  # the message begins with the field that decides
            return kind(f"cloud: {address}: {details}", retry_after_ms=retry_after_ms)


def _retry_after_ms(error: grpc.aio.AioRpcError) -> int | None:
    """Return the time after which the cloud wants to be asked again, if it names one."""
    for key, value in error.trailing_metadata() or ():
        if key == RETRY_AFTER and isinstance(value, str) and value.isascii() and value.isdecimal():
            return min(int(value[:9]), _LONGEST_RETRY_MS)
    return None
