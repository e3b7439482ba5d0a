"""Calls in the cloud: identify, decode, serve, encode.

Hosts carry frames as bytes, so that our own rules refuse a malformed frame, with a message, on its stream only. A host
is a gRPC server, or a replica of Ray Serve.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import NoReturn, Protocol

from chaperone_common.clock import Clock
from chaperone_common.errors import (
    ChaperoneError,
    CloudTimeout,
    CloudUnavailable,
    Overloaded,
    PrefixNotFound,
    ProtocolViolation,
    QuotaExceeded,
    status_of,
)
from chaperone_common.frames import ClientFrame, Failure, FrameLimits, ServerFrame
from chaperone_common.wire import (
    decode_client,
    decode_fetch_model,
    encode_capabilities,
    encode_model_data,
    encode_server,
)
from cloud_supervisor.caller import ANONYMOUS, Caller
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.observation import ModelSent, Observer, Refused
from cloud_supervisor.security.authentication import TokenEnded, peer_address
from cloud_supervisor.security.pacing import RefusalPace
from cloud_supervisor.supervisor import Supervisor
from cloud_supervisor.transfers.transfers import Transfers

_LOADING_RETRY_MS = 1000
_BUSY_RETRY_MS = 1000
_REFUSAL_WRITE_S = 1.0  # the client need not read its refusal
_CREDENTIAL_CHECK_S = 1.0
LAST_FAILURES_S = 1.0  # that a host gives its devices to receive why their streams end
_AT_ONCE = (status_of(CloudUnavailable("")), status_of(PrefixNotFound("")))

Metadata = Sequence[tuple[str, str | bytes]]
AuthContext = Mapping[str, Iterable[bytes]]


class Call(Protocol):
    """One call of a client, as its host sees it."""

    @property
    def metadata(self) -> Metadata:
        """The metadata that the client sent."""

    @property
    def auth_context(self) -> AuthContext:
        """The properties of the connection, such as the certificate that the client has shown."""

    @property
    def peer(self) -> str:
        """The address of the client, in gRPC's words."""

    def on_end(self, callback: Callable[[], None]) -> None:
        """Run a function when nothing is left of the call."""

    async def write(self, data: bytes) -> None:
        """Send a message. Waits while the client does not read."""

    async def abort(self, failure: Failure, *, frame_s: float | None = None) -> NoReturn:
        """End the call with the status of a failure; with `frame_s`, send the failure as a frame before.

        Raises TimeoutError, and ends nothing, if the client does not read the frame within `frame_s`.
        """


class Callers(Protocol):
    """The callers that may come in, by their tokens and certificates."""

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext, peer: str) -> Caller:
        """Return the caller; raises Unauthenticated or PermissionDenied.

        `auth_context` is gRPC's, and holds the certificate of the device if it has shown one.
        """

    def valid(self, caller: Caller) -> bool:
        """Return whether a caller's credential still stands."""

    def close(self) -> None:
        """End all checks."""


class _RefusalError(Exception):
    """A stream is refused before it is a session."""

    def __init__(self, failure: Failure, caller: Caller, *, framed: bool = False) -> None:
        super().__init__(failure.status)
        self.failure = failure
        self.caller = caller
        self.framed = framed  # the failure is sent as a frame, too; such calls count as unfinished


