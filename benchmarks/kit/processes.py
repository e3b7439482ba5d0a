"""Benchmarks and cloud servers as separate processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple, Never

ROOT = Path(__file__).parents[2]
SERVE = ("cloud_supervisor.cli", "--log-level", "warning", "serve")
PATIENCE_S = 30.0  # wait after SIGTERM before SIGKILL


class ServerFailed(RuntimeError):
    """The server ended before it served; its log has the reason."""


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that child processes are ended, too."""
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unwind(number: int, _: object) -> Never:
    signal.signal(number, signal.SIG_IGN)  # do not interrupt the clean-up
    sys.exit(128 + number)


def in_its_own_process(arguments: Sequence[str]) -> int:
    """Run `python -m benchmarks` with these arguments and return the exit code.

    Benchmarks pin cores and load models, and no other benchmark may inherit them. SIGTERM ends the process and its
    children; Ctrl-C reaches them directly.
    """
    with unwound_by_sigterm(), subprocess.Popen([sys.executable, "-m", "benchmarks", *arguments]) as process:
        try:
            return process.wait()
        except SystemExit:
            _end(process)
            raise


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def worker_pool(processes: int | None) -> ProcessPoolExecutor:
    """Return a pool of `processes` workers, by default one per core, which end with this process in any case."""
    return ProcessPoolExecutor(processes, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """End this worker with its parent; otherwise it would wait for jobs for ever after the parent was killed."""
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class CloudProcess(NamedTuple):
    """A running cloud server."""

    address: str
    pid: int


@contextmanager
def cloud_server(
    pair: str,
    *,
    arguments: Sequence[str] = (),
    cores: Sequence[int] | None = None,
    log: Path | None = None,
    program: Sequence[str] = SERVE,
) -> Iterator[CloudProcess]:
    """Start a cloud server on a free port and yield it; end it afterwards.

    `cores` pins it to some cores. `program` is a module with its first arguments: another server than
    `chaperone-cloud serve`, with the same options and the same line of output.
    """
    command = [sys.executable, "-m", *program, "--pair", pair, "--listen", "127.0.0.1:0", *arguments]
    with (log or Path(os.devnull)).open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors if log else None,
            text=True,
            cwd=ROOT if program is not SERVE else None,  # the folder that holds `benchmarks`
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
    with unwound_by_sigterm():
        try:
            yield CloudProcess(_address(process), process.pid)
        finally:
            _end(process)
            assert process.stdout is not None
            process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if " on " in line:
            return line.rsplit(" on ", 1)[1].strip()
    raise ServerFailed(f"the cloud ended with exit code {process.wait()}")
