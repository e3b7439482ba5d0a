"""The contract of `CloudLink`, tested with the fake and with gRPC on a loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest

from chaperone_common.clock import MonotonicClock
from chaperone_common.frames import ClientFrame, Close, Closed, Draft, Failure, Open, Opened, ServerFrame, Verdict
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId
from chaperone_common.wire import SERVICE, SUPERVISE, decode_client, encode_client, encode_server
from edge_client.link.grpc_link import GrpcCloud
from edge_client.link.reconnection import DelayedLink
from edge_client.ports import CloudLink
from tests.support.fakes.link import FakeLink

OPEN = Open(SessionId("s"), "sha256:0", SamplingParams(), 9, (0,), (5, 6, 7))
DRAFTS = [
    Draft(0, 3 + index, (index,), (0.0,), 3 + index, branches=(BranchToken(2 + index + index % 2, 9),))
    for index in range(5)
]
OPENED = [Opened(False, 64), Opened(True, 64)]
VERDICTS = [Verdict(0, 3 + index, index, further_token_ids=(9,) * index) for index in range(5)]
PATIENCE_S = 10.0


class LinkHarness(Protocol):
    """A link, and the cloud's end of it."""

    link: CloudLink

    async def receive(self, count: int) -> list[ClientFrame]:
        """Return the next frames that the cloud receives."""

    async def deliver(self, *frames: ServerFrame) -> None:
        """Send frames from the cloud."""

    async def hang_up(self, status: str | None = None) -> None:
        """End the stream at the cloud, with this status or without one."""


class FakeRig:
    def __init__(self) -> None:
        self._fake = FakeLink()
        self.link: CloudLink = self._fake
        self._taken = 0

    async def receive(self, count: int) -> list[ClientFrame]:
        self._taken += count
        return self._fake.sent[self._taken - count : self._taken]

    async def deliver(self, *frames: ServerFrame) -> None:
        self._fake.deliver(*frames)

    async def hang_up(self, status: str | None = None) -> None:
        self._fake.hang_up(status if status == "OUT_OF_RANGE" else "UNAVAILABLE")


class DelayedRig(FakeRig):
    """A stream that begins a moment later; the cloud receives nothing earlier."""

    def __init__(self) -> None:
        super().__init__()
        self.link = DelayedLink(self._fake, 5, MonotonicClock())

    async def receive(self, count: int) -> list[ClientFrame]:
        await self._fake.opened.wait()
        return await super().receive(count)