class SupervisionService:
    """`chaperone.v1.SupervisionService`, for any host. It refuses everybody until it has a supervisor."""

    def __init__(self, callers: Callers, limits: LimitsConfig, observer: Observer, clock: Clock) -> None:
        self.supervisor: Supervisor | None = None
        self._transfers: Transfers | None = None
        self._callers = callers
        self._limits = limits
        self._observer = observer
        self._pace = RefusalPace(limits.max_refusal_delay_s, clock)
        self._streams = 0
        self._working = 0  # open streams, and those that are being refused
        # Calls by tenant. One whose device does not read goes on after its stream has ended, until the connection does.
        self._unfinished: Counter[str] = Counter()
        self._held: Counter[str] = Counter()  # those of `_unfinished` whose refusal is held back
        self._idle = asyncio.Event()  # no stream is open, or being refused
        self._idle.set()

    def host(self, supervisor: Supervisor, transfers: Transfers) -> None:
        """Serve everybody from now on."""
        self.supervisor, self._transfers = supervisor, transfers

    async def supervise(self, requests: AsyncIterator[bytes], call: Call) -> None:
        """Serve one generation; a Failure frame also sets the status of the stream."""
        await self._serve(call, self._supervise(requests, call))

    async def fetch_model(self, requests: AsyncIterator[bytes], call: Call) -> None:
        """Send a file of the device's model, or its manifest."""
        await self._serve(call, self._fetch_model(requests, call))

    async def _serve(self, call: Call, serving: Coroutine[None, None, None]) -> None:
        """Serve a stream if there is room for it, and send its refusal."""
        if self._streams >= self._limits.max_streams:
            serving.close()
            message = f"streams: {self._streams} are open, the limit is {self._limits.max_streams}; try again later"
            await self._refuse(call, self._refusal(call, Overloaded(message, retry_after_ms=_BUSY_RETRY_MS)))
        try:
            with self._counted():
                await serving
        except _RefusalError as refusal:
            await self._refuse(call, refusal)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count an open stream within the block."""
        self._streams += 1
        try:
            with self._busy():
                yield
        finally:
            self._streams -= 1

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Let `until_idle` wait for the block."""
        self._working += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()

    async def until_idle(self, patience_s: float) -> None:
        """Wait until no stream is open, for at most `patience_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._idle.wait()

    async def watch_credentials(self) -> None:
        """End the streams of credentials that are revoked or expire. Their devices come back if they have new ones."""
        while True:
            await asyncio.sleep(_CREDENTIAL_CHECK_S)
            if self.supervisor is not None:
                self.supervisor.end_where(
                    lambda caller: not self._callers.valid(caller),
                    _credential_ended,
                )

    async def get_capabilities(self, call: Call) -> None:
        """Send the model and the limits of this cloud, and the quotas of the caller's tenant."""
        try:
            supervisor, caller = await self._begin(call)
        except _RefusalError as refusal:
            await self._refuse(call, refusal)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.write_timeout_s):
                await call.write(encode_capabilities(supervisor.capabilities_for(caller)))

    async def _supervise(self, requests: AsyncIterator[bytes], call: Call) -> None:
        supervisor, caller = await self._begin(call)
        if self._unfinished[caller.tenant] - self._held[caller.tenant] >= self._limits.max_streams:
            message = f"streams: {self._limits.max_streams} of this tenant are open or unread; read their answers"
            raise self._refusal(call, Overloaded(message, retry_after_ms=_BUSY_RETRY_MS), caller)
        self._unfinished[caller.tenant] += 1
        call.on_end(lambda: self._finish(caller.tenant))
        limits = FrameLimits(
            max_message_bytes=self._limits.max_message_kib << 10,
            max_text_tokens=supervisor.capabilities.context_tokens,
            max_span_tokens=self._limits.max_span_tokens,
        )
        frames = supervisor.supervise(_decoded(requests, limits), caller, _header(call, "traceparent"))
        opened = False
        async with aclosing(frames) as answers:
            async for frame in answers:
                if isinstance(frame, Failure) and not opened:
                    raise _RefusalError(frame, caller, framed=True)
                opened = True
                try:
                    await self._write(call, frame)
                except TimeoutError:
                    self._observer.notice(Refused(caller.tenant, caller.peer, "write_timeout", _unread(self._limits)))
                    return

    async def _fetch_model(self, requests: AsyncIterator[bytes], call: Call) -> None:
        _, caller = await self._begin(call)
        assert self._transfers is not None, "`host` sets both"
        try:
            end = self._transfers.begin(caller)
        except ChaperoneError as error:
            raise self._refusal(call, error, caller) from None
        call.on_end(end)
        sent_bytes = 0
        try:
            request = decode_fetch_model(await self._first(requests))
            async with aclosing(self._transfers.pieces(request, caller)) as pieces:
                async for piece in pieces:
                    if not self._callers.valid(caller):
                        raise _credential_ended()
                    async with asyncio.timeout(self._limits.write_timeout_s):
                        await call.write(encode_model_data(piece))
                    sent_bytes += len(piece)
        except ChaperoneError as error:
            end()
            raise self._refusal(call, error, caller) from None
        except TimeoutError:  # the place is taken until the call has ended, since its last piece may stay in memory
            self._observer.notice(Refused(caller.tenant, caller.peer, "write_timeout", _unread(self._limits)))
        else:
            end()
        finally:
            self._observer.notice(ModelSent(caller.tenant, sent_bytes))

    async def _first(self, requests: AsyncIterator[bytes]) -> bytes:
        """Return the only message of a request; raises CloudTimeout or ProtocolViolation."""
        try:
            async with asyncio.timeout(self._limits.open_timeout_s):
                async for data in requests:
                    return data
        except TimeoutError:
            raise CloudTimeout(f"open_timeout_s: no request within {self._limits.open_timeout_s:g} s") from None
        raise ProtocolViolation("request: the stream ended without one; send one")

    async def _write(self, call: Call, frame: ServerFrame) -> None:
        """Write a frame, and end the call with a Failure; raises TimeoutError if the device does not read in time."""
        if isinstance(frame, Failure):
            await call.abort(frame, frame_s=self._limits.write_timeout_s)
        async with asyncio.timeout(self._limits.write_timeout_s):
            await call.write(encode_server(frame))

    def _finish(self, tenant: str) -> None:
        self._unfinished[tenant] -= 1
        if not self._unfinished[tenant]:
            del self._unfinished[tenant]

    async def _begin(self, call: Call) -> tuple[Supervisor, Caller]:
        """Return the supervisor and the caller; raises _RefusalError."""
        try:
            caller = await self._callers.authenticate(call.metadata, call.auth_context, call.peer)
        except ChaperoneError as error:
            raise self._refusal(call, error) from None
        if self.supervisor is None:
            loading = CloudUnavailable("the cloud is loading its model; try again", retry_after_ms=_LOADING_RETRY_MS)
            raise self._refusal(call, loading, caller)
        return self.supervisor, caller

    def _refusal(self, call: Call, error: ChaperoneError, caller: Caller | None = None) -> _RefusalError:
        """Report a refusal, and return it."""
        caller = caller or Caller(ANONYMOUS, peer_address(call.peer))
        token = error.token_id if isinstance(error, TokenEnded) else ""
        quota = error.quota if isinstance(error, QuotaExceeded) else ""
        reason = quota or status_of(error).lower()
        self._observer.notice(Refused(caller.tenant, caller.peer, reason, error.message, token))
        return _RefusalError(Failure(status_of(error), error.message, error.retry_after_ms, quota), caller)

    async def _refuse(self, call: Call, refusal: _RefusalError) -> NoReturn:
        """End a stream by a refusal, when its turn has come."""
        # A device that knows at once that this service is not ready can go to another. If this service is full, the
        # device has a hint when to ask again. Without the text that its Open refers to, it sends the whole prompt.
        if refusal.failure.status not in _AT_ONCE:
            await self._hold(refusal)
        with self._busy():  # not `_counted`: refused devices that read nothing would take the places of others
            if refusal.framed:
                with suppress(TimeoutError):
                    await call.abort(refusal.failure, frame_s=_REFUSAL_WRITE_S)
            await call.abort(refusal.failure)

    async def _hold(self, refusal: _RefusalError) -> None:
        """Wait until a refusal may be sent."""
        tenant = refusal.caller.tenant
        self._held[tenant] += refusal.framed
        try:
            await self._pace.hold(_client(refusal.caller))
        finally:
            self._held[tenant] -= refusal.framed
            if not self._held[tenant]:
                del self._held[tenant]


def _credential_ended() -> CloudUnavailable:
    message = "authorization: the credential was revoked or has expired; open the stream again with a valid one"
    return CloudUnavailable(message, retry_after_ms=1)


def _client(caller: Caller) -> str:
    """Return the client that a refusal counts for: a tenant, or the address of a stranger."""
    return caller.peer if caller.tenant == ANONYMOUS else f"tenant {caller.tenant}"


def _header(call: Call, name: str) -> str:
    value = dict(call.metadata).get(name, "")
    return value if isinstance(value, str) else ""


def _unread(limits: LimitsConfig) -> str:
    return f"write_timeout_s: the device has not read an answer for {limits.write_timeout_s:g} s"


async def _decoded(requests: AsyncIterator[bytes], limits: FrameLimits) -> AsyncIterator[ClientFrame]:
    async for data in requests:
        yield decode_client(data, limits)
