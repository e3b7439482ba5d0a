"""Connections that break during a generation, over real gRPC: the text continues as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import CloudUnavailable
from chaperone_common.frames import Opened, Verdict
from chaperone_common.session import Committed, Failed, Finished
from chaperone_common.types import Origin
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient
from edge_client.apps.batch.lines import in_commands
from edge_client.config import CloudSettings, PlannerSettings
from edge_client.events import Event
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.cloud.scenario import draft
from tests.support.fakes.target import FakeTarget, fake_target
from tests.support.links.forwarder import forwarding
from tests.support.processes.clients import config_for, ending_of
from tests.support.processes.servers import serving
from tests.support.waiting import PATIENCE_S, until

PROMPT = "the list of a number is"
NEW_TOKENS = 120


@pytest.fixture(scope="module")
def seed(tiny_pair: Path, target: TargetModel) -> int:
    """Return a seed with which the cloud's text is long enough."""

    async def search() -> int:
        async with serving(target, tiny_pair) as (_, address), EdgeClient(config_for(address)) as client:
            for seed in range(100):
                result = await client.generate(
                    PROMPT, mode="cloud", temperature=0.9, seed=seed, max_new_tokens=NEW_TOKENS
                )
                if len(result.token_ids) == NEW_TOKENS:
                    return seed
        raise AssertionError("the tiny model ends every text early")

    return asyncio.run(search())


def committed(events: Sequence[Event]) -> list[Committed]:
    return [event for event in events if isinstance(event, Committed)]


async def collect(client: EdgeClient, acts: Mapping[int, Callable[[], object]], **parameters: Any) -> list[Event]:
    """Return all events; each act runs when its number of tokens is final."""
    events: list[Event] = []
    due = dict(acts)
    async for event in client.stream(PROMPT, max_new_tokens=NEW_TOKENS, **parameters):
        events.append(event)
        act = due.pop(len(committed(events)), None) if isinstance(event, Committed) else None
        if act is not None:
            act()
    ending_of(events)
    assert not due, "every act has run"
    return events


@pytest.mark.parametrize("reset_cloud", [True, False])
@pytest.mark.parametrize(("mode", "takeover"), [("exact", 0), ("exact", 20), ("cloud", 0)])
def test_a_reset_connection_changes_nothing_of_the_text(
    tiny_pair: Path, target: TargetModel, seed: int, mode: str, takeover: int, reset_cloud: bool
) -> None:
    parameters: dict[str, Any] = {"mode": mode, "temperature": 0.9, "seed": seed}
    planner = PlannerSettings(policy="fixed", span_tokens=4, takeover_tokens=takeover)

    async def run() -> tuple[list[Event], list[Event]]:
        async with (
            serving(target, tiny_pair, reconnect_grace_s=30.0) as (server, address),
            forwarding(address) as forwarder,
        ):
            async with EdgeClient(config_for(forwarder.address, planner=planner)) as client:
                whole = await collect(client, {}, **parameters)

                def reset() -> None:
                    forwarder.reset(reset_cloud=reset_cloud)

                events = await collect(client, {3: reset, 40: reset, 80: reset}, **parameters)
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            return whole, events

    whole, events = asyncio.run(run())
    assert [event.token_id for event in committed(events)] == [event.token_id for event in committed(whole)]
    assert "".join(event.text for event in committed(events)) == "".join(event.text for event in committed(whole))
    ending = events[-1]
    assert isinstance(ending, Finished)
    # In cloud mode the rest of the text may have arrived before the last reset.
    assert 1 <= ending.stats.reconnects <= 3
    assert ending.stats.unverified_tokens == 0


def test_gated_has_every_skipped_token_audited_once(tiny_pair: Path) -> None:
    # Timing decides which tokens are sent with a fired token, and so the text; no token may end it early.
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    model = FakeTarget(manifest.vocabulary_size, manifest.context_tokens, unwritten=manifest.eos_token_ids)

    async def run() -> tuple[list[int], list[Event]]:
        async with serving(model, tiny_pair) as (_, address), forwarding(address) as forwarder:
            config = config_for(forwarder.address, risk=0.48, closing_audit=True)
            async with EdgeClient(config) as client:
                resets = dict.fromkeys(range(10, 100, 20), forwarder.reset)
                events = await collect(client, resets, mode="gated", temperature=0.0)
                return [*client.prepare(PROMPT).token_ids], events

    text, events = asyncio.run(run())
    deviations = 0
    for event in committed(events):
        deviations += event.token_id != int(model.logits(text).argmax())
        text.append(event.token_id)
    ending = events[-1]
    assert isinstance(ending, Finished)
    stats = ending.stats
    assert stats.audited_tokens == stats.skipped_tokens > 0
    assert stats.deviations == deviations > 0
    assert stats.reconnects >= 1
    assert {event.origin for event in committed(events)} >= {Origin.DRAFT, Origin.OVERRIDE}
    assert stats.unverified_tokens == 0


def test_a_client_reconnects_to_a_restarted_cloud(tiny_pair: Path, target: TargetModel, seed: int) -> None:
    """The first server stops during a stream; after a while without a server, another one starts."""
    parameters: dict[str, Any] = {"mode": "exact", "temperature": 0.9, "seed": seed}

    async def run() -> tuple[list[Event], list[Event]]:
        async with serving(target, tiny_pair) as (second, second_address):
            async with EdgeClient(config_for(second_address)) as client:
                whole = await collect(client, {}, **parameters)
            served = second.cloud.supervisor.counters.streams
            async with serving(target, tiny_pair) as (first, address), forwarding(address) as forwarder:
                tasks: list[asyncio.Task[None]] = []

                async def restart() -> None:
                    await first.stop(0)
                    await asyncio.sleep(0.3)
                    forwarder.upstream = second_address

                def begin_outage() -> None:
                    forwarder.upstream = None
                    forwarder.reset()
                    tasks.append(asyncio.create_task(restart()))

                async with EdgeClient(config_for(forwarder.address)) as client:
                    events = await collect(client, {20: begin_outage}, **parameters)
                await asyncio.gather(*tasks)
            assert second.cloud.supervisor.counters.streams == served + 1
            return whole, events

    whole, events = asyncio.run(run())
    assert [event.token_id for event in committed(events)] == [event.token_id for event in committed(whole)]
    ending = events[-1]
    assert isinstance(ending, Finished)
    assert ending.stats.reconnects == 1


