"""The service on Ray Serve: a proxy, and replicas with a model each. The proxy keeps every session on its replica.

A session is a list of tokens and a seed, so that any replica can continue it. Import this module after
`ray_settings.prepare_ray`.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, RequestRouterConfig, gRPCOptions
from ray.serve.schema import LoggingConfig

from chaperone_common.address import host_and_port
from chaperone_common.command.signals import ended_at_once, first_and_second_signal
from chaperone_common.errors import ConfigError
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.hosting.entrance import build_entrance
from cloud_supervisor.hosting.loading import Weights
from cloud_supervisor.hosting.process import check_free
from cloud_supervisor.hosting.replica import Bell, QueueTimePolicy, Replica
from cloud_supervisor.service import LAST_FAILURES_S

_LOG = logging.getLogger(__name__)

_APPLICATION = "chaperone"
_DEPLOYMENT = "supervision"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_ROUTES = "cloud_supervisor.hosting.grpc_calls.add_routes"
_OBJECT_STORE_BYTES = 128 << 20  # frames are small, and most never get there
_STOP_S = 5.0  # for replicas to end after their streams
_POLL_S = 0.05


def serve(config: CloudConfig, announce: Callable[[str], None]) -> None:
    """Start replicas and serve until SIGINT or SIGTERM.

    `announce` receives the address when all are ready. The log has a line when they begin to load.
    The first signal drains: open streams finish or are sent away. A second one ends the process at once, and with it a
    cluster that it started. Raises ConfigError if the replicas cannot start.
    """
    build_entrance(config).callers.close()
    weights = Weights.of_pair(config.pair)
    check_free(config.listen)
    _LOG.info("%s", weights.announced(config))
    port = host_and_port(config.listen, any_port=True)[1] or _free_port()
    stopped = threading.Event()
    with ended_at_once(), _cluster(config):
        bell = ray.remote(num_cpus=0)(Bell).remote()
        _start_proxy(config, port)
        try:
            ray_serve.run(_application(config, bell), name=_APPLICATION, route_prefix=f"/{_APPLICATION}")
        except RuntimeError as error:
            raise ConfigError(f"ray: the replicas do not start: {error}") from None
        with first_and_second_signal(stopped.set):
            announce(f"{config.listen.rpartition(':')[0]}:{port}")
            stopped.wait()
            _LOG.info(
                "draining: all goes on for %s s, then open streams have %s s to finish; a second signal ends at once",
                config.lame_duck_seconds,
                config.grace_seconds,
            )
            _stop(config, bell)


@contextmanager
def _cluster(config: CloudConfig) -> Iterator[None]:
    """Join the cluster of the settings, or start one on this machine and end it afterwards."""
    quiet = {"log_to_driver": True, "logging_level": logging.WARNING}
    if config.ray.cluster is not None:
        try:
            ray.init(address=config.ray.cluster, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"ray.cluster: {config.ray.cluster!r} cannot be joined: {error}") from None
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="chaperone-ray-")
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, _cpus(config) * config.ray.most_replicas),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            **quiet,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start_proxy(config: CloudConfig, port: int) -> None:
    logs = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray_serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=_free_port()),
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[_ROUTES], enable_reflection=False),
        logging_config=logs,
    )


def _application(config: CloudConfig, bell: Any) -> Any:
    streams = config.limits.max_streams
    settings: dict[str, Any] = {"num_replicas": config.ray.replicas}
    if config.ray.most_replicas > config.ray.replicas:
        policy = AutoscalingPolicy(
            policy_function=QueueTimePolicy, policy_kwargs={"target_queue_ms": config.ray.target_queue_ms}
        )
        settings = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=config.ray.replicas, max_replicas=config.ray.most_replicas, policy=policy
            )
        }
    deployment = ray_serve.deployment(Replica).options(
        name=_DEPLOYMENT,
        ray_actor_options={"num_cpus": _cpus(config), "num_gpus": 0 if config.device == "cpu" else 1},
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        max_ongoing_requests=2 * streams,  # our own limit, which says why it refuses, comes first
        max_queued_requests=streams,
        graceful_shutdown_wait_loop_s=_POLL_S,
        graceful_shutdown_timeout_s=config.grace_seconds,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        **settings,
    )
    return deployment.bind(config, bell, logging.getLogger().level)


def _stop(config: CloudConfig, bell: Any) -> None:
    """Let the replicas drain, and end them."""
    ray.get(bell.ring.remote())
    ends_at = time.monotonic() + config.lame_duck_seconds + config.grace_seconds + LAST_FAILURES_S + _STOP_S
    while ray.get(bell.left.remote()) < _running() and time.monotonic() < ends_at:
        time.sleep(_POLL_S)
    if config.ray.cluster is not None:
        ray_serve.delete(_APPLICATION)


def _running() -> int:
    """Return how many replicas run."""
    deployments = ray_serve.status().applications[_APPLICATION].deployments
    return int(deployments[_DEPLOYMENT].replica_states.get("RUNNING", 0))


def _cpus(config: CloudConfig) -> int:
    return config.threads or 1


def _free_port() -> int:
    with socket.socket(socket.AF_INET) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
