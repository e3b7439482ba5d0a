"""Clients closed during a stream, and other early ends: one terminal event soon, and no leftovers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.errors import Cancelled, ChaperoneError, InvalidRequest
from chaperone_common.session import Drafted, Failed, Finished
from edge_client import EdgeClient, PromptInput, SyncEdgeClient
from edge_client.events import Event
from tests.support.fakes.target import Brake, fake_target
from tests.support.processes.clients import config_for
from tests.support.processes.servers import serving
from tests.support.waiting import PATIENCE_S, until

LONG: dict[str, Any] = {"prompt": "the list", "max_new_tokens": 3000}


@pytest.mark.parametrize("mode", ["exact", "gated", "edge", "cloud"])
def test_closing_a_client_ends_its_streams(tiny_pair: Path, mode: str) -> None:
    async def run() -> list[Event]:
        async with serving(fake_target(tiny_pair), tiny_pair) as (server, address):
            client = EdgeClient(config_for(address))
            events: list[Event] = []
            begun = asyncio.Event()

            async def watch() -> None:
                async for event in client.stream(**LONG, mode=mode):
                    events.append(event)
                    begun.set()

            watching = asyncio.create_task(watch())
            await begun.wait()
            await asyncio.wait_for(client.aclose(), PATIENCE_S)
            await asyncio.wait_for(watching, PATIENCE_S)
            await until(lambda: server.cloud.supervisor.sessions == 0, "the session ended")
            return events

    events = asyncio.run(run())
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, Cancelled)
    assert sum(isinstance(event, Finished | Failed) for event in events) == 1


def test_closing_ends_a_stream_that_waits_for_the_cloud(tiny_pair: Path) -> None:
    brake = Brake()

    async def run() -> Event:
        async with serving(fake_target(tiny_pair, brake), tiny_pair) as (_, address):
            client = EdgeClient(config_for(address))
            stream = client.stream(**LONG, mode="cloud")
            waiting = asyncio.ensure_future(anext(stream))
            await until(brake.reached.is_set, "the cloud reads")
            await client.aclose()
            event = await asyncio.wait_for(waiting, PATIENCE_S)
            brake.let_go.set()
            return event

    event = asyncio.run(run())
    assert isinstance(event, Failed)
    assert isinstance(event.error, Cancelled)


def test_a_closed_sync_client_reports_its_close(tiny_pair: Path) -> None:
    with SyncEdgeClient(config_for("127.0.0.1:1")) as client:
        stream = client.stream(**LONG, mode="edge")
        assert isinstance(next(stream), Drafted)
    with pytest.raises(InvalidRequest, match="closed"):
        next(stream)
    with pytest.raises(InvalidRequest, match="closed"):
        client.generate(**LONG, mode="edge")
    client.close()


def test_http_proxy_variables_are_ignored(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def run() -> int:
        async with (
            serving(fake_target(tiny_pair), tiny_pair) as (_, address),
            EdgeClient(config_for(address)) as client,
        ):
            return len((await client.generate("the list", mode="cloud", max_new_tokens=4)).token_ids)

    assert asyncio.run(run()) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"committed_token_ids": (0,)}, "end-of-text"),
        (
            {"committed_token_ids": (5, 6, 7, 8)},
            "max_new_tokens: 4 counts the whole text, of which 4 tokens are final; give more",
        ),
        ({"committed_token_ids": (-1,)}, "committed_token_ids: -1"),
        ({"committed_token_ids": ("a",)}, "committed_token_ids: 'a'"),
        ({"prompt": PromptInput((2**40,))}, "prompt: 1099511627776"),
    ],
)
def test_impossible_resumes_are_refused(tiny_pair: Path, changes: dict[str, Any], words: str) -> None:
    async def run() -> None:
        async with EdgeClient(config_for("127.0.0.1:1")) as client:
            request: dict[str, Any] = {"prompt": "the list", "mode": "edge", "max_new_tokens": 4, **changes}
            await client.generate(**request)

    with pytest.raises(InvalidRequest, match=words):
        asyncio.run(run())


def test_catch_is_unknown_while_skipped_tokens_are_unread(tiny_pair: Path) -> None:
    async def run(*, closing_audit: bool) -> tuple[int, int, float | None]:
        async with serving(fake_target(tiny_pair), tiny_pair) as (_, address):
            config = config_for(address, closing_audit=closing_audit, risk=0.6)
            async with EdgeClient(config) as client:
                stats = (await client.generate("the list", mode="gated", max_new_tokens=40, seed=2)).stats
                return stats.skipped_tokens, stats.audited_tokens, stats.catch

    skipped, audited, catch = asyncio.run(run(closing_audit=True))
    assert skipped == audited
    assert catch is not None
    skipped, audited, catch = asyncio.run(run(closing_audit=False))
    assert (catch is None) == (audited < skipped)


def test_calls_of_a_sync_client_during_its_end_are_refused(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = SyncEdgeClient(config_for("127.0.0.1:1"))
    refused: list[ChaperoneError] = []

    def ask() -> None:
        try:
            client.generate("the list", mode="edge")
        except (Cancelled, InvalidRequest) as error:
            refused.append(error)

    asking = threading.Thread(target=ask, daemon=True)

    async def ask_at_shutdown() -> None:
        asking.start()
        await asyncio.sleep(0.1)

    monkeypatch.setattr(client._loop, "shutdown_asyncgens", ask_at_shutdown)  # all tasks have been cancelled by then
    client.close()
    asking.join(PATIENCE_S)
    assert not asking.is_alive()
    assert len(refused) == 1


def test_threads_may_close_a_sync_client_while_another_streams(tiny_pair: Path) -> None:
    client = SyncEdgeClient(config_for("127.0.0.1:1"))
    begun = threading.Event()
    received: list[Event] = []
    refused: list[ChaperoneError] = []

    def stream() -> None:
        try:
            for event in client.stream(**LONG, mode="edge"):
                received.append(event)
                begun.set()
        except (Cancelled, InvalidRequest) as error:
            refused.append(error)

    threads = [threading.Thread(target=stream, daemon=True)]
    threads[0].start()
    assert begun.wait(PATIENCE_S)
    threads += [threading.Thread(target=client.close, daemon=True) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    ends = [event for event in received if isinstance(event, Finished | Failed)]
    assert len(ends) + len(refused) == 1
    with pytest.raises(InvalidRequest, match="it is closed"):
        client.generate("the list", mode="edge")
