"""Requests that the endpoint cannot answer are refused by name, in OpenAI's form, and strangers are kept out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from cloud_supervisor.model.torch_model import TorchModel
from edge_client.apps.http_api import app
from edge_client.apps.http_api.app import MAX_BODY_BYTES, Access
from tests.support.processes.clients import IMPATIENT, NOBODY
from tests.support.processes.endpoints import endpoint

TEXT = {"role": "user", "content": "the list"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
KEY = "a-key-of-enough-characters"

REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "another model": ({"model": "gpt-4"}, "model_not_found", "model", "'gpt-4' is not served here; use 'tiny'"),
    "no model": ({"model": None}, "invalid_value", "model", "should be a valid string"),
    "no messages": ({"messages": []}, "invalid_value", "messages", "at least 1 item"),
    "messages of another kind": ({"messages": "hello"}, "invalid_value", "messages", "'hello'"),
    "a message of another kind": ({"messages": ["hello"]}, "invalid_value", "messages.0", "'hello'"),
    "no role": ({"messages": [{"content": "x"}]}, "invalid_value", "messages[0].role", "None is none of"),
    "an unknown role": ({"messages": [{**TEXT, "role": "robot"}]}, "invalid_value", "messages[0].role", "'robot'"),
    "no content": ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content", "expected a string"),
    "a number as content": ({"messages": [{**TEXT, "content": 5}]}, "invalid_value", "messages[0].content", "expected"),
    "an image": (
        {"messages": [{**TEXT, "content": [IMAGE]}]},
        "unsupported_value",
        "messages[0].content[0]",
        "'image_url' is not supported here; send text",
    ),
    "a result of a tool": ({"messages": [{**TEXT, "role": "tool"}]}, "unsupported_value", "messages[0]", "'tool'"),
    "tools": (
        {"tools": [{"type": "function"}]},
        "unsupported_parameter",
        "tools",
        "is not supported here; leave it out; the Python SDK takes tools=",
    ),
    "a format": (
        {"response_format": {"type": "json_object"}},
        "unsupported_parameter",
        "response_format",
        "json_object",
    ),
    "a penalty": ({"presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty", "0.5"),
    "a typo": ({"temprature": 1}, "unknown_parameter", "temprature", "did you mean 'temperature'?"),
    "a typo in ours": ({"chaperone": {"mod": "exact"}}, "unknown_parameter", "chaperone.mod", "did you mean 'mode'"),
    "an unknown mode": ({"chaperone": {"mode": "fast"}}, "invalid_value", "chaperone.mode", "'exact', 'gated'"),
    "a promise of another mode": (
        {"chaperone": {"mode": "exact", "catch": 0.9}},
        "invalid_value",
        "chaperone.catch",
        "chaperone.catch: mode is exact, and only gated",
    ),
    "a stop of another kind": ({"stop": 5}, "invalid_value", "stop", "5"),
    "a surrogate": ({"\ud800": 1}, "unknown_parameter", "\\ud800", "unknown parameter"),
    "calls of tools": (
        {"messages": [TEXT, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, TEXT]},
        "unsupported_parameter",
        "messages[1]",
        "messages[1].tool_calls: it is not supported here; leave it out",
    ),
    "two modes": (
        {"chaperone": {"mode": "exact", "locality": "only_on_device"}},
        "invalid_value",
        "chaperone.locality",
        "'only_on_device' is edge, and mode is exact",
    ),
    "a parameter of chaperone": (
        {"top_k": 5},
        "unknown_parameter",
        "top_k",
        'put it into `chaperone`, as in {"chaperone"',
    ),
    "a parameter outside of chaperone": (
        {"chaperone": {"temperature": 1}},
        "unknown_parameter",
        "chaperone.temperature",
        "chaperone.temperature: it belongs outside of `chaperone`",
    ),
    "too hot": ({"temperature": 3}, "invalid_value", "temperature", "less than or equal to 2"),
    "a string as number": ({"temperature": "1"}, "invalid_value", "temperature", "valid number"),
    "a share above one": ({"top_p": 1.5}, "invalid_value", "top_p", "less than or equal to 1"),
    "no token": ({"max_tokens": 0}, "invalid_value", "max_tokens", "greater than or equal to 1"),
    "too many choices": ({"n": 100}, "invalid_value", "n", "less than or equal to 8"),
    "a negative seed": ({"seed": -1}, "invalid_value", "seed", "greater than or equal to 0"),
    "a seed of too many bits": ({"seed": 2**64}, "invalid_value", "seed", "less than or equal to"),
    "too many stops": ({"stop": ["x"] * 17}, "invalid_value", "stop", "17 texts; give at most 16"),
    "a long prompt": (
        {"messages": [{**TEXT, "content": "number " * 9000}]},
        "context_length_exceeded",
        "messages",
        "are more than 4096 tokens, the context, can hold; shorten it",
    ),
}
NEUTRAL = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "n": 1,
    "stop": None,
    "parallel_tool_calls": True,
}


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))


def test_what_is_not_supported_is_refused_by_name(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            for name, (fields, code, param, message) in REFUSED.items():
                for stream in (False, True):
                    body = {"model": "tiny", "messages": [TEXT], "max_tokens": 2, "stream": stream, **fields}
                    answer = await served.post("/v1/chat/completions", body)
                    assert answer.status == (404 if code == "model_not_found" else 400), name
                    error = answer.error
                    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error"), (
                        name
                    )
                    assert message in error["message"], name
            assert served.server.cloud.supervisor.counters.streams == 0

    run(test)


def test_a_completion_has_no_turns_to_drop(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            body = {"model": "tiny", "prompt": "def", "chaperone": {"on_overflow": "drop_oldest"}}
            answer = await served.post("/v1/completions", body)
            assert (answer.status, answer.error["param"]) == (400, "chaperone.on_overflow")

    run(test)


@pytest.mark.parametrize(
    ("prompt", "code", "message"),
    [
        (["a", "b"], "unsupported_value", "2 texts; send one in a request"),
        ([], "invalid_value", "at least 1 item"),
        ([1, "a"], "invalid_value", "prompt"),
        ("number " * 9000, "context_length_exceeded", "more than 4096 tokens"),
        ([""], "invalid_value", "prompt"),
        ([10**9], "invalid_value", "prompt"),
    ],
    ids=["two texts", "nothing", "a mixture", "a long text", "an empty text", "no token"],
)
def test_a_text_that_cannot_be_continued_is_refused(
    tiny_pair: Path, target: TorchModel, prompt: object, code: str, message: str
) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            answer = await served.post("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 2})
            assert answer.status == 400
            assert (answer.error["code"], answer.error["param"]) == (code, "prompt")
            assert message in answer.error["message"]

    run(test)


def test_parameters_that_ask_for_nothing_are_accepted(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            plain = (await served.chat([TEXT], max_tokens=4)).json["choices"]
            assert (await served.chat([TEXT], max_tokens=4, **NEUTRAL)).json["choices"] == plain
            assert (await served.chat([TEXT], max_tokens=4, logprobs=0)).json["choices"] == plain
            body = {"model": "tiny", "prompt": "a", "max_tokens": 2, "logprobs": False}
            assert (await served.post("/v1/completions", body)).json["choices"][0]["logprobs"] is None
            parts: list[dict[str, Any]] = [
                {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
                TEXT,
            ]
            system: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}, TEXT]
            said, meant = [(await served.chat(each, max_tokens=4)).json for each in (parts, system)]
            assert said["choices"] == meant["choices"]
            assert said["usage"]["prompt_tokens"] == meant["usage"]["prompt_tokens"]

    run(test)


@pytest.mark.parametrize(
    ("body", "code"), [(b"{", "invalid_json"), (b"[1]", "invalid_json"), (b"[" * 100_000, "invalid_json")]
)
def test_a_body_that_is_no_object_is_refused(tiny_pair: Path, target: TorchModel, body: bytes, code: str) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            answer = await served.post("/v1/chat/completions", body)
            assert (answer.status, answer.error["code"]) == (400, code)

    run(test)


def test_other_paths_methods_types_and_sizes_are_refused(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            body = {"model": "tiny", "messages": [TEXT]}
            assert (await served.get("/v1/embeddings")).error["code"] == "not_found"
            wrong = await served.get("/v1/chat/completions")
            assert (wrong.status, wrong.error["type"]) == (405, "invalid_request_error")
            plain = await served.post("/v1/chat/completions", body, content_type="text/plain")
            assert (plain.status, plain.error["code"]) == (415, "unsupported_media_type")
            large = await served.post("/v1/chat/completions", b" " * (MAX_BODY_BYTES + 1))
            assert (large.status, large.error["code"]) == (413, "body_too_large")

    run(test)


def test_only_who_has_the_key_may_use_it(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair, Access(KEY)) as served:
            for given in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": KEY},
                {"authorization": f"Basic {KEY}"},
            ):
                for answer in (
                    await served.get("/v1/models", **given),
                    await served.post("/v1/chat/completions", {}, **given),
                ):
                    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
                    assert answer.error["type"] == "authentication_error"
                    assert KEY not in answer.body.decode()
            assert (await served.get("/v1/models", authorization=f"Bearer {KEY}")).status == 200
            assert (await served.get("/health")).status == 200

    run(test)


def test_a_web_page_does_not_reach_it(tiny_pair: Path, target: TorchModel) -> None:
    """A page may give its own name the address of this machine, and a browser asks before it sends JSON elsewhere."""

    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            rebound = await served.get("/v1/models", host="evil.example:80")
            assert (rebound.status, rebound.error["code"]) == (403, "invalid_host")
            asked = await asyncio.to_thread(
                served._send,
                "OPTIONS",
                "/v1/chat/completions",
                None,
                {"origin": "https://evil.example", "access-control-request-method": "POST"},
            )
            assert asked.status == 405
            assert not [name for name in asked.headers if name.startswith("access-control")]
            for name in ("localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:80"):
                assert (await served.get("/v1/models", host=name)).status == 200
        async with endpoint(target, tiny_pair, Access(KEY, hosts=None)) as proxied:
            given = {"host": "chat.example", "authorization": f"Bearer {KEY}"}
            assert (await proxied.get("/v1/models", **given)).status == 200

    run(test)


def test_an_absent_cloud_is_reported(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair, address=NOBODY, cloud=IMPATIENT) as served:
            for stream in (False, True):
                answer = await served.chat("the list", max_tokens=4, stream=stream)
                assert (answer.status, answer.error["code"]) == (503, "cloud_unavailable")
                assert answer.error["type"] == "server_error"
            alone = (await served.chat("the list", max_tokens=4, chaperone={"mode": "gated"})).json
            (verified,) = alone["chaperone"]["choices"]
            assert verified["promises_hold"] is False
            assert verified["unverified"]["type"] == "CloudUnavailable"

    run(test)


def test_what_must_stay_on_the_device_is_never_sent(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        connections = 0

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            writer.close()

        watched = await asyncio.start_server(connected, "127.0.0.1", 0)
        address = f"127.0.0.1:{watched.sockets[0].getsockname()[1]}"
        async with watched, endpoint(target, tiny_pair, address=address, cloud=IMPATIENT) as served:
            for fields in ({}, {"stream": True}, {"n": 2}):
                local = {"locality": "only_on_device"}
                answer = await served.chat("the list", max_tokens=4, chaperone=local, **fields)
                assert answer.status == 200
                if "stream" not in fields:
                    assert {each["promises_hold"] for each in answer.json["chaperone"]["choices"]} == {None}
            assert connections == 0
            await served.chat("the list", max_tokens=4, chaperone={"locality": "only_in_cloud"})
            assert connections > 0, "the watch works"

    run(test)


def test_more_requests_than_the_limit_are_refused(
    tiny_pair: Path, target: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_REQUESTS", 0)

    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            answer = await served.chat("the list", max_tokens=4)
            assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
            assert answer.headers["retry-after"] == "1"

    run(test)


def test_a_bug_is_reported_without_its_values(
    tiny_pair: Path, target: TorchModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError("the secret list")

    monkeypatch.setattr(app, "parse", bug)

    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            answer = await served.chat("the list", max_tokens=4)
            assert (answer.status, answer.error["type"]) == (500, "server_error")
            assert "secret" not in answer.body.decode()
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text

    run(test)


def test_the_schema_describes_both_bodies(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            paths = (await served.get("/openapi.json")).json["paths"]
            for path in ("/v1/chat/completions", "/v1/completions"):
                schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
                assert {"model", "temperature", "stream", "chaperone"} <= schema["properties"].keys()
                assert "$ref" not in json.dumps(schema), "it is complete"
                assert schema["properties"]["model"] == {"const": "tiny"}
                assert {"200", "400", "401", "404", "429", "503"} <= paths[path]["post"]["responses"].keys()

    run(test)


def test_an_answer_is_a_message_that_the_schema_describes(tiny_pair: Path, target: TorchModel) -> None:
    """Clients that check their messages send an answer back whole."""

    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            described = (await served.get("/openapi.json")).json["paths"]["/v1/chat/completions"]["post"]
            schema = described["requestBody"]["content"]["application/json"]["schema"]
            body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            answer = await served.post("/v1/chat/completions", body)
            (choice,) = answer.json["choices"]
            assert {"refusal", "annotations"} <= choice["message"].keys()
            body["messages"] += [choice["message"], {"role": "user", "content": "go on"}]
            jsonschema_rs.validate(schema, body)
            assert (await served.post("/v1/chat/completions", body)).status == 200

    run(test)
