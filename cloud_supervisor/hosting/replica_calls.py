"""Calls that a proxy sends to a replica: it pulls the answers, and a status travels with a message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Protocol

from chaperone_common.errors import trace_of
from chaperone_common.frames import Failure
from cloud_supervisor.hosting.status_details import status_code, trailing_metadata
from cloud_supervisor.service import AuthContext, Metadata

_LOG = logging.getLogger(__name__)


class Context(Protocol):
    """Ray Serve's copy of a call's context."""

    def invocation_metadata(self) -> Metadata: ...
    def auth_context(self) -> AuthContext: ...
    def peer(self) -> str: ...
    def set_code(self, code: Any) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


class Message:
    """Bytes under the name by which Ray Serve encodes messages."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Return the bytes."""
        return self._data


class _EndedError(Exception):
    """The call has its status."""


async def until_lost(requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the messages of a client until it leaves, or the proxy: Ray then raises errors of its own."""
    try:
        async for data in requests:
            yield data
    except Exception as error:
        _LOG.debug("a client is lost: %s", trace_of(error))


class ReplicaCall:
    """The `Call` port over Ray Serve's copy of a context."""

    def __init__(self, context: Context, carrier: Callable[[Failure], bytes]) -> None:
        """`carrier` makes the message that takes a status along where no frame does: Serve sends none alone."""
        self._context = context
        self._carrier = carrier
        self._outbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._endings: list[Callable[[], None]] = []

    @property
    def metadata(self) -> Metadata:
        return tuple(self._context.invocation_metadata())

    @property
    def auth_context(self) -> AuthContext:
        return self._context.auth_context()

    @property
    def peer(self) -> str:
        return self._context.peer()

    def on_end(self, callback: Callable[[], None]) -> None:
        self._endings.append(callback)

    async def write(self, data: bytes) -> None:
        self._outbox.put_nowait(Message(data))
        await self._outbox.join()

    async def abort(self, failure: Failure, *, frame_s: float | None = None) -> NoReturn:
        self._context.set_code(status_code(failure))
        self._context.set_details(failure.message)
        self._context.set_trailing_metadata([*trailing_metadata(failure)])
        async with asyncio.timeout(frame_s):
            await self.write(self._carrier(failure))
        raise _EndedError

    async def answers(self, serve: Callable[[ReplicaCall], Awaitable[None]]) -> AsyncGenerator[Message, None]:
        """Serve the call, and yield its messages one at a time, as they are pulled."""
        serving = asyncio.create_task(self._serve(serve))
        try:
            while (message := await self._outbox.get()) is not None:
                yield message
                self._outbox.task_done()
            await serving
        finally:
            serving.cancel()
            await asyncio.wait((serving,))
            for callback in self._endings:
                callback()

    async def _serve(self, serve: Callable[[ReplicaCall], Awaitable[None]]) -> None:
        try:
            await serve(self)
        except _EndedError:
            pass
        finally:
            self._outbox.put_nowait(None)
