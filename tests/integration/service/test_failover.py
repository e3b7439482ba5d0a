"""Several services at one list of addresses, over real gRPC: a text survives the loss of the one that it began at."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import CloudUnavailable, Unauthenticated
from chaperone_common.session import Committed, Failed, Finished, Unverified
from chaperone_common.types import OnDeviation, Origin
from chaperone_common.wire import encode_capabilities
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.security.tokens import TokenFile
from cloud_supervisor.server import Server
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, GateSettings, PlannerSettings
from edge_client.events import Event
from edge_client.link.addresses import rendezvous_order
from edge_client.link.diagnosis import MAY_LOAD
from edge_client.link.peer import Peer
from tests.support.fakes.clock import ManualClock
from tests.support.fakes.target import fake_target
from tests.support.links.forwarder import forwarding
from tests.support.processes.clients import NOBODY, SLOW, connected_to, ending_of
from tests.support.processes.commands import server_process
from tests.support.processes.proxies import dead_proxy, silent_port
from tests.support.processes.servers import serving
from tests.support.waiting import PATIENCE_S, until

PROMPT = "the list of a number is"
NEW_TOKENS = 60
# Of `gated`, the texts are equal if deviations are taken back.
GATES = {
    "exact": GateSettings(),
    "gated": GateSettings(policy="threshold", risk=0.3, on_deviation=OnDeviation.RETRACT),
}


def config(
    *addresses: str, gate: GateSettings | None = None, planner: PlannerSettings | None = None, **cloud: Any
) -> EdgeConfig:
    patience = {"connect_timeout_ms": PATIENCE_S * 1e3, "reconnect_timeout_ms": PATIENCE_S * 1e3}
    return EdgeConfig(
        pair="tiny",
        closing_audit=True,
        cloud=CloudSettings(address=addresses, **{**patience, **cloud}),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=gate or GateSettings(),
        planner=planner or PlannerSettings(),
    )


def committed(events: Sequence[Event]) -> list[Committed]:
    return [event for event in events if isinstance(event, Committed)]


def text_of(events: Sequence[Event]) -> list[int]:
    return [event.token_id for event in committed(events)]


async def write(
    client: EdgeClient, *, after: int = 0, act: Callable[[], Any] | None = None, **given: Any
) -> list[Event]:
    """Return the events of a text; `act` runs once when `after` tokens are final."""
    events: list[Event] = []
    parameters = {"max_new_tokens": NEW_TOKENS, "temperature": 0.9, **given}
    async for event in client.stream(PROMPT, **parameters):
        events.append(event)
        if act is not None and len(committed(events)) == after:
            done, act = act(), None
            if asyncio.iscoroutine(done):
                await done
    ending_of(events)
    assert act is None, "the text was long enough"
    return events


async def long_text(client: EdgeClient) -> tuple[int, list[int]]:
    """Return a seed, and the cloud's text with it, which is long enough."""
    for seed in range(100):
        result = await client.generate(PROMPT, mode="cloud", temperature=0.9, seed=seed, max_new_tokens=NEW_TOKENS)
        if len(result.token_ids) == NEW_TOKENS:
            return seed, [*result.token_ids]
    raise AssertionError("the model ends every text early")


def moved_once(events: Sequence[Event]) -> None:
    ending = events[-1]
    assert isinstance(ending, Finished)
    assert ending.stats.reconnects == 1
    assert ending.stats.unverified_tokens == 0
    assert ending.stats.promises_hold


@asynccontextmanager
async def two_services(pair: Path, model: TargetModel) -> AsyncIterator[dict[str, Server]]:
    async with serving(model, pair) as (first, address), serving(model, pair) as (second, other):
        yield {address: first, other: second}


def holder(servers: dict[str, Server]) -> Server:
    """Return the server that the only text is at."""
    (server,) = [server for server in servers.values() if server.cloud.supervisor.sessions]
    return server


@pytest.mark.parametrize("mode", GATES)
def test_a_text_continues_at_the_other_service_when_its_own_stops(
    tiny_pair: Path, target: TargetModel, mode: str
) -> None:
    async def run() -> None:
        async with two_services(tiny_pair, target) as servers:
            async with EdgeClient(config(*servers, gate=GATES[mode])) as client:
                seed, whole = await long_text(client)
                undisturbed = await write(client, mode=mode, seed=seed)
                events = await write(client, mode=mode, seed=seed, after=20, act=lambda: holder(servers).stop(0))
            assert text_of(events) == text_of(undisturbed) == whole
            moved_once(events)

    asyncio.run(run())


@pytest.mark.parametrize("mode", GATES)
def test_a_text_continues_at_the_other_process_after_a_kill(tiny_pair: Path, mode: str) -> None:
    async def run(stack: ExitStack) -> None:
        processes = {}
        for _ in range(2):
            process, address = await asyncio.to_thread(stack.enter_context, server_process(fake_model=True))
            processes[address] = process
        settings = config(*processes, gate=GATES[mode], planner=SLOW)
        async with EdgeClient(settings) as client:
            seed, whole = await long_text(client)
        async with EdgeClient(settings) as client:  # connects to one of them only

            def kill() -> None:
                (address,) = connected_to(client)
                processes[address].send_signal(signal.SIGKILL)

            events = await write(client, mode=mode, seed=seed, after=20, act=kill)
        assert text_of(events) == whole
        moved_once(events)

    with ExitStack() as stack:
        asyncio.run(run(stack))


