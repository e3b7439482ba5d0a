"""The link between device and cloud in virtual time: real frames with their size on the wire, delayed by the link."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol

from chaperone_common.frames import Arrived, Capabilities, ClientFrame, Closed, Failure, Open, ServerFrame
from chaperone_common.wire import decode_client, decode_server, encode_client, encode_server
from edge_client.ports import Metadata

# Around every frame: the length prefix of a gRPC message (5) and the header of an HTTP/2 DATA frame (9). Headers of TCP
# and IP are the link model's; those that open the stream, acknowledgements and TLS are not counted.
FRAME_HEADER_BYTES = 14

Tap = Callable[[ClientFrame | ServerFrame], object]


class Way(Protocol):
    """A direction of a link; implemented by `link_emulator.model.Direction`."""

    @property
    def wire_bytes(self) -> int:
        """Bytes carried up to now, headers included."""

    def arrival(self, now_s: float, size_bytes: int, flow: int = 0) -> float:
        """Return when a piece that is handed in now arrives; pieces of one flow stay in order."""


class ResetTimes(Protocol):
    """Times of connection resets; implemented by `link_emulator.timeline.Resets`."""

    def next_after(self, time_s: float) -> float:
        """Return the first reset later than `time_s`; infinite if there is none."""


class LinkModel(Protocol):
    """Both directions; implemented by `link_emulator.model.Link`."""

    @property
    def up(self) -> Way: ...

    @property
    def down(self) -> Way: ...

    @property
    def resets(self) -> ResetTimes: ...


class Host(Protocol):
    """The other end of a link; implemented by `cloud_supervisor.supervisor.Supervisor`."""

    capabilities: Capabilities

    def supervise(self, frames: AsyncIterator[ClientFrame]) -> AsyncGenerator[ServerFrame, None]:
        """Serve one stream."""


class SimulatedCloud:
    """A `Cloud`: a supervisor at the other end of a link.

    Create it inside a virtual loop, whose seconds are the link's. Connections take no time, both the first one and
    those after a reset. `tap` is called with every frame when it leaves the device or arrives there.
    """

    def __init__(self, supervisor: Host, model: LinkModel, tap: Tap | None = None) -> None:
        self._supervisor = supervisor
        self._model = model
        self._tap = tap
        self._flows = itertools.count()
        self._streams: list[SimulatedLink] = []
        self._loop = asyncio.get_running_loop()
        self._reset_alarm: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        return True

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        now_s = self._loop.time()
        there_s = self._model.up.arrival(now_s, FRAME_HEADER_BYTES, next(self._flows))
        await asyncio.sleep(there_s - now_s)
        back_s = self._model.down.arrival(self._loop.time(), FRAME_HEADER_BYTES, next(self._flows))
        await asyncio.sleep(back_s - self._loop.time())
        return self._supervisor.capabilities

    def link(self, metadata: Metadata = ()) -> SimulatedLink:
        if self._reset_alarm is None:
            self._plan_reset()
        link = SimulatedLink(self._supervisor, self._model, next(self._flows), self._tap)
        self._streams.append(link)
        return link

    async def close(self) -> None:
        if self._reset_alarm is not None:
            self._reset_alarm.cancel()
        for link in self._streams:
            link.cancel()

    def _plan_reset(self) -> None:
        next_s = self._model.resets.next_after(self._loop.time())
        if next_s < math.inf:
            self._reset_alarm = self._loop.call_at(next_s, self._reset)

    def _reset(self) -> None:
        for link in self._streams:
            link.reset()
        self._plan_reset()


class SimulatedLink:
    """A `CloudLink` to a supervisor in the same loop."""

    def __init__(self, supervisor: Host, model: LinkModel, flow: int = 0, tap: Tap | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._supervisor = supervisor
        self._tap = tap or _ignore
        self._up = _Pipe(loop, model.up, flow)
        self._down = _Pipe(loop, model.down, flow)
        self._at_cloud: asyncio.Queue[ClientFrame | None] = asyncio.Queue()
        self._inbox: deque[Arrived[ServerFrame]] = deque()
        self._arrived = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._closed = False
        self._cancelled = False
        self._ended = False
        self._bytes_up = 0
        self._bytes_down = 0

    @property
    def bytes_up(self) -> int:
        return self._bytes_up

    @property
    def bytes_down(self) -> int:
        return self._bytes_down

    async def open(self, frame: Open) -> None:
        self._serving = asyncio.create_task(self._serve(), name="simulated cloud")
        self.send(frame)

    def send(self, frame: ClientFrame) -> None:
        if self._closed:
            return
        self._tap(frame)
        data = encode_client(frame)
        self._bytes_up += len(data)
        self._up.carry(len(data) + FRAME_HEADER_BYTES, lambda: self._at_cloud.put_nowait(decode_client(data)))

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        self._arrived.clear()
        frames = tuple(self._inbox)
        self._inbox.clear()
        return frames

    async def wait(self, timeout_ms: float) -> bool:
        if self._arrived.is_set():
            return True
        try:
            async with asyncio.timeout(timeout_ms / 1e3):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._up.carry(0, lambda: self._at_cloud.put_nowait(None))

    def cancel(self) -> None:
        self._closed = True
        if self._serving is None or self._cancelled:
            return
        self._cancelled = True
        self._put(Failure("CANCELLED", "generation: it was cancelled on this device"))
        self._up.carry(0, self._serving.cancel)

    def reset(self) -> None:
        """Lose the connection at both ends at once, with everything in flight, unless it is not yet open."""
        if self._serving is None:
            return
        self._closed = True
        self._up.cut()
        self._down.cut()
        self._serving.cancel()
        self._put(Failure("UNAVAILABLE", "cloud: the connection was reset"))

    async def _serve(self) -> None:
        async with aclosing(self._supervisor.supervise(self._frames())) as answers:
            async for frame in answers:
                data = encode_server(frame)
                self._down.carry(len(data) + FRAME_HEADER_BYTES, partial(self._receive, data))
        lost = Failure("UNAVAILABLE", "cloud: it ended the stream without a last word")
        self._down.carry(0, lambda: self._put(lost))

    def _receive(self, data: bytes) -> None:
        self._bytes_down += len(data)
        frame = decode_server(data)
        self._tap(frame)
        self._put(frame)

    async def _frames(self) -> AsyncIterator[ClientFrame]:
        while (frame := await self._at_cloud.get()) is not None:
            yield frame

    def _put(self, frame: ServerFrame) -> None:
        """Queue a frame unless the stream has ended."""
        if self._ended:
            return
        self._ended = isinstance(frame, Failure | Closed)
        self._inbox.append(Arrived(frame, self._loop.time()))
        self._arrived.set()


def _ignore(frame: ClientFrame | ServerFrame) -> None:
    """Drop a frame that has no receiver."""


class _Pipe:
    """Frames in flight in one direction, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, way: Way, flow: int) -> None:
        self._loop = loop
        self._way = way
        self._flow = flow
        self._on_the_way: deque[Callable[[], object]] = deque()
        self._cut = False

    def carry(self, size_bytes: int, deliver: Callable[[], object]) -> None:
        """Deliver a frame when it arrives; 0 bytes are the end of the stream, which is not a message."""
        if self._cut:
            return
        arrival_s = self._way.arrival(self._loop.time(), size_bytes, self._flow)
        self._on_the_way.append(deliver)
        # Timers that are due at the same time fire in any order, so each one takes the oldest frame.
        self._loop.call_at(arrival_s, self._deliver)

    def cut(self) -> None:
        """Lose the frames in flight, and carry no further ones."""
        self._cut = True
        self._on_the_way.clear()

    def _deliver(self) -> None:
        if self._on_the_way:
            self._on_the_way.popleft()()
