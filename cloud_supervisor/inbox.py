"""The frames of one stream that wait to be handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from chaperone_common.clock import Clock
from chaperone_common.errors import Cancelled, ChaperoneError, InternalError
from chaperone_common.frames import Arrived, ClientFrame, Close

_LOG = logging.getLogger(__name__)


class Inbox:
    """Reads a stream ahead, so that the supervisor can see what is coming; bounded, so that nobody can flood it."""

    def __init__(self, frames: AsyncIterator[ClientFrame], max_waiting: int, clock: Clock) -> None:
        self._clock = clock
        self._queue: asyncio.Queue[Arrived[ClientFrame] | ChaperoneError] = asyncio.Queue(max_waiting)
        self._interruption: asyncio.Future[Arrived[ClientFrame]] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._pump = asyncio.create_task(self._read(frames))
        self._pump.add_done_callback(self._note_end)

    @property
    def empty(self) -> bool:
        """No frame is there to take."""
        return self._queue.empty() and not self._interruption.done()

    @property
    def closing(self) -> bool:
        """No verdict is wanted any more: a Close is among the waiting frames, or the stream was interrupted."""
        return self._closing.is_set()

    async def until_closing(self) -> None:
        """Wait until `closing` is true."""
        await self._closing.wait()

    async def get(self) -> Arrived[ClientFrame]:
        """Take the oldest frame; raises what was wrong with it, or why the stream was interrupted."""
        if self._interruption.done():
            return self._interruption.result()
        taking = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait((taking, self._interruption), return_when=asyncio.FIRST_COMPLETED)
            if self._interruption.done():
                return self._interruption.result()
            arrival = taking.result()
        finally:
            taking.cancel()
        if isinstance(arrival, ChaperoneError):
            raise arrival
        return arrival

    def interrupt(self, error: ChaperoneError) -> None:
        """Let the next `get`, or the waiting one, raise this error."""
        if not self._interruption.done():
            self._interruption.set_exception(error)
            self._interruption.exception()  # it may never be asked for
            self._closing.set()

    async def close(self) -> None:
        """Stop reading."""
        self._pump.cancel()
        await asyncio.wait((self._pump,))

    def _note_end(self, pump: asyncio.Task[None]) -> None:
        """A bug in the reading must not leave `get` waiting for ever."""
        if not pump.cancelled() and (error := pump.exception()) is not None:
            _LOG.error("a stream cannot be read", exc_info=error)
            self.interrupt(InternalError("the supervisor cannot read the stream; its log has the details"))

    async def _read(self, frames: AsyncIterator[ClientFrame]) -> None:
        try:
            async for frame in frames:
                if isinstance(frame, Close):
                    self._closing.set()
                await self._queue.put(Arrived(frame, self._clock.now()))
                if isinstance(frame, Close):
                    return
            await self._queue.put(Cancelled("frame: the stream ended without a Close"))
        except ChaperoneError as error:
            await self._queue.put(error)
