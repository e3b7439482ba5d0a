"""Errors of the endpoint: they speak its language, name the place to go to, and repeat no value at length."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_supervisor.model.torch_model import TorchModel
from tests.support.processes.clients import IMPATIENT, NOBODY
from tests.support.processes.endpoints import endpoint

TEXT = {"role": "user", "content": "the list"}
LONG = "v" * 4096
MOST = 400  # characters of a message


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))


# --- Other paths ------------------------------------------------------------------------------------------------------

PATHS = [
    ("/v1/responses", "OpenAI's Responses API is not served here; use /v1/chat/completions"),
    ("/v1/responses/resp_1", "OpenAI's Responses API is not served here; use /v1/chat/completions"),
    ("/v1/embeddings", "embeddings is not served here; use /v1/chat/completions"),
    ("/v1/audio/speech", "speech is not served here; use /v1/chat/completions"),
    ("/v1/images/generations", "images is not served here; use /v1/chat/completions"),
    ("/v1/messages", "Anthropic's Messages API is not served here; use /v1/chat/completions"),
    ("/api/chat", "this is OpenAI's API, not Ollama's; give a client of OpenAI's API the base URL {url}"),
    ("/api/generate", "this is OpenAI's API, not Ollama's; give a client of OpenAI's API the base URL {url}"),
    ("/chat/completions", "begin with /v1 once; set the client's base URL to {url}"),
    ("/v1/v1/chat/completions", "begin with /v1 once; set the client's base URL to {url}"),
    ("/v1/chat", "there is no such path here; use /v1/chat/completions"),
    ("/", "there is no such path here; use /v1/chat/completions"),
    (f"/{LONG}", "there is no such path here; use /v1/chat/completions"),
]


def test_another_path_says_where_to_go(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            for path, words in PATHS:
                for answer in (await served.post(path, {"model": "tiny"}), await served.get(path)):
                    assert (answer.status, answer.error["code"]) == (404, "not_found"), path
                    assert answer.error["type"] == "invalid_request_error"
                    assert answer.error["message"].startswith(f"{path[:77]}"), path
                    assert words.format(url=served.url) in answer.error["message"], path
                    assert len(answer.error["message"]) < MOST
            strange = await served.get("/v1/responses", host="[")
            assert (strange.status, strange.error["code"]) == (404, "not_found")

    run(test)


# --- Values -----------------------------------------------------------------------------------------------------------

VALUES: dict[str, dict[str, Any]] = {
    "tools": {"tools": [{"type": "function", "function": {"name": "weather", "description": LONG}}]},
    "a format": {"response_format": {"type": "json_schema", "json_schema": {LONG: LONG}}},
    "an unknown name": {LONG: 1},
    "an unknown name in ours": {"chaperone": {LONG: 1}},
    "another model": {"model": LONG},
    "a stop": {"stop": [LONG]},
    "a stop of another kind": {"stop": {LONG: 1}},
    "a temperature": {"temperature": LONG},
    "a mode": {"chaperone": {"mode": LONG}},
    "messages": {"messages": LONG},
    "a message": {"messages": [LONG]},
    "a role": {"messages": [{"role": LONG, "content": "x"}]},
    "a key of a message": {"messages": [{**TEXT, LONG: "x"}]},
    "a key deep in a message": {"messages": [{**TEXT, "name": {LONG: {LONG: {LONG: "\ud800"}}}}]},
    "a part": {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
}


def test_no_value_is_repeated_at_length(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            for name, fields in VALUES.items():
                answer = await served.post("/v1/chat/completions", {"model": "tiny", "messages": [TEXT], **fields})
                assert answer.status in (400, 404), name
                assert len(answer.error["message"]) < MOST, name
                assert len(answer.error["param"]) <= 80, name
                assert "v" * 81 not in answer.error["message"], name
            named = await served.get(f"/v1/models/{LONG}")
            assert (named.status, named.error["code"]) == (404, "model_not_found")
            assert len(named.error["message"]) < MOST

    run(test)


# --- The language of the endpoint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "remedy"),
    [
        (None, "; shorten messages, or set chaperone.on_overflow to drop_oldest or cloud"),
        ("refuse", "; shorten messages, or set chaperone.on_overflow to drop_oldest or cloud"),
        ("cloud", "; shorten messages, or set chaperone.on_overflow to drop_oldest"),
        ("drop_oldest", "; shorten messages"),
    ],
)
def test_a_chat_that_is_too_long_is_refused_with_what_its_sender_can_do(
    tiny_pair: Path, target: TorchModel, policy: str | None, remedy: str
) -> None:
    long = {"role": "user", "content": "number " * 1000}
    said = [long, {"role": "assistant", "content": "x"}] * 8
    if policy == "drop_oldest":  # no turn is left to drop
        said = [{"role": "system", "content": "number " * 4000}]
    chaperone = {"mode": "edge", **({} if policy is None else {"on_overflow": policy})}

    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            for stream in (False, True):
                answer = await served.chat([*said, long], max_tokens=2, stream=stream, chaperone=chaperone)
                assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
                assert answer.error["param"] == "messages"
                assert answer.error["message"].startswith("messages: the conversation has ")
                assert answer.error["message"].endswith(remedy)
                assert "rewind" not in answer.error["message"]

    run(test)


def test_an_absent_cloud_is_reported_with_the_field_that_does_without(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair, address=NOBODY, cloud=IMPATIENT) as served:
            for mode in ("exact", "cloud"):
                answer = await served.chat("the list", max_tokens=4, chaperone={"mode": mode})
                assert (answer.status, answer.error["code"]) == (503, "cloud_unavailable")
                assert "start its server, or correct cloud.address" in answer.error["message"]
                assert answer.error["message"].endswith('or write without it: {"chaperone": {"mode": "edge"}}')
                assert "--mode" not in answer.error["message"]
            alone = await served.chat("the list", max_tokens=4, chaperone={"mode": "edge"})
            assert alone.status == 200

    run(test)
