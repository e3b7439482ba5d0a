"""Start and stop: loading, ready, draining; a server that stops sends its devices to another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.frames import Failure, Opened
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.config import CloudConfig, TlsConfig
from cloud_supervisor.hosting.monitoring import Readiness
from cloud_supervisor.security.certificates import make_certificates
from cloud_supervisor.server import Server
from edge_client.config import CloudSettings
from edge_client.link.addresses import rendezvous_order
from edge_client.link.peer import Peer
from tests.support.cloud.raw_stream import RawStream, health_of, opening, raw_channel
from tests.support.cloud.scenario import load_vocabulary, play, write_to_the_end
from tests.support.fakes.target import FakeTarget, fake_target
from tests.support.processes.servers import serving
from tests.support.waiting import until

HAND_OVER = Failure("UNAVAILABLE", "the cloud is shutting down; open the stream again, on another server", 100)


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


@pytest.mark.parametrize("lame_duck", [True, False])
def test_open_texts_finish_while_a_server_drains(tiny_pair: Path, digest: str, lame_duck: bool) -> None:
    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        good = RawStream(channel)
        await good.send(opening(digest, max_new_tokens=10))
        assert isinstance(await good.read(), Opened)
        stopping = asyncio.create_task(server.stop(60, lame_duck_seconds=60 if lame_duck else 0))
        await until(lambda: server.readiness is Readiness.DRAINING, "it drains")
        new = RawStream(channel)
        if lame_duck:
            assert await health_of(channel) == "NOT_SERVING"
            await new.send(opening(digest, "new", max_new_tokens=10))
            await write_to_the_end(new, FakeTarget(load_vocabulary(tiny_pair)))
        else:
            assert await new.status() == "UNAVAILABLE"
        assert not stopping.done()
        await write_to_the_end(good, FakeTarget(load_vocabulary(tiny_pair)))
        if lame_duck:
            stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=lame_duck)

    play(tiny_pair, scenario)


def test_texts_that_do_not_finish_in_time_are_handed_over_with_a_reason(
    tiny_pair: Path, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cloud_supervisor")

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        stream = RawStream(channel)
        await stream.send(opening(digest, max_new_tokens=10))
        assert isinstance(await stream.read(), Opened)
        stopping = asyncio.create_task(server.stop(0.05))
        assert await stream.failure() == HAND_OVER
        await stopping

    play(tiny_pair, scenario)
    assert "open streams handed over: 1" in caplog.messages


def test_health_cannot_be_watched(tiny_pair: Path) -> None:
    """A watcher that does not read would hold up every change of health, and so the end of the server."""

    async def scenario(server: Server, channel: grpc.aio.Channel, address: str) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="ask by Check"):
            async for _ in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
                pass

    play(tiny_pair, scenario)


def first_of(session_id: str, *addresses: str) -> str:
    return rendezvous_order(session_id, addresses)[0]


def test_a_device_leaves_a_server_that_is_loading_for_the_next_one(tiny_pair: Path) -> None:
    async def scenario() -> None:
        loading = Server(CloudConfig(listen="127.0.0.1:0"))
        first = await loading.start()
        async with serving(fake_target(tiny_pair), tiny_pair) as (server, second):
            peer = Peer(CloudSettings(address=(first, second)), load_manifest(tiny_pair / "edge", role="edge"))
            session_id = next(str(number) for number in range(100) if first_of(str(number), first, second) == first)
            reached = await peer.connect(session_id)
            assert reached.sites[0].address == second
            assert reached.capabilities.model_digest == server.cloud.supervisor.capabilities.model_digest
            await peer.close()
        await loading.stop(0)

    asyncio.run(scenario())


def test_a_server_reports_a_bad_new_certificate_without_a_handshake(
    tiny_pair: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_certificates(tmp_path, ["127.0.0.1"])
    tls = TlsConfig(cert_file=tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
    config = CloudConfig(listen="127.0.0.1:0", tls=tls)

    async def scenario() -> None:
        manifest = load_manifest(tiny_pair / "cloud", role="cloud")
        server = Server(config, build_cloud(config, fake_target(tiny_pair), manifest))
        await server.start()
        (tmp_path / "key.pem").write_text("half a k")
        await until(lambda: "what was loaded before stays in use" in caplog.text, "the bad key is in the log")
        await server.stop(0)

    asyncio.run(scenario())
