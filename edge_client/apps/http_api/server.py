"""The endpoint's server; the only module that knows uvicorn."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from chaperone_common.address import host_and_port
from chaperone_common.command.signals import first_and_second_signal
from chaperone_common.errors import ConfigError, InternalError
from edge_client.apps.http_api.app import CLIENT_TIMEOUT_S, LOCAL_HOSTS, Access, build_app
from edge_client.client import EdgeClient

__all__ = ["CLIENT_TIMEOUT_S", "LOCAL_HOSTS", "Access", "bound", "running", "serve"]

GRACE_S = 30  # for answers that are being written, after the first signal


class _Server(uvicorn.Server):
    """A server that leaves signals to its caller, and reports when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def connection_type(client_timeout_s: float) -> type[H11Protocol]:
    """Return the class of connections that end when the client reads nothing for this time.

    uvicorn itself waits for ever. The generation that writes for it then ends, too.
    """

    class Connection(H11Protocol):
        _unread = 0  # bytes, when the client was last looked at
        _look: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(0)  # writing pauses while any byte waits for the client

        def pause_writing(self) -> None:
            super().pause_writing()
            self._look_later()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._look_no_more()

        def connection_lost(self, exc: Exception | None) -> None:
            self._look_no_more()
            super().connection_lost(exc)

        def _look_later(self) -> None:
            self._unread = self.transport.get_write_buffer_size()
            self._look = self.loop.call_later(client_timeout_s, self._end_if_unread)

        def _look_no_more(self) -> None:
            if self._look is not None:
                self._look.cancel()

        def _end_if_unread(self) -> None:
            if self.transport.get_write_buffer_size() < self._unread:  # slow, and still reading
                self._look_later()
            else:
                self.transport.abort()

    return Connection


def bound(address: str) -> socket.socket:
    """Return a socket that is bound to `HOST:PORT`; raises ConfigError."""
    host, port = host_and_port(address, any_port=True)
    try:
        return socket.create_server((host, port), family=socket.getaddrinfo(host, port)[0][0])
    except OSError as error:
        raise ConfigError(f"listen: {address!r} cannot be bound ({error.strerror}); use 127.0.0.1:PORT") from None


async def serve(
    client: EdgeClient,
    access: Access,
    listening: socket.socket,
    ready: Callable[[str], None],
    *,
    client_timeout_s: float = CLIENT_TIMEOUT_S,
) -> None:
    """Serve until the first SIGINT or SIGTERM, and let answers end; the second one ends the process.

    `ready` receives the URL.
    """
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    with first_and_second_signal(functools.partial(loop.call_soon_threadsafe, stopped.set)):
        async with running(client, access, listening, client_timeout_s=client_timeout_s) as url:
            ready(url)
            await stopped.wait()


@asynccontextmanager
async def running(
    client: EdgeClient, access: Access, listening: socket.socket, *, client_timeout_s: float = CLIENT_TIMEOUT_S
) -> AsyncIterator[str]:
    """Serve within the block, and yield the URL. At its end, answers that are being written may end.

    A client has `client_timeout_s` to send its request, and to read some of what waits for it.
    Raises the error with which the server fails to start.
    """
    started = asyncio.Event()
    settings = uvicorn.Config(
        build_app(client, access, client_timeout_s=client_timeout_s),
        http=connection_type(client_timeout_s),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = _Server(settings, started.set)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        starting = asyncio.ensure_future(started.wait())
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if serving.done():
            await serving
            raise InternalError("serve: the server ended as it started")
        yield _url(listening)
    finally:
        server.should_exit = True
        await serving


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
