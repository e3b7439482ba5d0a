"""Conversations that outgrow the device's context: refuse the turn, drop the oldest ones, or let the cloud write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import PromptTooLong
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import Cancellation, Cancelled, Conversation, Generation
from tests.support.device.conversations import SAID, a_client, run
from tests.support.fakes.target import FakeTarget


async def fill(chat: Conversation, room: int) -> list[Generation]:
    """Write turns until they need more than the device's context, or one is refused."""
    long = " ".join(["number"] * (room // 3))
    return [await chat.generate(long) for _ in range(6)]


def test_a_full_context_refuses_the_next_turn(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation("be brief", mode="exact", max_new_tokens=16)
            with pytest.raises(PromptTooLong, match="or set on_overflow to drop_oldest or cloud"):
                await fill(chat, client.manifest.context_tokens)
            assert chat.turns
            assert len(chat.messages) == 1 + 2 * len(chat.turns)

    run(test)


def test_a_full_context_drops_the_oldest_turns(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            chat = client.conversation("be brief", on_overflow="drop_oldest", mode="exact", max_new_tokens=16)
            room = client.manifest.context_tokens
            turns = await fill(chat, room)
            assert all(len(turn.prompt_token_ids) + 16 <= room for turn in turns)
            assert chat.dropped_turns == len(turns) - len(chat.turns) > 0
            assert chat.turns[-1].generation == turns[-1]
            assert chat.messages[0] == {"role": "system", "content": "be brief"}

    run(test)


def test_a_full_context_lets_the_cloud_write_alone(tiny_pair: Path) -> None:
    async def test() -> None:
        manifest = load_manifest(tiny_pair / "cloud", role="cloud")
        large = FakeTarget(manifest.vocabulary_size, 4 * manifest.context_tokens)
        async with a_client(large, tiny_pair) as (client, _):
            chat = client.conversation("be brief", on_overflow="cloud", mode="exact", max_new_tokens=16)
            turns = await fill(chat, client.manifest.context_tokens)
            beyond = [turn for turn in turns if turn.stats.prompt_tokens >= client.manifest.context_tokens]
            assert beyond
            assert len(chat.turns) == len(turns)
            assert all(origin.of_cloud for turn in beyond for origin in turn.origins)

    run(test)


def test_a_turn_that_fails_drops_nothing(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            room = client.manifest.context_tokens
            chat = client.conversation("be brief", on_overflow="drop_oldest", mode="exact", max_new_tokens=16)
            for _ in range(2):
                await chat.generate("number " * (room // 3))
            before = chat.messages
            with pytest.raises(PromptTooLong):
                await chat.generate("number " * room)
            cancellation = Cancellation()
            cancellation.cancel()
            with pytest.raises(Cancelled):
                await chat.generate("number " * (room // 3), cancellation=cancellation)
            assert (chat.messages, chat.dropped_turns) == (before, 0)

    run(test)


def test_messages_that_were_said_before_are_dropped_first(tiny_pair: Path, target: TorchModel) -> None:
    async def test() -> None:
        async with a_client(target, tiny_pair) as (client, _):
            old = "number " * (client.manifest.context_tokens // 3)
            system = {"role": "system", "content": "be brief"}
            groups = [[{"role": "user", "content": old}, {"role": "assistant", "content": text}] for text in "ab"]
            chat = client.conversation(
                messages=[system, *groups[0], *groups[1]], on_overflow="drop_oldest", mode="exact", max_new_tokens=16
            )
            turn = await chat.generate(old)
            assert chat.dropped_turns == 1
            answered = {"role": "assistant", "content": turn.text}
            assert chat.messages == [system, *groups[1], {"role": "user", "content": old}, answered]

    run(test)


@pytest.mark.parametrize(
    ("parameters", "larger"),
    [
        ({"mode": "edge"}, True),
        ({"mode": "gated", "max_cloud_share": 0.5}, True),
        ({"mode": "exact"}, False),
    ],
    ids=["sends nothing", "bounds the cloud's share", "the cloud's context is no longer"],
)
def test_the_cloud_does_not_write_alone_where_it_must_not(
    tiny_pair: Path, parameters: dict[str, Any], larger: bool
) -> None:
    async def test() -> None:
        manifest = load_manifest(tiny_pair / "cloud", role="cloud")
        large = FakeTarget(manifest.vocabulary_size, (4 if larger else 1) * manifest.context_tokens)
        async with a_client(large, tiny_pair) as (client, server):
            await client.capabilities()
            await client.generate(SAID[0], mode="cloud", max_new_tokens=1)
            streams = server.cloud.supervisor.counters.streams
            chat = client.conversation(on_overflow="cloud", max_new_tokens=16, **parameters)
            with pytest.raises(PromptTooLong):
                await chat.generate("number " * client.manifest.context_tokens)
            assert server.cloud.supervisor.counters.streams == streams

    run(test)
