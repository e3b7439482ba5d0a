"""A TCP proxy that breaks its first connections after a number of bytes to the device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.links.forwarder import Forwarder


class CuttingForwarder(Forwarder):
    """Breaks a connection once it has carried `after_bytes` to the device, `cuts` times."""

    def __init__(self, upstream: str, *, after_bytes: int, cuts: int) -> None:
        super().__init__(upstream)
        self._after_bytes = after_bytes
        self.cuts_left = cuts

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        to_device = any(sink is device for device, _ in self._ends)
        carried = 0
        try:
            while (data := await source.read(1 << 14)) and not sink.is_closing():
                sink.write(data)
                await sink.drain()
                carried += len(data)
                if to_device and self.cuts_left and carried >= self._after_bytes:
                    self.cuts_left -= 1
                    self.reset()
                    return
        except ConnectionError:
            pass
        sink.close()


@asynccontextmanager
async def cutting(address: str, *, after_bytes: int, cuts: int) -> AsyncIterator[CuttingForwarder]:
    forwarder = CuttingForwarder(address, after_bytes=after_bytes, cuts=cuts)
    await forwarder.start()
    try:
        yield forwarder
    finally:
        await forwarder.stop()
