"""What one stream does to the server, to the other streams and to its log, seen by devices that break the rules."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest

from cloud_supervisor.config import CloudConfig, LimitsConfig
from cloud_supervisor.server import Server
from common.config import load_manifest
from common.errors import ConfigError
from common.messages import ClientFrame, Close, Closed, Draft, Failure, Opened, Verdict
from common.types import SamplingParams
from common.wire import encode_client
from edge_client import EdgeClient
from tests.contract.fake_target import FakeTarget
from tests.integration.loopback import serving
from tests.integration.raw import RawStream, opening, raw_channel
from tests.integration.staging import Brake, config_for, fake_target, until

SMALL = LimitsConfig(max_span_tokens=16, max_message_kib=16, prefill_chunk_tokens=4)
Scene = Callable[[Server, grpc.aio.Channel, str], Awaitable[None]]


@pytest.fixture(scope="module")
def digest(tiny_pair: Path) -> str:
    return load_manifest(tiny_pair / "cloud", role="cloud").tokenizer_digest


def play(pair: Path, scene: Scene, limits: LimitsConfig = SMALL, brake: Brake | None = None) -> None:
    """Run a scene against a server with a fake model; afterwards nothing of it may be left there."""

    async def run() -> None:
        async with (
            serving(fake_target(pair, brake), pair, CloudConfig(limits=limits)) as (server, address),
            raw_channel(address) as channel,
        ):
            try:
                await scene(server, channel, address)
            finally:
                if brake is not None:
                    brake.let_go.set()
            await until(lambda: server.supervisor.sessions == 0, "all sessions ended")
            await until(lambda: server.kv_store.stats.bytes_used == 0, "all KV freed")

    asyncio.run(run())


def draft(*token_ids: int, start: int = 3, revision: int = 0, **fields: int) -> Draft:
    return Draft(revision, start, token_ids, (0.0,) * len(token_ids), fields.pop("final_before", start), **fields)


MALFORMED: dict[str, tuple[list[ClientFrame | bytes], str, str]] = {
    "bytes that are no frame": ([b"\xff\xff\xff"], "OUT_OF_RANGE", "frame: 3 bytes that are not a SuperviseRequest"),
    "an empty frame": ([b""], "OUT_OF_RANGE", "none of open, draft and close is set"),
    "too many tokens": ([draft(*range(17))], "INVALID_ARGUMENT", "token_ids: 17 in one Draft, at most 16 are allowed"),
    "a gap": ([draft(9, start=5)], "OUT_OF_RANGE", "start: 5 is outside [3, 3]"),
    "a start inside the prompt": ([draft(9, start=2)], "OUT_OF_RANGE", "start: 2 is outside [3, 3]"),
    "a revision never given": ([draft(9, revision=2)], "OUT_OF_RANGE", "revision: 2 was never given, the latest is 0"),
    "an unknown token": ([draft(40_000)], "OUT_OF_RANGE", "token_ids: 40000 is not in a vocabulary of"),
    "a span past the limit": ([draft(*[9] * 11)], "OUT_OF_RANGE", "11 tokens from 3 pass the limit of 13"),
    "final_before out of the span": ([draft(9, final_before=7)], "OUT_OF_RANGE", "final_before: 7 is outside the span"),
    "a Close with a gap": ([Close(6, (9,))], "OUT_OF_RANGE", "start: 6 is outside [3, 3]"),
    "a second Open": ([opening("", "again")], "OUT_OF_RANGE", "a second Open in one stream"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_bad_frame_ends_its_own_stream_only(tiny_pair: Path, digest: str, case: str) -> None:
    frames, status, words = MALFORMED[case]

    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        bad, good = RawStream(channel), RawStream(channel)
        await good.send(opening(digest, "good", max_new_tokens=10))
        await bad.send(opening(digest, "bad", max_new_tokens=10), *frames)
        failure = await bad.failure()
        assert failure.status == status
        assert words in failure.message
        assert failure.retry_after_ms is None, "to try again would not help"
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scene)


def load_vocabulary(pair: Path) -> int:
    return load_manifest(pair / "cloud", role="cloud").vocabulary_size


async def write_to_the_end(stream: RawStream, twin: FakeTarget) -> None:
    """Let the cloud write ten tokens one by one, on an open stream after the prompt 5, 6, 7."""
    text = [5, 6, 7]
    for _ in range(10):
        await stream.send(draft(start=len(text)))
        while not isinstance(verdict := await stream.read(), Verdict):
            assert isinstance(verdict, Opened)
        text.append(int(twin.logits(text).argmax()))
        assert (verdict.position, verdict.token_id) == (len(text) - 1, text[-1])
    await stream.send(Close(len(text), ()))
    await stream.half_close()
    assert await stream.read() == Closed()
    assert await stream.read() is None
    assert await stream.status() == "OK"


def test_an_oversized_message_ends_its_own_stream_only(tiny_pair: Path, digest: str) -> None:
    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        bad, good = RawStream(channel), RawStream(channel)
        await good.send(opening(digest, "good", max_new_tokens=10))
        await bad.send(opening(digest, "bad"), bytes(17 << 10))
        with pytest.raises(grpc.aio.AioRpcError):
            while await bad.read() is not None:
                pass
        assert await bad.status() in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE")
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scene)


def test_stale_drafts_are_ignored_and_counted(tiny_pair: Path, digest: str) -> None:
    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        twin = FakeTarget(load_vocabulary(tiny_pair))
        own = int(twin.logits([5, 6, 7]).argmax())
        stream = RawStream(channel)
        await stream.send(opening(digest), draft(own ^ 1), draft(9, start=4), draft(9, start=5))
        await stream.read()
        await stream.read()
        assert await answer(stream) == (1, 3, own)
        await stream.send(draft(start=4, revision=1))
        assert (await answer(stream))[:2] == (1, 4), "the two in between were stale, and are not answered"
        stream.cancel()
        await until(lambda: server.supervisor.counters.stale_frames == 2, "stale frames counted")

    async def answer(stream: RawStream) -> tuple[int, int, int]:
        verdict = await stream.read()
        assert isinstance(verdict, Verdict)
        return verdict.revision, verdict.position, verdict.token_id

    play(tiny_pair, scene)


@pytest.mark.parametrize("first", [draft(9), Close(3, ())])
def test_open_comes_first(tiny_pair: Path, first: ClientFrame) -> None:
    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(first)
        failure = await stream.failure()
        assert failure.status == "OUT_OF_RANGE"
        assert f"{type(first).__name__} before Open" in failure.message

    play(tiny_pair, scene)


@pytest.mark.parametrize("opened", [True, False])
def test_a_stream_ends_with_a_close(tiny_pair: Path, digest: str, opened: bool) -> None:
    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        if opened:
            await stream.send(opening(digest))
        await stream.half_close()
        assert (await stream.failure()).message == "frame: the stream ended without a Close"

    play(tiny_pair, scene)


OPENINGS = [
    ({"api_version": 2}, "UNIMPLEMENTED", "the device speaks 2, this cloud 1; update the cloud"),
    ({"api_version": 0}, "UNIMPLEMENTED", "the device speaks 0, this cloud 1; update the device"),
    ({"tokenizer_digest": "sha256:0"}, "FAILED_PRECONDITION", "pull the same model pair on both ends"),
    ({"tokenizer_digest": "x\n" * 5_000}, "FAILED_PRECONDITION", "tokenizer_digest: the device has 'x\\nx"),
    ({"prompt_token_ids": ()}, "INVALID_ARGUMENT", "prompt_token_ids: empty; give at least one token"),
    ({"prompt_token_ids": (5,) * 4096}, "INVALID_ARGUMENT", "4096 tokens leave no room in a context of 4096; shorten"),
    ({"prompt_token_ids": (40_000,)}, "OUT_OF_RANGE", "token_ids: 40000 is not in a vocabulary of"),
    ({"max_new_tokens": 0}, "INVALID_ARGUMENT", "max_new_tokens: 0 is less than 1"),
    ({"session_id": ""}, "INVALID_ARGUMENT", "session_id: 0 characters; it must have 1 to 64"),
    ({"session_id": "s" * 65}, "INVALID_ARGUMENT", "session_id: 65 characters; it must have 1 to 64"),
    ({"eos_token_ids": (1,) * 65}, "INVALID_ARGUMENT", "eos_token_ids: 65 ids, at most 64 allowed"),
]


@pytest.mark.parametrize(("fields", "status", "words"), OPENINGS)
def test_a_bad_open_is_refused(
    tiny_pair: Path, digest: str, fields: dict[str, object], status: str, words: str
) -> None:
    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest, **{"session": "s", **fields}))  # type: ignore[arg-type]
        failure = await stream.failure()
        assert failure.status == status
        assert words in failure.message
        assert len(failure.message) < 500
        if fields.get("tokenizer_digest") == "sha256:0":
            assert digest in failure.message
            assert "sha256:0" in failure.message

    play(tiny_pair, scene, LimitsConfig(max_message_kib=64))


def test_sampling_parameters_are_checked_in_the_cloud_too(tiny_pair: Path, digest: str) -> None:
    greedy = encode_client(opening(digest, sampling=SamplingParams(temperature=0.5, top_p=0.25)))
    hot = greedy.replace(b"\x09\x00\x00\x00\x00\x00\x00\xe0?", b"\x09\x00\x00\x00\x00\x00\x00\xe0\xbf")
    assert hot != greedy

    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(hot)
        failure = await stream.failure()
        assert failure.status == "INVALID_ARGUMENT"
        assert "temperature: -0.5 is not a finite number >= 0; use 0 for greedy" in failure.message

    play(tiny_pair, scene)


def test_more_sessions_than_allowed_are_told_when_to_come_back(tiny_pair: Path, digest: str) -> None:
    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        first, second, third = (RawStream(channel) for _ in range(3))
        await first.send(opening(digest, "first"))
        assert await first.read() == Opened(False, 4096)
        await second.send(opening(digest, "second"))
        failure = await second.failure()
        assert failure.status == "RESOURCE_EXHAUSTED"
        assert failure.message == "sessions: 1 are open and 1 may be; try again later"
        assert failure.retry_after_ms == 1000
        first.cancel()
        await until(lambda: server.supervisor.sessions == 0, "the slot is free again")
        await third.send(opening(digest, "third"))
        assert await third.read() == Opened(False, 4096)
        third.cancel()

    play(tiny_pair, scene, LimitsConfig(max_sessions=1))


def test_a_full_queue_is_told_when_to_come_back(tiny_pair: Path, digest: str) -> None:
    brake = Brake()

    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        running, waiting, refused = (RawStream(channel) for _ in range(3))
        for name, stream in (("running", running), ("waiting", waiting), ("refused", refused)):
            await stream.send(opening(digest, name, prompt=(5,)))
            assert await stream.read() == Opened(False, 4096)
            assert isinstance(await stream.read(), Opened)
        await running.send(draft(start=1))
        await until(brake.reached.is_set, "the model is busy")
        await waiting.send(draft(start=1))
        await until(lambda: server._worker.queue_length == 1, "a reading waits")
        await refused.send(draft(start=1))
        failure = await refused.failure()
        assert failure.status == "RESOURCE_EXHAUSTED"
        assert "queue: 1 readings wait and 1 may; try again later" in failure.message
        assert failure.retry_after_ms is not None
        assert failure.retry_after_ms > 0
        brake.let_go.set()
        assert isinstance(await running.read(), Verdict)
        assert isinstance(await waiting.read(), Verdict)
        running.cancel()
        waiting.cancel()

    play(tiny_pair, scene, LimitsConfig(max_queue=1), brake)


def test_a_draft_that_waits_past_its_deadline_fails(tiny_pair: Path, digest: str) -> None:
    brake = Brake()

    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
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

    play(tiny_pair, scene, brake=brake)


@pytest.mark.parametrize("busy", ["idle", "in its prefill", "in a takeover"])
def test_a_newer_stream_of_a_session_takes_over(tiny_pair: Path, digest: str, busy: str) -> None:
    brake = Brake(lambda reading: busy == "in its prefill")

    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        older, newer = RawStream(channel), RawStream(channel)
        await older.send(opening(digest, "same", prompt=tuple(range(5, 25)), max_new_tokens=3000))
        assert await older.read() == Opened(False, 4096)
        if busy == "in its prefill":
            await until(brake.reached.is_set, "the prompt is being read")
        elif busy == "in a takeover":
            await older.send(draft(start=25 - 5, continuation_tokens=2500))
            for _ in range(4):
                await older.read()
        await newer.send(opening(digest, "same", max_new_tokens=10))
        assert await newer.read() == Opened(False, 4096)
        brake.let_go.set()
        failure = await older.failure()
        assert failure == Failure("ABORTED", "session_id: a newer stream of this session took over")
        await write_to_the_end(newer, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scene, brake=brake)


def test_an_older_stream_that_outlives_the_newer_leaves_nothing(tiny_pair: Path, digest: str) -> None:
    brake = Brake(lambda reading: len(reading.token_ids) == 4)

    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        older, newer = RawStream(channel), RawStream(channel)
        await older.send(opening(digest, "same", prompt=tuple(range(5, 105))))
        await until(brake.reached.is_set, "the prompt is being read")
        await newer.send(opening(digest, "same", prompt=(5,)))
        await newer.read()
        newer.cancel()
        await until(lambda: server.supervisor.sessions == 0, "the newer stream is gone")
        brake.let_go.set()
        assert (await older.failure()).status == "ABORTED"

    play(tiny_pair, scene, brake=brake)


@pytest.mark.parametrize("busy", [True, False])
def test_a_device_that_vanishes_frees_its_place(tiny_pair: Path, digest: str, busy: bool) -> None:
    brake = Brake(lambda reading: busy and reading.choices > 0)

    async def scene(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest))
        await stream.read()
        await stream.read()
        assert server.kv_store.stats.bytes_used > 0
        if busy:
            await stream.send(draft(9), draft(9, start=4))
            await until(brake.reached.is_set, "the model reads")
        stream.cancel()
        await until(lambda: server.supervisor.sessions == 0, "the place is free, though the model still reads")

    play(tiny_pair, scene, brake=brake)


def test_a_bug_in_the_model_costs_one_stream(tiny_pair: Path, digest: str, caplog: pytest.LogCaptureFixture) -> None:
    mended = threading.Event()

    def fail(readings: object) -> None:
        if not mended.is_set():
            raise ZeroDivisionError("a bug in the model")

    async def run() -> None:
        target = fake_target(tiny_pair, fail)
        async with serving(target, tiny_pair) as (server, address), raw_channel(address) as channel:
            stream, other = RawStream(channel), RawStream(channel)
            await stream.send(opening(digest))
            failure = await stream.failure()
            assert (failure.status, failure.message) == (
                "INTERNAL",
                "the supervisor failed; its log has the details",
            )
            mended.set()
            await other.send(opening(digest, "other", max_new_tokens=10))
            await write_to_the_end(other, FakeTarget(load_vocabulary(tiny_pair)))
            await until(lambda: server.kv_store.stats.bytes_used == 0, "all KV freed")

    asyncio.run(run())
    assert "a bug in the model" in caplog.text


def test_the_log_tells_nothing_of_what_is_written(
    tiny_pair: Path, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "xylophone quarterdeck"

    async def run() -> list[int]:
        async with serving(fake_target(tiny_pair), tiny_pair) as (_, address), raw_channel(address) as channel:
            async with EdgeClient(config_for(address)) as client:
                for mode in ("exact", "gated", "cloud"):
                    await client.generate(secret, mode=mode, max_new_tokens=12)
                prompt = client.prepare(secret).token_ids
            for frame in (draft(9, start=40), draft(9, revision=3)):  # refused ones are logged, with a reason
                stream = RawStream(channel)
                await stream.send(opening(digest, prompt=prompt), frame)
                await stream.failure()
            return list(prompt)

    with caplog.at_level(logging.DEBUG):
        token_ids = asyncio.run(run())
    ours = "\n".join(record.getMessage() for record in caplog.records)
    assert "stream refused: OUT_OF_RANGE" in ours, "the log is being listened to"
    assert "xylophone" not in ours
    assert "quarterdeck" not in ours
    assert str(token_ids)[1:-1] not in ours
    for width in (2, 3):
        for index in range(len(token_ids) - width):
            assert ", ".join(str(token_id) for token_id in token_ids[index : index + width]) not in ours


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:0", "127.0.0.1.example.com:80", "127.example.com:80", "example.com:80", "127.0.0.1"]
)
def test_it_listens_on_this_machine_only(tiny_pair: Path, address: str) -> None:
    manifest = load_manifest(tiny_pair / "cloud", role="cloud")
    with pytest.raises(ConfigError, match="needs TLS") as caught:
        Server(CloudConfig(listen=address), fake_target(tiny_pair), manifest)
    assert repr(address) in caught.value.message


def test_a_port_in_use_is_told(tiny_pair: Path) -> None:
    async def run() -> None:
        manifest = load_manifest(tiny_pair / "cloud", role="cloud")
        async with serving(fake_target(tiny_pair), tiny_pair) as (_, address):
            second = Server(CloudConfig(listen=address), fake_target(tiny_pair), manifest)
            with pytest.raises(ConfigError, match="cannot be bound"):
                await second.start()
            await second.stop(0)

    asyncio.run(run())
