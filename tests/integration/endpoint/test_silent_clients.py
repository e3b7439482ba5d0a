"""Clients that neither leave nor read, or that begin a request and never end it: their place becomes free."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import uvicorn
from uvicorn.server import ServerState

from cloud_supervisor.model.torch_model import TorchModel
from edge_client.apps.http_api import app
from edge_client.apps.http_api.server import connection_type
from tests.support.processes.endpoints import Endpoint, endpoint
from tests.support.waiting import until

LEAST_BUFFER = 4096  # bytes that a socket holds, so that few tokens fill it
TIMEOUT_S = 0.3


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))


def asking(served: Endpoint, *, stream: bool, length: int | None = None) -> socket.socket:
    """Send a request for a long answer, and return the connection, which holds little."""
    body = json.dumps(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "the list of a number"}],
            "stream": stream,
            "max_tokens": 200,
            "temperature": 1.0,
            "seed": 1,
            "logprobs": True,
            "top_logprobs": 20,
        }
    ).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {length or len(body)}",
        "",
    ]
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LEAST_BUFFER)
    connection.connect(served.where)
    connection.sendall("".join(f"{line}\r\n" for line in head).encode() + body)
    return connection


def connections_of(served: Endpoint) -> int:
    """Return the open connections of an endpoint in this process."""
    mine = [each for each in psutil.Process().net_connections("tcp") if each.laddr.port == served.where[1]]
    return sum(each.status == psutil.CONN_ESTABLISHED for each in mine)


def rest_of(connection: socket.socket) -> bytes:
    """Return what is left to read from a connection until its end."""
    read = b""
    try:
        while piece := connection.recv(65_536):
            read += piece
    except ConnectionResetError:
        pass
    return read


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_nothing_loses_its_place(tiny_pair: Path, target: TorchModel, stream: bool) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair, client_timeout_s=TIMEOUT_S, buffer_bytes=LEAST_BUFFER) as served:
            with asking(served, stream=stream) as connection:
                await until(lambda: served.server.cloud.supervisor.counters.streams == 1, "the text was begun")
                await until(lambda: connections_of(served) == 0, "the connection was ended")
                await until(lambda: served.idle, "both ends have freed the text")
                read = await served.in_thread(lambda: rest_of(connection))
                head, _, body = read.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 OK")
                length = re.search(rb"content-length: (\d+)", head)
                assert b"[DONE]" not in body if length is None else len(body) < int(length[1]), "the answer was cut"
                assert (length is None) == stream
            assert (await served.chat("the list", max_tokens=2)).status == 200

    run(test)


def test_silent_clients_take_no_place_from_others(
    tiny_pair: Path, target: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_REQUESTS", 2)

    async def test() -> None:
        async with endpoint(target, tiny_pair, client_timeout_s=TIMEOUT_S, buffer_bytes=LEAST_BUFFER) as served:
            with asking(served, stream=True), asking(served, stream=True):
                await until(lambda: served.server.cloud.supervisor.counters.streams == 2, "both texts were begun")
                await until(lambda: connections_of(served) == 0, "both connections were ended")
                await until(lambda: served.idle, "both ends have freed the texts")
                assert (await served.chat("the list", max_tokens=2)).status == 200

    run(test)


def test_a_request_that_never_ends_is_refused(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair, client_timeout_s=TIMEOUT_S) as served:
            with asking(served, stream=False, length=100_000) as connection:
                answer = http.client.HTTPResponse(connection)
                await served.in_thread(answer.begin)
                error = json.loads(await served.in_thread(answer.read))["error"]
                assert (answer.status, error["code"]) == (408, "request_timeout")
                assert error["message"] == "body: it did not arrive within 0.3 s; send it at once"

    run(test)


# --- Connections, in virtual time -------------------------------------------------------------------------------------


class Timers:
    """A loop that only notes what it is to do later."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timers:
        self.waiting.append((delay, callback))
        return self

    def cancel(self) -> None:
        self.waiting.clear()

    def pass_time(self) -> None:
        """Do what is due."""
        ((_, callback),) = self.waiting
        self.waiting.clear()
        callback()


class Wire(asyncio.Transport):
    """A transport whose client reads when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = 0
        self.aborted = False
        self.high: int | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        pass


def connected() -> tuple[Any, Wire, Timers]:
    timers, wire = Timers(), Wire()
    config = uvicorn.Config(cast(Any, None), log_config=None)
    kind = connection_type(30.0)
    connection = kind(config=config, server_state=ServerState(), app_state={}, _loop=cast(Any, timers))
    connection.connection_made(wire)
    return connection, wire, timers


def test_a_slow_client_is_waited_for_as_long_as_it_reads() -> None:
    connection, wire, timers = connected()
    assert wire.high == 0, "writing pauses as soon as the client does not keep up"
    wire.unread = 1000
    connection.pause_writing()
    assert [delay for delay, _ in timers.waiting] == [30.0]
    for unread in (900, 899, 1):
        wire.unread = unread
        timers.pass_time()
        assert not wire.aborted
    timers.pass_time()
    assert wire.aborted


def test_a_client_that_has_read_all_has_no_time_limit() -> None:
    connection, wire, timers = connected()
    wire.unread = 1000
    connection.pause_writing()
    connection.resume_writing()
    assert timers.waiting == []
    connection.pause_writing()
    connection.connection_lost(None)
    assert timers.waiting == []
    assert not wire.aborted
