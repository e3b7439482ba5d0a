"""A client on another event loop, on two loops at once, and after a fork of its process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client import EdgeClient, InvalidRequest
from tests.support.fakes.target import fake_target
from tests.support.processes.clients import config_for
from tests.support.processes.commands import start_python
from tests.support.processes.servers import serving_in_thread
from tests.support.waiting import PATIENCE_S

PROMPT = "the list of a number is"


@pytest.fixture(scope="module")
def address(tiny_pair: Path) -> Iterator[str]:
    with serving_in_thread(fake_target(tiny_pair), tiny_pair) as (_, address):
        yield address


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud", "edge"])
def test_one_client_serves_one_loop_after_another(address: str, mode: str) -> None:
    client = EdgeClient(config_for(address))
    texts = [asyncio.run(client.generate(PROMPT, max_new_tokens=6, mode=mode)) for _ in range(3)]
    if mode != "gated":  # its gate learns from each text, and its questions hold as many tokens as the time allows
        assert len({text.token_ids for text in texts}) == 1
    assert all(text.token_ids for text in texts)
    assert not any(text.unverified for text in texts)
    asyncio.run(client.aclose())


def test_a_loop_that_ended_during_a_generation_is_no_obstacle(address: str) -> None:
    client = EdgeClient(config_for(address))

    async def leave() -> None:
        writing = asyncio.create_task(client.generate(PROMPT, max_new_tokens=3000))
        await asyncio.wait([writing], timeout=0.05)

    asyncio.run(leave())
    assert asyncio.run(client.generate(PROMPT, max_new_tokens=6)).token_ids
    asyncio.run(client.aclose())


def test_a_second_loop_is_refused_while_the_first_runs(address: str) -> None:
    async def run() -> None:
        async with EdgeClient(config_for(address)) as client:
            await client.generate(PROMPT, max_new_tokens=1)
            refused: list[InvalidRequest] = []

            def elsewhere() -> None:
                try:
                    asyncio.run(client.generate(PROMPT, max_new_tokens=1))
                except InvalidRequest as error:
                    refused.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join, PATIENCE_S)
            assert "another event loop is using it" in refused[0].message
            assert (await client.generate(PROMPT, max_new_tokens=1)).token_ids, "the first continues"

    asyncio.run(run())


FORKING = """
import asyncio, os, sys
from edge_client import DeviceSettings, EdgeClient, EdgeConfig, InvalidRequest, SyncEdgeClient

config = EdgeConfig(pair="tiny", device=DeviceSettings(threads=1, allow_spinning=False))
sync = SyncEdgeClient(config)
client = EdgeClient(config)
sync.generate("hi", mode="edge", max_new_tokens=2)
stream = sync.stream("hi", mode="edge", max_new_tokens=9)
next(stream)
child = os.fork()
if child == 0:
    refused = 0
    for ask in (
        lambda: sync.generate("hi", mode="edge"),
        lambda: next(stream),
        lambda: asyncio.run(client.generate("hi", mode="edge")),
    ):
        try:
            ask()
        except InvalidRequest as error:
            refused += "made in another process" in error.message
    sync.close()
    asyncio.run(client.aclose())
    os._exit(10 + refused)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sync.generate("hi", mode="edge", max_new_tokens=2)
sync.close()
sys.exit(code)
"""


def test_a_forked_process_is_refused_and_the_parent_continues(tiny_pair: Path) -> None:
    process = start_python("-c", FORKING)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 13, errors.decode()
