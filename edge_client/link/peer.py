"""The cloud of a client: one channel for each of its addresses, and the capabilities of each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.artefacts.registry import pairs_of_model
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.errors import ChaperoneError, ModelMismatch, TokenizerMismatch, VersionMismatch
from chaperone_common.frames import API_VERSION, Capabilities
from edge_client.config import CloudSettings
from edge_client.link.addresses import Outages, rendezvous_order
from edge_client.link.connection import Route
from edge_client.link.credentials import Credentials, read_addresses, read_credentials
from edge_client.link.grpc_link import GrpcCloud
from edge_client.link.search import Ask, Site, first_answer
from edge_client.ports import Cloud, CloudLink


class Reached(NamedTuple):
    """The addresses of one session, in the order to use them: the first one has answered."""

    sites: Sequence[Site]
    capabilities: Capabilities

    @property
    def cloud(self) -> Cloud:
        """The channel to the address that has answered."""
        return self.sites[0].cloud


class Peer:
    """The channels for all generations of a client. Capabilities are requested again after every loss."""

    def __init__(
        self,
        settings: CloudSettings,
        manifest: ModelManifest,
        cloud: Cloud | None = None,
        tracer: Any = None,
        clock: Clock | None = None,
    ) -> None:
        """`cloud` replaces the gRPC channels; `tracer` is an OpenTelemetry `Tracer`, or None. Raises ConfigError."""
        self._tracer = tracer
        self._settings = settings
        self._manifest = manifest
        self._given = cloud
        self._credentials: Credentials | None = None  # read when the first channel is made
        self._outages = Outages(clock or MonotonicClock())
        addresses = read_addresses(settings)[: None if cloud is None else 1]
        self._sites = {address: Site(address, self._channel) for address in addresses}

    async def connect(self, session_id: str = "", model_digest: str = "") -> Reached:
        """Return the addresses of a session, and the capabilities of the first one that answers.

        Another server may answer at an address after a loss, so capabilities are valid only as long as the connection.
        Raises CloudLost, Overloaded, PeerMismatch, or ModelMismatch if `model_digest` names another model.
        """
        order = self._outages.last(rendezvous_order(session_id, self._sites))
        sites = [self._sites[address] for address in order]
        index, capabilities = await first_answer(sites, self._settings.connect_timeout_ms, self._outages)
        site = sites[index]
        self._check(site.address, capabilities)
        site.keep(capabilities)
        if model_digest not in ("", capabilities.model_digest):
            raise ModelMismatch(
                f"model_digest: the text was begun with {model_digest}, {site.address} serves "
                f"{capabilities.model} with {capabilities.model_digest}; begin the text again, or serve "
                "the model that began it"
            )
        return Reached(sites[index:] + sites[:index], capabilities)

    def routes(self, reached: Reached) -> list[Route]:
        """Return the ways to the cloud for one generation, in the order to use them."""
        link = self._link()
        return [self._route(site, link) for site in reached.sites]

    def _route(self, site: Site, link: Callable[[Cloud], CloudLink]) -> Route:
        def on_loss(error: ChaperoneError) -> None:
            site.forget()
            if len(self._sites) > 1:
                self._outages.note(site.address, error.retry_after_ms)

        return Route(lambda: link(site.cloud), on_loss)

    def _link(self) -> Callable[[Cloud], CloudLink]:
        """Return what makes the streams of one generation, in its trace where the application wants one."""
        if self._tracer is None:
            return lambda cloud: cloud.link()
        from edge_client.link.tracing import GenerationTrace  # needs a package that few devices have

        return GenerationTrace(self._tracer).link

    def forget(self) -> None:
        """Request the capabilities again before the next generation: the cloud may have been replaced."""
        for site in self._sites.values():
            site.forget()

    def leave_loop(self) -> None:
        """Make new channels when they are next needed: the event loop of the old ones has ended."""
        for site in self._sites.values():
            site.drop()

    async def close(self) -> None:
        """End the channels; idempotent."""
        made = [site.drop() for site in self._sites.values()]
        self._credentials = None
        clouds = made if self._given is None else [self._given]
        await asyncio.gather(*(cloud.close() for cloud in clouds if cloud is not None))

    def _channel(self, address: str) -> tuple[Cloud, Ask]:
        """Return a new channel, and what asks it for its capabilities: with one address, it waits for a connection."""
        if self._given is not None:
            return self._given, self._given.capabilities
        if self._credentials is None:
            self._credentials = read_credentials(self._settings, os.environ)
        cloud = GrpcCloud(address, self._credentials)
        return cloud, cloud.ask if len(self._sites) > 1 else cloud.capabilities

    def _check(self, address: str, capabilities: Capabilities) -> None:
        if capabilities.api_version != API_VERSION:
            raise VersionMismatch(
                f"api_version: {address} speaks {capabilities.api_version}, this device "
                f"{API_VERSION}; update the {'cloud' if capabilities.api_version < API_VERSION else 'device'}"
            )
        if capabilities.tokenizer_digest != self._manifest.tokenizer_digest:
            raise TokenizerMismatch(self._other_pair(address, capabilities))

    def _other_pair(self, address: str, capabilities: Capabilities) -> str:
        """Return the message for a cloud of another pair: the device knows its model, and perhaps the pair's name."""
        mine, model = self._manifest.pair, capabilities.model
        pairs = [name for name in pairs_of_model(model) if name != mine]
        served = f"{' or '.join(map(repr, pairs))} ({model})" if pairs else f"the model {model}"
        named = f"--pair {' or '.join(pairs)}" if pairs else "--pair with the name of its pair"
        return (
            f"pair: {address} serves {served}, not {mine!r}; give {named}, or another cloud address (tokenizer_digest: "
            f"there {capabilities.tokenizer_digest}, here {self._manifest.tokenizer_digest})"
        )
