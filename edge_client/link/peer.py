"""The cloud of a client: its channel and its capabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import ModelMismatch, TokenizerMismatch, VersionMismatch
from chaperone_common.frames import API_VERSION, Capabilities
from edge_client.config import CloudSettings
from edge_client.link.grpc_link import GrpcCloud
from edge_client.ports import Cloud, CloudLink


class Peer:
    """One channel for all generations of a client. Its capabilities are requested again after every loss."""

    def __init__(
        self, settings: CloudSettings, manifest: ModelManifest, cloud: Cloud | None = None, tracer: Any = None
    ) -> None:
        """`cloud` replaces the gRPC channel; `tracer` is an OpenTelemetry `Tracer`, or None."""
        self._tracer = tracer
        self._settings = settings
        self._manifest = manifest
        self._given = cloud
        self._cloud = cloud
        self._capabilities: Capabilities | None = None

    async def connect(self, model_digest: str = "") -> tuple[Cloud, Capabilities]:
        """Return the channel, and the cloud's capabilities.

        Another cloud may answer at the address after a loss, so capabilities are valid only as long as the connection.
        Raises CloudLost, PeerMismatch, or ModelMismatch if `model_digest` names another model.
        """
        if self._cloud is None:
            self._cloud = GrpcCloud(self._settings)
        cloud = self._cloud
        if self._capabilities is None or not cloud.connected:
            self._capabilities = None
            capabilities = await cloud.capabilities(self._settings.connect_timeout_ms)
            self._check(capabilities)
            self._capabilities = capabilities
        if model_digest not in ("", self._capabilities.model_digest):
            raise ModelMismatch(
                f"model_digest: the text was begun with {model_digest}, {self._settings.address} serves "
                f"{self._capabilities.model} with {self._capabilities.model_digest}; begin the text again, or serve "
                "the model that began it"
            )
        return cloud, self._capabilities

    def links(self, cloud: Cloud) -> Callable[[], CloudLink]:
        """Return a function that makes the streams of one generation; a second stream means that the first was lost."""
        made, connect = False, self._traced(cloud)

        def link() -> CloudLink:
            nonlocal made
            if made:
                self.forget()
            made = True
            return connect()

        return link

    def _traced(self, cloud: Cloud) -> Callable[[], CloudLink]:
        """Return what makes the streams of one generation, in its trace where the application wants one."""
        if self._tracer is None:
            return cloud.link
        from edge_client.link.tracing import GenerationTrace  # needs a package that few devices have

        return GenerationTrace(self._tracer, cloud).link

    def forget(self) -> None:
        """Request the capabilities again before the next generation: the cloud may have been replaced."""
        self._capabilities = None

    def leave_loop(self) -> None:
        """Make a new channel when one is next needed: the event loop of the old one has ended."""
        self._cloud = self._given
        self._capabilities = None

    async def close(self) -> None:
        """End the channel; idempotent."""
        cloud, self._cloud = self._cloud, self._given
        self._capabilities = None
        if cloud is not None:
            await cloud.close()

    def _check(self, capabilities: Capabilities) -> None:
        if capabilities.api_version != API_VERSION:
            raise VersionMismatch(
                f"api_version: {self._settings.address} speaks {capabilities.api_version}, this device "
                f"{API_VERSION}; update the {'cloud' if capabilities.api_version < API_VERSION else 'device'}"
            )
        if capabilities.tokenizer_digest != self._manifest.tokenizer_digest:
            raise TokenizerMismatch(
                f"tokenizer_digest: {self._settings.address} serves {capabilities.model} with "
                f"{capabilities.tokenizer_digest}, this device has {self._manifest.tokenizer_digest}; "
                "use the same --pair on both ends"
            )
