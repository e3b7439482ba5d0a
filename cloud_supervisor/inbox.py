"""The frames of one stream that were received and not handled yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from chaperone_common.clock import Clock
from chaperone_common.errors import Cancelled, ChaperoneError, InternalError, ProtocolViolation, trace_of
from chaperone_common.frames import Arrived, ClientFrame, Close, Open

_LOG = logging.getLogger(__name__)


class Inbox:
    """Reads a stream ahead, up to a limit, so that the supervisor can see a Close or a Draft that waits."""

    def __init__(self, frames: AsyncIterator[ClientFrame], max_waiting: int, clock: Clock) -> None:
        self._clock = clock
        self._queue: asyncio.Queue[Arrived[ClientFrame] | ChaperoneError] = asyncio.Queue(max_waiting)
        self._interruption: asyncio.Future[Arrived[ClientFrame]] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._pump = asyncio.create_task(self._read(frames))
        self._pump.add_done_callback(self._note_end)

    @property
    def empty(self) -> bool:
        """No frame waits."""
        return self._queue.empty() and not self._interruption.done()

    @property
    def closing(self) -> bool:
        """The device needs no more verdicts: a Close is waiting, or the stream was interrupted."""
        return self._closing.is_set()

    async def until_closing(self) -> None:
        """Wait until `closing` is true."""
        await self._closing.wait()

    async def get(self) -> Arrived[ClientFrame]:
        """Take the oldest frame, or wait for one.

        Raises the error that the frame caused, or that interrupted the stream.
        """
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
        """Make the next `get`, or the one that waits, raise this error."""
        if not self._interruption.done():
            self._interruption.set_exception(error)
            self._interruption.exception()  # retrieved here, in case no `get` follows
            self._closing.set()

    async def close(self) -> None:
        """Stop reading."""
        self._pump.cancel()
        await asyncio.wait((self._pump,))

    def _note_end(self, pump: asyncio.Task[None]) -> None:
        """Interrupt `get` if a bug ended the reading, so that it does not wait for ever."""
        if not pump.cancelled() and (error := pump.exception()) is not None:
            _LOG.error("a stream cannot be read: %s", trace_of(error))
            self.interrupt(InternalError("the supervisor cannot read the stream; its log has the details"))

    async def _read(self, frames: AsyncIterator[ClientFrame]) -> None:
        opened = False
        try:
            async for frame in frames:
                if isinstance(frame, Open) and opened:  # not read ahead: an Open may be large
                    raise ProtocolViolation("frame: a second Open in one stream")
                opened = True
                if isinstance(frame, Close):
                    self._closing.set()
                await self._queue.put(Arrived(frame, self._clock.now()))
                if isinstance(frame, Close):
                    return
            await self._queue.put(Cancelled("frame: the stream ended without a Close"))
        except ChaperoneError as error:
            await self._queue.put(error)
