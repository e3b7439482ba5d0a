"""The endpoint's routes; the only module that knows FastAPI."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from chaperone_common.errors import ChaperoneError, trace_of
from chaperone_common.ranges import MAX_SEED
from chaperone_common.suggestion import cut, shown
from chaperone_common.types import PromptInput
from edge_client.apps.http_api.chats import Chats
from edge_client.apps.http_api.errors import ApiError, api_error
from edge_client.apps.http_api.other_paths import problem
from edge_client.apps.http_api.replies import Reply, model, models
from edge_client.apps.http_api.requests import ChatRequest, CompletionRequest, parse, said
from edge_client.apps.http_api.schema import body, responses
from edge_client.apps.http_api.streaming import Write, best, collected, streamed
from edge_client.client import EdgeClient
from edge_client.parameters import RequestParameters

MAX_BODY_BYTES = 4 << 20
MAX_REQUESTS = 64  # at a time
CLIENT_TIMEOUT_S = 30.0  # for a client that sends or reads nothing
_CLOSED_REQUEST = 499  # the client left; nobody reads this status
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_LOG = logging.getLogger(__name__)

T = TypeVar("T")


class _GoneError(Exception):
    """The client left before the answer."""


@dataclass
class Access:
    """The callers that may use the endpoint."""

    api_key: str | None = None  # None: everybody who can connect
    # The hosts that a request may name, so that no web page reaches the endpoint by a name of its own; None: any.
    hosts: Collection[str] | None = LOCAL_HOSTS

    def check(self, request: Request) -> None:
        """Raise ApiError for a request that is not allowed."""
        if self.hosts is not None:
            host = request.headers.get("host", "")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if name.lower() not in self.hosts:
                allowed = ", ".join(self.hosts)
                raise ApiError(403, f"host: {shown(host)} is not this machine; use {allowed}", code="invalid_host")
        if self.api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.api_key.encode()):
            raise ApiError(
                401,
                "authorization: no API key, or not this endpoint's; send `Authorization: Bearer KEY`",
                kind="authentication_error",
                code="invalid_api_key",
            )


def build_app(client: EdgeClient, access: Access, *, client_timeout_s: float = CLIENT_TIMEOUT_S) -> FastAPI:
    """Return the ASGI application over a client, which it does not close.

    A request has to arrive within `client_timeout_s`.
    """
    endpoint = _Endpoint(client, access, client_timeout_s)
    app = FastAPI(title="Chaperone", docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, _not_routed)
    name = client.config.pair
    app.get("/health")(endpoint.health)
    app.get("/v1/models", responses=responses("list"))(endpoint.models)
    app.get("/v1/models/{name}", responses=responses("model"))(endpoint.model)
    app.post(
        "/v1/chat/completions",
        responses=responses("chat.completion", streamed=True),
        openapi_extra=body(ChatRequest, name),
    )(endpoint.chat)
    app.post(
        "/v1/completions",
        responses=responses("text_completion", streamed=True),
        openapi_extra=body(CompletionRequest, name),
    )(endpoint.completion)
    return app


class _Endpoint:
    def __init__(self, client: EdgeClient, access: Access, client_timeout_s: float) -> None:
        self._client = client
        self._access = access
        self._client_timeout_s = client_timeout_s
        self._name = client.config.pair
        self._num_beams = client.config.generation.num_beams
        self._created = int(time.time())
        self._chats = Chats(client)
        self._running = 0

    async def health(self) -> Response:
        """Answer that the endpoint is there; the models are loaded when they are first needed."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """Return the model pair, as OpenAI lists its models."""
        return await self._answered(request, self._models)

    async def model(self, name: str, request: Request) -> Response:
        """Return the description of a model."""

        async def describe() -> Response:
            if name != self._name:
                raise ApiError(
                    404, f"model: {shown(name)} is not served here; use {self._name!r}", code="model_not_found"
                )
            return JSONResponse(model(self._name, self._created))

        return await self._answered(request, describe)

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""

        async def write() -> Response:
            wanted = parse(ChatRequest, await self._body(request), self._name, self._num_beams)
            return await self._written(request, wanted, self._chat_texts(wanted))

        return await self._answered(request, write, "messages")

    async def completion(self, request: Request) -> Response:
        """Continue a text."""

        async def write() -> Response:
            wanted = parse(CompletionRequest, await self._body(request), self._name, self._num_beams)
            return await self._written(request, wanted, self._completion_texts(wanted))

        return await self._answered(request, write)

    async def _models(self) -> Response:
        return JSONResponse(models(self._name, self._created))

    def _chat_texts(self, wanted: ChatRequest) -> Write:
        parameters, messages = wanted.parameters(), said(wanted.messages)
        policy = (wanted.chaperone.on_overflow if wanted.chaperone is not None else None) or "refuse"
        return lambda index: self._chats.written(messages, policy, self._seeded(parameters, index))

    def _completion_texts(self, wanted: CompletionRequest) -> Write:
        parameters = wanted.parameters()
        if wanted.chaperone is not None and wanted.chaperone.on_overflow is not None:
            message = "chaperone.on_overflow: a completion has no turns; leave it out"
            raise ApiError(400, message, code="invalid_value", param="chaperone.on_overflow")
        text = wanted.text
        if isinstance(text, str):
            parameters["raw"] = True
        prompt = text if isinstance(text, str) else PromptInput(text)
        return lambda index: self._client.stream(prompt, **self._seeded(parameters, index))

    def _seeded(self, parameters: RequestParameters, index: int) -> RequestParameters:
        """Return the parameters of a choice: each has a seed of its own. Without one, a new seed is drawn for each."""
        seed = parameters.get("seed")
        seed = self._client.config.generation.seed if seed is None else seed
        return (
            parameters if seed is None else RequestParameters(**{**parameters, "seed": (seed + index) % (MAX_SEED + 1)})
        )

    async def _written(self, request: Request, wanted: ChatRequest | CompletionRequest, write: Write) -> Response:
        chats = isinstance(wanted, ChatRequest)
        reply = Reply(
            f"{'chatcmpl' if chats else 'cmpl'}-{uuid.uuid4().hex}",
            "chat.completion" if chats else "text_completion",
            int(time.time()),
            self._name,
        )
        reported = wanted.reported is not None
        if wanted.stream:
            options = wanted.stream_options
            usage = bool(options and options.include_usage)
            events = streamed(reply, wanted.choices, write, usage=usage, logprobs=reported)
            first = await _unless_gone(request, anext(events))  # an error before it has a status of its own
            return StreamingResponse(
                self._counted(_after(first, events)),
                media_type="text/event-stream",
                headers={"cache-control": "no-cache"},
            )
        if wanted.beams:
            return JSONResponse(reply.whole(await _unless_gone(request, best(write(0), wanted.choices))))
        answers = [
            await _unless_gone(request, collected(write(index), logprobs=reported)) for index in range(wanted.choices)
        ]
        return JSONResponse(reply.whole(answers))

    async def _answered(
        self, request: Request, answer: Callable[[], Awaitable[Response]], prompt: str = "prompt"
    ) -> Response:
        """Return an answer, or an error in OpenAI's form; `prompt` is the request's name of that field."""
        try:
            self._access.check(request)
            if self._running >= MAX_REQUESTS:
                raise ApiError(
                    429,
                    f"requests: {self._running} are being answered; try again later",
                    kind="rate_limit_error",
                    code="rate_limit_exceeded",
                    retry_after_s=1.0,
                )
            self._running += 1
            try:
                return await answer()
            finally:
                self._running -= 1
        except ApiError as error:
            return _error_response(error)
        except ChaperoneError as error:
            return _error_response(api_error(error, prompt))
        except _GoneError:
            return Response(status_code=_CLOSED_REQUEST)
        except Exception as error:
            _LOG.error("request failed: %s", trace_of(error))
            return _error_response(ApiError(500, "the endpoint failed; its log has the details", kind="server_error"))

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request; raises ApiError, also for a client that does not send it in time."""
        try:
            async with asyncio.timeout(self._client_timeout_s):
                return await _body(request)
        except TimeoutError:
            raise ApiError(
                408,
                f"body: it did not arrive within {self._client_timeout_s:g} s; send it at once",
                code="request_timeout",
            ) from None

    async def _counted(self, events: AsyncGenerator[str, None]) -> AsyncIterator[str]:
        """Count a stream as a request until its end."""
        self._running += 1
        try:
            async with aclosing(events) as sent:
                async for event in sent:
                    yield event
        finally:
            self._running -= 1


async def _body(request: Request) -> bytes:
    """Return the body of a request; raises ApiError for one that is too large, or no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page may send other kinds without being asked
        raise ApiError(415, f"content-type: {shown(kind)}; send application/json", code="unsupported_media_type")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"body: more than {MAX_BODY_BYTES} bytes; send a shorter text", code="body_too_large")
    return bytes(body)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work, which ends at once if the client leaves; raises _GoneError then."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _GoneError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _after(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events) as rest:
        yield first
        async for event in rest:
            yield event


def _error_response(error: ApiError) -> JSONResponse:
    headers = {} if error.retry_after_s is None else {"retry-after": str(max(1, round(error.retry_after_s)))}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


async def _not_routed(request: Request, error: Exception) -> JSONResponse:
    """Answer a path or method that does not exist, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 404:
        message = f"{cut(path)}: {problem(path, cut(f'{request.base_url}v1'))}"
    else:
        message = f"{cut(path)}: it does not take {cut(request.method)}; see /openapi.json"
    return JSONResponse(ApiError(error.status_code, message, code="not_found").body, error.status_code, error.headers)
