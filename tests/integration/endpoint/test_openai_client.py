"""OpenAI's own client works with the endpoint: texts, streams, choices, errors, and leaving early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from cloud_supervisor.model.torch_model import TorchModel
from edge_client.apps.http_api.app import Access
from tests.support.processes.clients import IMPATIENT, NOBODY, SLOW
from tests.support.processes.endpoints import Endpoint, endpoint
from tests.support.waiting import until

CHAT = "the list of a number is"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": CHAT}]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 7}
KEY = "a-key-of-enough-characters"

T = TypeVar("T")


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 150))


async def with_client(served: Endpoint, call: Callable[[openai.OpenAI], T], api_key: str = "unused") -> T:
    """Return what a function gets from a blocking client."""

    def connected() -> T:
        with openai.OpenAI(base_url=served.url, api_key=api_key, max_retries=0) as client:
            return call(client)

    return await served.in_thread(connected)


def async_client(served: Endpoint) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=served.url, api_key="unused", max_retries=0)


def test_both_clients_get_the_text_of_the_sdk(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            expected = await served.client.generate(CHAT, max_new_tokens=16, **SAMPLED)

            def text(client: openai.OpenAI) -> str:
                answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=16, **SAMPLED)
                assert answer.usage is not None
                assert answer.usage.completion_tokens == len(expected.token_ids)
                assert answer.model_extra is not None
                assert answer.model_extra["chaperone"]["choices"][0]["seed"] == 7
                return str(answer.choices[0].message.content)

            assert await with_client(served, text) == expected.text
            assert await with_client(served, text) == expected.text, "same seed, same text"
            async with async_client(served) as client:
                answer = await client.chat.completions.create(
                    model="tiny", messages=MESSAGES, max_completion_tokens=16, **SAMPLED
                )
                assert answer.choices[0].message.content == expected.text
                other = await client.chat.completions.create(
                    model="tiny", messages=MESSAGES, max_completion_tokens=16, temperature=0.8, seed=8
                )
                assert other.choices[0].message.content != expected.text

    run(test)


def test_both_clients_stream_the_same_text(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served:
            expected = await served.client.generate(CHAT, max_new_tokens=16, **SAMPLED)

            def pieces(client: openai.OpenAI) -> list[str]:
                stream = client.chat.completions.create(
                    model="tiny",
                    messages=MESSAGES,
                    max_tokens=16,
                    stream=True,
                    stream_options={"include_usage": True},
                    **SAMPLED,
                )
                *chunks, last = stream
                assert last.choices == []
                assert last.usage is not None
                assert last.usage.completion_tokens == len(expected.token_ids)
                return [chunk.choices[0].delta.content or "" for chunk in chunks]

            texts = await with_client(served, pieces)
            assert "".join(texts) == expected.text
            assert len(texts) > 3, "not all at once"
            async with (
                async_client(served) as client,
                client.chat.completions.stream(
                    model="tiny", messages=MESSAGES, max_completion_tokens=16, **SAMPLED
                ) as stream,
            ):
                with pytest.raises(openai.LengthFinishReasonError) as cut:  # so its helper reports `length`
                    await stream.get_final_completion()
                assert cut.value.completion.choices[0].message.content == expected.text

    run(test)


def test_stop_strings_and_several_choices(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served, async_client(served) as client:
            plain = await served.client.generate(CHAT, max_new_tokens=16)
            stop = plain.text[4:6]
            ended = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=16, stop=[stop, "never there"]
            )
            assert ended.choices[0].message.content == plain.text[: plain.text.index(stop)]
            assert ended.choices[0].finish_reason == "stop"

            several = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=8, n=3, temperature=1.0, seed=2
            )
            assert [choice.index for choice in several.choices] == [0, 1, 2]
            for choice in several.choices:
                alone = await served.client.generate(CHAT, max_new_tokens=8, temperature=1.0, seed=2 + choice.index)
                assert choice.message.content == alone.text

    run(test)


def test_texts_without_a_chat_and_the_models(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served, async_client(served) as client:
            expected = await served.client.generate("def name", raw=True, max_new_tokens=8)
            whole = await client.completions.create(model="tiny", prompt="def name", max_tokens=8)
            assert whole.choices[0].text == expected.text
            stream = await client.completions.create(model="tiny", prompt="def name", max_tokens=8, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == expected.text
            assert [model.id async for model in client.models.list()] == ["tiny"]
            assert (await client.models.retrieve("tiny")).owned_by == "chaperone"

    run(test)


def test_the_mode_is_chosen_by_extra_body(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served, async_client(served) as client:
            answer = await client.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                max_tokens=8,
                extra_body={"chaperone": {"locality": "only_on_device"}},
            )
            assert answer.model_extra is not None
            assert answer.model_extra["chaperone"]["choices"][0]["round_trips"] == 0
            assert served.server.cloud.supervisor.counters.streams == 0

    run(test)


def test_errors_are_those_of_the_client(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served, async_client(served) as client:

            async def refused(error: type[openai.APIStatusError], **fields: Any) -> openai.APIStatusError:
                given = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2, **fields}
                with pytest.raises(error) as caught:
                    await client.chat.completions.create(**given)
                return caught.value

            unknown = await refused(openai.NotFoundError, model="gpt-4")
            assert (unknown.code, unknown.param) == ("model_not_found", "model")
            tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
            tools = await refused(openai.BadRequestError, tools=[tool])
            assert (tools.code, tools.param) == ("unsupported_parameter", "tools")
            long = await refused(openai.BadRequestError, messages=[{"role": "user", "content": "number " * 9000}])
            assert (long.code, long.param) == ("context_length_exceeded", "messages")
            streamed = await refused(openai.BadRequestError, temperature=1.9, top_p=2.0, stream=True)
            assert streamed.param == "top_p"
            with pytest.raises(openai.NotFoundError):
                await client.embeddings.create(model="tiny", input="x")

        async with endpoint(target, tiny_pair, address=NOBODY, cloud=IMPATIENT) as alone, async_client(alone) as client:
            absent = await refused(openai.InternalServerError)
            assert (absent.status_code, absent.code) == (503, "cloud_unavailable")

    run(test)


def test_the_key_of_the_client_is_checked(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair, Access(KEY)) as served:

            def models(client: openai.OpenAI) -> list[str]:
                return [model.id for model in client.models.list()]

            assert await with_client(served, models, KEY) == ["tiny"]
            with pytest.raises(openai.AuthenticationError):
                await with_client(served, models, "another-key")

    run(test)


def test_a_loss_in_the_middle_is_an_error_of_the_stream(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        cloud = IMPATIENT.model_copy(update={"reconnect_timeout_ms": 300.0})
        async with (
            endpoint(target, tiny_pair, planner=SLOW, cloud=cloud) as served,
            async_client(served) as client,
        ):
            stream = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=2000, stream=True, temperature=1.0, seed=1
            )
            await anext(stream)
            await served.server.stop(0)
            with pytest.raises(openai.APIError) as lost:
                async for _ in stream:
                    pass
            assert lost.value.code == "cloud_unavailable"

    run(test)


def test_leaving_a_stream_frees_both_ends(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with endpoint(target, tiny_pair) as served, async_client(served) as client:
            long: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2000, **SAMPLED}
            stream = await client.chat.completions.create(stream=True, **long)
            await anext(stream)
            await stream.close()
            await until(lambda: served.idle, "the stream that was closed has ended")
            whole = asyncio.create_task(client.chat.completions.create(**long))
            await until(lambda: not served.idle, "the text is being written")
            whole.cancel()
            await asyncio.gather(whole, return_exceptions=True)
            await until(lambda: served.idle, "the call that was cancelled has ended")

    run(test)
