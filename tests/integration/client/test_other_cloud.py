"""A cloud that restarts as another one: with another model, with smaller limits, or of an earlier version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.logprobs import LogprobSource
from chaperone_common.session import Committed, Failed, Finished, Unverified
from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.model.ports import ForwardRequest, Found
from cloud_supervisor.server import Server
from edge_client import EdgeClient, ModelMismatch, PartialGeneration, VersionMismatch
from edge_client.config import CloudSettings, PlannerSettings
from edge_client.events import Event
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.fakes.target import FakeTarget
from tests.support.links.forwarder import Forwarder, forwarding
from tests.support.processes.clients import SLOW, config_for, ending_of
from tests.support.processes.servers import serving

PROMPT = "the list of a number is"
SMALL_SPANS = CloudConfig(limits=LimitsConfig(max_span_tokens=2))


def manifest_of(pair: Path, **changes: Any) -> ModelManifest:
    return load_manifest(pair / "cloud", role="cloud").model_copy(update=changes)


class Unreporting(FakeTarget):
    """The model of a cloud of an earlier version: `top_logprobs` is unknown to it."""

    def step(self, requests: Sequence[ForwardRequest]) -> list[Found]:
        return super().step([replace(request, top_logprobs=None) for request in requests])


def endless(pair: Path, seed: int = 0, kind: type[FakeTarget] = FakeTarget) -> FakeTarget:
    """Return a model of the pair's vocabulary that never ends a text."""
    manifest = manifest_of(pair)
    ends = manifest.eos_token_ids
    return kind(manifest.vocabulary_size, manifest.context_tokens, seed=seed, unwritten=ends)


@asynccontextmanager
async def two_clouds(
    pair: Path, second: CloudConfig | None = None, kind: type[FakeTarget] = FakeTarget, **changes: Any
) -> AsyncIterator[_Scene]:
    """Serve a cloud to a client, and a second cloud that a test puts in its place."""
    manifest = manifest_of(pair, **changes)
    async with (
        serving(endless(pair), pair) as (first, address),
        serving(endless(pair, bool(changes), kind), pair, second, manifest=manifest) as (_, other),
        forwarding(address) as forwarder,
    ):
        yield _Scene(first, other, forwarder)


class _Scene:
    def __init__(self, first: Server, other: str, forwarder: Forwarder) -> None:
        self.first = first
        self._other = other
        self._forwarder = forwarder
        self.address = forwarder.address

    def leave(self) -> None:
        self._forwarder.upstream = None
        self._forwarder.reset()

    def swap(self) -> None:
        self._forwarder.upstream = self._other
        self._forwarder.reset()


async def written(client: EdgeClient, scenario: _Scene, *, swap_after: int, **parameters: Any) -> list[Event]:
    events: list[Event] = []
    count = 0
    async for event in client.stream(PROMPT, max_new_tokens=60, **parameters):
        events.append(event)
        count += isinstance(event, Committed)
        if count == swap_after and isinstance(event, Committed):
            scenario.swap()
    ending_of(events)
    return events


@pytest.mark.parametrize("mode", ["exact", "cloud", "gated"])
def test_a_text_of_one_model_is_never_finished_by_another(tiny_pair: Path, mode: str) -> None:
    async def run() -> tuple[list[Event], str]:
        async with two_clouds(tiny_pair, model="another") as scenario:
            planner = PlannerSettings(policy="fixed", span_tokens=4)
            async with EdgeClient(config_for(scenario.address, planner=planner, risk=0.0)) as client:
                digest = (await client.capabilities()).model_digest
                return await written(client, scenario, swap_after=8, mode=mode), digest

    events, digest = asyncio.run(run())
    if mode == "gated":
        (unverified,) = [event for event in events if isinstance(event, Unverified)]
        error = unverified.error
        assert isinstance(events[-1], Finished)
        unchecked = [
            event.position for event in events if isinstance(event, Committed) and event.origin == "unverified"
        ]
        assert unchecked[0] == unverified.position
    else:
        ending = events[-1]
        assert isinstance(ending, Failed)
        error = ending.error
        assert isinstance(error.partial, PartialGeneration)
        assert error.partial.model_digest == digest
    assert isinstance(error, ModelMismatch)
    other = manifest_of(tiny_pair, model="another").digest
    assert digest in error.message
    assert other in error.message


@pytest.mark.parametrize(("mode", "on_loss"), [("gated", "default"), ("exact", "continue"), ("exact", "default")])
def test_a_cloud_of_an_earlier_version_is_lost_to_a_text_with_log_probabilities(
    tiny_pair: Path, mode: str, on_loss: Literal["default", "continue"]
) -> None:
    """It ignores that they are wanted, so the device notices only when an answer has none."""

    async def run() -> list[Event]:
        async with two_clouds(tiny_pair, kind=Unreporting) as scenario:
            config = config_for(scenario.address, planner=SLOW, risk=0.0, cloud=CloudSettings(on_loss=on_loss))
            async with EdgeClient(config) as client:
                return await written(client, scenario, swap_after=8, mode=mode, logprobs=True, top_logprobs=2)

    events = asyncio.run(run())
    final = [event for event in events if isinstance(event, Committed)]
    assert [event.position for event in final] == [*range(final[0].position, final[0].position + len(final))]
    for event in final:
        source = LogprobSource.CLOUD if event.origin.judged else LogprobSource.DEVICE
        assert event.logprobs is not None
        assert event.logprobs.source is source
    if (mode, on_loss) == ("exact", "default"):
        ending = events[-1]
        assert isinstance(ending, Failed)
        error = ending.error
        assert error.partial is not None
        assert [*error.partial.token_ids] == [event.token_id for event in final]
    else:
        assert isinstance(events[-1], Finished), events[-1]
        (unverified,) = [event for event in events if isinstance(event, Unverified)]
        error = unverified.error
        assert len(final) == 60
    assert isinstance(error, VersionMismatch)
    assert error.message.startswith("logprobs: the cloud sent none for its token at ")