class GrpcLinkHarness:
    """A server whose only stream the test controls."""

    def __init__(self, link: CloudLink) -> None:
        self.link = link
        self.received: asyncio.Queue[ClientFrame] = asyncio.Queue()
        self.orders: asyncio.Queue[bytes | str | None] = asyncio.Queue()

    async def receive(self, count: int) -> list[ClientFrame]:
        return [await asyncio.wait_for(self.received.get(), PATIENCE_S) for _ in range(count)]

    async def deliver(self, *frames: ServerFrame) -> None:
        for frame in frames:
            self.orders.put_nowait(encode_server(frame))

    async def hang_up(self, status: str | None = None) -> None:
        self.orders.put_nowait(status)

    async def supervise(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        async def read() -> None:
            async for data in requests:
                self.received.put_nowait(decode_client(data))

        reading = asyncio.create_task(read())
        try:
            while (order := await self.orders.get()) is not None:
                if isinstance(order, str):
                    await context.abort(grpc.StatusCode[order], "as the test says")
                else:
                    yield order
        finally:
            reading.cancel()


@asynccontextmanager
async def fake_harness() -> AsyncIterator[LinkHarness]:
    yield FakeRig()


@asynccontextmanager
async def delayed_harness() -> AsyncIterator[LinkHarness]:
    yield DelayedRig()


@asynccontextmanager
async def grpc_harness() -> AsyncIterator[LinkHarness]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    cloud = GrpcCloud(f"127.0.0.1:{port}")
    harness = GrpcLinkHarness(cloud.link())
    methods: dict[str, Any] = {SUPERVISE: grpc.stream_stream_rpc_method_handler(harness.supervise)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    await server.start()
    try:
        yield harness
    finally:
        harness.link.cancel()
        await cloud.close()
        await server.stop(0)


LinkHarnessFactory = Callable[[], AbstractAsyncContextManager[LinkHarness]]


@pytest.fixture(params=[fake_harness, delayed_harness, grpc_harness], ids=["fake", "delayed", "grpc"])
def harness_factory(request: pytest.FixtureRequest) -> LinkHarnessFactory:
    factory: LinkHarnessFactory = request.param
    return factory


def play(harness_factory: LinkHarnessFactory, scenario: Callable[[LinkHarness], Awaitable[None]]) -> None:
    async def run() -> None:
        async with harness_factory() as harness:
            await harness.link.open(OPEN)
            await scenario(harness)

    asyncio.run(run())


async def take(link: CloudLink, count: int) -> list[ServerFrame]:
    """Wait for `count` frames and take them."""
    frames: list[ServerFrame] = []
    while len(frames) < count:
        assert await link.wait(PATIENCE_S * 1e3), f"{len(frames)} of {count} frames arrived"
        frames += [frame for frame, _ in link.ready()]
    return frames


async def nothing_follows(link: CloudLink) -> None:
    assert not await link.wait(50)
    assert link.ready() == ()


def test_frames_go_up_in_order_after_the_open(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        for draft in DRAFTS:
            harness.link.send(draft)
        assert await harness.receive(6) == [OPEN, *DRAFTS]

    play(harness_factory, scenario)


def test_frames_come_down_in_order_and_are_taken_once(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        await harness.deliver(*OPENED, *VERDICTS)
        assert await take(harness.link, 7) == [*OPENED, *VERDICTS]
        assert harness.link.ready() == ()

    play(harness_factory, scenario)


def test_wait_returns_whether_frames_have_arrived_and_takes_none(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        assert not await harness.link.wait(1)
        await harness.deliver(OPENED[0])
        assert await harness.link.wait(PATIENCE_S * 1e3)
        assert await harness.link.wait(0.001), "a frame that has arrived needs no waiting"
        assert [frame for frame, _ in harness.link.ready()] == [OPENED[0]]
        assert not await harness.link.wait(1), "it was taken"

    play(harness_factory, scenario)


@pytest.mark.parametrize("moments", range(5))
def test_a_wait_cancelled_as_a_frame_arrives_ends_and_raises_cancelled(
    harness_factory: LinkHarnessFactory, moments: int
) -> None:
    """The wait is cancelled `moments` turns of the event loop after the arrival, before or after its end."""

    async def scenario(harness: LinkHarness) -> None:
        waiting = asyncio.create_task(harness.link.wait(PATIENCE_S * 1e3))
        await asyncio.sleep(0.02)
        before = harness.link.bytes_down
        await harness.deliver(OPENED[0])
        while harness.link.bytes_down == before:  # noqa: ASYNC110 - the very turn of the loop matters
            await asyncio.sleep(0)
        for _ in range(moments):
            await asyncio.sleep(0)
        asked = waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled() is asked
        assert await take(harness.link, 1) == [OPENED[0]]

    play(harness_factory, scenario)


def test_a_frame_carries_the_time_of_its_arrival_and_not_of_its_reading(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        loop = asyncio.get_running_loop()  # its clock is the engine's, virtual or not
        before = loop.time()
        await harness.deliver(OPENED[0])
        assert await harness.link.wait(PATIENCE_S * 1e3)
        there = loop.time()
        await asyncio.sleep(0.02)
        ((_, at),) = harness.link.ready()
        assert before <= at <= there

    play(harness_factory, scenario)


def test_wait_is_woken_by_a_frame(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        waiting = asyncio.create_task(harness.link.wait(PATIENCE_S * 1e3))
        assert not (await asyncio.wait([waiting], timeout=0.01))[0]
        await harness.deliver(OPENED[0])
        assert await waiting

    play(harness_factory, scenario)


def test_a_regular_end_is_one_closed_frame(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        harness.link.send(Close(3, ()))
        harness.link.close()
        harness.link.close()
        assert await harness.receive(2) == [OPEN, Close(3, ())]
        await harness.deliver(Closed((3,)))
        await harness.hang_up()
        assert await take(harness.link, 1) == [Closed((3,))]
        await nothing_follows(harness.link)

    play(harness_factory, scenario)


def test_a_failure_is_a_value_and_is_returned_once(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        failure = Failure("RESOURCE_EXHAUSTED", "sessions: full", 250)
        await harness.deliver(OPENED[0], failure)
        await harness.hang_up("RESOURCE_EXHAUSTED")
        assert await take(harness.link, 2) == [OPENED[0], failure]
        await nothing_follows(harness.link)

    play(harness_factory, scenario)


@pytest.mark.parametrize("status", [None, "UNAVAILABLE", "CANCELLED"])
def test_a_cloud_that_disconnects_is_one_failure(harness_factory: LinkHarnessFactory, status: str | None) -> None:
    async def scenario(harness: LinkHarness) -> None:
        await harness.deliver(OPENED[0])
        await harness.hang_up(status)
        opened, failure = await take(harness.link, 2)
        assert opened == OPENED[0]
        assert isinstance(failure, Failure)
        assert failure.status == "UNAVAILABLE", failure.message
        await nothing_follows(harness.link)
        harness.link.send(DRAFTS[0])  # goes nowhere, without an error
        await nothing_follows(harness.link)

    play(harness_factory, scenario)


def test_another_status_is_reported(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        await harness.hang_up("OUT_OF_RANGE")
        (failure,) = await take(harness.link, 1)
        assert isinstance(failure, Failure)
        assert failure.status == "OUT_OF_RANGE"
        await nothing_follows(harness.link)

    play(harness_factory, scenario)


def test_cancel_wakes_a_waiting_caller_once_and_may_be_repeated(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        await harness.deliver(OPENED[0])
        assert await take(harness.link, 1) == [OPENED[0]]
        harness.link.cancel()
        harness.link.cancel()
        harness.link.close()
        harness.link.send(DRAFTS[0])
        (failure,) = await take(harness.link, 1)
        assert isinstance(failure, Failure)
        assert failure.status == "CANCELLED"
        await nothing_follows(harness.link)

    play(harness_factory, scenario)


def test_a_link_that_was_never_opened_can_be_ended(harness_factory: LinkHarnessFactory) -> None:
    async def run() -> None:
        async with harness_factory() as harness:
            assert harness.link.ready() == ()
            harness.link.close()
            harness.link.cancel()
            assert (harness.link.bytes_up, harness.link.bytes_down) == (0, 0)

    asyncio.run(run())


def test_payload_bytes_are_counted(harness_factory: LinkHarnessFactory) -> None:
    async def scenario(harness: LinkHarness) -> None:
        up: list[ClientFrame] = [OPEN, *DRAFTS]
        down: list[ServerFrame] = [*OPENED, *VERDICTS]
        for draft in up[1:]:
            harness.link.send(draft)
        await harness.deliver(*down)
        await take(harness.link, 7)
        assert harness.link.bytes_up == sum(len(encode_client(frame)) for frame in up)
        assert harness.link.bytes_down == sum(len(encode_server(frame)) for frame in down)

    play(harness_factory, scenario)


def test_grpc_reports_an_invalid_frame() -> None:
    async def scenario(harness: LinkHarness) -> None:
        assert isinstance(harness, GrpcLinkHarness)
        harness.orders.put_nowait(b"\xff\xff\xff")
        (failure,) = await take(harness.link, 1)
        assert isinstance(failure, Failure)
        assert failure.status == "OUT_OF_RANGE"
        assert "3 bytes that are not a SuperviseResponse" in failure.message
        await nothing_follows(harness.link)

    play(grpc_harness, scenario)


def test_grpc_reports_an_unreachable_server() -> None:
    async def run() -> None:
        cloud = GrpcCloud("127.0.0.1:1")
        link = cloud.link()
        await link.open(OPEN)
        (failure,) = await take(link, 1)
        assert isinstance(failure, Failure)
        assert failure.status == "UNAVAILABLE"
        for words in ("127.0.0.1:1 cannot be reached", "start its server", "cloud.address"):
            assert words in failure.message
        await nothing_follows(link)
        await cloud.close()

    asyncio.run(run())


def test_grpc_keeps_the_status_of_a_stream_that_is_being_written_to() -> None:
    """A write that fails at the stream's end must not hide the status; either may come first."""

    async def scenario(harness: LinkHarness) -> None:
        await harness.deliver(*OPENED)
        await take(harness.link, 2)
        failure = Failure("OUT_OF_RANGE", "the reason")
        await harness.deliver(*VERDICTS, failure)
        await harness.hang_up("OUT_OF_RANGE")
        for _ in range(200):
            harness.link.send(DRAFTS[0])
            await asyncio.sleep(0)
        assert await take(harness.link, 6) == [*VERDICTS, failure]

    for _ in range(50):
        play(grpc_harness, scenario)
