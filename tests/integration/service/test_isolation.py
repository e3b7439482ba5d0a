"""Tenants: nobody can supersede, resume, starve or see another's session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo

from chaperone_common.frames import Close, Failure, Open, Opened, QuotaState, Verdict
from chaperone_common.session.prefixes import shortened
from chaperone_common.types import SessionId
from chaperone_common.wire import GET_CAPABILITIES, SERVICE, decode_capabilities, encode_capabilities_request
from cloud_supervisor.caller import Caller
from cloud_supervisor.config import QuotasConfig, TenantQuota
from cloud_supervisor.observation import Answered, Outcome, Refused, StreamEnded
from cloud_supervisor.security.authentication import TokenEnded
from cloud_supervisor.server import Server
from tests.support.cloud.raw_stream import RawStream, opening
from tests.support.cloud.scenario import draft, load_vocabulary, play, write_to_the_end
from tests.support.cloud.watched import NamedCallers, Observed, watched
from tests.support.fakes.target import FakeTarget


def test_the_same_session_id_is_another_session_of_another_tenant(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        mine, theirs = RawStream(channel, tenant="mine"), RawStream(channel, tenant="theirs")
        await mine.send(opening(digest, "same", max_new_tokens=10))
        assert isinstance(await mine.read(), Opened)
        await theirs.send(opening(digest, "same", max_new_tokens=10))
        twin = FakeTarget(load_vocabulary(tiny_pair))
        await write_to_the_end(theirs, twin)
        await write_to_the_end(mine, twin)

    play(tiny_pair, scenario, entrance=watched())


def test_a_tenants_prompts_share_their_beginning_and_no_other_tenant_has_it(tiny_pair: Path, digest: str) -> None:
    system = tuple(5 + number % 50 for number in range(500))

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        async def cached(session: str, tenant: str, *own: int) -> int:
            stream = RawStream(channel, tenant=tenant)
            await stream.send(opening(digest, session, prompt=(*system, *own), max_new_tokens=5))
            while not (isinstance(frame := await stream.read(), Opened) and frame.prefilled):
                assert isinstance(frame, Opened)
            await stream.half_close()
            return frame.cached_tokens

        assert await cached("first", "mine", 7, 8) == 0
        assert await cached("second", "mine", 9, 9, 9) == len(system)
        assert await cached("third", "theirs", 7, 8) == 0

    play(tiny_pair, scenario, entrance=watched())


def test_a_text_is_referred_to_by_its_tenant_alone(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        twin = FakeTarget(load_vocabulary(tiny_pair))
        whole = opening(digest, "turn.1", prompt=tuple(range(5, 45)), max_new_tokens=10)
        first = RawStream(channel, tenant="mine")
        await first.send(whole, Close(len(whole.prompt_token_ids), ()))
        await first.half_close()
        while (frame := await first.read()) is not None:
            assert not isinstance(frame, Failure)
        further = replace(whole, session_id=SessionId("turn.2"), prompt_token_ids=(*whole.prompt_token_ids, 9))
        short = shortened(further, whole.session_id, len(whole.prompt_token_ids))
        theirs, mine = RawStream(channel, tenant="theirs"), RawStream(channel, tenant="mine")
        await theirs.send(short)
        failure = await theirs.failure()
        assert failure.status == "NOT_FOUND"
        assert failure.message.startswith("prefix: this cloud does not hold these 40 tokens")
        await mine.send(short)
        assert isinstance(await mine.read(), Opened)
        await mine.send(draft(*twin_choices(twin, further, 3), start=41))
        while not isinstance(frame := await mine.read(), Verdict):
            assert isinstance(frame, Opened)
        assert frame.position == 44, "the whole prompt was read"
        await mine.half_close()

    play(tiny_pair, scenario, entrance=watched())


def twin_choices(twin: FakeTarget, frame: Open, count: int) -> list[int]:
    """Return the choices of an equal model after a prompt."""
    text = [*frame.prompt_token_ids]
    for _ in range(count):
        text.append(int(twin.logits(text).argmax()))
    return text[len(frame.prompt_token_ids) :]


def test_a_tenant_supersedes_its_own_stream(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        older, newer = RawStream(channel, tenant="mine"), RawStream(channel, tenant="mine")
        await older.send(opening(digest, "same", max_new_tokens=10))
        assert isinstance(await older.read(), Opened)
        await newer.send(opening(digest, "same", max_new_tokens=10))
        assert (await older.failure()).status == "ABORTED"
        await write_to_the_end(newer, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, entrance=watched())


def test_a_quota_is_reported_with_its_remedy_and_leaves_others_alone(tiny_pair: Path, digest: str) -> None:
    quotas = QuotasConfig(tenants={"small": TenantQuota(max_sessions=1)})
    observed = Observed()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        first, second = RawStream(channel, tenant="small"), RawStream(channel, tenant="small")
        await first.send(opening(digest, "a", max_new_tokens=10))
        assert isinstance(await first.read(), Opened)
        await second.send(opening(digest, "b"))
        failure = await second.failure()
        assert failure.status == "RESOURCE_EXHAUSTED"
        assert failure.message.startswith("quota: sessions: tenant 'small' may have 1")
        status = await second.details()
        retry, quota = RetryInfo(), QuotaFailure()
        assert [detail.Unpack(kind) for detail, kind in zip(status.details, (retry, quota), strict=True)] == [True] * 2
        assert retry.retry_delay == Duration(seconds=1)
        assert [violation.subject for violation in quota.violations] == ["sessions"]

        capabilities: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        capabilities = channel.unary_unary(f"/{SERVICE}/{GET_CAPABILITIES}")
        states = decode_capabilities(
            await capabilities(encode_capabilities_request(), metadata=(("tenant", "small"),))
        ).quotas
        assert states[0] == QuotaState("sessions", 1, 1)

        other = RawStream(channel, tenant="other")
        await other.send(opening(digest, "b", max_new_tokens=10))
        twin = FakeTarget(load_vocabulary(tiny_pair))
        await write_to_the_end(other, twin)
        await write_to_the_end(first, twin)

    play(tiny_pair, scenario, entrance=watched(observed), quotas=quotas)
    (refused,) = observed.of(Refused)
    assert isinstance(refused, Refused)
    assert (refused.tenant, refused.reason) == ("small", "sessions")


def test_a_drafter_that_is_always_wrong_pays_for_every_position(tiny_pair: Path, digest: str) -> None:
    quotas = QuotasConfig(tenants={"wrong": TenantQuota(positions_per_minute=10)})

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel, tenant="wrong")
        await stream.send(opening(digest), *(draft(9, 9, 9, 9, revision=0) for _ in range(3)))
        frames = [await stream.read() for _ in range(3)]
        assert isinstance(frames[-1], Verdict)
        await stream.send(draft(9, 9, 9, 9, start=4, revision=1), draft(9, start=5, revision=2))
        failure = await stream.failure()
        assert failure.message.startswith("quota: positions_per_minute: tenant 'wrong' may have 10")
        assert failure.retry_after_ms is not None

    play(tiny_pair, scenario, entrance=watched(), quotas=quotas)


def test_a_revoked_tenant_loses_its_streams_and_no_other_does(tiny_pair: Path, digest: str) -> None:
    callers, observed = NamedCallers(), Observed()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        bad, good = RawStream(channel, tenant="bad"), RawStream(channel, tenant="good")
        for stream in (bad, good):
            await stream.send(opening(digest, max_new_tokens=10))
            assert isinstance(await stream.read(), Opened)
        callers.revoked.add("bad")
        failure = await bad.failure()
        assert failure.status == "UNAVAILABLE", "its device comes back, and is refused unless it has a new credential"
        assert failure.message.startswith("authorization: the credential was revoked or has expired; open the stream")
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))

    play(tiny_pair, scenario, entrance=watched(observed, callers))
    outcomes = {ended.tenant: ended.outcome for ended in observed.of(StreamEnded) if isinstance(ended, StreamEnded)}
    assert outcomes == {"bad": Outcome.MOVED, "good": Outcome.CLOSED}


def test_a_drafter_whose_tokens_never_stand_is_held_to_single_tokens(tiny_pair: Path, digest: str) -> None:
    observed = Observed()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel, tenant="wrong")
        await stream.send(opening(digest, max_new_tokens=200))
        twin, text, most, revision = FakeTarget(load_vocabulary(tiny_pair)), [5, 6, 7], 4, 0
        for _ in range(34):
            wrong = int(twin.logits(text).argmax()) ^ 1
            await stream.send(draft(*[wrong] * min(most, 4), start=len(text), revision=revision))
            while not isinstance(verdict := await stream.read(), Verdict):
                assert isinstance(verdict, Opened)
                most = verdict.max_span_tokens or most
            text.append(verdict.token_id)
            revision = verdict.revision
        assert most == 1
        stream.cancel()

    play(tiny_pair, scenario, entrance=watched(observed))
    verified = [answer.verified for answer in observed.of(Answered) if isinstance(answer, Answered)]
    assert verified == [4] * 33 + [1], "one more was on its way"


def test_a_prompt_beyond_a_quota_is_refused_for_good_and_the_quota_is_named(tiny_pair: Path, digest: str) -> None:
    observed, quotas = Observed(), QuotasConfig(default=TenantQuota(max_prompt_tokens=1))

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel, tenant="long")
        await stream.send(opening(digest))
        failure = await stream.failure()
        assert (failure.status, failure.retry_after_ms) == ("INVALID_ARGUMENT", None)

    play(tiny_pair, scenario, entrance=watched(observed), quotas=quotas)
    (refused,) = observed.of(Refused)
    assert isinstance(refused, Refused)
    assert (refused.tenant, refused.reason) == ("long", "prompt_tokens")


def test_a_token_that_has_ended_is_observed_by_its_id(tiny_pair: Path, digest: str) -> None:
    class Ended(NamedCallers):
        async def authenticate(self, *_: object) -> Caller:
            raise TokenEnded("authorization: the token abc was revoked", token_id="abc")

    observed = Observed()

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        assert await RawStream(channel).status() == "UNAUTHENTICATED"

    play(tiny_pair, scenario, entrance=watched(observed, Ended()))
    (refused,) = observed.of(Refused)
    assert isinstance(refused, Refused)
    assert (refused.tenant, refused.token) == ("anonymous", "abc")
