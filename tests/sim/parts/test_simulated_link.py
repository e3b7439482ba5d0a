"""The simulated link: the contract of `CloudLink`, and the effects of the link model on frames."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.simulation.cloud import simulated_supervisor
from benchmarks.simulation.costs import CloudCosts
from benchmarks.simulation.link import FRAME_HEADER_BYTES, SimulatedCloud
from benchmarks.simulation.script import CONTEXT_TOKENS, Script
from benchmarks.simulation.virtual_time import run
from chaperone_common.frames import Failure, Opened
from chaperone_common.wire import encode_client
from edge_client.ports import Cloud
from link_emulator.model import Link
from link_emulator.profile import Profile, ResetProfile
from tests.contract import test_cloud_link as contract
from tests.support.benchmarks.traces import trace_of
from tests.support.links.simulated import SimulatedLinkHarness, simulated_link_harness

PROMISES = [
    promise
    for name, promise in inspect.getmembers(contract, inspect.isfunction)
    if name.startswith("test_") and list(inspect.signature(promise).parameters) == ["harness_factory"]
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_the_contract_of_every_link_is_kept(promise: Callable[[contract.LinkHarnessFactory], None]) -> None:
    promise(simulated_link_harness)


@pytest.mark.parametrize("status", [None, "UNAVAILABLE", "CANCELLED"])
def test_a_cloud_that_disconnects_is_one_failure(status: str | None) -> None:
    contract.test_a_cloud_that_disconnects_is_one_failure(simulated_link_harness, status)


def play(scenario: Callable[[SimulatedLinkHarness], Awaitable[None]], rtt_ms: float) -> None:
    async def connected() -> None:
        harness = SimulatedLinkHarness(rtt_ms)
        await harness.link.open(contract.OPEN)
        await scenario(harness)

    run(connected())


def test_frames_take_half_a_round_trip_each_way() -> None:
    async def scenario(harness: SimulatedLinkHarness) -> None:
        loop = asyncio.get_running_loop()
        assert await harness.receive(1) == [contract.OPEN]
        assert loop.time() == pytest.approx(0.05)
        await harness.deliver(contract.OPENED[0])
        assert not await harness.link.wait(49)
        assert await harness.link.wait(2)
        assert loop.time() == pytest.approx(0.1)

    play(scenario, rtt_ms=100)


def test_frames_are_sized_as_on_the_wire() -> None:
    async def scenario(harness: SimulatedLinkHarness) -> None:
        harness.link.send(contract.DRAFTS[0])
        await harness.receive(2)
        payload = len(encode_client(contract.OPEN)) + len(encode_client(contract.DRAFTS[0]))
        assert harness.link.bytes_up == payload
        segment_headers = Profile.fixed(0).header_bytes
        assert harness.model.up.wire_bytes == payload + 2 * (FRAME_HEADER_BYTES + segment_headers)

    play(scenario, rtt_ms=10)


def test_a_cancellation_reaches_the_cloud_after_the_links_delay() -> None:
    async def scenario(harness: SimulatedLinkHarness) -> None:
        await harness.receive(1)
        harness.link.cancel()
        ((failure, _),) = harness.link.ready()
        assert isinstance(failure, Failure)
        await harness.deliver(*contract.OPENED)
        await asyncio.sleep(1)
        assert harness.link.ready() == (), "frames in flight are lost"

    play(scenario, rtt_ms=100)


def cloud_of(profile: Profile) -> Cloud:
    script = Script(trace_of("++++"))
    supervisor = simulated_supervisor({script.opening().session_id: script}, CloudCosts(prefill_ms=10))
    return SimulatedCloud(supervisor, Link(profile))


def test_a_reset_ends_open_streams_at_once_and_a_new_one_works() -> None:
    async def scenario() -> None:
        profile = Profile.fixed(100).model_copy(update={"resets": ResetProfile(at_s=(0.12,))})
        cloud, loop = cloud_of(profile), asyncio.get_running_loop()
        opening = Script(trace_of("++++")).opening()
        link, unopened = cloud.link(), cloud.link()
        await link.open(opening)
        assert await contract.take(link, 1) == [Opened(False, CONTEXT_TOKENS, max_span_tokens=256)]
        (failure,) = await contract.take(link, 1)
        assert isinstance(failure, Failure)
        assert failure.status == "UNAVAILABLE"
        assert loop.time() == pytest.approx(0.12)
        await unopened.open(opening)
        assert len(await contract.take(unopened, 2)) == 2, "the prompt is read again, after a new round trip"
        assert link.ready() == ()
        await cloud.close()

    run(scenario())


def test_capabilities_take_a_round_trip() -> None:
    async def scenario() -> None:
        cloud = cloud_of(Profile.fixed(80))
        assert (await cloud.capabilities(1000)).model == "simulated"
        assert asyncio.get_running_loop().time() == pytest.approx(0.08)

    run(scenario())