def test_an_address_at_which_nothing_listens_costs_nothing(tiny_pair: Path) -> None:
    """The time for one address alone would be longer than the test may take."""

    async def run() -> None:
        async with serving(fake_target(tiny_pair), tiny_pair) as (server, address):
            async with EdgeClient(config(NOBODY, address, connect_timeout_ms=3_600_000.0)) as client:
                for number in range(6):  # with six sessions, NOBODY is the first address of some
                    events = await write(client, mode="exact", seed=number, max_new_tokens=4)
                    assert isinstance(events[-1], Finished)
                    assert events[-1].stats.reconnects == 0
            assert server.cloud.supervisor.counters.streams == 6

    asyncio.run(run())


def test_an_address_that_never_answers_is_left_after_its_share(tiny_pair: Path) -> None:
    manifest = load_manifest(tiny_pair / "edge", role="edge")

    async def run() -> None:
        async with silent_port() as silent, serving(fake_target(tiny_pair), tiny_pair) as (_, address):
            peer = Peer(config(silent, address, connect_timeout_ms=2_500.0).cloud, manifest)
            sessions = (str(number) for number in range(100))
            ours = [each for each in sessions if rendezvous_order(each, [silent, address])[0] == silent]
            for session_id in ours[:20]:  # the first one waits, and together they would wait for too long
                reached = await peer.connect(session_id)
                assert [site.address for site in reached.sites] == [address, silent]
            await peer.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_an_address_that_is_back_is_used_again_after_a_while(tiny_pair: Path) -> None:
    manifest, clock = load_manifest(tiny_pair / "edge", role="edge"), ManualClock()

    async def run() -> None:
        async with two_services(tiny_pair, fake_target(tiny_pair)) as servers:
            upstream, other = servers
            async with forwarding(upstream) as forwarder:
                peer = Peer(config(forwarder.address, other).cloud, manifest, clock=clock)
                addresses = [forwarder.address, other]
                sessions = map(str, itertools.count())
                session_id = next(each for each in sessions if rendezvous_order(each, addresses)[0] != other)

                async def first() -> str:
                    return (await peer.connect(session_id)).sites[0].address

                assert await first() == forwarder.address
                forwarder.upstream = None
                forwarder.reset()
                await until(
                    lambda: not peer._sites[forwarder.address].connected, "the end of the connection is noticed"
                )
                assert await first() == other
                forwarder.upstream = upstream
                assert await first() == other, "the address is tried last"
                async with asyncio.timeout(PATIENCE_S):
                    while await first() == other:  # gRPC has a pause of its own, of up to a second
                        await asyncio.sleep(0.1)
                        clock.seconds += 31.0
                await peer.close()

    asyncio.run(run())


