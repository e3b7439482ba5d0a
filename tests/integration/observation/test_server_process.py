"""A server process: its log, which nobody may be reading, and its metrics, which open before the model is loaded."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.command.sizes import shown_bytes
from chaperone_common.errors import CloudUnavailable
from cloud_supervisor.config import CloudConfig, RayConfig
from cloud_supervisor.hosting.loading import Weights
from edge_client import CloudSettings, EdgeClient, EdgeConfig
from tests.support.cloud.metrics import Samples, fetch
from tests.support.cloud.raw_stream import RawStream, opening, raw_channel
from tests.support.cloud.scenario import draft
from tests.support.processes.commands import ROOT, announced, environment, server_process, start_python
from tests.support.waiting import PATIENCE_S, until

REFUSALS = 1500  # more than the queue of the log holds


@pytest.fixture
def config(tmp_path: Path, tiny_pair: Path) -> Path:
    """Return settings with a free port for metrics, a log in JSON, and no wait for devices at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "cloud.yaml"
    path.write_text(f"metrics: 127.0.0.1:{port}\nlogs:\n  format: json\ngrace_seconds: 0\n", encoding="utf-8")
    return path


def metrics_address(config: Path) -> str:
    return config.read_text(encoding="utf-8").split()[1]


@contextmanager
def unread(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, int]]:
    """Run a server whose standard error is a full pipe; yield it, its address, and the pipe's end for reading."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "tests.support.processes.fake_server", "--log-level", "debug", "serve"]
    command += ["--pair", "tiny", "--listen", "127.0.0.1:0", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writing, env=environment(), cwd=ROOT)
    try:
        assert process.stdout is not None
        address = announced(process.stdout)
        os.set_blocking(writing, False)  # the server shares the descriptor, and has made it block
        while True:
            try:
                os.write(writing, b"x" * 512 + b"\n")
            except BlockingIOError:
                break
        os.set_blocking(writing, True)
        yield process, address, reading
    finally:
        process.kill()
        process.communicate()
        os.close(writing)
        os.close(reading)


def test_a_log_that_nobody_reads_stops_nothing(config: Path, digest: str) -> None:
    async def refuse(address: str) -> None:
        """Be refused many times, which makes a line each at this level, and then ask for the metrics."""
        async with raw_channel(address) as channel:
            for _ in range(REFUSALS // 100):
                streams = [RawStream(channel) for _ in range(100)]
                for number, stream in enumerate(streams):
                    await stream.send(opening(digest, str(number)), draft(9, start=9))
                for stream in streams:
                    assert (await stream.failure()).status == "OUT_OF_RANGE"

        def dropped() -> float:
            samples = Samples(fetch(metrics_address(config), "/metrics"))
            assert samples("chaperone_refusals_total") == REFUSALS
            return samples("chaperone_log_records_dropped_total")

        await until(lambda: dropped() > 0, "dropped records counted")

    with unread(config) as (process, address, _):
        asyncio.run(refuse(address))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_the_log_is_json_and_says_where_the_metrics_are(config: Path) -> None:
    async def refuse(address: str) -> None:
        async with raw_channel(address) as channel:
            stream = RawStream(channel)
            await stream.send(draft(9))
            assert (await stream.failure()).status == "OUT_OF_RANGE"

    with server_process("--config", str(config), fake_model=True) as (process, address):
        asyncio.run(refuse(address))
        assert fetch(metrics_address(config), "/readyz") == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    records = [json.loads(line) for line in log.decode().splitlines()]
    assert any(record["event"].endswith(f"on http://{metrics_address(config)}") for record in records)
    (refused,) = (record for record in records if record["event"] == "refused")
    assert (refused["tenant"], refused["reason"], refused["count"]) == ("anonymous", "out_of_range", 1)
    assert refused["peer"] == "127.0.0.1"
    draining = "draining: all goes on for 0.0 s, then open streams have 0.0 s to finish; a second signal ends at once"
    assert [record["event"] for record in records][-2:] == [draining, "stopped"]


# The server of the tests, whose model is loaded when somebody opens the named pipe of the first argument.
SLOWLY_LOADED = """
import runpy, sys
from tests.support.fakes.target import FakeTarget

pipe = sys.argv.pop(1)
made = FakeTarget.__init__

def wait(self, *arguments):
    open(pipe).close()
    made(self, *arguments)

FakeTarget.__init__ = wait
runpy.run_module("tests.support.processes.fake_server", run_name="__main__", alter_sys=True)
"""


def test_a_server_says_at_once_what_it_loads_and_a_device_what_makes_it_wait(tmp_path: Path, tiny_pair: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = start_python("-c", SLOWLY_LOADED, str(pipe), "serve", "--pair", "tiny", "--listen", address)

    async def ask(connect_timeout_ms: float) -> str:
        settings = CloudSettings(address=address, connect_timeout_ms=connect_timeout_ms)
        async with EdgeClient(EdgeConfig(pair="tiny", cloud=settings)) as client:
            return (await client.capabilities()).model

    try:
        assert server.stderr is not None
        size = shown_bytes(load_manifest(tiny_pair / "cloud", role="cloud").total_bytes)
        while f"loading tiny-target ({size} of files, dtype auto)" not in server.stderr.readline().decode():
            assert server.poll() is None
        with pytest.raises(
            CloudUnavailable, match=r"loading its model; .* within 200 ms, raise cloud\.connect_timeout_ms"
        ):
            asyncio.run(ask(200.0))
        pipe.write_text("")
        assert asyncio.run(ask(PATIENCE_S * 1e3)) == "tiny-target"
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=PATIENCE_S)[0].decode() == f"chaperone-cloud: serving tiny on {address}\n"
    finally:
        server.kill()
        server.communicate()


def test_the_line_of_replicas_has_their_number(tiny_pair: Path) -> None:
    weights = Weights(tiny_pair / "cloud", load_manifest(tiny_pair / "cloud", role="cloud"))
    config = CloudConfig(engine="ray", dtype="int8", ray=RayConfig(replicas=3))
    assert weights.announced(config).endswith(" of files, dtype int8) into each of 3 replicas")


def test_a_taken_port_for_metrics_is_found_before_the_model_is_loaded(config: Path) -> None:
    host, _, port = metrics_address(config).rpartition(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        command = [sys.executable, "-m", "cloud_supervisor.cli", "serve", "--pair", "tiny", "--listen", "127.0.0.1:0"]
        ended = subprocess.run(
            [*command, "--config", str(config)],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert f"metrics: '{host}:{port}' cannot be bound (Address already in use)" in ended.stderr
    assert "computes in" not in ended.stderr