@pytest.mark.parametrize("mode", ["exact", "gated"])
def test_reconnecting_ends_after_its_timeout(tiny_pair: Path, target: TargetModel, seed: int, mode: str) -> None:
    async def run() -> list[Event]:
        async with serving(target, tiny_pair) as (_, address), forwarding(address) as forwarder:
            cloud = CloudSettings(reconnect_timeout_ms=1_400.0)

            def vanish() -> None:
                forwarder.upstream = None
                forwarder.reset()

            async with EdgeClient(config_for(forwarder.address, cloud=cloud, risk=0.0)) as client:
                return await collect(client, {20: vanish}, mode=mode, temperature=0.9, seed=seed)

    events = asyncio.run(run())
    ending = events[-1]
    if mode == "gated":
        assert isinstance(ending, Finished)
        assert committed(events)[-1].origin is Origin.UNVERIFIED
        return
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, CloudUnavailable)
    tokens = len(committed(events))
    assert 20 <= ending.stats.completion_tokens == tokens < NEW_TOKENS
    message = ending.error.message
    assert "attempts to reconnect within 1400 ms (cloud.reconnect_timeout_ms) failed: " in message
    assert message.count("went away") == message.count("start its server") == 1
    assert f"{tokens} tokens are final; resume with generate(error.partial); or write without it: " in message
    reported = in_commands(ending, "default")
    assert isinstance(reported, Failed)
    assert reported.error.partial is ending.error.partial
    assert reported.error.message == message.replace(
        "resume with generate(error.partial)", "run the same command again"
    )


def test_closing_the_client_ends_reconnecting(tiny_pair: Path) -> None:
    async def run() -> Event:
        async with serving(fake_target(tiny_pair), tiny_pair) as (_, address), forwarding(address) as forwarder:
            client = EdgeClient(config_for(forwarder.address))
            events: list[Event] = []
            lost = asyncio.Event()

            async def watch() -> None:
                async for event in client.stream(PROMPT, max_new_tokens=3000):
                    events.append(event)
                    if len(committed(events)) == 10 and not lost.is_set():
                        forwarder.upstream = None
                        forwarder.reset()
                        lost.set()

            watching = asyncio.create_task(watch())
            await lost.wait()
            await asyncio.wait_for(client.aclose(), PATIENCE_S)
            await asyncio.wait_for(watching, PATIENCE_S)
            return events[-1]

    event = asyncio.run(run())
    assert isinstance(event, Failed)
    assert type(event.error).__name__ == "Cancelled"


# --- Kept sessions ---------------------------------------------------------------------------------------------------


async def cut_off(server: Server, stream: RawStream, digest: str, prompt: tuple[int, ...]) -> None:
    """Open a session, let the cloud write one token, and vanish."""
    await stream.send(opening(digest, prompt=prompt), draft(start=len(prompt)))
    while not isinstance(await stream.read(), Verdict):
        pass
    stream.cancel()
    await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")


def test_a_reconnected_device_does_not_pay_for_its_prompt_again(tiny_pair: Path, digest: str) -> None:
    model = fake_target(tiny_pair)
    prompt = (5, 6, 7) * 200  # longer than two prefill chunks

    async def run() -> None:
        async with (
            serving(model, tiny_pair, reconnect_grace_s=60.0) as (server, address),
            raw_channel(address) as channel,
        ):
            await cut_off(server, RawStream(channel), digest, prompt)
            read, own = model.tokens_read, int(model.logits(prompt).argmax())
            assert read == len(prompt)
            stream = RawStream(channel)
            await stream.send(opening(digest, prompt=prompt, committed_token_ids=(own,)))
            assert await stream.read() == Opened(False, 4096, max_span_tokens=256)
            assert isinstance(await stream.read(), Opened)
            assert model.tokens_read == read, "the prompt is cached"
            await stream.send(draft(start=len(prompt) + 1))
            verdict = await stream.read()
            assert isinstance(verdict, Verdict)
            assert verdict.token_id == int(model.logits([*prompt, own]).argmax())
            assert model.tokens_read == read + 1
            stream.cancel()

    asyncio.run(run())


def test_the_session_of_a_lost_device_is_dropped_after_the_grace(tiny_pair: Path, digest: str) -> None:
    async def run() -> None:
        async with (
            serving(fake_target(tiny_pair), tiny_pair, reconnect_grace_s=3.0) as (server, address),
            raw_channel(address) as channel,
        ):
            await cut_off(server, RawStream(channel), digest, (5, 6, 7))
            assert server.cloud.runner.kv_stats.bytes_used > 0, "the device may reconnect"
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "the KV is freed")

    asyncio.run(run())


def test_a_session_that_ended_regularly_is_dropped_at_once(tiny_pair: Path) -> None:
    async def run() -> None:
        async with serving(fake_target(tiny_pair), tiny_pair, reconnect_grace_s=3600.0) as (server, address):
            async with EdgeClient(config_for(address)) as client:
                await client.generate(PROMPT, mode="exact", max_new_tokens=5)
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "the KV is freed")

    asyncio.run(run())
