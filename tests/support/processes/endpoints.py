"""An endpoint over the tiny pair, and a plain HTTP client for it."""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient
from edge_client.apps.http_api.app import Access
from edge_client.apps.http_api.server import CLIENT_TIMEOUT_S, bound, running
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving
from tests.support.waiting import START_S

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, in OpenAI's form."""
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[Any]:
        """The server-sent events; the last one is the text `[DONE]` of a stream that succeeded."""
        assert self.headers["content-type"].startswith("text/event-stream")
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") for line in lines)
        data = [line.removeprefix("data: ") for line in lines]
        return [each if each == "[DONE]" else json.loads(each) for each in data]


@dataclass
class Endpoint:
    """An endpoint that is running."""

    url: str
    client: EdgeClient
    server: Server
    headers: dict[str, str] = field(default_factory=dict)  # of each request

    @property
    def where(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def idle(self) -> bool:
        """True if neither the device nor the cloud holds anything of a text that is being written."""
        cloud = self.server.cloud
        return not self.client._runs._engines and cloud.supervisor.sessions == 0 and cloud.runner.kv_stats.sessions == 0

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.send("GET", path, None, headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send("POST", path, data, {"content-type": "application/json", **headers})

    async def chat(self, text: str | list[dict[str, Any]], **fields: Any) -> Answer:
        """Ask for the answer to a chat, or to one message."""
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        return await self.post("/v1/chat/completions", {"model": "tiny", "messages": messages, **fields})

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call a function that blocks, such as a client of another library.

        In a thread of its own: the endpoint runs in this process, and needs the loop's threads.
        """
        with ThreadPoolExecutor(max_workers=1) as thread:
            return await asyncio.get_running_loop().run_in_executor(thread, function)

    async def send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        return await self.in_thread(functools.partial(self._send, method, path, body, headers))

    def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection(*self.where, timeout=START_S)
        try:
            named = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@asynccontextmanager
async def endpoint(
    target: TargetModel,
    pair: Path,
    access: Access | None = None,
    *,
    address: str | None = None,
    client_timeout_s: float = CLIENT_TIMEOUT_S,
    buffer_bytes: int | None = None,
    **settings: Any,
) -> AsyncIterator[Endpoint]:
    """Serve the pair's cloud and an endpoint.

    `address` is another cloud, such as one that is not there. `buffer_bytes` bounds what the kernel holds for a client.
    """
    listening = bound("127.0.0.1:0")
    if buffer_bytes is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    async with (
        serving(target, pair) as (server, cloud),
        EdgeClient(config_for(address or cloud, **settings)) as client,
        running(client, access or Access(), listening, client_timeout_s=client_timeout_s) as url,
    ):
        yield Endpoint(url, client, server)
