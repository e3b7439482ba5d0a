"""Log-probabilities in the forms of OpenAI's API: whole and streamed, of chats and completions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.logprobs import TokenLogprobs
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import Generation
from tests.support.processes.endpoints import endpoint

CHAT = "the list of a number is"
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 7}
MODE: dict[str, Any] = {"chaperone": {"mode": "exact"}}


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))


def expected_of(result: Generation) -> list[TokenLogprobs]:
    """Return the entries of the tokens that add something to the text."""
    assert result.logprobs is not None
    return [found for found in result.logprobs if found.chosen.token_bytes]


def text_of(content: list[dict[str, Any]]) -> str:
    return bytes(byte for each in content for byte in each["bytes"]).decode("utf-8", "replace")


@pytest.mark.parametrize("stop", [None, ["e"]])
def test_a_chat_reports_what_the_sdk_reports(tiny_pair: Path, target: TorchModel, stop: list[str] | None) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            result = await served.client.generate(
                CHAT, mode="exact", max_new_tokens=24, stop=stop, logprobs=True, top_logprobs=2, **SAMPLED
            )
            fields = {"max_tokens": 24, "stop": stop, "logprobs": True, "top_logprobs": 2, **SAMPLED, **MODE}
            whole = (await served.chat(CHAT, **fields)).json
            found = whole["choices"][0]["logprobs"]
            assert found.keys() == {"content", "refusal"}
            for each, expected in zip(found["content"], expected_of(result), strict=True):
                assert each.keys() == {"token", "logprob", "bytes", "top_logprobs"}
                assert each["token"] == expected.chosen.token
                assert each["logprob"] == pytest.approx(expected.chosen.logprob, abs=1e-3)
                assert each["bytes"] == [*expected.chosen.token_bytes]
                assert [top["token"] for top in each["top_logprobs"]] == [top.token for top in expected.top_logprobs]
            assert {*whole["chaperone"]["choices"][0]["logprob_sources"]} == {"cloud"}
            if stop is None:
                assert text_of(found["content"]) == whole["choices"][0]["message"]["content"]
            events = (await served.chat(CHAT, stream=True, **fields)).events[:-1]
            parts = [event["choices"][0]["logprobs"] for event in events]
            streamed = [each for part in parts if part for each in part["content"]]
            assert [each["bytes"] for each in streamed] == [each["bytes"] for each in found["content"]]
            values = [[each["logprob"] for each in listed] for listed in (streamed, found["content"])]
            assert values[0] == pytest.approx(values[1], abs=1e-3)
            sources = [each for event in events for each in event.get("chaperone", {}).get("logprob_sources", ())]
            assert len(sources) == len(found["content"])

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_lists_tokens_with_their_offsets(tiny_pair: Path, target: TorchModel, stream: bool) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            body = {"model": "tiny", "prompt": "def name", "max_tokens": 24, "logprobs": 1, "stream": stream}
            answer = await served.post("/v1/completions", {**body, **SAMPLED, **MODE})
            choices = [event["choices"][0] for event in answer.events[:-1]] if stream else answer.json["choices"]
            text = "".join(choice["text"] for choice in choices)
            found: dict[str, list[Any]] = {}
            for choice in choices:
                for name, values in (choice["logprobs"] or {}).items():
                    found.setdefault(name, []).extend(values)
            assert found.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
            assert len({len(values) for values in found.values()}) == 1
            for token, logprob, top, offset in zip(
                found["tokens"], found["token_logprobs"], found["top_logprobs"], found["text_offset"], strict=True
            ):
                assert token.startswith("bytes:\\x") or text[offset:].startswith(token)
                assert top[token] == logprob <= max(top.values())
                assert len(top) <= 2

    run(test)


def test_nothing_is_reported_that_was_not_asked_for(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            whole = (await served.chat(CHAT, max_tokens=4)).json
            assert whole["choices"][0]["logprobs"] is None
            assert "logprob_sources" not in whole["chaperone"]["choices"][0]
            alone = (await served.chat(CHAT, max_tokens=4, logprobs=True)).json
            assert all(each["top_logprobs"] == [] for each in alone["choices"][0]["logprobs"]["content"])

    run(test)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_logprobs": 3}, "top_logprobs: 3 needs logprobs; set that to true, or leave this out"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: 21: Input should be less than or equal to 20"),
        ({"logprobs": 3}, "logprobs: 3: Input should be a valid boolean"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    tiny_pair: Path, target: TorchModel, fields: dict[str, Any], message: str
) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            answer = await served.chat(CHAT, **fields)
            assert (answer.status, answer.error["message"]) == (400, message)
            assert answer.error["param"] == message.partition(":")[0]

    run(test)
