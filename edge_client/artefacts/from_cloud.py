"""A model from the device's own cloud."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from chaperone_common.artefacts.manifest import MAX_MANIFEST_BYTES, ManifestFile
from chaperone_common.clock import MonotonicClock
from chaperone_common.errors import (
    ChaperoneError,
    CloudLost,
    ModelMissing,
    Overloaded,
    PeerMismatch,
    PermissionDenied,
)
from chaperone_common.frames import FetchModel
from edge_client.config import CloudSettings
from edge_client.link.addresses import Outages
from edge_client.link.credentials import read_addresses, read_credentials
from edge_client.link.grpc_link import GrpcCloud
from edge_client.link.model_transfer import STALL_S, fetch_model
from edge_client.link.search import Ask, Site, first_answer
from edge_client.ports import Cloud

# With them another address may send the model. A cloud of a version that sends no models is a PeerMismatch.
_REFUSALS = (CloudLost, Overloaded, PermissionDenied, ModelMissing, PeerMismatch)


class CloudSource:
    """The `Source` port over the cloud of the settings. Of several addresses it uses the first that sends."""

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
        """Yield what the first address sends that does not refuse; raises only if all refuse, or one in mid-file."""
        left, refusals = list(self._sites), dict[str, ChaperoneError]()
        while left:
            try:
                # The search also says why no connection comes about.
                index, _ = await first_answer(left, self._settings.connect_timeout_ms, self._outages)
            except (CloudLost, Overloaded) as error:
                refusals[", ".join(site.address for site in left)] = error
                break
            site, began = left.pop(index), False
            try:
                async with aclosing(fetch_model(self._clouds[site.address], request, stall_s=self._stall_s)) as pieces:
                    async for piece in pieces:
                        if not began:
                            began = True
                            self._sites.sort(key=lambda each: each is not site)  # the next file is there, too
                        yield piece
                return
            except _REFUSALS as error:
                if began:
                    raise
                refusals[site.address] = error
        raise _refusal_of_all(refusals)

    def _connect(self, address: str) -> tuple[Cloud, Ask]:
        self._clouds[address] = cloud = GrpcCloud(address, self._credentials)
        return cloud, cloud.ask if len(self._addresses) > 1 else cloud.capabilities


def _refusal_of_all(refusals: Mapping[str, ChaperoneError]) -> ChaperoneError:
    """Return the error of all addresses together: one that may pass, if one of them may."""
    errors = list(refusals.values())
    if len(errors) == 1:
        return errors[0]
    kinds = (Overloaded, CloudLost)
    first = next((error for kind in kinds for error in errors if isinstance(error, kind)), errors[0])
    asked_ms = [error.retry_after_ms for error in errors if error.retry_after_ms is not None]
    problems = "; ".join(f"{address}: {error.message}" for address, error in refusals.items())
    return type(first)(f"cloud: no address sends the model: {problems}", retry_after_ms=min(asked_ms, default=None))
