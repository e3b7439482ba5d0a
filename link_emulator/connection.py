"""One TCP connection across the link: two sockets on this machine, and a pipe in each direction."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from link_emulator.alarm import Alarm
from link_emulator.model import Direction
from link_emulator.pipe import WRITE_BUFFER_BYTES, Pipe

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on with time 0: the kernel sends RST


class Leg(asyncio.Protocol):
    """One of the two sockets of a connection."""

    def __init__(self, connection: Connection, *, sends: Pipe, receives: Pipe) -> None:
        self._connection = connection
        self._sends = sends  # takes the data that this socket receives
        self._receives = receives
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._receives.connect(self.transport)
        self._connection.leg_made(self)

    @property
    def socket(self) -> socket.socket:
        """The socket below the transport."""
        assert self.transport is not None
        return cast(socket.socket, self.transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self._sends.feed(self.transport, data)

    def eof_received(self) -> bool:
        self._sends.end(lambda: self._connection.half_close(self))
        return True  # the other direction stays open

    def pause_writing(self) -> None:
        self._receives.block()

    def resume_writing(self) -> None:
        self._receives.unblock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.leg_lost(self, by_peer=exc is not None)

    def reset(self) -> None:
        """Close at once, with RST."""
        if self.transport is not None:
            if self.socket.fileno() >= 0:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.transport.abort()


class Connection:
    """A device's connection, carried to the server across the link."""

    def __init__(
        self,
        *,
        flow: int,
        up: Direction,
        down: Direction,
        alarm: Alarm,
        origin_s: float,
        server: tuple[str, int],
        gone: Callable[[Connection], None],
    ) -> None:
        self.flow = flow

        def now_s() -> float:
            return time.monotonic() - origin_s

        self.up = Pipe(up, flow, now_s, alarm, origin_s)
        self.down = Pipe(down, flow, now_s, alarm, origin_s)
        self.client = Leg(self, sends=self.up, receives=self.down)
        self._server = Leg(self, sends=self.down, receives=self.up)
        self._server_address = server
        self._legs = 0
        self._half_closed = 0
        self._connecting: asyncio.Task[None] | None = None
        self._dead = False
        self._gone = gone

    def leg_made(self, leg: Leg) -> None:
        """Continue the handshake after a socket has opened.

        The client's socket begins it: SYN goes up, SYN and ACK go down, an ACK goes up, and data follows.
        """
        self._legs += 1
        if self._dead:
            leg.reset()
        elif leg is self.client:
            self.up.control(lambda: self.down.control(self._established))
        else:
            self.down.open()
            self.up.unblock()

    def _established(self) -> None:
        self.up.control(self._reach_server)
        self.up.open()

    def _reach_server(self) -> None:
        self.up.block()
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        host, port = self._server_address
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._server, host, port)
        except OSError:
            self.up.drop_unsent()
            self.down.control(self.reset)  # no server listens there

    def half_close(self, leg: Leg) -> None:
        """End the other leg's stream, after all data of this leg has arrived; close both after the second end."""
        self._half_closed += 1
        other = self._server if leg is self.client else self.client
        if other.transport is not None and not other.transport.is_closing():
            with suppress(OSError):  # it was reset, and `connection_lost` is about to say so
                other.transport.write_eof()
        if self._half_closed == 2:
            for each in (self.client, self._server):
                if each.transport is not None:
                    each.transport.close()

    def reset(self) -> None:
        """Drop all data, and close both sockets with RST."""
        if self._dead:
            return
        self._dead = True
        self.up.close()
        self.down.close()
        if self._connecting is not None:
            self._connecting.cancel()
        self.client.reset()
        self._server.reset()
        self._end_if_over()

    def leg_lost(self, leg: Leg, *, by_peer: bool) -> None:
        """Note that a socket has closed. If its peer reset it, send the reset across the link."""
        self._legs -= 1
        if by_peer and not self._dead:
            sends, receives = (self.up, self.down) if leg is self.client else (self.down, self.up)
            receives.close()
            sends.drop_unsent()
            if sends.blocked:
                self.reset()  # a reset does not wait until earlier data is read
            else:
                sends.control(self.reset)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._legs == 0 and (self._dead or self._half_closed == 2):
            self.up.close()
            self.down.close()
            self._gone(self)
