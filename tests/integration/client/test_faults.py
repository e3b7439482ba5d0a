"""Errors and kept text if the cloud is absent, late, or lost for good."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import (
    CloudTimeout,
    CloudUnavailable,
)
from chaperone_common.session import Committed, Failed, Finished
from chaperone_common.types import Origin
from cloud_supervisor.model.ports import TargetModel
from edge_client import EdgeClient
from edge_client.config import CloudSettings, PlannerSettings
from edge_client.events import Event
from edge_client.generation import Collector
from tests.support.fakes.target import Brake, fake_target
from tests.support.processes.clients import IMPATIENT, NOBODY, config_for, ending_of
from tests.support.processes.commands import server_process, start_client
from tests.support.processes.servers import serving
from tests.support.waiting import START_S, until

PROMPT = "the list of a number is"
NO_RECONNECT = CloudSettings(reconnect_timeout_ms=0)


@pytest.fixture(scope="module")
def seed(tiny_pair: Path, target: TargetModel) -> int:
    """Return a seed with which the cloud's text is long enough."""

    async def search() -> int:
        async with serving(target, tiny_pair) as (_, address), EdgeClient(config_for(address)) as client:
            for seed in range(100):
                result = await client.generate(PROMPT, mode="cloud", temperature=0.9, seed=seed, max_new_tokens=120)
                if len(result.token_ids) == 120:
                    return seed
        raise AssertionError("the tiny model ends every text early")

    return asyncio.run(search())


async def collect(client: EdgeClient, **parameters: Any) -> list[Event]:
    events = [event async for event in client.stream(PROMPT, **parameters)]
    ending_of(events)
    return events


def committed(events: list[Event]) -> list[Committed]:
    return [event for event in events if isinstance(event, Committed)]


# --- An absent cloud -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "cloud"])
def test_an_absent_server_is_a_terminal_event_and_an_error_with_its_address(tiny_pair: Path, mode: str) -> None:
    async def run() -> list[Event]:
        async with EdgeClient(config_for(NOBODY, cloud=IMPATIENT)) as client:
            with pytest.raises(CloudUnavailable) as caught:
                await client.generate(PROMPT, mode=mode)
            for words in (NOBODY, "cannot be reached", "start its server", "cloud.address"):
                assert words in caught.value.message
            return await collect(client, mode=mode)

    (failed,) = asyncio.run(run())
    assert isinstance(failed, Failed)
    assert failed.stats.prompt_tokens > 0


# What the error of a mode names to write without the cloud; nothing where the text goes on by itself.
WAYS = [
    ("exact", "default", ("mode edge", "mode gated", "cloud.on_loss: continue")),
    ("exact", "fail", ("mode edge", "cloud.on_loss: continue")),
    ("exact", "continue", ()),
    ("gated", "default", ()),
    ("gated", "fail", ("mode edge", "cloud.on_loss: continue")),
    ("gated", "continue", ()),
    ("cloud", "default", ("mode edge", "mode gated")),
    ("cloud", "fail", ("mode edge",)),
    ("cloud", "continue", ("mode edge", "mode gated")),
    ("edge", "fail", ()),
]


@pytest.mark.parametrize(("mode", "on_loss", "ways"), WAYS)
def test_an_absent_server_is_reported_with_the_ways_to_write_without_it(
    tiny_pair: Path, mode: str, on_loss: str, ways: tuple[str, ...]
) -> None:
    async def write(mode: str, on_loss: str) -> None:
        cloud = CloudSettings.model_validate({"on_loss": on_loss, "connect_timeout_ms": IMPATIENT.connect_timeout_ms})
        async with EdgeClient(config_for(NOBODY, cloud=cloud)) as client:
            assert (await client.generate(PROMPT, mode=mode, max_new_tokens=4)).token_ids

    async def run() -> None:
        if not ways:
            await write(mode, on_loss)
            return
        with pytest.raises(CloudUnavailable) as caught:
            await write(mode, on_loss)
        assert "start its server" in caught.value.problem
        _, _, named = caught.value.message.partition("; or write without it: ")
        assert [way.partition(",")[0].partition(" (")[0] for way in named.split(", or ")] == [*ways]
        for way in ways:  # each does what the message says
            name, _, value = way.rpartition(" ")
            await write(value if name == "mode" else mode, value if name != "mode" else on_loss)

    asyncio.run(run())


def test_gated_continues_without_a_server(tiny_pair: Path) -> None:
    async def run() -> list[Event]:
        async with EdgeClient(config_for(NOBODY, cloud=IMPATIENT)) as client:
            return await collect(client, mode="gated", max_new_tokens=10, seed=1, temperature=0.8)

    events = asyncio.run(run())
    assert isinstance(events[-1], Finished)
    assert {event.origin for event in committed(events)} == {Origin.UNVERIFIED}
    assert events[-1].stats.unverified_tokens == len(committed(events)) > 0


# --- A slow cloud ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "cloud"),
    [
        ("the verdict", CloudSettings(verification_deadline_ms=50.0, reconnect_timeout_ms=0)),
        ("the prompt", CloudSettings(open_deadline_ms=50.0, reconnect_timeout_ms=0)),
    ],
)
@pytest.mark.parametrize("mode", ["exact", "gated", "cloud"])
def test_a_slow_server_is_one_timeout(tiny_pair: Path, blocks: str, cloud: CloudSettings, mode: str) -> None:
    brake = Brake(lambda request: (request.num_choices > 0) == (blocks == "the verdict"))

    async def run() -> list[Event]:
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (server, address):
            try:
                async with EdgeClient(config_for(address, risk=0.0, cloud=cloud)) as client:
                    events = await collect(client, mode=mode, max_new_tokens=20)
                await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            finally:
                brake.let_go.set()
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "the KV is freed")
            return events

    events = asyncio.run(run())
    ending = events[-1]
    if mode == "gated":  # continues
        assert isinstance(ending, Finished)
        assert {event.origin for event in committed(events)} == {Origin.UNVERIFIED}
        return
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, CloudTimeout)
    assert committed(events) == []