def test_the_next_text_is_written_with_the_new_model(tiny_pair: Path) -> None:
    """The client requests capabilities again after a loss, also between two generations."""

    async def run() -> list[str]:
        async with (
            two_clouds(tiny_pair, model="another") as scenario,
            EdgeClient(config_for(scenario.address)) as client,
        ):
            first = await client.generate(PROMPT, max_new_tokens=4)
            scenario.swap()
            second = await client.generate(PROMPT, max_new_tokens=4)
            return [first.stats.model_digest, second.stats.model_digest]

    assert asyncio.run(run()) == [manifest_of(tiny_pair).digest, manifest_of(tiny_pair, model="another").digest]


def test_a_failed_text_is_not_resumed_by_another_model(tiny_pair: Path) -> None:
    async def run() -> Event:
        async with two_clouds(tiny_pair, model="another") as scenario:
            cloud = CloudSettings(reconnect_timeout_ms=0.0)
            async with EdgeClient(config_for(scenario.address, cloud=cloud)) as client:
                failed = (await written(client, scenario, swap_after=8))[-1]
                assert isinstance(failed, Failed)
                partial = failed.error.partial
                assert partial is not None
                again = [event async for event in client.stream(partial)][-1]
                whole = [event async for event in client.stream(replace(partial, model_digest=""))][-1]
                assert isinstance(whole, Finished), "without a digest any model is accepted"
                return again

    again = asyncio.run(run())
    assert isinstance(again, Failed)
    assert isinstance(again.error, ModelMismatch)
    for digest in (manifest_of(tiny_pair).digest, manifest_of(tiny_pair, model="another").digest):
        assert digest in again.error.message


@pytest.mark.parametrize(("given", "refused"), [("", False), ("own", False), ("sha256:other", True)])
def test_the_cloud_refuses_a_text_of_another_model(tiny_pair: Path, given: str, refused: bool) -> None:
    async def run() -> str | None:
        async with serving(endless(tiny_pair), tiny_pair) as (server, address), raw_channel(address) as channel:
            own = server.cloud.supervisor.capabilities
            stream = RawStream(channel)
            digest = own.model_digest if given == "own" else given
            await stream.send(opening(own.tokenizer_digest, model_digest=digest))
            if not refused:
                assert await stream.read() is not None
                stream.cancel()
                return None
            failure = await stream.failure()
            assert failure.status == "FAILED_PRECONDITION"
            assert own.model_digest in failure.message
            return failure.message

    message = asyncio.run(run())
    assert message is None or given in message


def test_a_cloud_that_restarts_with_smaller_spans_gets_smaller_spans(tiny_pair: Path) -> None:
    async def run() -> tuple[list[Event], list[int]]:
        async with two_clouds(tiny_pair, SMALL_SPANS) as scenario:
            planner = PlannerSettings(policy="fixed", span_tokens=16)
            async with EdgeClient(config_for(scenario.address, planner=planner)) as client:
                whole = await client.generate(PROMPT, max_new_tokens=60, mode="exact")
                return await written(client, scenario, swap_after=8, mode="exact"), [*whole.token_ids]

    events, whole = asyncio.run(run())
    assert isinstance(events[-1], Finished)
    assert [event.token_id for event in events if isinstance(event, Committed)] == whole
    assert events[-1].stats.reconnects >= 1


def test_a_generation_waits_for_a_cloud_that_is_restarting(tiny_pair: Path) -> None:
    """The channel has backed off by then, and would fail at once."""

    async def run() -> tuple[int, float]:
        async with two_clouds(tiny_pair) as scenario, EdgeClient(config_for(scenario.address)) as client:
            await client.generate(PROMPT, max_new_tokens=4)
            scenario.leave()
            patience = CloudSettings(connect_timeout_ms=300.0)
            async with EdgeClient(config_for(scenario.address, cloud=patience)) as hasty:
                gone = [event async for event in hasty.stream(PROMPT)][-1]
                assert isinstance(gone, Failed)
                assert "cannot be reached within 300 ms (cloud.connect_timeout_ms)" in gone.error.message
            asyncio.get_running_loop().call_later(0.7, scenario.swap)
            began = asyncio.get_running_loop().time()
            written = await client.generate(PROMPT, max_new_tokens=4)
            return len(written.token_ids), asyncio.get_running_loop().time() - began

    count, seconds = asyncio.run(run())
    assert count == 4
    assert seconds > 0.6


@pytest.mark.parametrize("mode", ["gated", "exact"])
def test_continuing_without_a_cloud_is_reported(tiny_pair: Path, mode: str) -> None:
    async def run() -> list[Event]:
        cloud = CloudSettings(connect_timeout_ms=50.0, on_loss="continue")
        async with EdgeClient(config_for("127.0.0.1:1", cloud=cloud)) as client:
            result = await client.generate(PROMPT, max_new_tokens=4, mode=mode)
            assert result.to_json()["unverified"]["type"] == "CloudUnavailable"
            return [event async for event in client.stream(PROMPT, max_new_tokens=4, mode=mode)]

    events = asyncio.run(run())
    first, *rest = events
    assert isinstance(first, Unverified)
    assert "cannot be reached" in first.error.message
    assert not any(isinstance(event, Unverified) for event in rest)
    final = [event for event in events if isinstance(event, Committed)]
    assert final[0].position == first.position
    assert {event.origin for event in final} == {"unverified"}
