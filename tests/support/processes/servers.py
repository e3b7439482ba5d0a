"""A real server on a loopback port, in the event loop of the test or in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.hosting.entrance import Entrance, build_entrance
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.server import Server
from tests.support.waiting import PATIENCE_S


@asynccontextmanager
async def serving(
    model: TargetModel,
    pair: Path,
    config: CloudConfig | None = None,
    *,
    reconnect_grace_s: float = 0.0,
    manifest: ModelManifest | None = None,
    entrance: Entrance | None = None,
) -> AsyncIterator[tuple[Server, str]]:
    """Serve a model on a free port; yield the server and its address.

    The default of `manifest` is the pair's, and that of `entrance` is what the settings name.

    By default no session is kept for devices that reconnect, so that leaks show at once.
    """
    config = config or CloudConfig(pair=pair.name)
    limits = config.limits.model_copy(update={"reconnect_grace_s": reconnect_grace_s})
    config = config.model_copy(update={"listen": "127.0.0.1:0", "limits": limits})
    manifest = manifest or load_manifest(pair / "cloud", role="cloud")
    entrance = entrance or build_entrance(config)
    server = Server(config, build_cloud(config, model, manifest, entrance.observer), entrance=entrance)
    address = await server.start()
    try:
        yield server, address
    finally:
        await server.stop(0)


@contextmanager
def serving_in_thread(
    model: TargetModel, pair: Path, config: CloudConfig | None = None
) -> Iterator[tuple[Server, str]]:
    """Serve as `serving` does, for tests without an event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-server")
    thread.start()
    manager = serving(model, pair, config)
    try:
        started = asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop).result(PATIENCE_S)
        try:
            yield started
        finally:
            asyncio.run_coroutine_threadsafe(manager.__aexit__(None, None, None), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()
