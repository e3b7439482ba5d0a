"""Generations that end early, cancelled or timed out: at once, with one terminal event and no leftovers."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaperone_common.artefacts.manifest import load_manifest
from cloud_supervisor.server import Server
from edge_client import (
    Cancellation,
    Cancelled,
    ChaperoneError,
    CloudTimeout,
    Committed,
    EdgeClient,
    Event,
    Failed,
    Generation,
    GenerationTimeout,
    InvalidRequest,
    SyncEdgeClient,
)
from edge_client.config import CloudSettings
from edge_client.model.onnx_model import OnnxModel
from tests.support.fakes.target import Brake, FakeTarget, fake_target
from tests.support.processes.clients import config_for, ending_of
from tests.support.processes.commands import server_process, start_python
from tests.support.processes.servers import serving, serving_in_thread
from tests.support.waiting import PATIENCE_S, until, wait_until

PROMPT = "the list of a number is"
LONG: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 3000}
MODES = ("exact", "gated", "edge", "cloud")


def endless(pair: Path) -> FakeTarget:
    manifest = load_manifest(pair / "cloud", role="cloud")
    return FakeTarget(manifest.vocabulary_size, manifest.context_tokens, unwritten=manifest.eos_token_ids)


@asynccontextmanager
async def braked(pair: Path) -> AsyncIterator[tuple[EdgeClient, Brake]]:
    """Serve a cloud that blocks at its first verification."""
    brake = Brake()
    async with (
        serving(fake_target(pair, brake), pair) as (_, address),
        EdgeClient(config_for(address, risk=0.0)) as client,
    ):
        try:
            yield client, brake
        finally:
            brake.let_go.set()


@asynccontextmanager
async def at_work(pair: Path, *, risk: float = 0.12) -> AsyncIterator[tuple[EdgeClient, Server]]:
    """Serve a cloud that never ends a text."""
    async with (
        serving(endless(pair), pair) as (server, address),
        EdgeClient(config_for(address, risk=risk)) as client,
    ):
        yield client, server


def test_two_thousand_quick_cancellations_leave_nothing_running(tiny_pair: Path) -> None:
    """An editor cancels at each keystroke: 2,000 generations are cancelled within 5 ms of their start."""

    async def run() -> None:
        async with serving(endless(tiny_pair), tiny_pair) as (server, address):
            client = EdgeClient(config_for(address))
            await client.generate(PROMPT, max_new_tokens=8)

            async def cancel(count: int) -> int:
                for number in range(count):
                    task = asyncio.create_task(client.generate(**LONG, mode="exact"))
                    await asyncio.sleep(number % 50 / 10_000)
                    task.cancel()
                    await asyncio.wait([task])
                    assert task.cancelled()
                await until(lambda: server.cloud.supervisor.sessions == 0, "the sessions ended")
                await until(lambda: len(asyncio.all_tasks()) <= tasks, "no task is left")
                gc.collect()
                return psutil.Process().memory_info().rss

            tasks = len(asyncio.all_tasks())
            await cancel(200)  # allocates the objects that are allocated once
            before = len(gc.get_objects()), await cancel(200)
            after = await cancel(1_600)
            assert len(gc.get_objects()) - before[0] < 2_000, "about one object a generation"
            assert after - before[1] < 8 << 20, f"{(after - before[1]) >> 10} KiB more after 1,600 cancellations"
            began = time.monotonic()
            await client.aclose()
            assert time.monotonic() - began < 2.0

    asyncio.run(run())


class SlowLoading:
    """Loading of the device's model that waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.closed: list[OnnxModel] = []
        self.let_go = threading.Event()
        load, close = OnnxModel.load, OnnxModel.close

        def slowly(*args: Any, **settings: Any) -> OnnxModel:
            self.begun += 1
            assert self.let_go.wait(PATIENCE_S)
            return load(*args, **settings)

        def closing(model: OnnxModel) -> None:
            self.closed.append(model)
            close(model)

        monkeypatch.setattr(OnnxModel, "load", slowly)
        monkeypatch.setattr(OnnxModel, "close", closing)


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_model_is_loaded_once_even_if_generations_are_cancelled(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    loading = SlowLoading(monkeypatch)

    async def run() -> None:
        client = EdgeClient(config_for("127.0.0.1:1"))
        for _ in range(20):
            task = asyncio.create_task(client.generate(PROMPT, mode="edge"))
            await until(lambda: loading.begun > 0, "the model is being loaded")
            task.cancel()
            await asyncio.wait([task])
        last: Awaitable[object]
        last = client.generate(PROMPT, mode="edge", max_new_tokens=2) if goes_on else client.aclose()
        ending = asyncio.ensure_future(last)
        loading.let_go.set()
        await asyncio.wait_for(ending, PATIENCE_S)
        await client.aclose()

    asyncio.run(run())
    assert loading.begun == 1
    assert len(loading.closed) == 1, "the loaded model is released"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("early", [True, False])
def test_a_handle_ends_a_generation_from_another_thread(tiny_pair: Path, mode: str, early: bool) -> None:
    async def run() -> list[Event]:
        async with at_work(tiny_pair) as (client, server):
            handle = Cancellation()
            if early:
                handle.cancel()
            events: list[Event] = []
            async for event in client.stream(**LONG, mode=mode, cancellation=handle):
                events.append(event)
                if isinstance(event, Committed) and not handle.cancelled:
                    await asyncio.to_thread(handle.cancel)
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            return events

    events = asyncio.run(run())
    ending = ending_of(events)
    assert isinstance(ending, Failed)
    assert type(ending.error) is Cancelled
    final = tuple(event.token_id for event in events if isinstance(event, Committed))
    assert bool(final) is not early
    if early:
        assert ending.error.partial is None, "without a tokenized prompt there is nothing to resume"
    else:
        assert ending.error.partial is not None
        assert ending.error.partial.token_ids == final


@pytest.mark.parametrize("mode", MODES)
def test_a_generation_ends_at_its_time_limit(tiny_pair: Path, mode: str) -> None:
    async def run() -> Failed:
        async with at_work(tiny_pair) as (client, _):
            await client.generate(PROMPT, max_new_tokens=1, mode=mode)
            # A slow reader of events uses up the time as well; in `edge` the text itself would end at some point.
            events: list[Event] = []
            async for event in client.stream(**LONG, mode=mode, timeout=0.3):
                events.append(event)
                await asyncio.sleep(0.002)
            ending = ending_of(events)
            assert isinstance(ending, Failed)
            return ending

    ending = asyncio.run(run())
    assert isinstance(ending.error, GenerationTimeout)
    assert "timeout: the generation did not end within 0.3 s" in ending.error.message


@pytest.mark.parametrize("mode", ["exact", "cloud"])
@pytest.mark.parametrize("by", ["timeout", "handle"])
def test_a_generation_that_waits_for_a_stalled_cloud_ends_in_time(tiny_pair: Path, mode: str, by: str) -> None:
    async def run() -> ChaperoneError:
        async with braked(tiny_pair) as (client, brake):
            await client.generate(PROMPT, mode="edge", max_new_tokens=1)  # makes the objects that are made once
            await client.capabilities()
            handle = Cancellation()
            timeout = 3.0 if by == "timeout" else None
            asked = client.generate(**LONG, mode=mode, timeout=timeout, cancellation=handle)
            writing = asyncio.create_task(asked)
            await until(brake.reached.is_set, "the cloud reads")
            if by == "handle":
                handle.cancel()
            with pytest.raises(Cancelled) as caught:
                await asyncio.wait_for(writing, PATIENCE_S)
            return caught.value

    assert type(asyncio.run(run())) is (GenerationTimeout if by == "timeout" else Cancelled)


def test_the_time_limit_includes_connecting(tiny_pair: Path) -> None:
    async def run() -> Failed:
        async with EdgeClient(config_for("127.0.0.1:1", cloud=CloudSettings(connect_timeout_ms=60_000.0))) as client:
            ending = [event async for event in client.stream(PROMPT, timeout=0.2)][-1]
            assert isinstance(ending, Failed)
            return ending

    assert isinstance(asyncio.run(run()).error, GenerationTimeout)


def test_skipped_tokens_are_audited_after_an_early_end(tiny_pair: Path) -> None:
    async def run() -> tuple[int, int]:
        async with at_work(tiny_pair, risk=1.0) as (client, server):
            handle = Cancellation()
            skipped = 0
            async for event in client.stream(**LONG, mode="gated", cancellation=handle):
                skipped += isinstance(event, Committed)
                if skipped == 5:
                    handle.cancel()
            await until(lambda: server.cloud.supervisor.sessions == 0, "the stream ended")
            return skipped, server.cloud.supervisor.counters.cancelled

    skipped, cancelled = asyncio.run(run())
    assert skipped > 0
    assert cancelled == 0, "the stream ended with a Close, which carries the tokens that the cloud had not read"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "3", True, 1e12])
