"""A cloud that delays its frames, and counts events."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from random import Random

from chaperone_common.frames import Arrived, Capabilities, ClientFrame, Continuation, Draft, Open, ServerFrame, Verdict
from edge_client.link.grpc_link import GrpcCloud, GrpcLink
from edge_client.ports import Metadata


class RecordingCloud:
    """Delays frames in both directions by up to `delay_ms`, never reordering them, and counts events."""

    def __init__(self, address: str, *, delay_ms: float, random: Random, seen: Counter[str]) -> None:
        self._cloud = GrpcCloud(address)
        self._delay_ms = delay_ms
        self._random = random
        self._seen = seen

    @property
    def connected(self) -> bool:
        return self._cloud.connected

    async def capabilities(self, timeout_ms: float) -> Capabilities:
        return await self._cloud.capabilities(timeout_ms)

    def link(self, metadata: Metadata = ()) -> RecordingLink:
        return RecordingLink(self._cloud.link(metadata), self._delay_ms, self._random, self._seen)

    async def close(self) -> None:
        await self._cloud.close()


class RecordingLink:
    """One stream of a `RecordingCloud`."""

    def __init__(self, link: GrpcLink, delay_ms: float, random: Random, seen: Counter[str]) -> None:
        self._link = link
        self._delay_ms = delay_ms
        self._random = random
        self._seen = seen
        self._up: asyncio.Queue[ClientFrame | None] = asyncio.Queue()
        self._inbox: deque[Arrived[ServerFrame]] = deque()
        self._arrived = asyncio.Event()
        self._spans: deque[Draft] = deque()
        self._eos: frozenset[int] = frozenset()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def bytes_up(self) -> int:
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._link.bytes_down

    async def open(self, frame: Open) -> None:
        self._eos = frozenset(frame.eos_token_ids)
        await self._link.open(frame)
        self._tasks = [asyncio.create_task(self._carry_up()), asyncio.create_task(self._carry_down())]

    def send(self, frame: ClientFrame) -> None:
        if isinstance(frame, Draft):
            if self._spans and self._spans[-1].revision < frame.revision:
                self._spans.clear()  # the older spans are stale
            self._spans.append(frame)
            self._seen["two or more spans in flight"] += len(self._spans) >= 2
        self._up.put_nowait(frame)

    def ready(self) -> Sequence[Arrived[ServerFrame]]:
        self._arrived.clear()
        frames = tuple(self._inbox)
        self._inbox.clear()
        for frame, _ in frames:
            self._note(frame)
        return frames

    async def wait(self, timeout_ms: float) -> bool:
        try:
            async with asyncio.timeout(timeout_ms / 1e3):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._up.put_nowait(None)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._link.cancel()

    async def _carry_up(self) -> None:
        while (frame := await self._up.get()) is not None:
            await self._delay()
            self._link.send(frame)
        self._link.close()

    async def _carry_down(self) -> None:
        while await self._link.wait(60_000):
            await self._delay()
            now = asyncio.get_running_loop().time()
            self._inbox.extend(Arrived(frame, now) for frame, _ in self._link.ready())
            self._arrived.set()

    async def _delay(self) -> None:
        if self._delay_ms:
            await asyncio.sleep(self._random.random() * self._delay_ms / 1e3)

    def _note(self, frame: ServerFrame) -> None:
        if isinstance(frame, Continuation):
            self._seen["hand-back"] += frame.handed_back
        if not isinstance(frame, Verdict) or not self._spans:
            return
        span = self._spans.popleft()
        index, length = frame.position - span.start, len(span.token_ids)
        if index >= length:
            return
        if span.token_ids[index] != frame.token_id:
            place = "first" if index == 0 else "last" if index == length - 1 else "middle"
            self._seen[f"override at the {place} position"] += 1
            self._spans.clear()
        if frame.token_id in self._eos:
            self._seen["end-of-text inside a span"] += 1
