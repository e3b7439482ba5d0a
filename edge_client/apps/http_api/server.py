"""The endpoint's server; the only module that knows uvicorn."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from chaperone_common.address import host_and_port
from chaperone_common.command.signals import first_and_second_signal
from chaperone_common.errors import ConfigError, InternalError
from edge_client.apps.http_api.app import LOCAL_HOSTS, Access, build_app
from edge_client.client import EdgeClient

__all__ = ["LOCAL_HOSTS", "Access", "bound", "running", "serve"]

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


def bound(address: str) -> socket.socket:
    """Return a socket that is bound to `HOST:PORT`; raises ConfigError."""
    host, port = host_and_port(address, any_port=True)
    try:
        return socket.create_server((host, port), family=socket.getaddrinfo(host, port)[0][0])
    except OSError as error:
        raise ConfigError(f"listen: {address!r} cannot be bound ({error.strerror}); use 127.0.0.1:PORT") from None


async def serve(client: EdgeClient, access: Access, listening: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until the first SIGINT or SIGTERM, and let answers end; the second one ends the process.

    `ready` receives the URL.
    """
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    with first_and_second_signal(functools.partial(loop.call_soon_threadsafe, stopped.set)):
        async with running(client, access, listening) as url:
            ready(url)
            await stopped.wait()


@asynccontextmanager
async def running(client: EdgeClient, access: Access, listening: socket.socket) -> AsyncIterator[str]:
    """Serve within the block, and yield the URL. At its end, answers that are being written may end.

    Raises the error with which the server fails to start.
    """
    started = asyncio.Event()
    settings = uvicorn.Config(
        build_app(client, access),
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