def test_an_invalid_time_limit_is_refused(tiny_pair: Path, timeout: Any) -> None:
    async def run() -> None:
        async with EdgeClient(config_for("127.0.0.1:1")) as client:
            await client.generate(PROMPT, mode="edge", timeout=timeout)

    with pytest.raises(InvalidRequest, match="timeout: "):
        asyncio.run(run())


@pytest.fixture(scope="module")
def address(tiny_pair: Path) -> Iterator[str]:
    with serving_in_thread(endless(tiny_pair), tiny_pair) as (_, address):
        yield address


def timeout_of(client: SyncEdgeClient) -> Generation:
    return client.generate(**LONG, timeout=0.3)


def handle_of(client: SyncEdgeClient) -> Generation:
    handle = Cancellation()
    timer = threading.Timer(0.2, handle.cancel)
    timer.start()
    try:
        return client.generate(**LONG, cancellation=handle)
    finally:
        timer.join()


@pytest.mark.parametrize(("ask", "error"), [(timeout_of, GenerationTimeout), (handle_of, Cancelled)])
def test_a_cancelled_or_timed_out_sync_generation_can_be_resumed(
    address: str, ask: Callable[[SyncEdgeClient], Generation], error: type[ChaperoneError]
) -> None:
    with SyncEdgeClient(config_for(address)) as client:
        client.generate(PROMPT, max_new_tokens=2)  # makes the objects that are made once
        with pytest.raises(error) as caught:
            ask(client)
        partial = caught.value.partial
        assert partial is not None
        count = len(partial.token_ids)
        assert 0 < count < 3000
        shorter = replace(partial, params=replace(partial.params, max_new_tokens=count + 5))
        rest = client.generate(shorter)
        whole = client.generate(PROMPT, max_new_tokens=count + 5)
        assert (*partial.token_ids, *rest.token_ids) == whole.token_ids
        assert partial.text + rest.text == whole.text


