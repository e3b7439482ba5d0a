"""The endpoint writes what the SDK writes, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.types import Mode
from cloud_supervisor.model.torch_model import TorchModel
from tests.support.processes.endpoints import endpoint

CHAT = "the list of a number is"
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 7}
MESSAGES = [{"role": "user", "content": CHAT}]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))


def test_every_mode_can_be_asked_for(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            for mode in Mode:
                answer = await served.chat(CHAT, max_completion_tokens=5, chaperone={"mode": str(mode)})
                assert answer.status == 200, answer.json
                (choice,) = answer.json["chaperone"]["choices"]
                assert (choice["promises_hold"] is None) == mode.writes_alone

    run(test)


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.CLOUD, Mode.EDGE])
def test_a_chat_is_what_the_sdk_writes(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            expected = await served.client.generate(CHAT, mode=mode, max_new_tokens=20, **SAMPLED)
            answer = await served.chat(CHAT, max_completion_tokens=20, chaperone={"mode": str(mode)}, **SAMPLED)
            assert answer.status == 200
            whole = answer.json
            (choice,) = whole["choices"]
            message: dict[str, Any] = {
                "role": "assistant",
                "content": expected.text,
                "refusal": None,
                "annotations": [],
            }
            assert choice["message"] == message
            assert choice["finish_reason"] == str(expected.finish_reason)
            assert whole["object"] == "chat.completion"
            assert whole["model"] == "tiny"
            assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", whole["id"])
            prompt, completion = len(expected.prompt_token_ids), len(expected.token_ids)
            assert (
                whole["usage"]["total_tokens"]
                == prompt + completion
                == sum(whole["usage"][name] for name in ("prompt_tokens", "completion_tokens"))
            )
            (verified,) = whole["chaperone"]["choices"]
            assert len(verified["origins"]) == completion
            assert verified["seed"] == 7
            assert whole.get("system_fingerprint", "") == expected.stats.model_digest

    run(test)


def test_a_stream_is_the_same_text(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            whole = (await served.chat(CHAT, max_tokens=20, **SAMPLED)).json
            answer = await served.chat(
                CHAT, max_tokens=20, stream=True, stream_options={"include_usage": True}, **SAMPLED
            )
            *chunks, usage, done = answer.events
            assert done == "[DONE]"
            assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
            assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
            first, *middle, last = [chunk["choices"][0] for chunk in chunks]
            assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
            assert "".join(choice["delta"]["content"] for choice in middle) == whole["choices"][0]["message"]["content"]
            assert {choice["finish_reason"] for choice in [first, *middle]} == {None}
            assert (last["delta"], last["finish_reason"]) == ({}, whole["choices"][0]["finish_reason"])
            sources = [chunk["chaperone"]["source"] for chunk in chunks if "source" in chunk.get("chaperone", {})]
            assert sources
            assert {*sources} <= {"verified", "override", "bonus", "takeover"}
            assert chunks[-1]["chaperone"]["promises_hold"] is True
            digest = whole["system_fingerprint"]
            assert chunks[-1]["system_fingerprint"] == usage["system_fingerprint"] == digest
            assert usage["choices"] == []
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                assert usage["usage"][name] == whole["usage"][name]

    run(test)


def test_the_usage_is_sent_if_it_is_wanted(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            events = (await served.chat(CHAT, max_tokens=3, stream=True)).events
            assert all("usage" not in event for event in events[:-1])

    run(test)


def test_a_text_is_continued(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            expected = await served.client.generate("def name", raw=True, max_new_tokens=12, **SAMPLED)
            body = {"model": "tiny", "max_tokens": 12, **SAMPLED}
            whole = (await served.post("/v1/completions", {**body, "prompt": "def name"})).json
            assert whole["object"] == "text_completion"
            assert whole["choices"][0]["text"] == expected.text
            token_ids = [*served.client.prepare("def name", raw=True).token_ids]
            assert (await served.post("/v1/completions", {**body, "prompt": token_ids})).json["choices"] == whole[
                "choices"
            ]
            one = await served.post("/v1/completions", {**body, "prompt": ["def name"]})
            assert one.json["choices"] == whole["choices"], "a list of one text, as some clients send"
            events = (await served.post("/v1/completions", {**body, "prompt": "def name", "stream": True})).events
            assert "".join(event["choices"][0]["text"] for event in events[:-1]) == expected.text

    run(test)


def test_several_choices_have_seeds_of_their_own(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            fields: dict[str, Any] = {"max_tokens": 16, "temperature": 1.0, "seed": 3}
            whole = (await served.chat(CHAT, n=3, **fields)).json
            texts = [choice["message"]["content"] for choice in whole["choices"]]
            assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
            alone = [(await served.chat(CHAT, **{**fields, "seed": 3 + index})).json for index in range(3)]
            assert texts == [each["choices"][0]["message"]["content"] for each in alone]
            assert len({*texts}) > 1
            assert whole["usage"]["completion_tokens"] == sum(each["usage"]["completion_tokens"] for each in alone)
            assert whole["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
            streamed = (await served.chat(CHAT, n=3, stream=True, **fields)).events[:-1]
            for index in range(3):
                own = [event["choices"][0] for event in streamed if event["choices"][0]["index"] == index]
                assert "".join(choice["delta"].get("content", "") for choice in own) == texts[index]

    run(test)


def test_a_chat_that_goes_on_reads_only_what_is_new(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            messages: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}]
            before = 0
            for text in (CHAT, "and the first value", "return the name"):
                messages.append({"role": "user", "content": text})
                whole = (await served.chat(messages, max_tokens=12)).json
                usage = whole["usage"]
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                assert cached >= before - 1, "a reply may be tokenized otherwise than it was written"
                before = usage["prompt_tokens"]
                messages.append(whole["choices"][0]["message"])
            again = (await served.chat(messages[:4], max_tokens=12)).json
            assert again["choices"][0]["message"] == messages[4], "the second turn, asked for once more"
            other = (await served.chat([*messages[:3], {"role": "user", "content": "another"}], max_tokens=12)).json
            assert other["usage"]["prompt_tokens_details"]["cached_tokens"] > 0

    run(test)


def test_chats_at_the_same_time_do_not_mix(tiny_pair: Path, target: TorchModel) -> None:
    """Both begin like a chat that is kept, which is one of theirs at most."""

    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            messages: list[dict[str, Any]] = []
            for text in (CHAT, "and the first value"):
                messages.append({"role": "user", "content": text})
                messages.append((await served.chat(messages, max_tokens=8)).json["choices"][0]["message"])
            longer = [*messages, {"role": "user", "content": "return the name"}]
            other = [*messages[:2], {"role": "user", "content": "of the file"}]
            for _ in range(3):
                together = await asyncio.gather(*(served.chat(each, max_tokens=8) for each in (longer, other, longer)))
                for chat, answer in zip((longer, other, longer), together, strict=True):
                    alone = await served.client.generate(
                        [{key: value for key, value in each.items() if value not in (None, [])} for each in chat],
                        mode="cloud",
                        max_new_tokens=8,
                    )
                    assert answer.status == 200
                    assert answer.json["usage"]["prompt_tokens"] == len(alone.prompt_token_ids)
                    assert answer.json["choices"][0]["message"]["content"] == alone.text

    run(test)


def test_a_first_reply_may_be_asked_for_again(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            first = (await served.chat(CHAT, max_tokens=8)).json
            again = (await served.chat(CHAT, max_tokens=8)).json
            assert again["choices"] == first["choices"]
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1
            (verified,) = again["chaperone"]["choices"]
            assert verified["stats"]["edge_cached_tokens"] > 0

    run(test)


def test_few_chats_are_kept(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            for _ in range(2):
                await asyncio.gather(*(served.chat(f"{CHAT} {number}", max_tokens=2) for number in range(8)))
            assert len(served.client._runs.caches) <= 8, "those that are not kept are gone"
            kept = [caches for caches in served.client._runs.caches if caches.prompt._kept is not None]
            assert len(kept) == 4

    run(test)


def test_a_full_chat_drops_its_oldest_messages(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            long = "number " * (served.client.manifest.context_tokens // 3)
            messages: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}]
            for turn in range(4):
                messages.append({"role": "user", "content": long})
                fields = {"max_tokens": 4, "n": 1 + turn % 2, "chaperone": {"on_overflow": "drop_oldest"}}
                answer = await served.chat(messages, **fields)
                assert answer.status == 200, turn
                messages.append(answer.json["choices"][0]["message"])
            refused = await served.chat([*messages, {"role": "user", "content": "x"}], max_tokens=4)
            assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")

    run(test)


def test_a_stop_string_ends_the_text(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            text = (await served.chat(CHAT, max_tokens=20)).json["choices"][0]["message"]["content"]
            stop = text[4:6]
            choice = (await served.chat(CHAT, max_tokens=20, stop=[stop, "never there"])).json["choices"][0]
            assert choice["message"]["content"] == text[: text.index(stop)]
            assert choice["finish_reason"] == "stop"

    run(test)


def test_the_models_are_listed(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            listed = (await served.get("/v1/models")).json
            assert [entry["id"] for entry in listed["data"]] == ["tiny"]
            assert (await served.get("/v1/models/tiny")).json == listed["data"][0]
            missing = await served.get("/v1/models/gpt-4")
            assert (missing.status, missing.error["code"]) == (404, "model_not_found")
            assert (await served.get("/health")).json == {"status": "ok"}

    run(test)
