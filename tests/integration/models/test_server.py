"""A device that breaks the rules gets an error that names the problem, while the other streams continue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc.aio
import pytest

from chaperone_common.beams.forest import Forest
from chaperone_common.beams.frames import ForestFrame
from chaperone_common.frames import ClientFrame, Close, Closed, Failure, Opened, Verdict
from chaperone_common.types import SamplingParams
from chaperone_common.wire import encode_client
from cloud_supervisor.config import LimitsConfig
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.server import Server
from tests.support.cloud.raw_stream import RawStream, opening
from tests.support.cloud.scenario import SMALL, draft, load_vocabulary, play, write_to_the_end
from tests.support.fakes.target import KV_BYTES_PER_TOKEN, FakeTarget
from tests.support.waiting import until

MALFORMED: dict[str, tuple[list[ClientFrame | bytes], str, str]] = {
    "bytes that are no frame": ([b"\xff\xff\xff"], "OUT_OF_RANGE", "frame: 3 bytes that are not a SuperviseRequest"),
    "an empty frame": ([b""], "OUT_OF_RANGE", "none of open, draft, forest and close is set"),
    "too many tokens": ([draft(*range(17))], "INVALID_ARGUMENT", "token_ids: 17 in one Draft, at most 16 are allowed"),
    "a gap": ([draft(9, start=5)], "OUT_OF_RANGE", "start: 5 is outside [3, 3]"),
    "a start inside the prompt": ([draft(9, start=2)], "OUT_OF_RANGE", "start: 2 is outside [3, 3]"),
    "a revision never given": ([draft(9, revision=2)], "OUT_OF_RANGE", "revision: 2 was never given, the latest is 0"),
    "an unknown token": ([draft(40_000)], "OUT_OF_RANGE", "token_ids: 40000 is not in a vocabulary of"),
    "a span past the limit": ([draft(*[9] * 11)], "OUT_OF_RANGE", "11 tokens from 3 pass the limit of 13"),
    "final_before out of the span": ([draft(9, final_before=7)], "OUT_OF_RANGE", "final_before: 7 is outside the span"),
    "a Close with a gap": ([Close(6, (9,))], "OUT_OF_RANGE", "start: 6 is outside [3, 3]"),
    "a forest without beams": ([ForestFrame(0, Forest())], "OUT_OF_RANGE", "forest: the Open asked for no beams"),
    "a second Open": ([opening("", "again")], "OUT_OF_RANGE", "a second Open in one stream"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_bad_frame_ends_its_own_stream_only(tiny_pair: Path, digest: str, case: str) -> None:
    frames, status, words = MALFORMED[case]

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        bad, good = RawStream(channel), RawStream(channel)
        await good.send(opening(digest, "good", max_new_tokens=10))
        await bad.send(opening(digest, "bad", max_new_tokens=10), *frames)
        failure = await bad.failure()
        assert failure.status == status
        assert words in failure.message
        assert failure.retry_after_ms is None, "a retry would not help"
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario)


def test_an_oversized_message_ends_its_own_stream_only(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        bad, good = RawStream(channel), RawStream(channel)
        await good.send(opening(digest, "good", max_new_tokens=10))
        await bad.send(opening(digest, "bad"), bytes(17 << 10))
        while await bad.answered():
            pass
        assert await bad.status() in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE")
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario)


def test_stale_drafts_are_ignored_and_counted(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        twin = FakeTarget(load_vocabulary(tiny_pair))
        own = int(twin.logits([5, 6, 7]).argmax())
        stream = RawStream(channel)
        await stream.send(opening(digest), draft(own ^ 1), draft(9, start=4), draft(9, start=5))
        await stream.read()
        await stream.read()
        assert await answer(stream) == (1, 3, own)
        await stream.send(draft(start=4, revision=1))
        assert (await answer(stream))[:2] == (1, 4), "the two stale drafts in between get no answer"
        stream.cancel()
        await until(lambda: server.cloud.supervisor.counters.stale_frames == 2, "stale frames counted")

    async def answer(stream: RawStream) -> tuple[int, int, int]:
        verdict = await stream.read()
        assert isinstance(verdict, Verdict)
        return verdict.revision, verdict.position, verdict.token_id

    play(tiny_pair, scenario)


@pytest.mark.parametrize("first", [draft(9), Close(3, ())])
def test_open_comes_first(tiny_pair: Path, first: ClientFrame) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(first)
        failure = await stream.failure()
        assert failure.status == "OUT_OF_RANGE"
        assert f"{type(first).__name__} before Open" in failure.message

    play(tiny_pair, scenario)


@pytest.mark.parametrize("opened", [True, False])
def test_a_stream_ends_with_a_close(tiny_pair: Path, digest: str, opened: bool) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        if opened:
            await stream.send(opening(digest))
        await stream.half_close()
        assert await stream.failure() == Failure("CANCELLED", "frame: the stream ended without a Close")
        assert (server.cloud.supervisor.counters.cancelled, server.cloud.supervisor.counters.refused) == (1, 0)

    play(tiny_pair, scenario)


@pytest.mark.parametrize("opened", [True, False])
def test_a_silent_stream_is_ended(tiny_pair: Path, digest: str, opened: bool) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        if opened:
            await stream.send(opening(digest))
        failure = await stream.failure()
        assert failure.status == "DEADLINE_EXCEEDED"
        missing = "idle_timeout_s: no progress" if opened else "open_timeout_s: no Open arrived"
        assert failure.message == f"{missing} within 0.05 s; open a new stream"

    timeouts = {"idle_timeout_s" if opened else "open_timeout_s": 0.05}
    play(tiny_pair, scenario, LimitsConfig(**timeouts))  # type: ignore[arg-type]


class Longest:
    """Records the longest forward that the model is given."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, requests: Sequence[ForwardRequest]) -> None:
        self.tokens = max(self.tokens, *(len(request.tree.token_ids) for request in requests))


