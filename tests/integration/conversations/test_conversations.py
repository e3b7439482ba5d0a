"""Conversations with the tiny pair: each turn reads only its own tokens, on both ends, and says what it would alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import InvalidRequest
from chaperone_common.partial import PartialGeneration
from chaperone_common.session import Committed, Failed, Finished
from chaperone_common.types import Mode, PromptInput
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import Cancellation, Cancelled, Conversation, EdgeClient, SyncEdgeClient, Turn
from tests.support.device.conversations import SAID, SAMPLED, a_client, run
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving_in_thread


@pytest.mark.parametrize("mode", Mode)
def test_a_turn_reads_only_its_own_tokens(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation("be brief", mode=mode, **SAMPLED)
            before = by_cloud = alone = reread = 0
            for text in SAID:
                stats = (await chat.generate(text)).stats
                own = stats.prompt_tokens - before
                assert 0 < own < 40
                # The last token that was written is new to both, and so is the one before it to the device's model.
                if mode.drafts:
                    assert stats.prompt_tokens - stats.edge_cached_tokens <= own + 2 + by_cloud + reread
                if mode.connects:
                    assert stats.prompt_tokens - stats.cloud_cached_tokens <= own + 1 + alone
                before, by_cloud = stats.prompt_tokens + stats.completion_tokens, stats.takeover_tokens
                # In `conditioned` the cloud sees an answer only with the next prompt. The device reads it again then.
                alone = stats.completion_tokens if mode.writes_alone else 0
                reread = stats.completion_tokens if mode is Mode.CONDITIONED else 0

    run(test)


def test_turns_are_printed_in_short(tiny_pair: Path, target: TorchModel) -> None:
    """The beginning of each text and its length; the attributes have all of it."""

    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode="edge", **{**SAMPLED, "max_new_tokens": 200})
            result = await chat.generate("the list of a number " * 40)
            (turn,) = chat.turns
            length = f"({len(result.text)} characters, {len(result.token_ids)} tokens)"
            begins = "Turn(user: 'the list of a number the list of a number the ... (840 characters), assistant: "
            assert repr(turn).startswith(begins)
            assert repr(turn).endswith(f"{length})")
            assert repr(result).startswith("Generation(")
            assert repr(result).endswith(f"{length}, finish_reason: {result.finish_reason}, round_trips: 0)")
            assert len(repr(chat.turns)) < 250
            assert (turn.text, turn.token_ids, turn.generation) == (result.text, result.token_ids, result)
            parts = [{"type": "text", "text": "x" * 500}]
            many = Turn(({"role": "user", "content": parts}, *turn.messages * 9), "ok", (1, 2), result)
            assert repr(many).count("user: ") == 3
            assert "7 more messages, assistant: 'ok' (2 characters, 2 tokens))" in repr(many)
            assert len(repr(many)) < 400

    run(test)


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.CLOUD])
def test_a_turn_is_what_its_prompt_alone_gives(tiny_pair: Path, target: TorchModel, mode: Mode) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode=mode, **SAMPLED)
            for text in SAID:
                turn = await chat.generate(text)
                alone = await client.generate(PromptInput(turn.prompt_token_ids), mode="cloud", **SAMPLED)
                assert turn.token_ids == alone.token_ids

    run(test)


def test_the_tokens_of_a_reply_are_not_tokenized_again(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode="exact", **SAMPLED)
            first = await chat.generate(SAID[0])
            second = await chat.generate(SAID[1])
            written = [*first.prompt_token_ids, *first.token_ids]
            ends = first.token_ids[-1] in client.tokenizer.eos_token_ids
            assert [*second.prompt_token_ids[: len(written) - ends]] == written[: len(written) - ends]
            assert client.tokenizer.decode(second.prompt_token_ids) == client.tokenizer.decode(
                client.prepare(chat.messages[:-1]).token_ids
            )

    run(test)


def test_what_the_cloud_holds_is_not_sent_again(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            long = " ".join(["number of the list"] * 300)
            chat = client.conversation(mode="exact", max_new_tokens=4, temperature=0)
            first = (await chat.generate(long)).stats
            second = (await chat.generate("and")).stats
            assert first.bytes_up > first.prompt_tokens > 1000
            assert second.bytes_up < 400

    run(test)


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.GATED, Mode.CLOUD])
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_cloud_that_holds_nothing_gets_the_whole_prompt(
    tiny_pair: Path, target: TorchModel, mode: Mode, warm_start: bool
) -> None:
    """The cloud kept one text, of another turn, so that it refuses the reference."""

    async def test() -> None:
        limits = LimitsConfig(max_kept_texts=1)
        async with a_client(target, tiny_pair, limits) as (client, server):
            chat = client.conversation(mode=mode, warm_start=warm_start, **SAMPLED)
            await chat.generate(SAID[0])
            await client.generate(SAID[2], mode="cloud", **SAMPLED)
            turn = await chat.generate(SAID[1])
            counters = server.cloud.supervisor.counters
            assert (counters.prefixes_missed, counters.refused) == (1, 0)
            assert turn.stats.reconnects == 0
            if mode is not Mode.GATED:
                alone = await client.generate(PromptInput(turn.prompt_token_ids), mode="cloud", **SAMPLED)
                assert turn.token_ids == alone.token_ids

    run(test)


def test_a_cloud_that_keeps_no_texts_is_never_asked_for_one(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair, LimitsConfig(max_kept_texts=0)) as (client, server):
            chat = client.conversation(mode="exact", **SAMPLED)
            for text in SAID:
                await chat.generate(text)
            assert server.cloud.supervisor.counters.prefixes_missed == 0

    run(test)


def test_a_rewound_conversation_goes_on_from_there(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode="exact", **SAMPLED)
            texts = [(await chat.generate(text)).text for text in SAID]
            chat.rewind(1)
            assert [turn.text for turn in chat.turns] == texts[:1]
            again = await chat.generate(SAID[1])
            assert again.text == texts[1], "the same text at the same positions, with the same seed"
            assert again.stats.edge_cached_tokens > 0
            other = await chat.regenerate(seed=6)
            assert other.prompt_token_ids == again.prompt_token_ids
            assert [turn.text for turn in chat.turns] == [texts[0], other.text]
            greedy = await chat.regenerate(temperature=0)
            assert (await chat.regenerate(temperature=0, seed=7)).text == greedy.text, "the seed decides nothing"
            with pytest.raises(InvalidRequest, match="turns: 3; the conversation has 2; give a number from -2 to 2"):
                chat.rewind(3)
            chat.rewind(-2)
            assert chat.turns == ()
            with pytest.raises(InvalidRequest, match="turns: 1; the conversation has 0; generate a turn first"):
                chat.rewind(1)
            with pytest.raises(InvalidRequest, match="no turn yet"):
                await chat.regenerate()

    run(test)


@pytest.mark.parametrize("leaves", [False, True])
def test_the_end_of_a_with_block_frees_what_the_device_keeps(tiny_pair: Path, target: TorchModel, leaves: bool) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            async with client.conversation(mode="exact", **SAMPLED) as chat:
                await chat.generate(SAID[0])
                if leaves:  # in the middle of a stream, which is closed after the block
                    events = chat.stream(SAID[1])
                    await anext(events)
                    assert chat.busy
            if leaves:
                await events.aclose()
            assert not chat.busy
            again = await chat.generate(SAID[1])
            assert again.stats.edge_cached_tokens == 0

    run(test)


def test_the_end_of_a_with_block_of_the_twin_does_the_same(tiny_pair: Path) -> None:
    with SyncEdgeClient(config_for("127.0.0.1:1")) as client:
        with client.conversation(mode="edge", **SAMPLED) as chat:
            chat.generate(SAID[0])
            assert chat.generate(SAID[1]).stats.edge_cached_tokens > 0
        assert chat.generate(SAID[1]).stats.edge_cached_tokens == 0
    with chat:
        pass  # the client is closed, and has freed everything


def test_a_turn_that_failed_is_no_part_of_it_and_can_be_resumed(tiny_pair: Path, target: TorchModel) -> None:
    async def cut(chat: Conversation, tokens: int, said: str | PartialGeneration) -> PartialGeneration:
        cancellation, seen = Cancellation(), 0
        async for event in chat.stream(said, cancellation=cancellation):
            seen += isinstance(event, Committed)
            if seen == tokens:
                cancellation.cancel()
            if isinstance(event, Failed):
                assert isinstance(event.error, Cancelled)
                assert event.error.partial is not None
                return event.error.partial
            assert not isinstance(event, Finished)
        raise AssertionError("it has no end")

    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            sampled = {**SAMPLED, "max_new_tokens": 60}
            chat, whole = (client.conversation(mode="exact", **sampled) for _ in range(2))
            for each in (chat, whole):
                await each.generate(SAID[0])
            expected = await whole.generate(SAID[1])
            assert len(expected.token_ids) > 12
            partial = await cut(chat, 4, SAID[1])
            assert len(chat.turns) == 1
            partial = await cut(chat, 3, partial)
            await chat.generate(partial)
            *_, turn = chat.turns
            assert turn.token_ids == expected.token_ids
            assert turn.text == expected.text
            with pytest.raises(InvalidRequest, match="not of the turn that failed last"):
                await chat.generate(partial)

    run(test)


def test_one_turn_is_written_at_a_time(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode="exact", **SAMPLED)
            events = chat.stream(SAID[0])
            await anext(events)
            for refused in (chat.generate(SAID[1]), chat.regenerate()):
                with pytest.raises(InvalidRequest, match="a turn is being written"):
                    await refused
            with pytest.raises(InvalidRequest, match="a turn is being written"):
                chat.rewind(0)
            await events.aclose()
            assert chat.turns == ()
            await chat.generate(SAID[1])

    run(test)


def test_a_turn_that_is_written_again_and_fails_stays(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode="exact", **{**SAMPLED, "max_new_tokens": 60})
            await chat.generate(SAID[0])
            before = chat.turns
            with pytest.raises(Cancelled) as raised:
                await chat.regenerate(seed=9, timeout=1e-4)
            assert chat.turns == before
            if raised.value.partial is not None:
                await chat.generate(raised.value.partial)
                assert len(chat.turns) == 1, "in place of the old one"

    run(test)


def test_a_stream_begins_where_the_conversation_is(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode="exact", **SAMPLED)
            late = chat.stream(SAID[1])
            await chat.generate(SAID[0])
            async for _ in late:
                pass
            assert [turn.messages[0]["content"] for turn in chat.turns] == [*SAID[:2]]

    run(test)


def test_a_closed_client_frees_what_its_conversations_keep(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation(mode="exact", **SAMPLED)
            await chat.generate(SAID[0])
            assert chat._caches.prompt._kept is not None
        assert chat._caches.prompt._kept is None

    run(test)


@pytest.mark.parametrize("message", ["  ", None, 5, b"bytes", PromptInput((1, 2))])
def test_a_message_of_another_kind_is_refused(tiny_pair: Path, target: TorchModel, message: Any) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            with pytest.raises(InvalidRequest, match="message: "):
                await client.conversation().generate(message)

    run(test)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on_overflow": "cut"}, "on_overflow: 'cut' is none of refuse, drop_oldest, cloud"),
        ({"committed_token_ids": (1,)}, "committed_token_ids"),
        ({"raw": True}, "raw"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"system_prompt": "x"}, r"system_prompt: unknown parameter \(did you mean 'system'\?\)$"),
        ({"message": []}, r"message: unknown parameter \(did you mean 'messages'\?\)$"),
        ({"zzz": 1}, "known: mode, .*, tools, parse_special, system, messages, on_overflow, in_place_of\\)$"),
        ({"timeout": 3}, "timeout: no parameter here; only generate, stream and stream_text take it"),
        (
            {"system": [{"role": "user", "content": "hi"}]},
            r"^system: list is not text; give text, or messages=\[\.\.\.\]$",
        ),
        ({"system": 3}, "^system: int is not text; give text"),
        ({"messages": "hi"}, "^messages: str is not a list; give a list of messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, r"^messages\[0\]\.role: 'boss' is none of"),
        ({"tools": []}, "^tools: expected a list of at least one tool"),
        ({"mode": "exakt"}, "^mode: 'exakt' is none of exact, gated"),
        ({"temperature": -1}, "^temperature: -1.0 is not a finite number"),
        ({"catch": 2}, "^catch: 2.0 is outside"),
    ],
)
def test_a_conversation_refuses_what_it_cannot_take(tiny_pair: Path, given: dict[str, Any], message: str) -> None:
    client = EdgeClient(config_for("127.0.0.1:1"))
    with pytest.raises(InvalidRequest, match=message):
        client.conversation(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": []}, r"^tools: no parameter here; give tools to client\.conversation\(tools=\.\.\.\)$"),
        ({"tool": []}, r"\(did you mean 'tools'\?\); give tools to client\.conversation\(tools=\.\.\.\)$"),
        ({"system": "x"}, "^system: no parameter here; give system to client"),
        ({"raw": True}, "^raw: no parameter here; a turn of a conversation does not take it; leave it out"),
        ({"num_beams": 99}, "^num_beams: "),
        ({"zzz": 1}, r"^zzz: unknown parameter \(known: mode, .*, warm_start\)$"),
    ],
)
def test_a_turn_refuses_what_it_cannot_take(tiny_pair: Path, given: dict[str, Any], message: str) -> None:
    with SyncEdgeClient(config_for("127.0.0.1:1")) as client:
        chat = client.conversation(system="be brief")
        with pytest.raises(InvalidRequest, match=message) as caught:
            chat.generate("x", **given)
        if "known:" in caught.value.message:
            assert "tools" not in caught.value.message


def test_none_leaves_a_parameter_of_a_turn_out(tiny_pair: Path) -> None:
    with SyncEdgeClient(config_for("127.0.0.1:1")) as client:
        chat = client.conversation(system="be brief", mode="edge", max_new_tokens=2, raw=None)
        assert chat.generate("x", tools=None, raw=None).text == chat.turns[0].text


def test_async_and_sync_give_the_same_turns(tiny_pair: Path, target: TorchModel) -> None:
    with serving_in_thread(target, tiny_pair) as (_, address):

        async def turns() -> list[tuple[str, ...]]:
            async with EdgeClient(config_for(address)) as client:
                chat = client.conversation("be brief", mode="exact", **SAMPLED)
                written = [(await chat.generate(text)).text for text in SAID[:2]]
                streamed = [event.text async for event in chat.stream(SAID[2]) if isinstance(event, Committed)]
                regenerated = (await chat.regenerate(seed=7)).text
                chat.rewind(2)
                return [tuple(written), tuple(streamed), (regenerated,), tuple(turn.text for turn in chat.turns)]

        with SyncEdgeClient(config_for(address)) as client:
            chat = client.conversation("be brief", mode="exact", **SAMPLED)
            written = [chat.generate(text).text for text in SAID[:2]]
            streamed = [event.text for event in chat.stream(SAID[2]) if isinstance(event, Committed)]
            regenerated = chat.regenerate(seed=7).text
            chat.rewind(2)
            synced = [tuple(written), tuple(streamed), (regenerated,), tuple(turn.text for turn in chat.turns)]
            assert chat.dropped_turns == 0
            assert len(chat.messages) == 5
            chat.close()
        assert asyncio.run(turns()) == synced
