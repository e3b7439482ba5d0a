"""One replica of many: a model, and the service in front of it. It does not import Ray."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from chaperone_common.address import is_loopback
from chaperone_common.clock import MonotonicClock
from chaperone_common.errors import ConfigError
from chaperone_common.frames import Failure
from chaperone_common.wire import encode_server
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.hosting.entrance import LocalCallers, build_entrance
from cloud_supervisor.hosting.loading import Weights
from cloud_supervisor.hosting.monitoring import Monitoring, Readiness
from cloud_supervisor.hosting.replica_calls import Context, Message, ReplicaCall, until_lost
from cloud_supervisor.observation import Observers
from cloud_supervisor.observers.log_output import log_output
from cloud_supervisor.observers.prometheus import PrometheusObserver
from cloud_supervisor.observers.queue_times import QueueTimes
from cloud_supervisor.scheduling.scaling import wanted_replicas
from cloud_supervisor.service import LAST_FAILURES_S, SupervisionService

_LOG = logging.getLogger(__name__)

_QUEUE_MS = "queue_ms"


class Bell:
    """An actor that lets replicas know that the service stops."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._left = 0

    async def wait(self) -> None:
        """Return when the service stops."""
        await self._rung.wait()

    async def ring(self) -> None:
        """Stop the service."""
        self._rung.set()

    async def leave(self) -> None:
        """Count a replica without streams."""
        self._left += 1

    async def left(self) -> int:
        """Return how many replicas have no streams any more."""
        return self._left


class Replica:
    """One replica: a model, and the service that devices reach through the proxy."""

    def __init__(self, config: CloudConfig, bell: Any, log_level: int) -> None:
        """Load the model. Ray Serve calls this in the event loop of the calls."""
        logging.getLogger().setLevel(log_level)
        self._log = log_output(config.logs.format)
        self._log.__enter__()  # until the process ends
        self._config = config
        self._bell = bell
        self._leaving = False
        self._queue_times = QueueTimes()
        entrance = build_entrance(config)
        callers = LocalCallers(entrance.callers) if is_loopback(config.listen) else entrance.callers
        observer = Observers([entrance.observer, self._queue_times])
        self._cloud = Weights.of_pair(config.pair).load(config, observer)
        self._service = SupervisionService(callers, config.limits, observer, MonotonicClock())
        self._service.host(self._cloud.supervisor, self._cloud.transfers)
        self._monitoring = self._monitored(entrance.instruments.metrics)
        self._tasks = [asyncio.create_task(self._service.watch_credentials()), asyncio.create_task(self._drain())]

    async def Supervise(  # noqa: N802 - the method's name on the wire
        self, requests: AsyncIterator[bytes], grpc_context: Context
    ) -> AsyncGenerator[Message, None]:
        """Serve one generation."""
        call = ReplicaCall(grpc_context, encode_server)
        async with aclosing(call.answers(functools.partial(self._service.supervise, until_lost(requests)))) as answers:
            async for message in answers:
                yield message

    async def GetCapabilities(self, _: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Send the model, the limits of one replica, and the quotas that the caller's tenant has there."""
        call = ReplicaCall(grpc_context, _nothing)
        async with aclosing(call.answers(self._service.get_capabilities)) as answers:
            return await anext(answers)

    async def FetchModel(self, request: bytes, grpc_context: Context) -> AsyncGenerator[Message, None]:  # noqa: N802
        """Send a file of the device's model."""
        call = ReplicaCall(grpc_context, _nothing)
        fetch = functools.partial(self._service.fetch_model, _only(request))
        async with aclosing(call.answers(fetch)) as answers:
            async for message in answers:
                yield message

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the queue time since the last call, for `QueueTimePolicy`."""
        return {_QUEUE_MS: self._queue_times.read_ms(waiting=self._cloud.runner.queue_length > 0)}

    @property
    def _readiness(self) -> Readiness:
        if self._leaving:
            return Readiness.DRAINING
        return Readiness.FULL if self._cloud.supervisor.full else Readiness.READY

    def _monitored(self, metrics: PrometheusObserver | None) -> Monitoring | None:
        """Serve metrics on the first free port from that of the settings on, so that each replica has one."""
        if metrics is None or self._config.metrics is None:
            return None
        metrics.watch(ready=lambda: self._readiness is Readiness.READY, queue=lambda: self._cloud.runner)
        host, _, first = self._config.metrics.rpartition(":")
        ports = range(int(first), int(first) + 2 * self._config.ray.most_replicas)  # twice: while one is replaced
        for port in ports if int(first) else (0,):
            try:
                monitoring = Monitoring(f"{host}:{port}", metrics.application(), lambda: self._readiness)
            except ConfigError:
                continue
            monitoring.start()
            return monitoring
        raise ConfigError(f"metrics: {self._config.metrics!r}: no port up to {ports[-1]} is free; choose another one")

    async def _drain(self) -> None:
        """Wait for the bell. Then let open streams finish, and send the others away."""
        await self._bell.wait.remote()
        self._leaving = True
        await asyncio.sleep(self._config.lame_duck_seconds)
        self._cloud.supervisor.drain()
        await self._service.until_idle(self._config.grace_seconds)
        _LOG.info("open streams handed over: %d", self._cloud.supervisor.hand_over())
        await self._service.until_idle(LAST_FAILURES_S)
        await self._bell.leave.remote()


class QueueTimePolicy:
    """Ray Serve's autoscaling by the queue times of all replicas. Serve itself adds bounds and delays."""

    def __init__(self, target_queue_ms: float) -> None:
        self._target_queue_ms = target_queue_ms

    def __call__(self, ctx: Any) -> tuple[float, dict[str, Any]]:
        """Return the wanted number of replicas, and no state."""
        by_replica = (ctx.aggregated_metrics or {}).get(_QUEUE_MS, {})
        if not by_replica:
            return ctx.target_num_replicas, {}
        queue_ms = sum(by_replica.values()) / len(by_replica)
        return wanted_replicas(ctx.current_num_replicas, queue_ms, self._target_queue_ms), {}


async def _only(request: bytes) -> AsyncGenerator[bytes, None]:
    yield request


def _nothing(_: Failure) -> bytes:
    return b""
