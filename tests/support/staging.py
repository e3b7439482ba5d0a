"""What the integration tests set up: models that block, servers in threads and processes, and bounded waits."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.session import Event, Failed, Finished
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.model.ports import ForwardRequest, TargetModel
from cloud_supervisor.server import Server
from edge_client import EdgeClient, EdgeConfig
from edge_client.config import CloudSettings, DeviceSettings, GateSettings, PlannerSettings
from tests.support.fake_target import FakeTarget
from tests.support.loopback import serving

PATIENCE_S = 20.0  # of every bounded wait; reached only by a test that fails
T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition that another thread or process makes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:.0f} s"
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """`until` for tests without an event loop."""
    asyncio.run(until(condition, what))


def fake_target(pair: Path, before_forward: Callable[[Sequence[ForwardRequest]], None] | None = None) -> FakeTarget:
    """A large model in microseconds, with the pair's vocabulary; it agrees with the draft only by chance."""
    manifest = load_manifest(pair / "cloud", role="cloud")
    return FakeTarget(manifest.vocabulary_size, manifest.context_tokens, before_forward=before_forward)


class Brake:
    """Blocks the model's thread in the first reading of a kind, until it is let go."""

    def __init__(self, applies: Callable[[ForwardRequest], bool] = lambda request: request.num_choices > 0) -> None:
        self._applies = applies
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, readings: Sequence[ForwardRequest]) -> None:
        if any(self._applies(reading) for reading in readings):
            self.reached.set()
            assert self.let_go.wait(PATIENCE_S), "nobody let the brake go"


def config_for(
    address: str,
    *,
    planner: PlannerSettings | None = None,
    risk: float = 0.12,
    closing_audit: bool = False,
    cloud: CloudSettings | None = None,
) -> EdgeConfig:
    """The tiny pair on one thread."""
    return EdgeConfig(
        pair="tiny",
        closing_audit=closing_audit,
        cloud=(cloud or CloudSettings()).model_copy(update={"address": address}),
        device=DeviceSettings(threads=1, allow_spinning=False),
        gate=GateSettings(policy="threshold", risk=risk),
        planner=planner or PlannerSettings(),
    )


def ending_of(events: Sequence[Event]) -> Finished | Failed:
    """The last event, after checking that it is the only terminal one."""
    terminal = [event for event in events if isinstance(event, Finished | Failed)]
    assert len(terminal) == 1, f"{len(terminal)} terminal events"
    assert events[-1] is terminal[0], "the terminal event is not the last one"
    return terminal[0]


@contextmanager
def serving_in_thread(
    model: TargetModel, pair: Path, config: CloudConfig | None = None
) -> Iterator[tuple[Server, str]]:
    """`serving` for tests that own no event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-server")
    thread.start()
    manager = serving(model, pair, config)
    try:
        started = asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop).result(PATIENCE_S)
        try:
            yield started
        finally:
            asyncio.run_coroutine_threadsafe(manager.__aexit__(None, None, None), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@asynccontextmanager
async def both_ends(target: TargetModel, pair: Path, **settings: Any) -> AsyncIterator[tuple[EdgeClient, Server]]:
    async with serving(target, pair) as (server, address), EdgeClient(config_for(address, **settings)) as client:
        yield client, server


def run(
    target: TargetModel, pair: Path, scene: Callable[[EdgeClient, Server], Coroutine[Any, Any, T]], **settings: Any
) -> T:
    async def play() -> T:
        async with both_ends(target, pair, **settings) as (client, server):
            return await scene(client, server)

    return asyncio.run(play())


def environment(**extra: str) -> dict[str, str]:
    """For a child process: this checkout, this CHAPERONE_HOME, no colours asked for."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "common")]), **extra}


def start_client(*arguments: str, **extra: str) -> subprocess.Popen[bytes]:
    """`chaperone generate --pair tiny ...` as a process of its own, with pipes."""
    return start_python("-m", "edge_client.apps.cli.main", "generate", "--pair", "tiny", *arguments, **extra)


def on_a_terminal(*arguments: str, **extra: str) -> tuple[int, str]:
    """Run `chaperone` with all streams on one pseudo-terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "edge_client.apps.cli.main", *arguments]
    terminal = {"TERM": "xterm", **extra}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**terminal), cwd=ROOT
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 4096):
            output += chunk
    except OSError:  # this is how a pseudo-terminal reports that its other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(PATIENCE_S), output.decode().replace("\r\n", "\n")


def start_python(*arguments: str, **extra: str) -> subprocess.Popen[bytes]:
    """Another interpreter on this checkout, with pipes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**extra),
        cwd=ROOT,
    )


@contextmanager
def server_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`chaperone-cloud serve --pair tiny ...` on a free port; yields the process and its address."""
    command = [
        *(sys.executable, "-m", "cloud_supervisor.cli", "serve", "--pair", "tiny", "--dtype", "float32"),
        *("--threads", "1", "--listen", "127.0.0.1:0", *arguments),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=ROOT)
    alarm = threading.Timer(60.0, process.kill)  # a server that never comes up ends the read below
    alarm.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        alarm.cancel()
        assert line.startswith("chaperone-cloud: serving tiny on 127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        alarm.cancel()
        process.kill()
        process.communicate()
