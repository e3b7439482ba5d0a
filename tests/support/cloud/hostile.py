"""An HTTP/2 client that breaks rules which no gRPC library lets one break: it never reads, resets, floods."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import h2.settings

from chaperone_common.wire import SERVICE, SUPERVISE


class HostileConnection:
    """One connection, on which streams are opened and bytes are sent as the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str) -> None:
        self._reader = reader
        self._writer = writer
        self._authority = authority
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.events: list[h2.events.Event] = []
        self._pump = asyncio.create_task(self._read())

    def begin(self, window: int) -> None:
        """Greet the server; it may send up to `window` bytes on each stream."""
        self._http.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self._http.initiate_connection()
        self._flush()

    def open(self, message: bytes | None = None, headers: tuple[tuple[str, str], ...] = ()) -> int:
        """Open a Supervise stream and send it one message, if any; return its number."""
        stream = self._http.get_next_available_stream_id()
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/{SERVICE}/{SUPERVISE}"),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *headers,
        ]
        self._http.send_headers(stream, fields)
        if message is not None:
            self._http.send_data(stream, struct.pack(">BI", 0, len(message)) + message)
        self._flush()
        return stream

    def data(self, stream: int, data: bytes) -> None:
        """Send raw bytes on a stream."""
        self._http.send_data(stream, data)
        self._flush()

    def reset(self, stream: int) -> None:
        """Reset a stream."""
        self._http.reset_stream(stream)
        self._flush()

    async def drained(self) -> None:
        """Wait until the operating system has taken all bytes."""
        await self._writer.drain()

    def close(self) -> None:
        """Drop the connection."""
        self._pump.cancel()
        self._writer.transport.abort()

    def _flush(self) -> None:
        self._writer.write(self._http.data_to_send())

    async def _read(self) -> None:
        while data := await self._reader.read(65536):
            self.events += self._http.receive_data(data)
            self._flush()


@asynccontextmanager
async def hostile_connection(address: str, *, window: int = 65_535) -> AsyncIterator[HostileConnection]:
    """Connect to a plain-text server on loopback."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = HostileConnection(reader, writer, address)
    connection.begin(window)
    try:
        yield connection
    finally:
        connection.close()
