"""A TCP proxy in front of a server, whose connections a test can break and redirect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Forwarder:
    """A TCP proxy whose connections can be broken.

    The end of a connection is passed on in both directions, so that the death of a server is seen at once.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream: str | None = upstream  # None: refuse connections
        self._server: asyncio.Server | None = None
        self._ends: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []  # device's and cloud's
        self._silent: set[asyncio.StreamWriter] = set()  # cloud's ends that stay open without a device
        self._carrying: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        if self._carrying:
            await asyncio.wait(self._carrying)

    def reset(self, *, reset_cloud: bool = True) -> None:
        """Break all connections; without `reset_cloud`, the cloud's ends stay open and silent."""
        for device, cloud in self._ends:
            device.transport.abort()
            if reset_cloud:
                cloud.transport.abort()
            else:
                self._silent.add(cloud)
        if reset_cloud:
            self._ends.clear()
            self._silent.clear()

    def move(self, upstream: str) -> None:
        """End all connections in order, after the bytes that wait; later ones lead to another server."""
        self.upstream = upstream
        for device, cloud in self._ends:
            device.close()
            cloud.close()
        self._ends.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.upstream is None:
            writer.transport.abort()
            return
        host, _, port = self.upstream.rpartition(":")
        try:
            cloud_reader, cloud_writer = await asyncio.open_connection(host, int(port))
        except ConnectionError:  # no server listens there
            writer.transport.abort()
            return
        self._ends.append((writer, cloud_writer))
        for source, sink in ((reader, cloud_writer), (cloud_reader, writer)):
            task = asyncio.create_task(self._carry(source, sink))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while (data := await source.read(1 << 16)) and not sink.is_closing():
                sink.write(data)
        if sink not in self._silent:
            sink.close()


@asynccontextmanager
async def forwarding(address: str) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(address)
    await forwarder.start()
    try:
        yield forwarder
    finally:
        await forwarder.stop()
