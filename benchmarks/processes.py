"""Benchmarks, and a cloud server, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class ServerFailed(RuntimeError):
    """The server ended before it served; its log says why."""


def in_its_own_process(arguments: Sequence[str]) -> int:
    """Run `python -m benchmarks` with these arguments: benchmarks pin cores and load models, which none may inherit.

    Whatever interrupts the wait ends the process, and with it what it has started.
    """
    with subprocess.Popen([sys.executable, "-m", "benchmarks", *arguments]) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


@contextmanager
def cloud_server(
    pair: str,
    *,
    arguments: Sequence[str] = (),
    cores: Sequence[int] | None = None,
    log: Path | None = None,
    lenient_nats: float | None = None,
) -> Iterator[str]:
    """Start `chaperone-cloud serve` on a free port and yield its address; `cores` pins it to some cores.

    With `lenient_nats` it is `benchmarks.lenient_server` instead.
    """
    program = ["cloud_supervisor.cli", "--log-level", "warning", "serve"]
    if lenient_nats is not None:
        program = ["benchmarks.lenient_server", "--within-nats", str(lenient_nats)]
    command = [sys.executable, "-m", *program, "--pair", pair, "--listen", "127.0.0.1:0", *arguments]
    with (log or Path(os.devnull)).open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors if log else None,
            text=True,
            cwd=Path(__file__).parent.parent if lenient_nats is not None else None,  # where `benchmarks` is found
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
    try:
        yield _address(process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if " on " in line:
            return line.rsplit(" on ", 1)[1].strip()
    raise ServerFailed(f"the cloud ended with exit code {process.wait()}")
