"""A cloud with a pair of its own to damage, a device without any, and single calls of FetchModel."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from chaperone_common.artefacts.manifest import ManifestFile, ModelManifest
from chaperone_common.frames import FetchModel
from chaperone_common.wire import FETCH_MODEL, SERVICE, decode_model_data, encode_fetch_model
from cloud_supervisor.caller import Caller
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.hosting.entrance import Entrance
from cloud_supervisor.server import Server
from edge_client import CloudSettings, EdgeConfig
from tests.support.cloud.raw_stream import raw_channel
from tests.support.fakes.target import fake_target
from tests.support.processes.servers import serving

TINY = CloudConfig(pair="tiny")
BIG_BYTES = 64 << 20  # more than all buffers on the way

Scenario = Callable[[Server, str], Coroutine[Any, Any, None]]


def play(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
    config: CloudConfig = TINY,
    entrance: Entrance | None = None,
) -> None:
    """Serve the pair of `home`, then run a scenario of a device whose home is empty."""
    pair = home / "models" / "tiny"

    async def run() -> None:
        monkeypatch.setenv("CHAPERONE_HOME", str(home))
        async with serving(fake_target(pair), pair, config, entrance=entrance) as (server, address):
            monkeypatch.setenv("CHAPERONE_HOME", str(device_home(home)))
            await scenario(server, address)

    asyncio.run(run())


def device_home(home: Path) -> Path:
    """Return the home of the device."""
    return home.parent / "device"


def edge(home: Path) -> Path:
    """Return the folder of the device's model in a home."""
    return home / "models" / "tiny" / "edge"


def at(address: str, **settings: Any) -> EdgeConfig:
    """Return the settings of a device for the tiny pair."""
    return EdgeConfig(pair="tiny", cloud=CloudSettings(address=address, **settings))


def same_files(first: Path, second: Path) -> bool:
    """Return whether two folders hold the same files."""
    mine, theirs = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second))
    return mine == theirs


def manifest_of(folder: Path) -> ModelManifest:
    """Return the manifest of a model that may be damaged."""
    return ModelManifest.model_validate_json((folder / "manifest.json").read_bytes())


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Replace fields of a manifest."""
    manifest = manifest_of(folder).model_copy(update=changes)
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")


def make_big(home: Path) -> FetchModel:
    """Make the largest file larger than all buffers on its way, and return the request for it."""
    folder, content = edge(home), bytes(BIG_BYTES)
    (folder / "model.onnx.data").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    files = {**manifest_of(folder).files, "model.onnx.data": ManifestFile(bytes=len(content), sha256=sha256)}
    rewrite_manifest(folder, files=files)
    return FetchModel("tiny", "model.onnx.data", sha256)


async def fetched(address: str, request: FetchModel | bytes, **metadata: str) -> tuple[str, str, bytes]:
    """Return the status, its details and the bytes of one call."""
    content = b""
    async with raw_channel(address) as channel:
        try:
            async for data in begun(channel, request, **metadata):
                content += decode_model_data(data)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or "", content
    return "OK", "", content


def begun(
    channel: grpc.aio.Channel, request: FetchModel | bytes, **metadata: str
) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    """Begin a call."""
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    method = channel.unary_stream(f"/{SERVICE}/{FETCH_MODEL}")
    encoded = request if isinstance(request, bytes) else encode_fetch_model(request)
    return method(encoded, metadata=tuple(metadata.items()))


async def ending_of(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> tuple[str, str]:
    """Read a call to its end, and return the status and its details."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def transfers_of(server: Server, tenant: str) -> int:
    """Return how many transfers of a tenant are open."""
    states = server.cloud.supervisor.capabilities_for(Caller(tenant, "")).quotas
    return next(state.used for state in states if state.name == "transfers")
