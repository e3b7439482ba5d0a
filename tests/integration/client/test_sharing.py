"""Many devices, one server: limits, sessions that take over or vanish, bugs, and the log."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import grpc.aio
import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError, ModelCorrupt
from chaperone_common.frames import Failure, Opened, Verdict
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.server import Server
from edge_client import EdgeClient
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.cloud.scenario import draft, load_vocabulary, play, write_to_the_end
from tests.support.fakes.target import Brake, FakeTarget, fake_target
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving
from tests.support.waiting import until


def test_excess_sessions_are_refused_with_a_retry_delay(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        first, second, third = (RawStream(channel) for _ in range(3))
        await first.send(opening(digest, "first"))
        assert await first.read() == Opened(False, 4096, max_span_tokens=256)
        await second.send(opening(digest, "second"))
        failure = await second.failure()
        assert failure.status == "RESOURCE_EXHAUSTED"
        assert failure.message == "sessions: 1 are open, the limit is 1; try again later"
        assert failure.retry_after_ms == 1000
        first.cancel()
        await until(lambda: server.cloud.supervisor.sessions == 0, "the slot is free again")
        await third.send(opening(digest, "third"))
        assert await third.read() == Opened(False, 4096, max_span_tokens=256)
        third.cancel()

    play(tiny_pair, scenario, LimitsConfig(max_sessions=1))


def test_a_full_queue_is_reported_with_a_retry_delay(tiny_pair: Path, digest: str) -> None:
    brake = Brake()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        running, waiting, refused = (RawStream(channel) for _ in range(3))
        for name, stream in (("running", running), ("waiting", waiting), ("refused", refused)):
            await stream.send(opening(digest, name, prompt=(5,)))
            assert await stream.read() == Opened(False, 4096, max_span_tokens=256)
            assert isinstance(await stream.read(), Opened)
        await running.send(draft(start=1))
        await until(brake.reached.is_set, "the model is busy")
        await waiting.send(draft(start=1))
        await until(lambda: server.cloud.runner.queue_length == 1, "a request is queued")
        await refused.send(draft(start=1))
        failure = await refused.failure()
        assert failure.status == "RESOURCE_EXHAUSTED"
        assert "queue: 1 requests are waiting, the limit is 1; try again later" in failure.message
        assert failure.retry_after_ms is not None
        assert failure.retry_after_ms > 0
        brake.let_go.set()
        assert isinstance(await running.read(), Verdict)
        assert isinstance(await waiting.read(), Verdict)
        running.cancel()
        waiting.cancel()

    play(tiny_pair, scenario, LimitsConfig(max_queue=1), brake)


def test_a_draft_that_waits_past_its_deadline_fails(tiny_pair: Path, digest: str) -> None:
    brake = Brake()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        running, late = RawStream(channel), RawStream(channel)
        for name, stream in (("running", running), ("late", late)):
            await stream.send(opening(digest, name, prompt=(5,)))
            await stream.read()
            await stream.read()
        await running.send(draft(start=1))
        await until(brake.reached.is_set, "the model is busy")
        await late.send(draft(start=1, deadline_ms=20))
        failure = await late.failure()
        assert failure.status == "DEADLINE_EXCEEDED"
        assert "waited" in failure.message
        running.cancel()

    play(tiny_pair, scenario, brake=brake)


def test_a_deadline_counts_from_the_arrival(tiny_pair: Path, digest: str) -> None:
    brake = Brake()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest, prompt=(5,)))
        await stream.read()
        await stream.read()
        await stream.send(draft(start=1), draft(9, start=2, deadline_ms=1))
        await until(brake.reached.is_set, "the model reads for the first Draft")
        await asyncio.sleep(0.05)
        brake.let_go.set()
        failure = await stream.failure()
        assert failure.status == "DEADLINE_EXCEEDED"
        assert "for the frames before it, longer than its deadline of 1 ms" in failure.message

    play(tiny_pair, scenario, brake=brake)


@pytest.mark.parametrize("busy", ["idle", "in its prefill", "in a takeover"])
def test_a_newer_stream_of_a_session_takes_over(tiny_pair: Path, digest: str, busy: str) -> None:
    brake = Brake(lambda reading: busy == "in its prefill")

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        older, newer = RawStream(channel), RawStream(channel)
        await older.send(opening(digest, "same", prompt=tuple(range(5, 25)), max_new_tokens=3000))
        assert await older.read() == Opened(False, 4096, max_span_tokens=16)
        if busy == "in its prefill":
            await until(brake.reached.is_set, "the prompt is being read")
        elif busy == "in a takeover":
            await older.send(draft(start=25 - 5, continuation_tokens=2500))
            for _ in range(4):
                await older.read()
        await newer.send(opening(digest, "same", max_new_tokens=10))
        assert await newer.read() == Opened(False, 4096, max_span_tokens=16)
        brake.let_go.set()
        failure = await older.failure()
        assert failure == Failure("ABORTED", "session_id: a newer stream of this session took over")
        await write_to_the_end(newer, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, brake=brake)


def test_an_older_stream_that_ends_after_the_newer_leaves_nothing(tiny_pair: Path, digest: str) -> None:
    brake = Brake(lambda request: len(request.tree.token_ids) == 4)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        older, newer = RawStream(channel), RawStream(channel)
        await older.send(opening(digest, "same", prompt=tuple(range(5, 105))))
        await until(brake.reached.is_set, "the prompt is being read")
        await newer.send(opening(digest, "same", prompt=(5,)))
        await newer.read()
        newer.cancel()
        await until(lambda: server.cloud.supervisor.sessions == 0, "the newer stream ended")
        brake.let_go.set()
        assert (await older.failure()).status == "ABORTED"

    play(tiny_pair, scenario, brake=brake)


@pytest.mark.parametrize("busy", [True, False])
def test_a_device_that_vanishes_frees_its_place(tiny_pair: Path, digest: str, busy: bool) -> None:
    brake = Brake(lambda request: busy and request.num_choices > 0)

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest))
        await stream.read()
        await stream.read()
        assert server.cloud.runner.kv_stats.bytes_used > 0
        if busy:
            await stream.send(draft(9), draft(9, start=4))
            await until(brake.reached.is_set, "the model reads")
        stream.cancel()
        await until(lambda: server.cloud.supervisor.sessions == 0, "the place is free, though the model still reads")

    play(tiny_pair, scenario, brake=brake)


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (ZeroDivisionError("a bug in the model"), "the supervisor failed; its log has the details"),
        (ModelCorrupt("model: a bug in the model"), "the cloud's model: a bug in the model"),
    ],
)
def test_a_bug_in_the_model_costs_one_stream(
    tiny_pair: Path, digest: str, caplog: pytest.LogCaptureFixture, bug: Exception, message: str
) -> None:
    fixed = threading.Event()

    def fail(readings: object) -> None:
        if not fixed.is_set():
            raise bug

    async def run() -> None:
        target = fake_target(tiny_pair, fail)
        async with serving(target, tiny_pair) as (server, address), raw_channel(address) as channel:
            stream, other = RawStream(channel), RawStream(channel)
            await stream.send(opening(digest))
            failure = await stream.failure()
            assert (failure.status, failure.message) == ("INTERNAL", message)
            fixed.set()
            await other.send(opening(digest, "other", max_new_tokens=10))
            await write_to_the_end(other, FakeTarget(load_vocabulary(tiny_pair)))
            await until(lambda: server.cloud.runner.kv_stats.sessions == 0, "all KV freed")

    asyncio.run(run())
    assert f"{type(bug).__name__} < " in caplog.text, "its type and place"
    assert "a bug in the model" not in caplog.text, "its message may hold a text"


def test_the_log_holds_nothing_of_prompts_and_texts(
    tiny_pair: Path, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "xylophone quarterdeck"

    async def run() -> list[int]:
        async with serving(fake_target(tiny_pair), tiny_pair) as (_, address), raw_channel(address) as channel:
            async with EdgeClient(config_for(address)) as client:
                for mode in ("exact", "gated", "cloud"):
                    await client.generate(secret, mode=mode, max_new_tokens=12)
                prompt = client.prepare(secret).token_ids
            for frame in (draft(9, start=40), draft(9, revision=3)):  # refused frames are logged with a reason
                stream = RawStream(channel)
                await stream.send(opening(digest, prompt=prompt), frame)
                await stream.failure()
            return list(prompt)

    with caplog.at_level(logging.DEBUG):
        token_ids = asyncio.run(run())
    ours = "\n".join(record.getMessage() for record in caplog.records)
    assert "refused" in ours, "the log is captured"
    assert "xylophone" not in ours
    assert "quarterdeck" not in ours
    assert str(token_ids)[1:-1] not in ours
    for width in (2, 3):
        for index in range(len(token_ids) - width):
            assert ", ".join(str(token_id) for token_id in token_ids[index : index + width]) not in ours


def server_of(config: CloudConfig, pair: Path) -> Server:
    return Server(config, build_cloud(config, fake_target(pair), load_manifest(pair / "cloud", role="cloud")))


def test_an_impossible_port_is_refused(tiny_pair: Path) -> None:
    with pytest.raises(ConfigError, match="there is no port 65536, the highest is 65535"):
        server_of(CloudConfig(listen="127.0.0.1:65536"), tiny_pair)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:0", "127.0.0.1.example.com:80", "127.example.com:80", "example.com:80"]
)
def test_the_server_listens_on_this_machine_only(tiny_pair: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="needs TLS") as caught:
        server_of(CloudConfig(listen=address), tiny_pair)
    assert repr(address) in caught.value.message


def test_a_port_in_use_is_refused(tiny_pair: Path) -> None:
    async def run() -> None:
        async with serving(fake_target(tiny_pair), tiny_pair) as (_, address):
            second = server_of(CloudConfig(listen=address), tiny_pair)
            with pytest.raises(ConfigError, match="cannot be bound"):
                await second.start()
            await second.stop(0)

    asyncio.run(run())


def test_refusing_and_stopping_are_no_errors_in_the_log(
    tiny_pair: Path, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with serving(fake_target(tiny_pair), tiny_pair) as (server, address), raw_channel(address) as channel:
            for frame in (draft(9, start=40), b"\xff", opening(digest)):
                refused = RawStream(channel)
                await refused.send(opening(digest), frame)
                await refused.failure()
            left, cut = RawStream(channel), RawStream(channel)
            await left.send(opening(digest, "left"))
            await left.read()
            left.cancel()
            await until(lambda: server.cloud.supervisor.counters.cancelled == 1, "the session ended")
            assert server.cloud.supervisor.sessions == 0
            assert server.cloud.supervisor.counters.refused == 3
            await cut.send(opening(digest, "cut"))
            await cut.read()
            at_rest = await cut.read()  # gRPC itself warns of a frame that a stop cuts off
            assert isinstance(at_rest, Opened)
            assert at_rest.prefilled
            await server.stop(0)

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert any(record.getMessage() == "refused" for record in caplog.records)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
