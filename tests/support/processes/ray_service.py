"""`chaperone-cloud serve --engine ray` as a process, and the replicas that it starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

from benchmarks.load.replicas import Replicas
from tests.support.processes.commands import ROOT, announced, environment

_START_S = 240.0  # Ray starts a dozen processes, and each replica imports torch
_STOP_S = 60.0
_POLL_S = 0.05

T = TypeVar("T")


class RayService:
    """A running service."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, replicas: Replicas) -> None:
        self.address = address
        self.replicas = replicas
        self._process = process

    def stop(self) -> int:
        """Drain, and return the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_STOP_S)


@contextmanager
def ray_service(folder: Path, *arguments: str) -> Iterator[RayService]:
    """Serve the tiny pair on two replicas and a free port. Whatever was started ends with the block."""
    log, out = folder / "ray.log", folder / "ray.out"
    command = [
        *(sys.executable, "-m", "cloud_supervisor.cli", "serve", "--engine", "ray", "--replicas", "2"),
        *("--pair", "tiny", "--dtype", "float32", "--threads", "1", "--listen", "127.0.0.1:0"),
        *("--metrics", "127.0.0.1:0", *arguments),
    ]
    with log.open("wb") as errors, out.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment(), cwd=ROOT
        )
    replicas, started = Replicas(process.pid, log), dict[int, psutil.Process]()
    try:
        _await(lambda: process.poll() is not None or out.read_text().count("\n") == 1, "the service starts")
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        with out.open("rb") as written:
            address = announced(written)
        _await(lambda: len(replicas.by_address()) == 2, "both replicas have metrics")
        started = {each.pid: each for each in replicas.all_processes()}
        yield RayService(process, address, replicas)
    finally:
        if process.poll() is None:
            started.update({each.pid: each for each in replicas.all_processes()})
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
        for each in started.values():
            with suppress(psutil.Error):  # it has ended; psutil compares the times of their starts
                each.kill()
        process.kill()
        process.wait()


def _await(found: Callable[[], T], what: str) -> T:
    """Poll until something is found."""
    deadline = time.monotonic() + _START_S
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {_START_S:.0f} s"
        time.sleep(_POLL_S)
    return value