def test_a_long_draft_and_a_long_audit_are_read_in_pieces(tiny_pair: Path, digest: str) -> None:
    longest = Longest()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        text = [5, 6, 7]
        twin = FakeTarget(load_vocabulary(tiny_pair))
        while len(text) < 35:
            text.append(int(twin.logits(text).argmax()))
        stream = RawStream(channel)
        await stream.send(opening(digest), draft(*text[3:19]))
        while not isinstance(verdict := await stream.read(), Verdict):
            assert isinstance(verdict, Opened)
        assert (verdict.position, verdict.token_id) == (19, text[19])
        await stream.send(Close(20, (*text[20:34], text[34] ^ 1)))
        await stream.half_close()
        closed = await stream.read()
        assert isinstance(closed, Closed)
        assert closed.deviations == (34,)

    play(tiny_pair, scenario, brake=longest)
    assert longest.tokens == SMALL.prefill_chunk_tokens


def test_a_rebuild_after_an_eviction_is_read_in_pieces(tiny_pair: Path, digest: str) -> None:
    longest = Longest()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        twin = FakeTarget(load_vocabulary(tiny_pair))
        streams = {token_id: RawStream(channel) for token_id in (5, 6)}
        for token_id, stream in streams.items():
            await stream.send(opening(digest, str(token_id), prompt=(token_id,) * 20))
            await stream.read()
            await stream.read()
        for token_id, stream in streams.items():
            await stream.send(draft(start=20))
            verdict = await stream.read()
            assert isinstance(verdict, Verdict)
            assert verdict.token_id == int(twin.logits([token_id] * 20).argmax())
        assert server.cloud.runner.kv_stats.rebuilt_tokens == 38, "both prompts without their last tokens"
        for stream in streams.values():
            stream.cancel()

    play(tiny_pair, scenario, brake=longest, kv_budget_mib=30 * KV_BYTES_PER_TOKEN / 2**20)
    assert longest.tokens == SMALL.prefill_chunk_tokens


OPENINGS = [
    ({"api_version": 2}, "UNIMPLEMENTED", "the device speaks 2, this cloud 1; update the cloud"),
    ({"api_version": 0}, "UNIMPLEMENTED", "the device speaks 0, this cloud 1; update the device"),
    ({"tokenizer_digest": "sha256:0"}, "FAILED_PRECONDITION", "pull the same model pair on both ends"),
    ({"tokenizer_digest": "x\n" * 64}, "FAILED_PRECONDITION", "tokenizer_digest: the device has 'x\\nx"),
    (
        {"tokenizer_digest": "x" * 5_000},
        "INVALID_ARGUMENT",
        "tokenizer_digest: 5000 characters, at most 128 are allowed",
    ),
    ({"prompt_token_ids": ()}, "INVALID_ARGUMENT", "prompt_token_ids: empty; give at least one token"),
    ({"prompt_token_ids": (5,) * 4096}, "INVALID_ARGUMENT", "4096 tokens leave no room in a context of 4096; shorten"),
    ({"prompt_token_ids": (40_000,)}, "INVALID_ARGUMENT", "token_ids: 40000 is not in a vocabulary of"),
    ({"max_new_tokens": 0}, "INVALID_ARGUMENT", "max_new_tokens: 0 is outside [1, 4294967295]"),
    ({"session_id": ""}, "INVALID_ARGUMENT", "session_id: 0 characters; it must have 1 to 64"),
    ({"session_id": "s" * 65}, "INVALID_ARGUMENT", "session_id: 65 characters; it must have 1 to 64"),
    ({"eos_token_ids": (1,) * 65}, "INVALID_ARGUMENT", "eos_token_ids: 65 ids, at most 64 allowed"),
]


@pytest.mark.parametrize(("fields", "status", "words"), OPENINGS)
def test_a_bad_open_is_refused(
    tiny_pair: Path, digest: str, fields: dict[str, object], status: str, words: str
) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest, **{"session": "s", **fields}))  # type: ignore[arg-type]
        failure = await stream.failure()
        assert failure.status == status
        assert words in failure.message
        assert len(failure.message) < 500
        if fields.get("tokenizer_digest") == "sha256:0":
            assert digest in failure.message
            assert "sha256:0" in failure.message

    play(tiny_pair, scenario, LimitsConfig(max_message_kib=64))


def test_sampling_parameters_are_checked_in_the_cloud_too(tiny_pair: Path, digest: str) -> None:
    greedy = encode_client(opening(digest, sampling=SamplingParams(temperature=0.5, top_p=0.25)))
    hot = greedy.replace(b"\x09\x00\x00\x00\x00\x00\x00\xe0?", b"\x09\x00\x00\x00\x00\x00\x00\xe0\xbf")
    assert hot != greedy

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(hot)
        failure = await stream.failure()
        assert failure.status == "INVALID_ARGUMENT"
        assert "temperature: -0.5 is not a finite number >= 0; use 0 for greedy" in failure.message

    play(tiny_pair, scenario)
