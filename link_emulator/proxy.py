"""An emulated link between real programs: a TCP proxy on this machine that delays bytes as the model does."""

from __future__ import annotations

import asyncio
import itertools
import time
from types import TracebackType

from chaperone_common.address import host_and_port, is_loopback
from chaperone_common.errors import ConfigError
from link_emulator.alarm import Alarm
from link_emulator.connection import Connection
from link_emulator.model import Link
from link_emulator.profile import Profile

MAX_CONNECTIONS = 256


class LinkProxy:
    """A TCP proxy. Connect to its `address` instead of to the server.

    The link begins when the context is entered. `to` and `listen` are HOST:PORT of this machine, and port 0 of `listen`
    takes a free port. Raises ConfigError for other addresses, and on entering if it cannot listen there. Call all
    methods on the event loop that entered the context.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        to: str,
        listen: str = "127.0.0.1:0",
        seed: int = 0,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.profile = profile
        self._listen = _host_and_port("listen", listen, any_port=True)
        self._server_address = _host_and_port("to", to)
        self._max_connections = max_connections
        self._link = Link(profile, seed)
        self._connections: dict[int, Connection] = {}
        self._flows = itertools.count()
        self._empty = asyncio.Event()
        self._empty.set()
        self._alarm: Alarm | None = None
        self._server: asyncio.Server | None = None
        self._origin_s = 0.0
        self.connections = 0
        self.resets = 0

    async def __aenter__(self) -> LinkProxy:
        self._alarm = Alarm()
        self._origin_s = time.monotonic()
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accept, *self._listen)
        except OSError as error:
            self._alarm.close()
            host, port = self._listen
            raise ConfigError(f"listen: {host}:{port} cannot be listened on: {error.strerror or error}") from None
        self._plan_reset()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._alarm is not None
        self._server.close()
        self._reset_all()
        await self._empty.wait()
        await self._server.wait_closed()
        self._alarm.close()

    @property
    def address(self) -> str:
        """The address on which it listens, as HOST:PORT."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def bytes_up(self) -> int:
        """The payload sent towards the server."""
        return self._link.up.payload_bytes

    @property
    def bytes_down(self) -> int:
        """The payload sent towards the device."""
        return self._link.down.payload_bytes

    @property
    def wire_bytes_up(self) -> int:
        """The payload, headers and control segments sent towards the server."""
        return self._link.up.wire_bytes

    @property
    def wire_bytes_down(self) -> int:
        """The payload, headers and control segments sent towards the device."""
        return self._link.down.wire_bytes

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def reset(self) -> int:
        """Reset all open connections at both ends, and drop their bytes. Return the number of these connections."""
        count = len(self._connections)
        self._reset_all()
        self.resets += count
        return count

    def outage(self, seconds: float) -> None:
        """Carry nothing for this time, in both directions. Connections stay, and bytes on their way wait.

        An outage that begins within another prolongs it.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds: {seconds} is no length of an outage; give a number from 0 on")
        now_s = time.monotonic() - self._origin_s
        up_s = self._link.up.freeze(now_s, now_s + seconds)
        down_s = self._link.down.freeze(now_s, now_s + seconds)
        for connection in self._connections.values():
            connection.up.put_off(up_s)
            connection.down.put_off(down_s)

    def _accept(self) -> asyncio.Protocol:
        assert self._alarm is not None
        if len(self._connections) >= self._max_connections:
            return _Refusal()
        connection = Connection(
            flow=next(self._flows),
            up=self._link.up,
            down=self._link.down,
            alarm=self._alarm,
            origin_s=self._origin_s,
            server=self._server_address,
            gone=self._forget,
        )
        self._connections[connection.flow] = connection
        self._empty.clear()
        self.connections += 1
        return connection.client

    def _forget(self, connection: Connection) -> None:
        if self._connections.pop(connection.flow, None) is not None:
            self._link.up.forget(connection.flow)
            self._link.down.forget(connection.flow)
        if not self._connections:
            self._empty.set()

    def _reset_all(self) -> None:
        for connection in tuple(self._connections.values()):
            connection.reset()

    def _plan_reset(self) -> None:
        assert self._alarm is not None
        next_s = self._link.resets.next_after(time.monotonic() - self._origin_s)
        if next_s < float("inf"):
            self._alarm.at(self._origin_s + next_s, self._scheduled_reset)

    def _scheduled_reset(self) -> None:
        self.reset()
        self._plan_reset()


class _Refusal(asyncio.Protocol):
    """The end of a connection above the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _host_and_port(name: str, address: str, *, any_port: bool = False) -> tuple[str, int]:
    try:
        host, port = host_and_port(address, any_port=any_port)
    except ValueError as error:
        raise ConfigError(f"{name}: {address!r}: {error}") from None
    if not is_loopback(address):
        raise ConfigError(
            f"{name}: {address!r} is not HOST:PORT of this machine; the emulator has no TLS, so it stays on loopback "
            "addresses such as 127.0.0.1:50151"
        )
    return host, port
