"""Two replicas on Ray Serve: what devices see is what one server shows them, also when a replica is killed.

Starting takes a minute on a busy machine, so that all tests share a service. The last one ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo

from benchmarks.load.replicas import ENDED, OPEN
from chaperone_common.frames import Close, Failure, Opened
from chaperone_common.session import Committed, Finished
from chaperone_common.types import Mode
from chaperone_common.wire import (
    GET_CAPABILITIES,
    SERVICE,
    decode_capabilities,
    encode_capabilities_request,
)
from cloud_supervisor.config import CloudConfig, QuotasConfig, TenantQuota
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.security.tokens import TokenFile
from edge_client import EdgeClient, EdgeConfig, PeerMismatch, Unauthenticated, pull_model
from edge_client.config import CloudSettings
from edge_client.events import Event
from tests.support.chaos.texts import Text, request_for, some_texts
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.processes.clients import config_for, ending_of
from tests.support.processes.ray_service import RayService, ray_service
from tests.support.processes.servers import serving, serving_in_thread
from tests.support.pulling.clouds import same_files
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(400)

SESSIONS = 8
MOST_SESSIONS = 40  # if all before came to one replica
TOKENS = 120
TEXT_S = 120.0  # a text that takes longer has hung
ONE_SESSION = {"single": TenantQuota(max_sessions=1)}


class Service(NamedTuple):
    """A service, and tokens of two tenants; the second one may have a session only."""

    address: str
    token_file: Path
    single: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> tuple[Path, Path, str]:
    """Return the service's file of tokens, a device's file, and a token of the tenant with one session."""
    tokens_file, token_file = folder / "tokens", folder / "token"
    token_file.touch(0o600)
    token_file.write_text(TokenFile.create(tokens_file, "acme"), encoding="utf-8")
    return tokens_file, token_file, TokenFile.create(tokens_file, "single")


@pytest.fixture(scope="module")
def ray(folder: Path, tokens: tuple[Path, Path, str], tiny_pair: Path) -> Iterator[RayService]:
    settings = folder / "cloud.yaml"
    settings.write_text("quotas: {tenants: {single: {max_sessions: 1}}}\n", encoding="utf-8")
    with ray_service(folder, "--config", str(settings), "--tokens", str(tokens[0])) as service:
        yield service


@pytest.fixture(params=["grpc", "ray"])
def service(
    request: pytest.FixtureRequest, tokens: tuple[Path, Path, str], target: TorchModel, tiny_pair: Path
) -> Iterator[Service]:
    tokens_file, token_file, single = tokens
    with ExitStack() as stack:
        if request.param == "ray":
            address = request.getfixturevalue("ray").address
        else:
            config = CloudConfig(pair="tiny", tokens_file=tokens_file, quotas=QuotasConfig(tenants=ONE_SESSION))
            _, address = stack.enter_context(serving_in_thread(target, tiny_pair, config))
        yield Service(address, token_file, single)


# --- What both hosts promise -----------------------------------------------------------------------------------------


def stream_of(channel: grpc.aio.Channel, token: str, session: str = "one") -> RawStream:
    """Return a stream that a router sends where it sends the session."""
    return RawStream(channel, authorization=f"Bearer {token}", session_id=session)


async def capabilities(channel: grpc.aio.Channel, token: str) -> bytes:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{GET_CAPABILITIES}")
    return await method(encode_capabilities_request(), metadata=(("authorization", f"Bearer {token}"),))


def test_a_host_reports_capabilities_and_quotas(service: Service, digest: str) -> None:
    async def scenario() -> None:
        async with raw_channel(service.address) as channel:
            found = decode_capabilities(await capabilities(channel, service.single))
            assert found.tokenizer_digest == digest
            (sessions,) = [quota for quota in found.quotas if quota.name == "sessions"]
            assert sessions.limit == 1

    asyncio.run(scenario())


def test_a_host_sends_the_model_of_devices(
    service: Service, tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAPERONE_HOME", str(tmp_path))
    cloud = CloudSettings(address=service.address, token_file=service.token_file)
    pulled = asyncio.run(pull_model(EdgeConfig(pair="tiny", cloud=cloud)))
    assert same_files(pulled.folder, tiny_pair / "edge")
    with pytest.raises(PeerMismatch, match="pair: this cloud serves 'tiny', not 'other'; give --pair tiny"):
        asyncio.run(pull_model(EdgeConfig(pair="other", cloud=cloud)))
    with pytest.raises(Unauthenticated, match="no token; give --token-file or CHAPERONE_TOKEN"):
        asyncio.run(pull_model(EdgeConfig(pair="tiny", cloud=CloudSettings(address=service.address))))


def test_a_host_refuses_strangers(service: Service) -> None:
    async def scenario() -> None:
        async with raw_channel(service.address) as channel:
            stream = stream_of(channel, "chp_wrong")  # sends no frame: grpc.aio hides a refusal that a write meets
            while await stream.answered():
                pass
            assert await stream.status() == "UNAUTHENTICATED"
            assert "authorization" in (await stream.details()).message
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await capabilities(channel, "chp_wrong")
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "grpc-status-details-bin" in dict(refused.value.trailing_metadata() or ())

    asyncio.run(scenario())


def test_a_host_refuses_a_malformed_frame_on_its_stream_only(service: Service, digest: str) -> None:
    async def scenario() -> None:
        token = service.token_file.read_text()
        async with raw_channel(service.address) as channel:
            good, bad = stream_of(channel, token), stream_of(channel, token)
            await good.send(opening(digest, "good"))
            assert isinstance(await good.read(), Opened)
            await bad.send(b"\xff\xff\xff")
            assert (await bad.failure()).status == "OUT_OF_RANGE"
            await good.send(Close(3, ()))
            while await good.answered():
                pass
            assert await good.status() == "OK"

    asyncio.run(scenario())


def test_the_newest_open_of_a_session_wins(service: Service, digest: str) -> None:
    async def scenario() -> None:
        token = service.token_file.read_text()
        async with raw_channel(service.address) as channel, raw_channel(service.address) as other:
            older, newer = stream_of(channel, token), stream_of(other, token)
            await older.send(opening(digest, "moved"))
            assert isinstance(await older.read(), Opened)
            await newer.send(opening(digest, "moved"))
            assert isinstance(await newer.read(), Opened)
            assert (await older.failure()).status == "ABORTED"
            newer.cancel()

    asyncio.run(scenario())


def test_a_refusal_names_the_quota_and_a_device_that_leaves_gives_its_place_back(service: Service, digest: str) -> None:
    async def scenario() -> None:
        async with raw_channel(service.address) as channel:
            first, second = stream_of(channel, service.single), stream_of(channel, service.single)
            await first.send(opening(digest, "first"))
            assert isinstance(await first.read(), Opened)
            await second.send(opening(digest, "second"))
            assert (await second.failure()).status == "RESOURCE_EXHAUSTED"
            details = (await second.details()).details
            assert {each.type_url.rpartition(".")[2] for each in details} == {
                message.DESCRIPTOR.name for message in (RetryInfo, QuotaFailure)
            }
            first.cancel()
            async with asyncio.timeout(TEXT_S):
                while isinstance(await _opened(channel, service.single, digest), Failure):
                    pass

    asyncio.run(scenario())


async def _opened(channel: grpc.aio.Channel, token: str, digest: str) -> object:
    stream = stream_of(channel, token)
    await stream.send(opening(digest, "third"))
    try:
        return await stream.read()
    finally:
        stream.cancel()


# --- Replicas --------------------------------------------------------------------------------------------------------


def test_all_streams_of_a_session_come_to_one_replica(
    ray: RayService, tokens: tuple[Path, Path, str], digest: str
) -> None:
    async def scenario() -> None:
        token, homes = tokens[1].read_text(), set[str]()
        for number in range(MOST_SESSIONS):
            if number >= SESSIONS and len(homes) == 2:
                break
            before = ray.replicas.streams(OPEN, ENDED)
            for _ in range(3):
                async with raw_channel(ray.address) as channel:  # another connection each time
                    stream = stream_of(channel, token, f"session-{number}")
                    await stream.send(opening(digest, f"session-{number}"))
                    assert isinstance(await stream.read(), Opened)
                    stream.cancel()
            after = ray.replicas.streams(OPEN, ENDED)
            changes = {address: after[address] - before[address] for address in after}
            assert sorted(changes.values()) == [0, 3]
            homes.add(max(changes, key=lambda address: changes[address]))
        assert len(homes) == 2, "the sessions are spread over the replicas"

    asyncio.run(scenario())


def devices_of(address: str, token_file: Path | None = None) -> EdgeClient:
    cloud = CloudSettings(
        token_file=token_file, connect_timeout_ms=60_000.0, reconnect_timeout_ms=90_000.0, on_loss="fail"
    )
    return EdgeClient(config_for(address, cloud=cloud))


async def written(client: EdgeClient, text: Text, committed: list[int]) -> tuple[list[int], int]:
    """Write a text, and append its tokens to `committed` as they come; return it, and how often it reconnected."""
    events = list[Event]()
    async with asyncio.timeout(TEXT_S):
        async for event in client.stream(request_for(client, text)):
            events.append(event)
            if isinstance(event, Committed):
                committed.append(event.token_id)
    ending = ending_of(events)
    assert isinstance(ending, Finished), ending
    return [event.token_id for event in events if isinstance(event, Committed)], ending.stats.reconnects


async def undisturbed(target: TorchModel, pair: Path, texts: list[Text]) -> list[list[int]]:
    """Return the texts of one ordinary server."""
    async with serving(target, pair) as (_, address), devices_of(address) as client:
        return [(await written(client, text, []))[0] for text in texts]


def test_every_session_finishes_with_the_right_text_when_a_replica_is_killed(
    ray: RayService, tokens: tuple[Path, Path, str], target: TorchModel, tiny_pair: Path
) -> None:
    texts = some_texts(SESSIONS, (Mode.EXACT, Mode.CLOUD), seed=7, least=TOKENS, most=TOKENS)
    committed = list[int]()

    def kill_the_busiest() -> None:
        streams = ray.replicas.streams(OPEN)
        busiest = max(streams, key=lambda address: streams[address])
        assert streams[busiest] >= 1
        ray.replicas.by_address()[busiest].kill()

    async def scenario() -> tuple[list[list[int]], int]:
        async with devices_of(ray.address, tokens[1]) as client:
            writing = [asyncio.create_task(written(client, text, committed)) for text in texts]
            await until(lambda: len(committed) >= SESSIONS, "the devices write")
            await asyncio.to_thread(kill_the_busiest)
            endings = await asyncio.gather(*writing)
        return [tokens for tokens, _ in endings], sum(reconnects for _, reconnects in endings)

    expected = asyncio.run(undisturbed(target, tiny_pair, texts))
    found, reconnects = asyncio.run(scenario())
    assert reconnects >= 1, "no session was hit"
    assert found == expected


def test_a_stopping_service_lets_its_sessions_finish(
    ray: RayService, folder: Path, tokens: tuple[Path, Path, str], target: TorchModel, tiny_pair: Path
) -> None:
    texts = some_texts(1, (Mode.CLOUD,), seed=8, least=TOKENS, most=TOKENS)
    committed = list[int]()

    async def scenario() -> list[int]:
        async with devices_of(ray.address, tokens[1]) as client:
            writing = asyncio.create_task(written(client, texts[0], committed))
            await until(lambda: bool(committed), "the device writes")
            assert await asyncio.to_thread(ray.stop) == 0
            return (await writing)[0]

    started = ray.replicas.all_processes()
    (expected,) = asyncio.run(undisturbed(target, tiny_pair, texts))
    assert asyncio.run(scenario()) == expected
    log = (folder / "ray.log").read_text(errors="replace")
    assert "draining" in log
    assert "cannot be read" not in log, "devices that leave are no errors"
    assert "_ray_timestamp_ns" not in log
    assert [each for each in started if each.is_running() and each.status() != "zombie"] == []
