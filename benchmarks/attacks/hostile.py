"""An HTTP/2 client that breaks rules which no gRPC library lets one break: it never reads, resets, floods."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from chaperone_common.wire import SERVICE, SUPERVISE

_STATUSES = {str(code.value[0]): code.name for code in grpc.StatusCode}
_LARGEST_WINDOW = 2**31 - 1

Headers = tuple[tuple[str, str], ...]


class HostileConnection:
    """One connection, on which streams are opened and bytes are sent as the caller wants.

    `endings` counts the streams that the server ended: by the name of a gRPC status, or `reset`. `going_away` is true
    once the server has ended the connection.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        authority: str,
        endings: Counter[str],
    ) -> None:
        self.endings = endings
        self.going_away = False
        self._reader = reader
        self._writer = writer
        self._authority = authority
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._reads = True
        self._open: dict[int, asyncio.Future[None]] = {}
        self._pump = asyncio.create_task(self._read())

    def begin(self, window: int) -> None:
        """Greet the server; it may send up to `window` bytes on each stream."""
        self._reads = window > 0
        self._http.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self._http.initiate_connection()
        if self._reads:
            self._http.increment_flow_control_window(_LARGEST_WINDOW - 65_535)
        self._flush()

    def open(self, message: bytes | None = None, headers: Headers = (), *, compressed: bool = False) -> int:
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
        self._open[stream] = asyncio.get_running_loop().create_future()
        if message is not None:
            self.send(stream, message, compressed=compressed)
        self._flush()
        return stream

    def send(self, stream: int, message: bytes, *, compressed: bool = False) -> None:
        """Send a message, or as much of it as the server's window allows; the rest is never sent."""
        data = struct.pack(">BI", compressed, len(message)) + message
        while data and (room := min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)):
            self._http.send_data(stream, data[:room])
            data = data[room:]
        self._flush()

    def data(self, stream: int, data: bytes) -> None:
        """Send raw bytes on a stream."""
        self._http.send_data(stream, data)
        self._flush()

    def reset(self, stream: int) -> None:
        """Reset a stream, unless the server has ended it."""
        if stream in self._open:
            self._http.reset_stream(stream)
            self._end(stream)
            self._flush()

    def is_open(self, stream: int) -> bool:
        """Return whether the server has not ended a stream."""
        return stream in self._open

    async def ended(self, stream: int) -> None:
        """Wait until the server ends a stream, or the connection."""
        if stream in self._open:
            await asyncio.shield(self._open[stream])

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
        try:
            while data := await self._reader.read(65536):
                for event in self._http.receive_data(data):
                    self._note(event)
                self._flush()
        except (OSError, h2.exceptions.ProtocolError):
            pass  # an answer to what it sends
        finally:
            self.going_away = True
            for stream in list(self._open):
                self._end(stream)

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived() if self._reads and event.flow_controlled_length:
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                for name, value in event.headers:
                    if name == b"grpc-status":
                        self.endings[_STATUSES[value.decode()]] += 1
            case h2.events.StreamEnded():
                self._end(event.stream_id)
            case h2.events.StreamReset():
                if event.stream_id in self._open:
                    self.endings["reset"] += 1
                self._end(event.stream_id)
            case h2.events.ConnectionTerminated():
                self.going_away = True
            case _:
                pass

    def _end(self, stream: int) -> None:
        ended = self._open.pop(stream, None)
        if ended is not None and not ended.done():
            ended.set_result(None)


@asynccontextmanager
async def hostile_connection(
    address: str, *, window: int = 65_535, endings: Counter[str] | None = None
) -> AsyncIterator[HostileConnection]:
    """Connect to a plain-text server on loopback, and count endings of streams in `endings`."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = HostileConnection(reader, writer, address, Counter() if endings is None else endings)
    connection.begin(window)
    try:
        yield connection
    finally:
        connection.close()