def test_a_text_that_moves_stays_one_trace(tiny_pair: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def run() -> None:
        async with two_services(tiny_pair, fake_target(tiny_pair)) as servers:
            async with EdgeClient(config(*servers)) as untraced:
                seed, _ = await long_text(untraced)
            async with EdgeClient(config(*servers), tracer=provider.get_tracer("app")) as client:
                await write(client, mode="exact", seed=seed, after=5, act=lambda: holder(servers).stop(0))

    asyncio.run(run())
    (text,) = [span for span in exporter.get_finished_spans() if span.name == "chaperone.generation"]
    assert [event.name for event in text.events] == ["chaperone.stream_failed"]
    assert text.status.is_ok or text.status.is_unset
    assert {span.context.trace_id for span in exporter.get_finished_spans()} == {text.context.trace_id}


def test_sessions_are_spread_over_the_services(tiny_pair: Path) -> None:
    async def run() -> None:
        async with two_services(tiny_pair, fake_target(tiny_pair)) as servers:
            async with EdgeClient(config(*servers)) as client:
                for seed in range(24):
                    await client.generate(PROMPT, mode="exact", seed=seed, max_new_tokens=1)
            streams = [server.cloud.supervisor.counters.streams for server in servers.values()]
            assert sum(streams) == 24
            assert min(streams) >= 1, "both, but for a chance of one in eight million"

    asyncio.run(run())


@pytest.mark.parametrize("grace_s", [0.05, 60.0])
def test_texts_leave_a_service_that_drains(tiny_pair: Path, grace_s: float) -> None:
    """An open text has the grace to finish, and then moves. The next ones begin at the other service."""

    async def run() -> None:
        async with two_services(tiny_pair, fake_target(tiny_pair)) as servers, EdgeClient(config(*servers)) as client:
            seed, whole = await long_text(client)
            stopping: list[asyncio.Task[None]] = []
            leaving: list[Server] = []

            def drain() -> None:
                leaving.append(holder(servers))
                stopping.append(asyncio.create_task(leaving[0].stop(grace_s)))

            events = await write(client, mode="exact", seed=seed, after=20, act=drain)
            assert text_of(events) == whole
            assert isinstance(events[-1], Finished)
            (staying,) = [server for server in servers.values() if server is not leaving[0]]
            served = staying.cloud.supervisor.counters.streams
            for number in range(4):
                events = await write(client, mode="exact", seed=number, max_new_tokens=4)
                assert isinstance(events[-1], Finished)
            assert staying.cloud.supervisor.counters.streams == served + 4
            await asyncio.wait_for(asyncio.gather(*stopping), PATIENCE_S)

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["exact", "gated"])
@pytest.mark.parametrize("begun", [True, False])
def test_with_all_services_down_a_text_ends_as_with_one(tiny_pair: Path, mode: str, begun: bool) -> None:
    gate = GateSettings(policy="threshold", risk=0.0)
    # Long enough for several attempts, of which the last one has time for its answer.
    hasty: dict[str, Any] = {"connect_timeout_ms": 1_400.0, "reconnect_timeout_ms": 1_400.0}

    async def run() -> list[Event]:
        async with two_services(tiny_pair, fake_target(tiny_pair)) as servers:

            async def stop_all() -> None:
                for server in servers.values():
                    await server.stop(0)

            async with EdgeClient(config(*servers, gate=gate, **hasty)) as client:
                if begun:
                    seed, _ = await long_text(client)
                    return await write(client, mode=mode, seed=seed, after=20, act=stop_all)
                await stop_all()
                return await write(client, mode=mode, seed=0)

    events = asyncio.run(run())
    ending = events[-1]
    if mode == "gated":
        assert isinstance(ending, Finished)
        (unverified,) = [event for event in events if isinstance(event, Unverified)]
        assert isinstance(unverified.error, CloudUnavailable)
        assert committed(events)[-1].origin is Origin.UNVERIFIED
        return
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, CloudUnavailable)
    if begun:
        assert "attempts to reconnect within 1400 ms (cloud.reconnect_timeout_ms) failed" in ending.error.message
        assert len(committed(events)) >= 20
    else:
        assert ending.error.message.startswith(
            "cloud: no address answers within 1400 ms (cloud.connect_timeout_ms): 127.0.0.1:"
        )
        assert ending.error.message.count("nothing listens there") == 2
        assert ending.error.problem.endswith(MAY_LOAD)


@pytest.mark.parametrize("reports_capabilities", [True, False])
@pytest.mark.parametrize("mode", ["exact", "gated"])
def test_cancelled_before_initial_metadata_is_a_lost_server(
    tiny_pair: Path, mode: str, reports_capabilities: bool
) -> None:
    async def run() -> None:
        async with serving(fake_target(tiny_pair), tiny_pair) as (server, address):
            known = encode_capabilities(server.cloud.supervisor.capabilities) if reports_capabilities else None
            async with dead_proxy(known) as (proxy, dead), EdgeClient(config(dead, address)) as client:

                async def finishes() -> None:
                    ending = (await write(client, mode=mode, max_new_tokens=4))[-1]
                    assert isinstance(ending, Finished)
                    assert ending.stats.unverified_tokens == 0

                for _ in range(40):  # each text begins at either address
                    if not proxy.requests:
                        await finishes()
                assert proxy.requests >= 1, "by chance once in a million million runs"
                for _ in range(4):
                    await finishes()
                assert proxy.streams == (proxy.requests if reports_capabilities else 0), "it is avoided afterwards"

    asyncio.run(run())


def test_cancelled_before_initial_metadata_is_retried_with_one_address_too(tiny_pair: Path) -> None:
    async def run() -> Event:
        async with serving(fake_target(tiny_pair), tiny_pair) as (server, _):
            known = encode_capabilities(server.cloud.supervisor.capabilities)
        async with dead_proxy(known) as (proxy, dead):
            async with EdgeClient(config(dead, reconnect_timeout_ms=3_000.0)) as client:
                events = await write(client, mode="exact")
            await until(lambda: proxy.streams > 2, "it was tried again")
            return events[-1]

    ending = asyncio.run(run())
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, CloudUnavailable)
    assert "upstream request was cancelled" in ending.error.message


def test_a_refused_token_is_not_tried_elsewhere(tiny_pair: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    TokenFile.create(tokens, "acme")
    guarded = CloudConfig(tokens_file=tokens)

    async def run() -> Event:
        async with (
            serving(fake_target(tiny_pair), tiny_pair, guarded) as (first, address),
            serving(fake_target(tiny_pair), tiny_pair, guarded) as (second, other),
            EdgeClient(config(address, other)) as client,
        ):
            events = await write(client, mode="gated")
            assert first.cloud.supervisor.counters.streams + second.cloud.supervisor.counters.streams == 0
            return events[-1]

    ending = asyncio.run(run())
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, Unauthenticated)