# --- A lost cloud ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)  # the server imports torch
def test_exact_can_be_resumed_after_the_server_was_killed(tiny_pair: Path, target: TargetModel, seed: int) -> None:
    """After SIGKILL during a stream, another server writes the rest as if nothing had happened."""
    parameters: dict[str, Any] = {"mode": "exact", "temperature": 0.9, "seed": seed, "max_new_tokens": 120}

    async def until_killed() -> tuple[Collector, Failed]:
        with server_process() as (process, address):
            async with EdgeClient(config_for(address, cloud=NO_RECONNECT)) as client:
                collected, events = Collector(client.request(PROMPT, **parameters)), []
                async for event in client.stream(collected.request):
                    collected.add(event)
                    events.append(event)
                    if len(collected.token_ids) >= 20 and process.poll() is None:
                        process.kill()
                        process.wait()
        ending = ending_of(events)
        assert isinstance(ending, Failed)
        return collected, ending

    async def whole_and_rest(committed_token_ids: list[int]) -> tuple[Collector, Collector]:
        async with serving(target, tiny_pair) as (_, address), EdgeClient(config_for(address)) as client:
            results = []
            for resumed in ([], committed_token_ids):
                request = client.request(PROMPT, **parameters, committed_token_ids=resumed)
                collected = Collector(request)
                async for event in client.stream(request):
                    collected.add(event)
                results.append(collected)
            return results[0], results[1]

    cut, failed = asyncio.run(until_killed())
    assert isinstance(failed.error, CloudUnavailable)
    assert failed.stats.completion_tokens == len(cut.token_ids) >= 20
    whole, rest = asyncio.run(whole_and_rest(cut.token_ids))
    assert cut.token_ids + rest.token_ids == whole.token_ids
    assert cut.text + rest.text == whole.text
    assert whole.result().finish_reason is rest.result().finish_reason


@pytest.mark.parametrize(("mode", "on_loss"), [("gated", "default"), ("gated", "continue"), ("exact", "continue")])
def test_a_lost_server_leaves_the_rest_unverified(
    tiny_pair: Path, target: TargetModel, seed: int, mode: str, on_loss: str
) -> None:
    events = asyncio.run(_lose_server(tiny_pair, target, seed, mode, on_loss))
    ending = events[-1]
    assert isinstance(ending, Finished)
    origins = [event.origin for event in committed(events)]
    first = origins.index(Origin.UNVERIFIED)
    assert first >= 20, "the text before the loss is unchanged"
    assert Origin.UNVERIFIED not in origins[:first]
    assert set(origins[first:]) == {Origin.UNVERIFIED}
    assert ending.stats.unverified_tokens == len(origins) - first
    positions = [event.position for event in committed(events)]
    assert positions == list(range(positions[0], positions[0] + len(positions)))


@pytest.mark.parametrize(("mode", "on_loss"), [("exact", "default"), ("cloud", "continue"), ("gated", "fail")])
def test_a_lost_server_fails_the_text_once(
    tiny_pair: Path, target: TargetModel, seed: int, mode: str, on_loss: str
) -> None:
    events = asyncio.run(_lose_server(tiny_pair, target, seed, mode, on_loss))
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, CloudUnavailable)
    assert events[-1].stats.completion_tokens == len(committed(events)) >= 20


async def _lose_server(pair: Path, target: TargetModel, seed: int, mode: str, on_loss: str) -> list[Event]:
    """Stop the server once twenty tokens are final."""
    cloud = CloudSettings.model_validate({"on_loss": on_loss, "reconnect_timeout_ms": 0})
    async with serving(target, pair) as (server, address):
        config = config_for(address, risk=0.0, cloud=cloud)  # so that gated writes the cloud's text
        async with EdgeClient(config) as client:
            events: list[Event] = []
            async for event in client.stream(PROMPT, mode=mode, temperature=0.9, seed=seed, max_new_tokens=120):
                events.append(event)
                if len(committed(events)) == 20 and server.cloud.supervisor.sessions:
                    await server.stop(0)
    ending_of(events)
    return events


@pytest.mark.parametrize("how", ["leaves the stream", "is killed"])
def test_a_disconnected_device_frees_its_session(tiny_pair: Path, how: str) -> None:
    brake = Brake()

    async def run() -> None:
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (server, address):
            try:
                if how == "is killed":
                    process = start_client("--cloud", address, "--mode", "cloud", PROMPT)
                    await until(brake.reached.is_set, "the cloud reads", START_S)
                    assert server.cloud.supervisor.sessions == 1
                    process.kill()
                    process.communicate()
                else:
                    planner = PlannerSettings(policy="fixed", span_tokens=1)
                    async with EdgeClient(config_for(address, planner=planner)) as client:
                        events = client.stream(PROMPT, mode="exact")
                        for _ in range(8):  # draft ahead; the first spans are on their way
                            await anext(events)
                        await until(brake.reached.is_set, "the cloud reads")
                        await events.aclose()
                await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            finally:
                brake.let_go.set()
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "the KV is freed")

    asyncio.run(run())
