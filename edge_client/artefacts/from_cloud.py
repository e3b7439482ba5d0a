"""A model from the device's own cloud."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

from chaperone_common.artefacts.manifest import MAX_MANIFEST_BYTES, ManifestFile
from chaperone_common.clock import MonotonicClock
from chaperone_common.frames import FetchModel
from edge_client.config import CloudSettings
from edge_client.link.addresses import Outages
from edge_client.link.credentials import read_addresses, read_credentials
from edge_client.link.grpc_link import GrpcCloud
from edge_client.link.model_transfer import STALL_S, fetch_model
from edge_client.link.search import Ask, Site, first_answer
from edge_client.ports import Cloud


class CloudSource:
    """The `Source` port over the cloud of the settings. Of several addresses it uses the first that answers."""

    def __init__(self, pair: str, settings: CloudSettings, *, stall_s: float = STALL_S) -> None:
        """Read the credentials; raises ConfigError."""
        self._pair = pair
        self._settings = settings
        self._stall_s = stall_s
        self._addresses = read_addresses(settings)
        self._credentials = read_credentials(settings, os.environ)
        self._clouds: dict[str, GrpcCloud] = {}
        self._sites = [Site(address, self._connect) for address in self._addresses]
        self._outages = Outages(MonotonicClock())

    @property
    def place(self) -> str:
        return f"the cloud at {', '.join(self._addresses)}"

    async def manifest(self) -> bytes:
        content = b""
        async with aclosing(self._fetch(FetchModel(self._pair))) as pieces:
            async for piece in pieces:
                content += piece
                if len(content) > MAX_MANIFEST_BYTES:
                    break
        return content

    async def read(self, name: str, expected: ManifestFile, offset: int) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._fetch(FetchModel(self._pair, name, expected.sha256, offset))) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        for cloud in self._clouds.values():
            await cloud.close()

    async def _fetch(self, request: FetchModel) -> AsyncGenerator[bytes, None]:
        # The search also says why no connection comes about.
        index, _ = await first_answer(self._sites, self._settings.connect_timeout_ms, self._outages)
        cloud = self._clouds[self._addresses[index]]
        async with aclosing(fetch_model(cloud, request, stall_s=self._stall_s)) as pieces:
            async for piece in pieces:
                yield piece

    def _connect(self, address: str) -> tuple[Cloud, Ask]:
        self._clouds[address] = cloud = GrpcCloud(address, self._credentials)
        return cloud, cloud.ask if len(self._addresses) > 1 else cloud.capabilities
