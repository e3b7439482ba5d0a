"""Beams whose connection breaks, or whose user leaves: nothing is lost, and no session stays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.beams.frames import BeamStep, BeamVerdict, RunningBeam
from chaperone_common.errors import Cancelled, CloudUnavailable, InvalidRequest, ModelMismatch
from chaperone_common.frames import Failure, Opened, ServerFrame
from chaperone_common.partial import PartialBeams, PartialGeneration
from chaperone_common.session import Failed, Finished
from chaperone_common.types import BeamParams, GenerationParams, Mode, Origin, Promises
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import Beams, Cancellation, Committed, EdgeClient, Generation
from edge_client.config import CloudSettings, GenerationSettings
from edge_client.events import Event
from tests.support.cloud.fixed_cloud import CONTEXT_TOKENS, fixed_cloud
from tests.support.fakes.target import fake_target
from tests.support.links.forwarder import Forwarder, forwarding
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving
from tests.support.waiting import until

PROMPT = "the list of a number is"
SEARCH: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 40}


async def after_resets(client: EdgeClient, forwarder: Forwarder, every: int, **parameters: Any) -> list[Event]:
    """Return all events, with three resets of the connection, `every` that many rounds."""
    events: list[Event] = []
    async for event in client.stream(PROMPT, **parameters):
        events.append(event)
        rounds = sum(isinstance(each, Beams) for each in events)
        if isinstance(event, Beams) and rounds % every == 0 and rounds <= 3 * every:
            forwarder.reset()
    return events


@pytest.mark.parametrize("mode", ["exact", "cloud"])
def test_a_reset_connection_changes_nothing_of_a_search(tiny_pair: Path, mode: str) -> None:
    model = fake_target(tiny_pair)

    async def run() -> tuple[Generation, list[Event]]:
        async with serving(model, tiny_pair) as (server, address), forwarding(address) as forwarder:
            async with EdgeClient(config_for(forwarder.address)) as client:
                whole = await client.generate(PROMPT, mode=mode, **SEARCH)
                events = await after_resets(client, forwarder, 4, mode=mode, **SEARCH)
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            return whole, events

    whole, events = asyncio.run(run())
    ending = events[-1]
    assert isinstance(ending, Finished)
    assert ending.stats.reconnects >= 1
    assert tuple(event.token_id for event in events if isinstance(event, Committed)) == whole.token_ids
    last = [event for event in events if isinstance(event, Beams)][-1]
    assert whole.sequences is not None
    for found, expected in zip(last.finished, whole.sequences, strict=True):
        assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
        assert found.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.parametrize("stop", [None, ["a"]])
def test_a_lost_cloud_leaves_beams_to_resume(tiny_pair: Path, stop: list[str] | None) -> None:
    model = fake_target(tiny_pair)

    async def run() -> None:
        async with serving(model, tiny_pair) as (_, address):
            async with EdgeClient(config_for(address)) as client:
                whole = await client.generate(PROMPT, stop=stop, **SEARCH)
            async with forwarding(address) as forwarder:
                cloud = CloudSettings(address=forwarder.address, reconnect_timeout_ms=0)
                async with EdgeClient(config_for(forwarder.address, cloud=cloud)) as client:
                    events: list[Event] = []
                    async for event in client.stream(PROMPT, stop=stop, **SEARCH):
                        events.append(event)
                        if sum(isinstance(each, Beams) for each in events) == 5:
                            forwarder.reset()
            failed = events[-1]
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, CloudUnavailable)
            partial = failed.error.partial
            assert partial is not None
            assert partial.beams is not None
            assert partial.beams.running
            assert bool(partial.beams.finished) is (stop is not None)
            shared = partial.token_ids
            assert all(beam.token_ids[: len(shared)] == shared for beam in partial.beams.running)
            async with EdgeClient(config_for(address)) as client:
                with pytest.raises(InvalidRequest, match="num_beams: a resumed text keeps what it was begun with"):
                    client.request(partial, num_beams=2)
                resumed = await client.generate(partial)
            assert (*shared, *resumed.token_ids) == whole.token_ids
            assert resumed.sequences is not None
            assert whole.sequences is not None
            assert [text.token_ids for text in resumed.sequences] == [text.token_ids for text in whole.sequences]
            for found, expected in zip(resumed.sequences, whole.sequences, strict=True):
                assert found.score == pytest.approx(expected.score, abs=1e-4)
                assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
            first = "".join(event.text for event in events if isinstance(event, Committed))
            assert first + resumed.text == whole.text
            assert resumed.stats.promises_hold

    asyncio.run(run())


def test_a_user_who_leaves_ends_the_session(tiny_pair: Path, target: TorchModel) -> None:
    async def run() -> None:
        async with serving(target, tiny_pair) as (server, address), EdgeClient(config_for(address)) as client:
            events = client.stream(PROMPT, **SEARCH | {"max_new_tokens": 400})
            async for event in events:
                if isinstance(event, Beams):
                    break
            await events.aclose()
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            handle = Cancellation()
            endings: list[Event] = []
            async for event in client.stream(PROMPT, cancellation=handle, **SEARCH | {"max_new_tokens": 400}):
                handle.cancel()
                endings.append(event)
            assert isinstance(endings[-1], Failed)
            assert isinstance(endings[-1].error, Cancelled)
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            again = await client.generate(PROMPT, **SEARCH | {"max_new_tokens": 4})
            assert again.sequences

    asyncio.run(run())


def test_without_a_cloud_beams_fail(tiny_pair: Path) -> None:
    async def run() -> None:
        async with EdgeClient(config_for("127.0.0.1:1")) as client:
            with pytest.raises(CloudUnavailable) as caught:
                await client.generate(PROMPT, **SEARCH)
        assert caught.value.remedy.endswith(
            'or write one text without it: num_beams 1 and mode edge (--num-beams 1 --mode edge, mode="edge")'
        )
        assert "gated" not in caught.value.message
        assert "on_loss" not in caught.value.message

    asyncio.run(run())


def partial_of(params: GenerationParams, tokens: int = 0, beams: PartialBeams | None = None) -> PartialGeneration:
    """Return what is left of a text that failed."""
    return PartialGeneration(
        (5, 6), (7,) * tokens, "", (Origin.VERIFIED,) * tokens, params, Mode.EXACT, Promises(), beams=beams
    )


def test_a_single_text_is_resumed_as_one_whatever_is_configured(tiny_pair: Path, target: TorchModel) -> None:
    async def run() -> None:
        async with serving(target, tiny_pair) as (_, address):
            config = config_for(address, generation=GenerationSettings(num_beams=3))
            async with EdgeClient(config) as client:
                resumed = await client.generate(partial_of(GenerationParams(max_new_tokens=6), tokens=2))
                assert resumed.sequences is None
                assert len(resumed.token_ids) == 4

    asyncio.run(run())


def test_texts_that_are_full_already_are_not_resumed(tiny_pair: Path, target: TorchModel) -> None:
    running = tuple(RunningBeam((first, 8, 9, 10, 11), -4.0, -4.0) for first in (6, 7))
    params = GenerationParams(max_new_tokens=12, beams=BeamParams(2))

    async def run() -> None:
        async with serving(target, tiny_pair) as (_, address), EdgeClient(config_for(address)) as client:
            partial = partial_of(params, beams=PartialBeams(running, ()))
            for limit in (4, 5):
                with pytest.raises(InvalidRequest, match=f"max_new_tokens: {limit} counts .* have 5 tokens; give more"):
                    await client.generate(partial, max_new_tokens=limit)
            found = await client.generate(partial, max_new_tokens=6)
            assert len(found.token_ids) == 6

    asyncio.run(run())


class Streams:
    """The frames of one stream after the other."""

    def __init__(self, *streams: list[ServerFrame]) -> None:
        self._streams = iter(streams)

    def __iter__(self) -> Iterator[ServerFrame]:
        return iter(next(self._streams))


def test_the_beams_of_a_cloud_that_was_replaced_are_forgotten(tiny_pair: Path) -> None:
    """Another large model begins the text again. If it fails, too, nothing of the first one's is resumed."""
    beams = BeamVerdict(0, (BeamStep(0, 5, -1.0, -1.0), BeamStep(0, 6, -2.0, -2.0)), ())
    other = Failure("FAILED_PRECONDITION", "model_digest: another model is served")
    opened = Opened(True, CONTEXT_TOKENS)

    async def run() -> None:
        streams = Streams([opened, beams, other], [opened, other])
        async with fixed_cloud(tiny_pair, streams, max_beams=8) as address, EdgeClient(config_for(address)) as client:
            with pytest.raises(ModelMismatch) as caught:
                await client.generate(PROMPT, num_beams=2, mode="cloud")
            assert caught.value.partial is not None
            assert caught.value.partial.beams is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limits", "problem"), [({"max_beams": 2}, "takes 2"), ({"max_span_tokens": 2}, "reads 2 at once")]
)
def test_more_beams_than_the_cloud_serves_are_refused_before_the_text(
    tiny_pair: Path, limits: dict[str, int], problem: str
) -> None:
    async def run() -> None:
        served = {"max_beams": 8, **limits}
        async with fixed_cloud(tiny_pair, [], **served) as address, EdgeClient(config_for(address)) as client:
            with pytest.raises(InvalidRequest, match=f"num_beams: 3, and the cloud that serves bad {problem}"):
                await client.generate(PROMPT, num_beams=3)

    asyncio.run(run())


def test_a_conversation_may_ask_for_beams(tiny_pair: Path, target: TorchModel) -> None:
    async def run() -> None:
        async with serving(target, tiny_pair) as (_, address), EdgeClient(config_for(address)) as client:
            chat = client.conversation("be short", num_beams=2, max_new_tokens=6)
            first = await chat.generate(PROMPT)
            second = await chat.generate(PROMPT, num_beams=1)
            assert first.sequences
            assert second.token_ids

    asyncio.run(run())