def test_deadlines_hold_when_the_cloud_is_stopped(tiny_pair: Path) -> None:
    cloud = CloudSettings(verification_deadline_ms=3_000.0, reconnect_timeout_ms=1_500.0)
    with server_process(fake_model=True) as (process, address):
        config = config_for(address, cloud=cloud)
        with SyncEdgeClient(config) as client:
            client.generate(PROMPT, max_new_tokens=2)
            os.kill(process.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                with pytest.raises(CloudTimeout):
                    client.generate(PROMPT, max_new_tokens=2)
                assert time.monotonic() - began < PATIENCE_S
            finally:
                os.kill(process.pid, signal.SIGCONT)


def faster(monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    """Divide time and patience of the keepalive by 20; gRPC's own patience with a ping is a minute."""
    waits = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    module, _, name = options.rpartition(".")
    kept = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(options, tuple((name, value // 20 if name in waits else value) for name, value in kept))


STOPPED_DEVICE = """
import sys
from edge_client import CloudSettings, DeviceSettings, EdgeConfig, SyncEdgeClient

device = DeviceSettings(threads=1, allow_spinning=False)
config = EdgeConfig(pair="tiny", cloud=CloudSettings(address=sys.argv[1]), device=device)
with SyncEdgeClient(config) as client:
    for event in client.stream("the list of a number is", max_new_tokens=3000):
        print("writing", flush=True)
"""


def test_a_stopped_device_is_noticed_after_the_keepalive(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faster(monkeypatch, "cloud_supervisor.server._OPTIONS")
    with serving_in_thread(endless(tiny_pair), tiny_pair) as (server, address):
        device = start_python("-c", STOPPED_DEVICE, address)
        try:
            assert device.stdout is not None
            assert device.stdout.readline() == b"writing\n"
            os.kill(device.pid, signal.SIGSTOP)
            wait_until(lambda: server.cloud.supervisor.sessions == 0, "the stream ended")
        finally:
            device.kill()
            device.communicate()


def test_a_stopped_cloud_is_noticed_after_the_keepalive(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faster(monkeypatch, "edge_client.link.grpc_link._OPTIONS")
    cloud = CloudSettings(reconnect_timeout_ms=0.0)
    with (
        server_process(fake_model=True) as (process, address),
        SyncEdgeClient(config_for(address, cloud=cloud)) as client,
    ):
        client.generate(PROMPT, max_new_tokens=2)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ChaperoneError, match="ping timeout|keepalive"):
                client.generate(PROMPT, max_new_tokens=2, timeout=PATIENCE_S)
        finally:
            os.kill(process.pid, signal.SIGCONT)
