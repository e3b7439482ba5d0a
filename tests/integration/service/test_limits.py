"""Devices that hold places, do not read, or flood: they are bounded, and others go on."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections import Counter
from pathlib import Path

import grpc.aio
import psutil
import pytest

from benchmarks.attacks.hostile import hostile_connection
from chaperone_common.frames import Failure, Opened
from chaperone_common.wire import encode_client
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.hosting.monitoring import Readiness
from cloud_supervisor.observation import Refused
from cloud_supervisor.security import pacing
from cloud_supervisor.security.pacing import BURST
from cloud_supervisor.server import Server
from tests.support.cloud.raw_stream import RawStream, health_of, opening
from tests.support.cloud.scenario import draft, load_vocabulary, play, write_to_the_end
from tests.support.cloud.watched import Observed, watched
from tests.support.fakes.target import FakeTarget
from tests.support.waiting import PATIENCE_S, until


def test_streams_without_an_open_give_way_to_newer_ones(tiny_pair: Path, digest: str) -> None:
    observed, limits = Observed(), LimitsConfig(max_sessions=4, max_opening=20, open_timeout_s=60)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        silent = [RawStream(channel) for _ in range(20)]
        await until(lambda: server.cloud.supervisor.counters.streams == 20, "all are waiting")
        good = RawStream(channel)
        await good.send(opening(digest, max_new_tokens=10))
        await until(lambda: bool(observed.of(Refused)), "the oldest gave way")
        assert server.readiness is Readiness.READY
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))
        for stream in silent:
            stream.cancel()

    play(tiny_pair, scenario, limits, entrance=watched(observed))
    (refused,) = observed.of(Refused)
    assert isinstance(refused, Refused)
    assert refused.message == "opening: 20 streams have sent no Open (limits.max_opening); send it at once"
    assert refused.reason == "resource_exhausted"


def test_a_full_server_says_so(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest, max_new_tokens=10))
        assert isinstance(await stream.read(), Opened)
        assert server.readiness is Readiness.FULL
        await write_to_the_end(stream, FakeTarget(load_vocabulary(tiny_pair)))
        await until(lambda: server.readiness is Readiness.READY, "the session has ended")

    play(tiny_pair, scenario, LimitsConfig(max_sessions=1))


def test_a_device_that_does_not_read_loses_its_sessions(
    tiny_pair: Path, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    observed = Observed()
    limits = LimitsConfig(max_sessions=8, write_timeout_s=2.0)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        async with hostile_connection(address, window=0) as deaf:
            for number in range(8):
                deaf.open(encode_client(opening(digest, f"deaf {number}")))
            await until(lambda: len(observed.of(Refused)) == 8, "all have lost their sessions")
            good = RawStream(channel)
            await good.send(opening(digest, max_new_tokens=10))
            await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, limits, entrance=watched(observed))
    assert {refused.reason for refused in observed.of(Refused) if isinstance(refused, Refused)} == {"write_timeout"}
    assert not [record for record in caplog.records if record.name.startswith("grpc")], "gRPC could not end them"


def test_the_number_of_streams_is_bounded(tiny_pair: Path, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LimitsConfig, "max_streams", 1)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        good = RawStream(channel)
        await good.send(opening(digest, max_new_tokens=10))
        assert isinstance(await good.read(), Opened)
        stream = RawStream(channel)
        assert await stream.status() == "RESOURCE_EXHAUSTED"
        assert (await stream.details()).message == "streams: 1 are open, the limit is 1; try again later"
        assert await health_of(channel) == "SERVING"
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, LimitsConfig())


def test_the_unread_refusals_of_a_tenant_are_bounded(tiny_pair: Path) -> None:
    limits = LimitsConfig(max_sessions=1, max_opening=1)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        async with hostile_connection(address, window=0) as deaf:
            for _ in range(limits.max_streams):
                deaf.open()  # each sends the one before it away, which does not read why
            await until(lambda: server.cloud.supervisor.counters.streams == limits.max_streams, "all are open")
            stream = RawStream(channel)
            assert await stream.status() == "RESOURCE_EXHAUSTED"
            message = "streams: 20 of this tenant are open or unread; read their answers"
            assert (await stream.details()).message == message

    play(tiny_pair, scenario, limits)


def test_a_compressed_message_is_refused_unopened(tiny_pair: Path, digest: str) -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(bytes(40 << 20)) + packer.flush()
    valid = gzip.compress(encode_client(opening(digest, max_new_tokens=10)))

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        async with hostile_connection(address) as bad:
            for message in (bomb, valid):
                async with asyncio.timeout(PATIENCE_S):
                    await bad.ended(bad.open(message, (("grpc-encoding", "gzip"),), compressed=True))
            assert bad.endings == {"OUT_OF_RANGE": 2}
        good = RawStream(channel)
        await good.send(opening(digest, max_new_tokens=10))
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, LimitsConfig())


def test_refusals_of_one_client_are_paced_and_take_no_place(
    tiny_pair: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "PER_SECOND", 0.001)  # so that none is due while the test runs
    limits = LimitsConfig(max_sessions=1, max_opening=1, max_refusal_delay_s=3600.0)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        async with hostile_connection(address) as bad:
            for number in range(BURST + limits.max_streams):
                stream = bad.open(b"\xff")
                if number < BURST:
                    await bad.ended(stream)
            refused = BURST + limits.max_streams
            await until(lambda: server.cloud.supervisor.counters.refused == refused, "all were refused")
            assert bad.endings == {"OUT_OF_RANGE": BURST}
            good = RawStream(channel)
            await good.send(opening(digest, max_new_tokens=10))
            await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))
            assert bad.endings == {"OUT_OF_RANGE": BURST}

    play(tiny_pair, scenario, limits)


def test_frames_that_need_no_work_are_no_progress(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        own = int(FakeTarget(load_vocabulary(tiny_pair)).logits([5, 6, 7]).argmax())
        await stream.send(opening(digest), draft(own ^ 1))

        async def stay() -> None:
            while True:
                await stream.send(draft(9, start=4))  # of a revision that is over
                await asyncio.sleep(0.01)

        staying = asyncio.create_task(stay())
        # Not `failure()`: a write at the stream's end leaves another status on this side.
        while not isinstance(failure := await stream.read(), Failure):
            assert failure is not None
        staying.cancel()
        await asyncio.gather(staying, return_exceptions=True)
        assert failure == Failure("DEADLINE_EXCEEDED", "idle_timeout_s: no progress within 0.2 s; open a new stream")

    play(tiny_pair, scenario, LimitsConfig(idle_timeout_s=0.2))


def test_an_old_stream_is_opened_again(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest))
        failure = await stream.failure()
        assert failure == Failure("UNAVAILABLE", "max_stream_s: the stream has been open for 0.2 s; open it again", 1)

    play(tiny_pair, scenario, LimitsConfig(max_stream_s=0.2))


@pytest.mark.parametrize("kind", ["half a frame", "resets", "headers"])
def test_a_neighbour_of_a_flood_keeps_its_text(tiny_pair: Path, digest: str, kind: str) -> None:
    limits = LimitsConfig(max_sessions=16, max_opening=32)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        good = RawStream(channel)
        await good.send(opening(digest, max_new_tokens=10))
        async with hostile_connection(address) as bad:
            for number in range(80):
                match kind:
                    case "half a frame":
                        bad.data(bad.open(), b"\x00\x00\x00\x10\x00half")
                    case "resets":
                        bad.reset(bad.open(encode_client(opening(digest, f"reset {number}"))))
                    case _:
                        bad.open(headers=(("x-filler", "y" * 4000),))
            await bad.drained()
            await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, limits)


def test_malformed_frames_by_the_thousand_leave_neither_memory_nor_sessions(tiny_pair: Path, digest: str) -> None:
    frames = (b"\xff\xff\xff", b"", encode_client(draft(9, start=5)), b"\x0a" + b"\xff" * 200)
    statuses: Counter[str] = Counter()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        async def flood(number: int) -> None:
            stream = RawStream(channel)
            await stream.send(opening(digest, f"bad {number}", max_new_tokens=10), frames[number % len(frames)])
            statuses[(await stream.failure()).status] += 1

        process = psutil.Process()
        for first in range(0, 1000, 50):
            await asyncio.gather(*(flood(first + number) for number in range(50)))
            if first == 200:
                before = process.memory_info().rss
        assert process.memory_info().rss < 1.05 * before
        good = RawStream(channel)
        await good.send(opening(digest, max_new_tokens=10))
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, LimitsConfig())
    assert statuses == {"OUT_OF_RANGE": 1000}
