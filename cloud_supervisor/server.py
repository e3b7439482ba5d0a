"""The process: a gRPC server, and the model that it hosts once it is loaded."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core writes to standard error, which nobody may be reading

import asyncio
import atexit
import functools
import gc
import logging
import signal
import threading
from collections.abc import Callable

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chaperone_common.clock import MonotonicClock
from chaperone_common.command.signals import ended_at_once, first_and_second_signal
from chaperone_common.errors import ConfigError
from chaperone_common.wire import SERVICE
from cloud_supervisor.assembly import Cloud
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.hosting.entrance import Entrance, build_entrance
from cloud_supervisor.hosting.grpc_calls import handler_of
from cloud_supervisor.hosting.loading import Weights
from cloud_supervisor.hosting.monitoring import Monitoring, Readiness
from cloud_supervisor.hosting.process import check_free, raise_descriptor_limit
from cloud_supervisor.service import LAST_FAILURES_S, SupervisionService

_LOG = logging.getLogger(__name__)

_MINUTE_MS = 60_000
_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the timeout of a keepalive ping; the option above does not set it
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
    ("grpc.max_connection_idle_ms", 10 * _MINUTE_MS),  # a connection costs a file descriptor
    # A stream whose device does not read cannot be ended; only its connection can. Devices open their streams again.
    ("grpc.max_connection_age_ms", 30 * _MINUTE_MS),
    ("grpc.max_connection_age_grace_ms", 10 * _MINUTE_MS),
    ("grpc.http2.max_header_list_size", 16 << 10),
    # No device compresses its frames. A compressed message is passed on as it is, and is no frame.
    ("grpc.per_message_decompression", 0),
)
_GRPC_LOG = "grpc._cython.cygrpc"
_TLS_CHECK_S = 1.0


class _Health(health.aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health checks without `Watch`: a watcher that does not read would hold the lock that every change needs."""

    async def Watch(self, request: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:  # noqa: N802
        """Refuse; clients then ask by `Check`, or take the service as healthy."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask by Check")


class Server:
    """A listening port. It refuses everybody until it hosts a cloud."""

    def __init__(self, config: CloudConfig, cloud: Cloud | None = None, *, entrance: Entrance | None = None) -> None:
        """Host a cloud at once, or later by `host`.

        Raises ConfigError for an address that needs TLS, and for certificates and tokens that cannot be used.
        """
        limits = config.limits
        self._config = config
        self._cloud = cloud
        self._entrance = entrance or build_entrance(config)
        self._service = SupervisionService(self._entrance.callers, limits, self._entrance.observer, MonotonicClock())
        self._health = _Health()
        self._watching: list[asyncio.Task[None]] = []
        self._monitoring: Monitoring | None = None
        self._leaving = False
        self._stopping = False
        self._server = grpc.aio.server(
            # No `maximum_concurrent_rpcs`: calls of strangers would count, and lock everybody out.
            options=(
                *_OPTIONS,
                ("grpc.max_receive_message_length", limits.max_message_kib << 10),
                ("grpc.max_concurrent_streams", 256),  # of one connection
            ),
        )

    @property
    def cloud(self) -> Cloud:
        """The cloud that is hosted."""
        assert self._cloud is not None, "call `host` first"
        return self._cloud

    @property
    def readiness(self) -> Readiness:
        """The state of the server, for those who send it devices. Any thread may ask."""
        if self._stopping:
            return Readiness.STOPPING
        supervisor = self._service.supervisor
        if supervisor is None:
            return Readiness.LOADING
        if self._leaving:
            return Readiness.DRAINING
        return Readiness.FULL if supervisor.full else Readiness.READY

    @property
    def metrics_address(self) -> str:
        """The address of `/metrics` and `/readyz`, with the assigned port; "" without one."""
        return self._monitoring.address if self._monitoring is not None else ""

    async def start(self) -> str:
        """Listen, and return the address with the assigned port."""
        self._monitoring = monitoring = self._monitored()
        try:
            address = await self._listen()
        except BaseException:
            if monitoring is not None:
                monitoring.close()
            raise
        if monitoring is not None:
            monitoring.start()
        return address

    async def _listen(self) -> str:
        self._server.add_generic_rpc_handlers((handler_of(self._service),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        listen, tls = self._config.listen, self._entrance.tls
        try:
            if tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, tls.credentials())
        except RuntimeError as error:
            raise ConfigError(f"listen: {listen!r} cannot be bound ({error}); choose a free port") from None
        logging.getLogger(_GRPC_LOG).addFilter(_is_worth_a_line)
        await self._server.start()
        if self._cloud is None:
            await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        else:
            await self.host(self._cloud)
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    async def host(self, cloud: Cloud) -> None:
        """Serve this cloud from now on, and report healthy."""
        self._cloud = cloud
        self._service.host(cloud.supervisor, cloud.transfers)
        for watch in (self._service.watch_credentials(), self._watch_tls()):
            self._watching.append(asyncio.create_task(watch))
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_seconds: float, *, lame_duck_seconds: float = 0.0) -> None:
        """Report unhealthy, then close the port, let open streams finish, and send the others to another server.

        For `lame_duck_seconds` all goes on, so that those who send devices notice. Then connected devices have to
        go elsewhere, and open streams have `grace_seconds`.
        """
        self._leaving = True
        supervisor = self._service.supervisor
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(lame_duck_seconds)
        if supervisor is not None:
            supervisor.drain()
        if supervisor is not None and grace_seconds > 0:
            # Open streams go on. Devices are asked to connect again, which this port then refuses: a device that stayed
            # on its connection would be sent away from this server again and again, and never reach another one.
            closing = asyncio.create_task(self._server.stop(grace_seconds + LAST_FAILURES_S))
            await self._service.until_idle(grace_seconds)
            _LOG.info("open streams handed over: %d", supervisor.hand_over())
            await self._service.until_idle(LAST_FAILURES_S)
            closing.cancel()
        self._stopping = True
        await self._server.stop(0)  # also ends calls that are no sessions
        for watching in self._watching:
            watching.cancel()
        if self._cloud is not None:
            await self._cloud.close()
        self._entrance.callers.close()
        await asyncio.to_thread(self._entrance.instruments.close)
        if self._monitoring is not None:
            await asyncio.to_thread(self._monitoring.close)

    def _monitored(self) -> Monitoring | None:
        """Take the port for metrics, if one is wanted."""
        metrics, tls = self._entrance.instruments.metrics, self._entrance.tls
        if metrics is None or self._config.metrics is None:
            return None
        metrics.watch(
            ready=lambda: self.readiness is Readiness.READY,
            queue=lambda: self._cloud.runner if self._cloud is not None else None,
            certificate_expires_at=None if tls is None else functools.partial(getattr, tls, "expires_at"),
        )
        return Monitoring(self._config.metrics, metrics.application(), lambda: self.readiness)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def _watch_tls(self) -> None:
        """Look at the files of TLS: gRPC asks for them at a handshake, and a new one may be unfit long before that."""
        while (tls := self._entrance.tls) is not None:
            tls.look()
            await asyncio.sleep(_TLS_CHECK_S)


def serve(config: CloudConfig, announce: Callable[[str], None]) -> None:
    """Listen, load the model and serve until SIGINT or SIGTERM.

    `announce` receives the address when the model is ready. The log has a line when it begins to load.
    Cheap checks come first. While the model is loaded, health and readiness say so, and a signal ends the process.
    After that the first one drains: open streams finish or move to another server. A second one ends the process at
    once, with exit code 128 plus its number. SIGHUP is ignored: tokens and certificates are read again anyway.
    """
    entrance = build_entrance(config)
    check_free(config.listen)
    weights = Weights.of_pair(config.pair)
    raise_descriptor_limit(config.limits)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # files are read again when they change
    # Python would look for garbage among all objects of torch before it ends: seconds, after the last work is done.
    atexit.register(gc.freeze)
    asyncio.run(_host(config, entrance, weights, announce))


async def _host(config: CloudConfig, entrance: Entrance, weights: Weights, announce: Callable[[str], None]) -> None:
    server = Server(config, entrance=entrance)
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    with ended_at_once():
        address = await server.start()
        _LOG.info("%s", weights.announced(config))
        try:
            cloud = await _in_daemon_thread(functools.partial(weights.load, config, entrance.observer))
        except BaseException:
            await server.stop(0)
            raise
    with first_and_second_signal(functools.partial(loop.call_soon_threadsafe, stopped.set)):
        await server.host(cloud)
        announce(address)
        await stopped.wait()
        _LOG.info(
            "draining: all goes on for %s s, then open streams have %s s to finish; a second signal ends at once",
            config.lame_duck_seconds,
            config.grace_seconds,
        )
        await server.stop(config.grace_seconds, lame_duck_seconds=config.lame_duck_seconds)
        _LOG.info("stopped")


async def _in_daemon_thread(load: Callable[[], Cloud]) -> Cloud:
    """Run a function in a thread for which the end of the process does not wait."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Cloud] = loop.create_future()

    def run() -> None:
        try:
            cloud = load()
        except BaseException as error:
            loop.call_soon_threadsafe(loaded.set_exception, error)
        else:
            loop.call_soon_threadsafe(loaded.set_result, cloud)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await loaded


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Drop the errors of gRPC that it cannot end a stream, because the device has reset it or reads nothing."""
    raised = record.exc_info[0] if record.exc_info else None
    return raised is None or raised.__name__ != "ExecuteBatchError"  # a class that gRPC does not export
