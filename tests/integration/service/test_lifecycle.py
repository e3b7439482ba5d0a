"""Start and stop: loading, ready, draining; a server that stops sends its devices to another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.frames import Failure, Opened
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.observation import Refused
from cloud_supervisor.server import Readiness, Server
from edge_client import CloudSettings, EdgeClient
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.cloud.scenario import load_vocabulary, play, write_to_the_end
from tests.support.cloud.watched import Observed, watched
from tests.support.fakes.target import FakeTarget, fake_target
from tests.support.processes.clients import config_for
from tests.support.waiting import PATIENCE_S, until

HAND_OVER = Failure("UNAVAILABLE", "the cloud is shutting down; open the stream again, on another server", 100)


async def health_of(channel: grpc.aio.Channel) -> str:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def test_a_server_listens_before_its_model_is_loaded(tiny_pair: Path, digest: str) -> None:
    async def scenario() -> None:
        config = CloudConfig(listen="127.0.0.1:0")
        server = Server(config)
        address = await server.start()
        async with raw_channel(address) as channel:
            assert str(server.readiness) == "loading"
            assert await health_of(channel) == "NOT_SERVING"
            early = RawStream(channel)
            assert await early.status() == "UNAVAILABLE"
            assert (await early.details()).message == "the cloud is loading its model; try again"
            manifest = load_manifest(tiny_pair / "cloud", role="cloud")
            await server.host(build_cloud(config, fake_target(tiny_pair), manifest))
            assert await health_of(channel) == "SERVING"
            assert str(server.readiness) == "ready"
            stream = RawStream(channel)
            await stream.send(opening(digest, max_new_tokens=10))
            await write_to_the_end(stream, FakeTarget(load_vocabulary(tiny_pair)))
        await server.stop(0)

    asyncio.run(scenario())


def test_a_device_waits_for_a_cloud_that_loads(tiny_pair: Path) -> None:
    async def scenario() -> None:
        config, observed = CloudConfig(listen="127.0.0.1:0"), Observed()
        server = Server(config, entrance=watched(observed))
        address = await server.start()
        async with EdgeClient(config_for(address, cloud=CloudSettings(connect_timeout_ms=PATIENCE_S * 1e3))) as client:
            asking = asyncio.create_task(client.capabilities())
            await until(lambda: bool(observed.of(Refused)), "it was refused")
            manifest = load_manifest(tiny_pair / "cloud", role="cloud")
            await server.host(build_cloud(config, fake_target(tiny_pair), manifest))
            assert (await asking).model == manifest.model
        await server.stop(0)

    asyncio.run(scenario())


def test_a_lame_duck_reports_unhealthy_and_serves(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        draining = asyncio.create_task(server.drain(lame_duck_seconds=60, grace_seconds=60))
        await asyncio.sleep(0)
        assert server.readiness is Readiness.DRAINING
        assert await health_of(channel) == "NOT_SERVING"
        new = RawStream(channel)
        await new.send(opening(digest, "new", max_new_tokens=10))
        await write_to_the_end(new, FakeTarget(load_vocabulary(tiny_pair)))
        assert not draining.done()
        draining.cancel()

    play(tiny_pair, scenario)


def test_open_texts_finish_while_a_server_drains_and_new_ones_go_elsewhere(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        good, early = RawStream(channel), RawStream(channel)
        await good.send(opening(digest, max_new_tokens=10))
        assert isinstance(await good.read(), Opened)
        await until(lambda: server.cloud.supervisor.counters.streams == 2, "both are there")
        draining = asyncio.create_task(server.drain(grace_seconds=60))
        await until(lambda: server.cloud.supervisor.draining, "it drains")
        await early.send(opening(digest, "early"))
        assert await early.failure() == HAND_OVER
        assert server.readiness is Readiness.DRAINING
        async with raw_channel(address) as another:
            assert await RawStream(another).status() == "UNAVAILABLE"
        assert await RawStream(channel).status() == "UNAVAILABLE", "the connection is for the open streams alone"
        assert not draining.done()
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))
        await draining

    play(tiny_pair, scenario)


def test_texts_that_do_not_finish_in_time_are_handed_over_with_a_reason(tiny_pair: Path, digest: str) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest, max_new_tokens=10))
        assert isinstance(await stream.read(), Opened)
        await server.drain(grace_seconds=0.05)
        assert await stream.failure() == HAND_OVER

    play(tiny_pair, scenario)
