"""The answers of `/readyz` in the life of a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.error import HTTPError

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.config import CloudConfig, LimitsConfig, TracingConfig
from cloud_supervisor.hosting.entrance import build_entrance
from cloud_supervisor.server import Server
from tests.support.cloud.metrics import Samples, fetch
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.fakes.target import fake_target
from tests.support.waiting import until

CONFIG = CloudConfig(listen="127.0.0.1:0", metrics="127.0.0.1:0", limits=LimitsConfig(max_sessions=1))


async def readiness(server: Server) -> tuple[int, str]:
    """Return status and word of `/readyz`, after a comparison with the gauge."""

    def ask() -> tuple[int, str]:
        try:
            found = 200, fetch(server.metrics_address, "/readyz").strip()
        except HTTPError as error:
            with error:
                found = error.code, error.read().decode().strip()
        ready = Samples(fetch(server.metrics_address, "/metrics"))("chaperone_ready")
        assert ready == (found[0] == 200)
        return found

    return await asyncio.to_thread(ask)


def test_readiness_follows_the_life_of_a_server(tiny_pair: Path, digest: str) -> None:
    async def scenario() -> None:
        entrance = build_entrance(CONFIG)
        server = Server(CONFIG, entrance=entrance)
        address = await server.start()
        assert await readiness(server) == (503, "loading")
        manifest = load_manifest(tiny_pair / "cloud", role="cloud")
        await server.host(build_cloud(CONFIG, fake_target(tiny_pair), manifest, entrance.observer))
        assert await readiness(server) == (200, "ready")
        async with raw_channel(address) as channel:
            stream = RawStream(channel)
            await stream.send(opening(digest))
            await stream.read()
            assert await readiness(server) == (503, "full")
            stream.cancel()
            await until(lambda: server.cloud.supervisor.sessions == 0, "the stream ended")
        assert await readiness(server) == (200, "ready")
        stopping = asyncio.create_task(server.stop(0, lame_duck_seconds=3.0))
        await until(lambda: server.readiness != "ready", "the server leaves")
        assert await readiness(server) == (503, "draining")
        await stopping
        assert server.readiness == "stopping"

    asyncio.run(scenario())


def test_without_an_address_there_are_no_metrics(tiny_pair: Path) -> None:
    async def scenario() -> None:
        server = Server(CloudConfig(listen="127.0.0.1:0"))
        await server.start()
        assert server.metrics_address == ""
        await server.stop(0)

    asyncio.run(scenario())


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://", "ftp://x/v1/traces", "http://x:99999/v1/traces"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="tracing.otlp_endpoint: .* write http://HOST:4318/v1/traces"):
        build_entrance(CloudConfig(tracing=TracingConfig(otlp_endpoint=endpoint)))


def test_a_collector_that_is_away_holds_nothing_up(tiny_pair: Path, digest: str) -> None:
    config = CONFIG.model_copy(update={"tracing": TracingConfig(otlp_endpoint="http://127.0.0.1:1/v1/traces")})

    async def scenario() -> None:
        entrance = build_entrance(config)
        manifest = load_manifest(tiny_pair / "cloud", role="cloud")
        server = Server(
            config, build_cloud(config, fake_target(tiny_pair), manifest, entrance.observer), entrance=entrance
        )
        address = await server.start()
        async with raw_channel(address) as channel:
            stream = RawStream(channel)
            await stream.send(opening(digest))
            await stream.read()
            stream.cancel()
            await until(lambda: server.cloud.supervisor.sessions == 0, "the stream ended")
        async with asyncio.timeout(20):
            await server.stop(0)

    asyncio.run(scenario())
