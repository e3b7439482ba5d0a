"""The process: the model, and a gRPC server that hosts the cloud above it."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chaperone_common.address import is_loopback
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.command.program import EXIT_SIGNAL
from chaperone_common.errors import ConfigError
from chaperone_common.wire import SERVICE
from cloud_supervisor.assembly import Cloud, build_cloud
from cloud_supervisor.config import CloudConfig, check_listen
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.service import SupervisionService

_LOG = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the timeout of a keepalive ping; the option above does not set it
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)


class Server:
    """A supervisor on a listening port."""

    def __init__(self, config: CloudConfig, cloud: Cloud) -> None:
        refuse_elsewhere(config.listen)
        limits = config.limits
        self.cloud = cloud
        self._listen = config.listen
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=limits.max_streams,
            options=(*_OPTIONS, ("grpc.max_receive_message_length", limits.max_message_kib << 10)),
        )

    async def start(self) -> str:
        """Listen, report healthy, and return the address with the assigned port."""
        self._server.add_generic_rpc_handlers((SupervisionService(self.cloud.supervisor).handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise ConfigError(f"listen: {self._listen!r} cannot be bound ({error}); choose a free port") from None
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self._listen if self._listen.startswith("unix:") else f"{self._listen.rpartition(':')[0]}:{port}"

    async def stop(self, grace_seconds: float) -> None:
        """Take no new stream, give the open ones time to finish, then end them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
        await self.cloud.close()


def refuse_elsewhere(address: str) -> None:
    """Raise ConfigError for an invalid address, or one that other machines can reach."""
    try:
        check_listen(address)
    except ValueError as error:
        raise ConfigError(f"listen: {address!r}: {error}") from None
    if not is_loopback(address):
        raise ConfigError(
            f"listen: {address!r} can be reached from other machines, which needs TLS; use 127.0.0.1:PORT, "
            "and a proxy that ends TLS in front of it"
        )


def serve(config: CloudConfig, announce: Callable[[str], None]) -> None:
    """Load the model and serve until SIGINT or SIGTERM; `announce` receives the address.

    Cheap checks come first. Until the address is announced, Ctrl-C raises KeyboardInterrupt. After that the first
    signal lets streams end. A second one ends the process at once, with exit code 128 plus its number.
    """
    refuse_elsewhere(config.listen)
    check_free(config.listen)
    folder = pair_folder(config.pair, "cloud")
    manifest = load_manifest(folder, role="cloud")
    from cloud_supervisor.model.torch_model import TorchModel  # takes seconds to import

    model = TorchModel.of_manifest(folder, manifest, dtype=config.dtype, threads=config.threads, device=config.device)
    _LOG.info("%s computes in %s on %s", manifest.model, model.dtype, config.device)
    asyncio.run(_host(config, model, manifest, announce))


async def _host(
    config: CloudConfig, model: TargetModel, manifest: ModelManifest, announce: Callable[[str], None]
) -> None:
    server = Server(config, build_cloud(config, model, manifest))
    stopped = asyncio.Event()
    with first_and_second_signal(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stopped.set)):
        announce(await server.start())
        await stopped.wait()
        _LOG.info("stopping: open streams have %s s to finish; a second signal ends at once", config.grace_seconds)
        await server.stop(config.grace_seconds)


@contextmanager
def first_and_second_signal(stop: Callable[[], object]) -> Iterator[None]:
    """Within the block let the first SIGINT or SIGTERM call `stop`, and the second one end the process at once.

    These are Python's own handlers, not the event loop's. So the second signal works even if the loop is stuck.
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(EXIT_SIGNAL + number)
        received.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_free(address: str) -> None:
    """Raise ConfigError if nothing can listen on an address; called before a model is loaded for seconds."""
    if address.startswith("unix:"):
        folder = Path(address.removeprefix("unix:")).parent
        if not folder.is_dir():
            raise ConfigError(f"listen: {address!r} cannot be bound: {folder} is not a folder")
        return
    host, _, port = address.rpartition(":")
    try:
        candidates = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"listen: {address!r} cannot be bound ({error.strerror}); use 127.0.0.1:PORT") from None
    problem: str | None = None
    for family, kind, protocol, _, where in candidates:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections that were closed
                probe.bind(where)
                return  # gRPC, too, needs only one of several addresses
        except OSError as error:
            problem = error.strerror
    raise ConfigError(f"listen: {address!r} cannot be bound ({problem}); choose a free port")
