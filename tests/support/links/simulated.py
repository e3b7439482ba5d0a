"""A simulated link whose cloud a test plays: a harness for the contract of `CloudLink`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.simulation.cloud import capabilities
from benchmarks.simulation.link import SimulatedLink
from chaperone_common.frames import ClientFrame, Failure, ServerFrame
from cloud_supervisor.config import LimitsConfig
from edge_client.ports import CloudLink
from link_emulator.model import Link
from link_emulator.profile import Profile


class SimulatedLinkHarness:
    """A link, and a host at its other end that records received frames and sends the test's."""

    def __init__(self, rtt_ms: float = 0.0) -> None:
        self.capabilities = capabilities(LimitsConfig())
        self.model = Link(Profile.fixed(rtt_ms))
        self.link: CloudLink = SimulatedLink(self, self.model)
        self.received: asyncio.Queue[ClientFrame] = asyncio.Queue()
        self._orders: asyncio.Queue[ServerFrame | None] = asyncio.Queue()

    async def receive(self, count: int) -> list[ClientFrame]:
        return [await self.received.get() for _ in range(count)]

    async def deliver(self, *frames: ServerFrame) -> None:
        for frame in frames:
            self._orders.put_nowait(frame)

    async def hang_up(self, status: str | None = None) -> None:
        if status not in (None, "UNAVAILABLE", "CANCELLED"):
            await self.deliver(Failure(status, "as the test says"))
        self._orders.put_nowait(None)

    async def supervise(self, frames: AsyncIterator[ClientFrame]) -> AsyncGenerator[ServerFrame, None]:
        async def read() -> None:
            async for frame in frames:
                self.received.put_nowait(frame)

        reading = asyncio.create_task(read())
        try:
            while (order := await self._orders.get()) is not None:
                yield order
        finally:
            reading.cancel()


@asynccontextmanager
async def simulated_link_harness() -> AsyncIterator[SimulatedLinkHarness]:
    harness = SimulatedLinkHarness()
    yield harness
    harness.link.cancel()
